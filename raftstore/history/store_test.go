package history_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/history"
)

// What a store acknowledged comes back from its archive: the entries, the
// running hash, the term, the vote and the configuration; from a whole archive
// and from one that was trimmed behind snapshots.
func TestReplayOfAStore(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.found(1)[0]
	check := func(what string, trimmed bool) {
		t.Helper()
		index, chain := n.store.Chain()
		h := w.inspect(n.dir, n.id)
		if h.Torn != nil || (h.Begin > 1) != trimmed || (h.Snapshot != nil) != trimmed || h.Term != n.store.Term() {
			t.Fatalf("%s: begin %d, term %d, torn %v", what, h.Begin, h.Term, h.Torn)
		}
		if want := n.id.String() + "@host:1"; h.Vote != want || h.VoteTerm == 0 {
			t.Errorf("%s: vote %q in term %d", what, h.Vote, h.VoteTerm)
		}
		servers, _, err := h.Servers()
		if err != nil || len(servers) != 1 || servers[0] != (raftstore.Member{ID: n.id, Address: "host:1", Voter: true}) {
			t.Errorf("%s: servers %v, %v", what, servers, err)
		}
		m := &list{}
		got, err := h.Replay(m)
		if err != nil || got.Applied != index || got.Chain != chain || got.Term != h.Term {
			t.Fatalf("%s: %+v, %v; the store is at %d, %x", what, got, err, index, chain)
		}
		if !slices.Equal(m.all(), n.machine.all()) {
			t.Fatalf("%s: %d entries of %d", what, len(m.all()), len(n.machine.all()))
		}
		memory, err := history.Collect(told(n.store.Export(), nil), h.Chain)
		if err != nil {
			t.Fatalf("%s, from memory: %v", what, err)
		}
		if again, err := memory.Replay(&list{}); err != nil || again != got {
			t.Errorf("%s, from memory: %+v, %v", what, again, err)
		}
		if p := history.Compare([]*history.History{h, memory}).Pairs[0]; p.Relation != history.Equal || p.Part != 0 {
			t.Errorf("%s: memory and archive: %+v", what, p)
		}
	}
	for i := range 60 {
		w.propose([]*node{n}, fmt.Sprintf("entry %d", i))
	}
	check("whole", false)
	for i := range 3 {
		if err := n.store.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("compacted", true)
		for j := range 25 {
			w.propose([]*node{n}, fmt.Sprintf("entry %d %d", i, j))
		}
	}
	w.stop(n)
	check("stopped", true)
}

// told yields records, and then an error if there is one.
func told(list []raftstore.Record, err error) iter.Seq2[raftstore.Record, error] {
	return func(yield func(raftstore.Record, error) bool) {
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
		if err != nil {
			yield(raftstore.Record{}, err)
		}
	}
}

// What a server tells over a channel is whole, or it is nothing.
func TestCollectWantsAllOfIt(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.found(1)[0]
	w.propose([]*node{n}, "one")
	if err := n.store.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.propose([]*node{n}, "two")
	all, chain := n.store.Export(), raftstore.Chain{Epoch: 1, Server: n.id}
	cut := errors.New("cut")
	for name, c := range map[string]struct {
		records []raftstore.Record
		err     error
		want    error
	}{
		"a channel that was cut":  {all, cut, cut},
		"a snapshot that was cut": {all[:len(all)-1], nil, history.ErrRecords},
		"a gap":                   {append(slices.Clone(all[:1]), all[2:]...), nil, history.ErrRecords},
		"nothing":                 {nil, nil, history.ErrIncomplete},
	} {
		if h, err := history.Collect(told(c.records, c.err), chain); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, %+v", name, err, h)
		}
	}
}

// Five servers die; one's disk is of yesterday, one was cut off as leader and
// went on by itself. Inspect, compare and replay say which is which.
func TestCompareOfAStoppedCluster(t *testing.T) {
	t.Parallel()
	for range 5 { // on a busy machine the leader may lose its office before it is cut off
		if compareStopped(t) {
			return
		}
	}
	t.Fatal("no leader took entries while it was cut off")
}

