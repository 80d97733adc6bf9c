package raftstore

import (
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// The attack: a leader makes a server a voter with that server's own help,
// while the third one is cut off, and dies. The voter alone has the log that may
// win, the other alone can give the vote that is missing, and does not know the
// candidate as a voter. The library refuses it for ever.
func TestVoterThatIsNewToAnotherIsElected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b")
		a, b := nodes[0], nodes[1]
		c := net.start(t, "c")
		_, prev := a.Members()
		index, err := a.AddNonvoter(t.Context(), c.id, c.addr, prev)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "c follows", func() bool { return c.AppliedIndex() >= index })
		eventually(t, "b knows it", func() bool { return b.AppliedIndex() >= index })
		net.cut(b.id)
		if _, err = a.AddVoter(t.Context(), c.id, c.addr, index); err != nil {
			t.Fatal(err)
		}
		if hasVoter(b, c) || !hasVoter(c, c) {
			t.Fatal("the attack has not been set up")
		}
		a.Shutdown()
		net.heal(b.id)
		leader := leaderOf(t, b, c)
		propose(t, leader, "goes on")
	})
}

// The same where the other one does not know the new server at all.
func TestServerUnknownToAnotherIsElected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		net.cut(b.id)
		d := net.join(t, a, "d") // by a, c and, in the end, d
		if got := len(b.configuration().Servers); got != 3 {
			t.Fatalf("b knows %d servers", got)
		}
		_, prev := a.Members()
		if _, err := a.Remove(t.Context(), c.id, prev); err != nil {
			t.Fatal(err)
		}
		c.Shutdown()
		a.Shutdown()
		net.heal(b.id)
		leader := leaderOf(t, b, d) // two of a, b, d
		propose(t, leader, "goes on")
	})
}

func hasVoter(n, who *testNode) bool {
	for _, s := range n.configuration().Servers {
		if s.ID == who.id.raftID() {
			return s.Suffrage == raft.Voter
		}
	}
	return false
}
