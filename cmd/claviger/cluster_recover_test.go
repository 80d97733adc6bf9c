package main

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
)

// An operator signs an epoch once, and never a lower one, and never for a node policy below one that was seen; the memory is
// per cluster, outlives the process, and is not ignored when it is broken.
func TestEpochMemory(t *testing.T) {
	t.Parallel()
	s := &cli.Streams{}
	key := filepath.Join(t.TempDir(), "alice.key")
	one, other := api.ID{1}, api.ID{2}
	first, second := api.ID{31}, api.ID{32}
	signed := rememberedEpoch{ClusterID: one, Epoch: 3, Statement: api.ID{7}, NodePolicy: 2, Enclave: first}
	m, err := readMemory(s, key)
	if err != nil || m.allow(signed, 1, nil) != nil {
		t.Fatalf("a fresh key: %v", err)
	}
	if err := m.remember(key, signed); err != nil {
		t.Fatal(err)
	}
	if m, err = readMemory(s, key); err != nil || len(m.Clusters) != 1 {
		t.Fatalf("%+v, %v", m, err)
	}
	for name, c := range map[string]struct {
		r      rememberedEpoch
		source uint64 // epoch that is continued
		ended  string
		ok     bool
	}{
		"the same statement again":     {signed, 1, "", true},
		"the next epoch":               {rememberedEpoch{one, 4, api.ID{8}, 2, first}, 1, "", true},
		"another cluster":              {rememberedEpoch{other, 1, api.ID{8}, 1, second}, 1, "", true},
		"the epoch again":              {rememberedEpoch{one, 3, api.ID{8}, 2, first}, 1, "", false},
		"an epoch below":               {rememberedEpoch{one, 2, api.ID{8}, 2, first}, 1, "", false},
		"a node policy that is behind": {rememberedEpoch{one, 4, api.ID{8}, 1, first}, 1, "", false},

		"another enclave":                             {rememberedEpoch{one, 4, api.ID{8}, 2, second}, 2, "", false},
		"another enclave, and the first has ended":    {rememberedEpoch{one, 4, api.ID{8}, 2, second}, 2, first.String()[:16], true},
		"another enclave, and another one has ended":  {rememberedEpoch{one, 4, api.ID{8}, 2, second}, 2, second.String(), false},
		"another enclave, and too few digits":         {rememberedEpoch{one, 4, api.ID{8}, 2, second}, 2, first.String()[:15], false},
		"another enclave, from what the first opened": {rememberedEpoch{one, 4, api.ID{8}, 2, second}, 3, "", true},
	} {
		var ended []string
		if c.ended != "" {
			ended = []string{c.ended}
		}
		if err := m.allow(c.r, c.source, ended); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := m.remember(key, rememberedEpoch{other, 1, api.ID{8}, 1, second}); err != nil {
		t.Fatal(err)
	}
	if m, err = readMemory(s, key); err != nil || len(m.Clusters) != 2 {
		t.Fatalf("%+v, %v", m, err)
	}
	if err := os.WriteFile(memoryFile(key), []byte(`{"clusters":[`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := readMemory(s, key); err == nil || !strings.Contains(err.Error(), "restore it") {
		t.Errorf("a broken memory: %v", err)
	}
	if err := os.Remove(memoryFile(key)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(memoryFile(key), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := readMemory(s, key); err == nil {
		t.Error("an unreadable memory counts as none")
	}
}

// What a recovery costs is accepted in words, and nothing else is: neither flag stands for the other, and none is taken on stock.
func TestAcceptedLosses(t *testing.T) {
	t.Parallel()
	whole, behind := &node.ArchiveReport{}, &node.ArchiveReport{Leaves: "the history of server 01 is not the newest"}
	for name, c := range map[string]struct {
		fate             string
		source           *node.ArchiveReport
		servers, entries bool
		say              string // empty: accepted
	}{
		"nothing lost":                     {api.FateDestroyed, whole, false, false, ""},
		"a lost server":                    {api.FateLost, whole, false, false, "--accept-lost-servers"},
		"a lost server, accepted":          {api.FateLost, whole, true, false, ""},
		"a lost server, the other words":   {api.FateLost, whole, false, true, "--accept-lost-servers"},
		"lost entries":                     {api.FateDestroyed, behind, false, false, "--accept-lost-entries"},
		"lost entries, accepted":           {api.FateDestroyed, behind, false, true, ""},
		"lost entries, the other words":    {api.FateLost, behind, true, false, "--accept-lost-entries"},
		"both":                             {api.FateLost, behind, true, true, ""},
		"no server is lost, and the words": {api.FateStopped, whole, true, false, "of no server that it is lost"},
		"no entry is lost, and the words":  {api.FateStopped, whole, false, true, "leaves nothing behind"},
		"one of them, and both words":      {api.FateLost, whole, true, true, "leaves nothing behind"},
	} {
		f := recoverApproveFlags{acceptServers: c.servers, acceptEntries: c.entries}
		err := f.checkAccepted([]api.OldServer{{Slot: "a", Fate: api.FateDestroyed}, {Slot: "b", Fate: c.fate}}, c.source)
		if (err == nil) != (c.say == "") || err != nil && !strings.Contains(err.Error(), c.say) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Files that are not what they should be, and flags that say nothing.
func TestRecoverUsage(t *testing.T) {
	t.Parallel()
	c := newCeremony(t)
	c.write("junk.json", map[string]int{"x": 1})
	for _, args := range [][]string{
		{"cluster", "recover", "return"},
		{"cluster", "recover", "inspect"},
		{"cluster", "recover", "approve"},
		{"cluster", "recover", "return", "--request", c.path("none.json")},
		{"cluster", "recover", "approve", "--report", c.path("junk.json")},
		{"cluster", "recover", "inspect", "--report", c.path("none.json")},
	} {
		c.claviger(2, args...)
	}
	for _, args := range [][]string{
		{"cluster", "recover", "return", "--request", c.path("junk.json")},
		{"cluster", "recover", "inspect", "--report", c.path("junk.json")},
		{"cluster", "recover", "approve", "--report", c.path("junk.json"), "--cluster-id", strings.Repeat("ab", 32)},
	} {
		_, errs := c.claviger(1, args...)
		c.wants(errs, "is not what was expected")
	}
	f := recoverFlags{constraints: []string{"not a constraint"}}
	if _, err := f.nodePolicy(); err == nil {
		t.Error("any text governs nodes")
	} else if _, usage := errors.AsType[*cli.UsageError](err); !usage {
		t.Errorf("%v", err)
	}
}

// Who goes on from an older epoch accounts for its servers too, also for those whose slot a boot of the later epoch has taken,
// and who goes on from the later one for nobody else: a name of a slot means one server then.
func TestFatesOfAnOlderEpoch(t *testing.T) {
	t.Parallel()
	r := &node.RecoveryReport{Newest: api.ID{3}, Archives: []node.ArchiveReport{{Slot: "a", ServerID: api.ID{1}, Epoch: 1}, {Slot: "a", ServerID: api.ID{3}, Epoch: 2}},
		Servers: []node.ReportedServer{{Slot: "a", ServerID: api.ID{1}, Epoch: 1}, {Slot: "b", ServerID: api.ID{2}, Epoch: 2}, {Slot: "a", ServerID: api.ID{3}, Epoch: 2}}}
	for epoch, want := range map[uint64]int{1: 3, 2: 2} {
		f := recoverApproveFlags{destroyed: []string{everyServer}}
		if list, err := f.fates(node.AccountFor(r.Servers, epoch)); err != nil || len(list) != want {
			t.Errorf("from epoch %d: %+v, %v", epoch, list, err)
		}
	}
	f := recoverApproveFlags{destroyed: []string{"a", "b"}}
	if list, err := f.fates(node.AccountFor(r.Servers, 2)); err != nil || list[1].ServerID != r.Newest {
		t.Errorf("slot a, of epoch 2: %+v, %v", list, err)
	}
	if _, err := f.fates(node.AccountFor(r.Servers, 1)); err == nil || !strings.Contains(err.Error(), "2 servers of the report are called") {
		t.Errorf("slot a, from epoch 1: %v", err)
	}
	var out bytes.Buffer
	(&recoveryView{RecoveryReport: r}).writeServers(&out)
	newer, older, parts := strings.Cut(out.String(), "if you choose a --source of epoch 1 or below:")
	if !parts || !strings.Contains(newer, api.ID{2}.String()) || !strings.Contains(newer, r.Newest.String()) || !strings.Contains(older, api.ID{1}.String()) {
		t.Errorf("inspect shows\n%s", out.String())
	}
}
