package raftstore

import (
	"errors"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// olderMachine does not understand the entry "new" and halts, as a build does
// that is older than the one that wrote it.
type olderMachine struct {
	listMachine
	halted atomic.Bool
}

func (m *olderMachine) Halted() bool { return m.halted.Load() }

func (m *olderMachine) Apply(index uint64, entry []byte) any {
	if m.halted.Load() || string(entry) == "new" {
		m.halted.Store(true)
		return "halted"
	}
	return m.listMachine.Apply(index, entry)
}

func TestHaltedMachineServesNothingAndHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, old := newTestNet(), &olderMachine{}
		net.machines["a"] = old
		nodes := net.cluster(t, "a", "b", "c")
		a, rest := nodes[0], nodes[1:]
		propose(t, a, "before")
		at := a.AppliedIndex()
		if _, _, err := a.Propose(t.Context(), []byte("new")); !errors.Is(err, ErrHalted) {
			t.Fatalf("the entry that halts: %v", err)
		}
		for range 3 {
			if _, _, err := a.Propose(t.Context(), []byte("more")); !errors.Is(err, ErrHalted) {
				t.Fatalf("a proposal to the halted store: %v", err)
			}
			if err := a.SafeRead(t.Context()); !errors.Is(err, ErrHalted) {
				t.Fatalf("a read of the halted store: %v", err)
			}
		}
		next := leaderOf(t, rest...)
		if a.IsLeader() {
			t.Fatal("the halted store leads")
		}
		propose(t, next, "after")
		time.Sleep(5 * time.Second)
		if got := a.AppliedIndex(); got != at {
			t.Errorf("the halted store counts as having applied %d, it is at %d", got, at)
		}
		if !slices.Equal(old.list(), []string{"before"}) || !slices.Equal(next.machine.list(), []string{"before", "new", "after"}) {
			t.Errorf("halted: %q, leader: %q", old.list(), next.machine.list())
		}
		// It still votes: with one more gone, the cluster goes on.
		for _, n := range rest {
			if n != next {
				n.Shutdown()
			}
		}
		propose(t, leaderOf(t, next), "with the halted one's vote")
	})
}

// A halted store that is elected gives leadership away again.
func TestHaltedStoreDoesNotKeepLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, old := newTestNet(), &olderMachine{}
		net.machines["b"] = old
		nodes := net.cluster(t, "a", "b", "c")
		propose(t, nodes[0], "new")
		eventually(t, "b is halted", nodes[1].Halted)
		if err := nodes[0].TransferLeadershipTo(t.Context(), nodes[1].id); err != nil {
			t.Fatal(err)
		}
		leader := leaderOf(t, nodes[0], nodes[2])
		propose(t, leader, "served")
		if nodes[1].IsLeader() {
			t.Fatal("the halted store leads")
		}
	})
}

// Where all are halted, leadership goes in circles, ever more slowly: each turn
// is an entry in every log and every archive.
func TestHaltedClusterDoesNotFillItsLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		for _, name := range []string{"a", "b", "c"} {
			net.machines[name] = &olderMachine{}
		}
		nodes := net.cluster(t, "a", "b", "c")
		nodes[0].Propose(t.Context(), []byte("new"))
		time.Sleep(time.Minute)
		for _, n := range nodes {
			if !n.Halted() {
				t.Fatal("a server did not halt")
			}
		}
		before, _ := nodes[0].journal.totals()
		time.Sleep(2 * time.Minute)
		after, _ := nodes[0].journal.totals()
		t.Logf("%d records", after-before)
		if grown := after - before; grown > 150 {
			t.Fatalf("%d records in two minutes of nobody serving", grown)
		}
	})
}

func TestSnapshotOfAHaltedMachineIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		net.machines["a"] = &olderMachine{}
		a := net.cluster(t, "a")[0]
		a.Propose(t.Context(), []byte("new"))
		if err := a.Compact(t.Context()); err == nil {
			t.Fatal("a halted machine was written into a snapshot")
		}
	})
}

// A halted server takes the snapshot of its leader, and entries behind it, for
// its log alone: its machine stays as it is, and it does not count as caught up.
func TestHaltedMachineIsNotRestored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := appliedPuppet(t)
		if rep := p.append(wireAppend{Term: 1, PrevIndex: 6, PrevTerm: 1, Commit: 7, Entries: commands(7, 1, "panic")}); !rep.OK {
			t.Fatal("the entry was refused")
		}
		synctest.Wait()
		at, chain := p.n.Chain()
		if !p.n.Halted() || at != 6 {
			t.Fatalf("not halted, or it has applied %d", at)
		}
		if rep := p.snapshot(1, 20, 1, "a", "b", "c", "d", "e", "f"); !rep.OK {
			t.Fatal("the snapshot was refused")
		}
		if rep := p.append(wireAppend{Term: 1, PrevIndex: 20, PrevTerm: 1, Commit: 21, Entries: commands(21, 1, "g")}); !rep.OK {
			t.Fatal("entries behind the snapshot were refused")
		}
		synctest.Wait()
		if now, hash := p.n.Chain(); now != at || hash != chain {
			t.Errorf("the halted store counts as having applied %d, it is at %d", now, at)
		}
		if got := p.n.machine.list(); len(got) != 5 {
			t.Errorf("the halted machine has %q", got)
		}
	})
}
