package raftstore

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// slowLeader is a cluster whose leader a:1 has a slow clock: its lease outlasts the others' patience.
func slowLeader(t *testing.T) (n *stockNet, a *stockNode, rest []*stockNode) {
	n = newStockNet(t)
	nodes := n.cluster(map[raft.ServerAddress]stockOptions{"a:1": {slowClock: true}}, "a:1", "b:1", "c:1")
	a, rest = nodes[0], nodes[1:]
	n.crown(a, nodes...)
	n.write(a, "old")
	n.everywhere("old", nodes...)
	return n, a, rest
}

// stale fails the test unless VerifyLeader vouches for a leader that lacks what another has acknowledged.
func stale(t *testing.T, a *stockNode, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("the attack does not work any more: %v", err)
	}
	if slices.Contains(a.machine.list(), "new") {
		t.Fatal("the old leader knows: nothing was shown")
	}
}

// The attack: an old leader is alone with a nonvoter while the voters have gone on without it.
func TestStockNonvoterAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, rest := slowLeader(t)
		d := n.start("d:1", t.TempDir(), stockOptions{})
		if err := a.AddNonvoter(d.id, d.addr, 0, 0).Error(); err != nil {
			t.Fatal(err)
		}
		n.everywhere("old", d)
		n.rooms([]*stockNode{a, d}, rest)
		n.write(n.leader(rest...), "new")
		stale(t, a, a.VerifyLeader().Error())
		outcome(t, "VerifyLeader counts it: a deposed leader passes and the read misses an acknowledged write")
	})
}

func TestOursNonvoterAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		net.timeouts["a"] = Timeouts{Heartbeat: 3 * time.Second, Election: 3 * time.Second, Lease: 3 * time.Second}
		nodes := net.cluster(t, "a", "b", "c")
		a, rest := nodes[0], nodes[1:]
		d := net.start(t, "d")
		_, prev := a.Members()
		index, err := a.AddNonvoter(t.Context(), d.id, d.addr, prev)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the nonvoter follows", func() bool { return d.AppliedIndex() >= index })
		net.split(a.id, d.id)
		propose(t, leaderOf(t, rest...), "new")
		if !a.IsLeader() {
			t.Fatal("the old leader has given up: nothing was shown")
		}
		if err := a.SafeRead(t.Context()); !refused(err) {
			t.Fatalf("a deposed leader with a nonvoter: %v", err)
		}
		outcome(t, "SafeRead refuses: voters of the latest configuration only")
	})
}

// The attack: the host keeps back the answers to heartbeats until the voters have gone on, and lets them arrive when
// the old leader is asked.
func TestStockOldAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, rest := slowLeader(t)
		release := n.hold(a)
		a.VerifyLeader() // heartbeats go out and are answered
		synctest.Wait()
		n.filter(func(m stockMessage) bool { return m.from != a.addr && m.to != a.addr })
		n.write(n.leader(rest...), "new")
		read := a.VerifyLeader()
		synctest.Wait() // the leader has asked itself; only old answers can answer it
		release()
		stale(t, a, read.Error())
		outcome(t, "VerifyLeader counts it: the read misses an acknowledged write")
	})
}

// The attack: a leader that takes itself out counts itself, and with one of the two that stay has a majority.
func TestStockLeavingLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, rest := slowLeader(t)
		n.rooms([]*stockNode{a, rest[0]}, rest[1:])
		a.RemoveServer(a.id, 0, 0)
		eventually(t, "the change is appended", func() bool { return len(a.GetConfiguration().Configuration().Servers) == 2 })
		if err := a.VerifyLeader().Error(); err != nil {
			t.Fatalf("the attack does not work any more: %v", err)
		}
		outcome(t, "VerifyLeader passes with one of two voters")
	})
}

// The attack: a new leader has heard of no commit since it leads, and may miss what the last one acknowledged.
func TestStockNewLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, rest := slowLeader(t)
		b := rest[0]
		carries := func(m stockMessage, entry string) bool {
			req, ok := m.request.(*raft.AppendEntriesRequest)
			return ok && slices.ContainsFunc(req.Entries, func(l *raft.Log) bool { return entry == "" || string(l.Data) == entry })
		}
		// b stores the entry and hears nothing after it; c hears nothing at all.
		seen := false
		n.filter(func(m stockMessage) bool {
			n.mu.Lock()
			defer n.mu.Unlock()
			if m.from != a.addr || m.to != b.addr || seen {
				return false
			}
			seen = carries(m, "new")
			return true
		})
		n.write(a, "new")
		a.stop()
		// Votes and heartbeats pass, entries do not.
		n.filter(func(m stockMessage) bool { return !carries(m, "") })
		eventually(t, "b leads", func() bool { return b.State() == raft.Leader })
		stale(t, b, b.VerifyLeader().Error())
		outcome(t, "VerifyLeader passes before the first commit: the read misses an acknowledged write")
	})
}