func compareStopped(t *testing.T) bool {
	w := newWorld(t)
	all := w.found(1, 2, 3, 4, 5)
	for i := range 20 {
		w.propose(all, fmt.Sprintf("first %d", i))
	}
	w.settle(all)
	leader := w.propose(all, "the last that all of them hold")
	w.settle(all)
	index := slices.Index(all, leader)
	lagging := all[(index+1)%5]
	yesterday := w.copyDisk(lagging)

	// The leader is cut off and takes entries that nobody else ever sees.
	w.isolate(leader)
	for range 3 {
		go leader.store.Propose(t.Context(), []byte("never acknowledged"))
	}
	if !w.holds(leader, "never acknowledged") {
		w.stop(all...)
		return false
	}
	rest := slices.DeleteFunc(slices.Clone(all), func(n *node) bool { return n == leader })
	for i := range 20 {
		w.propose(rest, fmt.Sprintf("second %d", i))
	}
	w.settle(rest)
	w.stop(all...)

	var list []*history.History
	for _, n := range all {
		dir := n.dir
		if n == lagging {
			dir = yesterday
		}
		list = append(list, w.inspect(dir, n.id))
	}
	c := history.Compare(list)
	if len(c.Pairs) != 10 {
		t.Fatalf("%+v", c)
	}
	newest := all[c.Newest]
	if newest == leader || newest == lagging {
		t.Fatalf("the newest is %v", newest.id)
	}
	old, late := slices.Index(all, leader), slices.Index(all, lagging)
	counts := map[history.Relation]int{}
	for _, p := range c.Pairs {
		counts[p.Relation]++
		switch {
		case p.Older == old && p.Newer != late:
			if p.Relation != history.Diverged && !(p.Relation == history.Behind && len(list[old].Entries) == int(p.Agree)) {
				t.Errorf("the old leader: %+v", p)
			}
		case p.Older == late:
			if p.Relation != history.Behind || p.Agree == 0 || p.Part != 0 {
				t.Errorf("yesterday's disk: %+v", p)
			}
		case p.Older != old && p.Newer != old && p.Older != late && p.Newer != late:
			if p.Relation != history.Equal && p.Relation != history.Behind {
				t.Errorf("two that went on: %+v", p)
			}
		}
	}
	if counts[history.Forked]+counts[history.Unknown]+counts[history.Unrelated] > 0 || counts[history.Diverged] == 0 {
		t.Errorf("%v", counts)
	}
	m := newMachine()
	if _, err := list[c.Newest].Replay(m); err != nil {
		t.Fatal(err)
	}
	got := m.all()
	for i := range 20 {
		if !slices.Contains(got, fmt.Sprint("first ", i)) || !slices.Contains(got, fmt.Sprint("second ", i)) {
			t.Errorf("%d is missing", i)
		}
	}
	if got[len(got)-1] != "second 19" || slices.Contains(got, "never acknowledged") {
		t.Errorf("%d entries, %q", len(got), got[len(got)-1])
	}
	t.Logf("%v", counts)
	return true
}

func newMachine() *list { return &list{} }

// A follower that got a snapshot from its leader is replayed like the others.
func TestInstalledSnapshot(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.found(1)[0]
	for i := range 40 {
		w.propose([]*node{first}, fmt.Sprintf("entry %d", i))
	}
	if err := first.store.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	second := w.start(2)
	w.retry(func() error {
		_, index := first.store.Members()
		_, err := first.store.AddNonvoter(t.Context(), second.id, "host:1", index)
		return err
	})
	w.propose([]*node{first}, "after")
	w.settle([]*node{first, second})
	w.stop(first, second)
	list := []*history.History{w.inspect(first.dir, first.id), w.inspect(second.dir, second.id)}
	if list[1].Snapshot == nil {
		t.Fatal("the follower got no snapshot")
	}
	for i, h := range list {
		m := newMachine()
		if _, err := h.Replay(m); err != nil || len(m.all()) != 41 || m.all()[40] != "after" {
			t.Errorf("server %d: %d entries, %v", i+1, len(m.all()), err)
		}
	}
	if c := history.Compare(list); c.Pairs[0].Relation != history.Equal && c.Pairs[0].Relation != history.Behind {
		t.Errorf("%+v", c.Pairs)
	}
	servers, _, err := list[1].Servers()
	if err != nil || len(servers) != 2 || servers[1].Voter {
		t.Errorf("%v, %v", servers, err)
	}
}

