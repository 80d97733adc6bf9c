package raftstore

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// The attack: a candidate counts how many votes it needs when it begins to ask for pre-votes. The host holds the one back
// that it gets, until its leader, whom it does not hear, has made three voters five and its snapshot has arrived.
func TestStockHeldVotes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		slow := stockOptions{slowClock: true, trailing: 1}
		nodes := n.cluster(map[raft.ServerAddress]stockOptions{"a:1": slow, "v:1": slow}, "a:1", "v:1", "c:1")
		a, v, c := nodes[0], nodes[1], nodes[2]
		n.crown(a, nodes...)
		n.write(a, "old")
		n.everywhere("old", nodes...)
		synctest.Wait()
		ask, alone := make(chan struct{}), atomic.Bool{}
		n.filter(func(m stockMessage) bool {
			_, snapshot := m.request.(*raft.InstallSnapshotRequest)
			_, pre := m.request.(*raft.RequestPreVoteRequest)
			switch {
			case m.from == a.addr && m.to == v.addr: // of its leader v hears nothing else
				return snapshot
			case m.from == v.addr && m.to == c.addr && pre:
				return n.wait(ask)
			case m.from == c.addr:
				return false
			}
			return m.from == v.addr || m.to != c.addr || !alone.Load()
		})
		release := n.hold(v)
		eventuallyWithin(t, 2*time.Minute, "v campaigns", func() bool { return v.State() == raft.Candidate })
		alone.Store(true)
		eventually(t, "c has no leader", func() bool { return c.State() == raft.Candidate })
		close(ask)
		synctest.Wait() // the pre-vote is given
		alone.Store(false)
		for _, addr := range []raft.ServerAddress{"d:1", "e:1"} {
			s := n.start(addr, t.TempDir(), stockOptions{})
			nodes = append(nodes, s)
			if err := a.AddVoter(s.id, addr, 0, 0).Error(); err != nil {
				t.Fatal(err)
			}
		}
		alone.Store(true)
		eventually(t, "c has no leader", func() bool { return c.State() == raft.Candidate })
		n.write(a, "by a, d and e")
		if err := a.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the snapshot arrives", func() bool { return len(v.GetConfiguration().Configuration().Servers) == 5 })
		n.write(a, "acknowledged")
		if v.State() != raft.Candidate {
			t.Fatal("the attack does not work any more: the snapshot ended the campaign")
		}
		release()
		eventually(t, "v leads, elected by two of five", func() bool { return v.State() == raft.Leader })
		n.filter(nil)
		n.write(n.leader(v), "another")
		n.everywhere("another", nodes...)
		lost(t, "acknowledged", nodes...)
		outcome(t, "elected by two of five: an acknowledged write is in no log any more")
	})
}
