package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

// Nothing is superfluous by the word of a follower, of an epoch that was stopped, before every slot votes, or while somebody
// votes who has lost its slot: of three voters one is down, and what the other two have committed is in two archives.
func TestRuling(t *testing.T) {
	t.Parallel()
	lag := uint64(0)
	sound := func() api.Cluster {
		return api.Cluster{Members: []api.Member{{Slot: "a", Voter: true, Lag: &lag}, {Slot: "b", Voter: true, Leader: true, Lag: &lag}}, Voters: make([]api.ID, 2)}
	}
	if _, err := ruling(sound()); err != nil {
		t.Errorf("a sound cluster: %v", err)
	}
	for name, c := range map[string]struct {
		change func(*api.Cluster)
		says   string
	}{
		"nobody":               {func(c *api.Cluster) { c.Members = nil }, "leader"},
		"no leader":            {func(c *api.Cluster) { c.Members[1].Leader = false }, "leader"},
		"a follower's word":    {func(c *api.Cluster) { c.Members[1].Lag = nil }, "leader"},
		"a boot without vote":  {func(c *api.Cluster) { c.Members[0].Voter = false }, "slot a"},
		"an epoch has stopped": {func(c *api.Cluster) { c.Ended = true }, "ended"},
		"a removed voter":      {func(c *api.Cluster) { c.Voters = make([]api.ID, 3) }, "3 servers vote for 2 slots"},
	} {
		now := sound()
		c.change(&now)
		if _, err := ruling(now); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "nothing was deleted") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What runs stays in all its attempts, and so does what was written to lately; a directory without either is not this cluster's.
func TestJudgeArchives(t *testing.T) {
	t.Parallel()
	now := time.Now()
	id := func(b byte) raftstore.ServerID { return raftstore.ServerID{b} }
	members := []api.Member{{Slot: "a", ServerID: api.ID(id(1))}}
	p := &pruning{Directory: "data", Archives: []keptArchive{
		{name: remote.Name{Attempt: 1, Server: id(1)}, Bytes: 1}, {name: remote.Name{Attempt: 2, Server: id(1)}, Bytes: 2},
		{name: remote.Name{Attempt: 1, Server: id(2)}, Bytes: 4, Written: now.Add(-2 * time.Hour)},
		{name: remote.Name{Attempt: 2, Server: id(2)}, Bytes: 8, Written: now.Add(-30 * time.Minute)},
		{name: remote.Name{Attempt: 1, Server: id(3)}, Bytes: 16, Written: now.Add(time.Hour)}, // by a clock that was ahead
	}}
	if err := p.judge(members, now.Add(-time.Hour)); err != nil || p.Ended != 1 || p.Bytes != 4 {
		t.Fatalf("%+v, %v", p, err)
	}
	for i, want := range []string{"runs in slot a", "runs in slot a", "", "written to lately", "written to lately"} {
		if p.Archives[i].Keep != want {
			t.Errorf("archive %d: keep %q, want %q", i, p.Archives[i].Keep, want)
		}
	}
	var out bytes.Buffer
	p.write(&out)
	if !strings.Contains(out.String(), "1 of 5 archives are of ended boots") || !strings.Contains(out.String(), "--delete") {
		t.Errorf("it says:\n%s", &out)
	}
	foreign := &pruning{Directory: "data", Archives: p.Archives[2:]}
	if err := foreign.judge(members, now); err == nil || !strings.Contains(err.Error(), "another one") {
		t.Errorf("a directory of nobody here: %v", err)
	}
}