// The host does to an archive what it can. What opens is an honest beginning,
// and where it is not cut between two records, Inspect says that it is torn.
func TestArchiveAttacks(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.found(1)[0]
	for i := range 30 {
		w.propose([]*node{n}, fmt.Sprintf("entry %d", i))
	}
	early := records(t, n.dir)
	if err := n.store.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		w.propose([]*node{n}, fmt.Sprintf("late %d", i))
	}
	w.stop(n)
	late := records(t, n.dir) // begins at a checkpoint
	want := n.machine.all()
	other := newWorld(t)
	other.key = w.key
	stranger := other.found(2)[0]
	for i := range 30 {
		other.propose([]*node{stranger}, fmt.Sprintf("entry %d", i))
	}
	other.stop(stranger)
	foreign := records(t, stranger.dir)

	// Cut between records: an honest prefix of the state, or not enough of it, and never an error that is silent.
	whole, incomplete := 0, 0
	for _, archive := range [][][]byte{early, late} {
		for i := 1; i <= len(archive); i++ {
			h, err := history.Inspect(seq(archive[:i]), w.key, chainOf(n.id))
			if err != nil || h.Torn != nil || h.Sequence != h.Begin+uint64(i)-1 {
				t.Fatalf("cut after %d: %v", i, err)
			}
			m := newMachine()
			switch _, err := h.Replay(m); {
			case errors.Is(err, history.ErrIncomplete):
				incomplete++
			case err != nil:
				t.Fatalf("cut after %d: %v", i, err)
			default:
				whole++
				if got := m.all(); !slices.Equal(got, want[:len(got)]) {
					t.Fatalf("cut after %d: not a prefix", i)
				}
			}
		}
	}
	if whole < 40 || incomplete == 0 {
		t.Errorf("%d cuts were replayed, %d were not complete", whole, incomplete)
	}

	spoil := func(archive [][]byte, f func([][]byte) [][]byte) [][]byte {
		var c [][]byte
		for _, r := range archive {
			c = append(c, bytes.Clone(r))
		}
		return f(c)
	}
	cases := map[string]struct {
		records [][]byte
		opened  int // records that open
	}{
		"a flipped bit":     {spoil(early, func(a [][]byte) [][]byte { a[9][40] ^= 1; return a }), 9},
		"two swapped":       {spoil(early, func(a [][]byte) [][]byte { a[9], a[10] = a[10], a[9]; return a }), 9},
		"one left out":      {spoil(early, func(a [][]byte) [][]byte { return slices.Delete(a, 9, 10) }), 9},
		"one twice":         {spoil(early, func(a [][]byte) [][]byte { return slices.Insert(a, 9, a[8]) }), 9},
		"one truncated":     {spoil(early, func(a [][]byte) [][]byte { a[9] = a[9][:20]; return a }), 9},
		"an empty one":      {spoil(early, func(a [][]byte) [][]byte { a[9] = nil; return a }), 9},
		"another server's":  {spoil(early, func(a [][]byte) [][]byte { a[9] = foreign[9]; return a }), 9},
		"a later part only": {spoil(late, func(a [][]byte) [][]byte { return a[1:] }), 0},
		"another archive":   {foreign, 0},
		"nothing":           {nil, 0},
		"early, then late":  {spoil(early, func(a [][]byte) [][]byte { return append(a, late[1:]...) }), len(early)},
		"late, then early":  {spoil(late, func(a [][]byte) [][]byte { return append(a, early...) }), len(late)},
	}
	for name, c := range cases {
		h, err := history.Inspect(seq(c.records), w.key, chainOf(n.id))
		switch {
		case c.opened == 0:
			if !errors.Is(err, history.ErrEmpty) || h != nil {
				t.Errorf("%s: %v", name, err)
			}
		case err != nil || !errors.Is(h.Torn, raftstore.ErrRecord) || h.Sequence != h.Begin+uint64(c.opened)-1:
			t.Errorf("%s: %v, torn %v", name, err, h.Torn)
		}
	}
	random, err := secret.Random(raftstore.ArchiveKeySize)
	if err != nil {
		t.Fatal(err)
	}
	for name, f := range map[string]func() (*history.History, error){
		"another key":    func() (*history.History, error) { return history.Inspect(seq(early), random, chainOf(n.id)) },
		"another server": func() (*history.History, error) { return history.Inspect(seq(early), w.key, chainOf(stranger.id)) },
		"another epoch": func() (*history.History, error) {
			return history.Inspect(seq(early), w.key, raftstore.Chain{ClusterID: clusterID, Epoch: 2, Server: n.id})
		},
		"another cluster": func() (*history.History, error) {
			return history.Inspect(seq(early), w.key, raftstore.Chain{Epoch: 1, Server: n.id})
		},
	} {
		if _, err := f(); !errors.Is(err, history.ErrEmpty) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := history.Inspect(seq(early), secret.Key{}, chainOf(n.id)); !errors.Is(err, raftstore.ErrConfig) {
		t.Errorf("no key: %v", err)
	}
}

