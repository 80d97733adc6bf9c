package raftstore

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestReplicateAndFailOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		a := nodes[0]
		for i, e := range entries("before", 20) {
			_, result, err := a.Propose(t.Context(), []byte(e))
			if err != nil || result != i+1 {
				t.Fatalf("entry %d: result %v, error %v", i, result, err)
			}
		}
		for _, follower := range nodes[1:] {
			_, _, err := follower.Propose(t.Context(), []byte("x"))
			if nl, ok := errors.AsType[*NotLeaderError](err); !ok || nl.Leader != a.id || nl.Address != a.addr {
				t.Fatalf("a follower's refusal must name the leader, got %v", err)
			}
			if err := follower.SafeRead(t.Context()); err == nil {
				t.Fatal("a follower answered a SafeRead")
			}
		}
		start := time.Now()
		a.Shutdown()
		next := leaderOf(t, nodes[1], nodes[2])
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("failover took %v of the bubble's time", d)
		}
		propose(t, next, "after")
		want := append(entries("before", 20), "after")
		for _, n := range nodes[1:] {
			eventually(t, "all entries everywhere", func() bool { return slices.Equal(n.machine.list(), want) })
		}
		if _, _, err := a.Propose(t.Context(), []byte("x")); !errors.Is(err, ErrStopped) {
			t.Fatalf("a stopped store answered %v", err)
		}
	})
}

func TestNoQuorumIsQuickAndTyped(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		net.cut(nodes[1].id)
		net.cut(nodes[2].id)
		start := time.Now()
		_, _, err := nodes[0].Propose(t.Context(), []byte("lost"))
		if !errors.Is(err, ErrNoQuorum) {
			t.Fatalf("want ErrNoQuorum, got %v", err)
		}
		if d := time.Since(start); d > time.Second {
			t.Fatalf("no quorum was reported after %v", d)
		}
		if err := nodes[0].SafeRead(t.Context()); !errors.Is(err, ErrNoQuorum) {
			t.Fatalf("SafeRead without a quorum: %v", err)
		}
		if slices.Contains(nodes[0].machine.list(), "lost") {
			t.Fatal("an entry without a majority was applied")
		}
		net.heal(nodes[1].id)
		net.heal(nodes[2].id)
		propose(t, leaderOf(t, nodes...), "healed")
	})
}

func TestContextEndsAProposal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().cluster(t, "a")[0]
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, _, err := n.Propose(ctx, []byte("x")); !errors.Is(err, context.Canceled) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestEntryBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().cluster(t, "a")[0]
		if _, _, err := n.Propose(t.Context(), nil); !errors.Is(err, ErrEmptyEntry) {
			t.Errorf("empty: %v", err)
		}
		if _, _, err := n.Propose(t.Context(), make([]byte, MaxEntry+1)); !errors.Is(err, ErrEntryTooLarge) {
			t.Errorf("too large: %v", err)
		}
		if _, _, err := n.Propose(t.Context(), make([]byte, MaxEntry)); err != nil {
			t.Errorf("the largest entry: %v", err)
		}
	})
}

func TestGenesisOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b")
		for _, n := range nodes {
			if err := n.Genesis(); !errors.Is(err, ErrNotFresh) {
				t.Errorf("a second genesis: %v", err)
			}
		}
	})
}

func TestNobodyBootstrapsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().start(t, "alone")
		time.Sleep(time.Minute)
		if _, _, ok := n.Leader(); ok || n.Term() != 0 {
			t.Fatalf("a server without a genesis has a leader or term %d", n.Term())
		}
	})
}

func TestRemovedServerIsOutForEver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		a, c := nodes[0], nodes[2]
		_, prev := a.Members()
		if _, err := a.Remove(t.Context(), c.id, prev-1); err == nil {
			t.Fatal("a change based on an old configuration was accepted")
		}
		if _, err := a.Remove(t.Context(), c.id, 0); err == nil {
			t.Fatal("a change without a base was accepted")
		}
		index, err := a.Remove(t.Context(), c.id, prev)
		if err != nil {
			t.Fatal(err)
		}
		if list, at := a.Members(); len(list) != 2 || at != index {
			t.Fatalf("members after removal: %v at %d", list, at)
		}
		a.trans.mu.Lock()
		open, in := len(a.trans.open[c.id]), len(a.trans.inbound[c.id])
		a.trans.mu.Unlock()
		if open+in != 0 {
			t.Errorf("%d connections with the removed server are still open", open+in)
		}
		if _, err := a.AddNonvoter(t.Context(), c.id, c.addr, index); err == nil {
			t.Error("a removed identity was added again")
		}
		propose(t, a, "without c")
		time.Sleep(5 * time.Second)
		if slices.Contains(c.machine.list(), "without c") {
			t.Error("the removed server still receives entries")
		}
		if term := a.Term(); term > 2 {
			t.Errorf("the removed server raised the term to %d", term)
		}
	})
}

func TestSnapshotToANewMember(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a := nodes[0]
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		big := strings.Repeat("x", 100_000)
		want := []string{}
		for range 10 {
			propose(t, a, big)
			want = append(want, big)
		}
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		propose(t, a, "tail")
		want = append(want, "tail")
		d := net.join(t, a, "d")
		if !slices.Equal(d.machine.list(), want) {
			t.Fatalf("the new member has %d entries of %d", len(d.machine.list()), len(want))
		}
		kinds := map[RecordKind]int{}
		for _, r := range openAll(t, d) {
			kinds[r.Kind]++
		}
		if kinds[RecordSnapshot] != 1 || kinds[RecordChunk] < 10 {
			t.Fatalf("the received snapshot is not in the archive: %v", kinds)
		}
		// The member that started from a snapshot can lead.
		nodes[1].Shutdown()
		if err := a.TransferLeadershipTo(t.Context(), d.id); err != nil {
			t.Fatal(err)
		}
		propose(t, leaderOf(t, d), "from the new member")
	})
}

func TestLeadershipTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		if err := nodes[0].TransferLeadership(t.Context()); err != nil {
			t.Fatal(err)
		}
		leaderOf(t, nodes[1:]...)
		if nodes[0].IsLeader() {
			t.Fatal("leadership was not handed over")
		}
	})
}

func TestPanickingEntryHaltsButLives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().cluster(t, "a")[0]
		propose(t, n, "good")
		if _, _, err := n.Propose(t.Context(), []byte("panic")); !errors.Is(err, ErrHalted) {
			t.Fatalf("the poisoned entry: %v", err)
		}
		if _, _, err := n.Propose(t.Context(), []byte("more")); !errors.Is(err, ErrHalted) {
			t.Fatalf("after the halt: %v", err)
		}
		if err := n.SafeRead(t.Context()); !errors.Is(err, ErrHalted) {
			t.Fatalf("a read after the halt: %v", err)
		}
		if !slices.Equal(n.machine.list(), []string{"good"}) {
			t.Fatal("the halted machine applied more")
		}
	})
}

func TestOpenRefusesIncompleteConfig(t *testing.T) {
	if _, err := Open(Config{}); !errors.Is(err, ErrConfig) {
		t.Fatalf("the zero Config: %v", err)
	}
	full := Config{ID: ServerID{1}, Address: "a", ClusterID: [32]byte{1}, Machine: &listMachine{}, Dialer: testDialer{}, Archive: &memArchive{}}
	if _, err := Open(full); !errors.Is(err, ErrConfig) {
		t.Fatalf("without an archive key: %v", err)
	}
}