// Torn files and directories, as archive/file shows them.
func TestTornFiles(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	n := w.found(1)[0]
	for i := range 10 {
		w.propose([]*node{n}, fmt.Sprintf("entry %d", i))
	}
	w.stop(n)
	name := filepath.Join(n.dir, "00000001.records")
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, raw[:len(raw)-3], 0o600); err != nil {
		t.Fatal(err)
	}
	h := w.inspect(n.dir, n.id)
	if !errors.Is(h.Torn, file.ErrTorn) {
		t.Errorf("torn: %v", h.Torn)
	}
	m := newMachine()
	if _, err := h.Replay(m); err != nil || len(m.all()) < 8 {
		t.Errorf("%d entries, %v", len(m.all()), err)
	}
	if _, err := history.Inspect(file.Records(filepath.Join(w.root, "nobody")), w.key, chainOf(n.id)); !errors.Is(err, history.ErrEmpty) || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
}

// A machine that stops by itself, or panics, ends the replay.
func TestReplayOfAHaltedMachine(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]raftstore.Machine{"says true": &halter{}, "says why": &erring{}, "panics": newMachine()} {
		w := newWorld(t)
		n := w.found(1)[0]
		w.propose([]*node{n}, "fine")
		n.store.Propose(t.Context(), []byte("panic"))
		w.stop(n)
		if got, err := w.inspect(n.dir, n.id).Replay(m); !errors.Is(err, history.ErrHalted) || got != (history.Replayed{}) {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
}

type halter struct {
	list
	halted bool
}

func (m *halter) Apply(i uint64, e []byte) any { m.halted = string(e) == "panic"; return nil }
func (m *halter) Halted() bool                 { return m.halted }

type erring struct {
	list
	err error
}

func (m *erring) Apply(i uint64, e []byte) any {
	if string(e) == "panic" {
		m.err = errors.New("stop")
	}
	return nil
}
func (m *erring) Halted() error { return m.err }

// FuzzInspect lets the host choose: records of two archives in any order, cut
// and changed. What comes out is a prefix of what the server did.
func FuzzInspect(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3, 4, 5, 6, 7})
	f.Add([]byte{0, 1, 2, 200, 3, 100, 4})
	var early, late [][]byte
	var w *world
	var n *node
	var want []string
	f.Fuzz(func(t *testing.T, plan []byte) {
		if w == nil {
			w = newWorld(t)
			n = w.found(1)[0]
			for i := range 30 {
				w.propose([]*node{n}, fmt.Sprintf("entry %d", i))
			}
			early = records(t, n.dir)
			if err := n.store.Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.propose([]*node{n}, "late")
			w.stop(n)
			late, want = records(t, n.dir), n.machine.all()
		}
		var all [][]byte
		at := map[bool]int{}
		for _, b := range plan { // bit 7: which archive; bit 6: change it; else how many to skip
			archive := early
			if b&0x80 != 0 {
				archive = late
			}
			i := at[b&0x80 != 0] + int(b&0x3f)%4
			if i >= len(archive) {
				continue
			}
			at[b&0x80 != 0] = i + 1
			r := bytes.Clone(archive[i])
			if b&0x40 != 0 {
				r[int(b)%len(r)] ^= b | 1
			}
			all = append(all, r)
		}
		h, err := history.Inspect(seq(all), w.key, chainOf(n.id))
		if err != nil {
			return
		}
		m := newMachine()
		if _, err := h.Replay(m); err != nil {
			return
		}
		if got := m.all(); !slices.Equal(got, want[:len(got)]) {
			t.Fatalf("%q", got)
		}
	})
}
