package raftstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// TestAcknowledgedEntriesSurvive lets a seeded adversary cut servers off, heal
// them, crash them and bring them back as new servers, while writers propose.
// Afterwards every acknowledged entry must be in every machine, all machines
// must be equal, and no server may have seen two leaders in one term.
func TestAcknowledgedEntriesSurvive(t *testing.T) {
	t.Parallel()
	rounds, acked := 0, 0
	for seed := range uint64(8) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chaos{t: t, net: newTestNet(), rand: rand.New(rand.NewPCG(seed, 1))}
				r, a := c.run(40)
				rounds, acked = rounds+r, acked+a
			})
		})
	}
	t.Logf("%d rounds, %d acknowledged entries checked", rounds, acked)
	if acked < 100 {
		t.Errorf("only %d entries were acknowledged: the test has not tested", acked)
	}
}

type chaos struct {
	t     *testing.T
	net   *testNet
	rand  *rand.Rand
	boots int

	mu    sync.Mutex
	nodes []*testNode
	acked []string
}

func (c *chaos) live() []*testNode {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.nodes)
}

func (c *chaos) run(rounds int) (int, int) {
	c.nodes = c.net.cluster(c.t, "a", "b", "c")
	ctx, cancel := context.WithCancel(c.t.Context())
	var writers sync.WaitGroup
	for w := range 3 {
		writers.Go(func() { c.write(ctx, w) })
	}
	var down *testNode // one fault at a time: a majority stays
	for range rounds {
		time.Sleep(time.Duration(c.rand.IntN(400)) * time.Millisecond)
		switch n := c.live()[c.rand.IntN(3)]; {
		case down != nil:
			c.net.heal(down.id)
			down = nil
		case c.rand.IntN(2) == 0:
			c.net.cut(n.id)
			down = n
		default:
			c.reboot(n)
		}
	}
	if down != nil {
		c.net.heal(down.id)
	}
	cancel()
	writers.Wait()
	return rounds, c.check()
}

// write proposes numbered entries to whoever leads and notes what was acknowledged.
func (c *chaos) write(ctx context.Context, w int) {
	for i := 0; ctx.Err() == nil; i++ {
		entry := fmt.Sprintf("%d-%d", w, i)
		for _, n := range c.live() {
			if !n.IsLeader() {
				continue
			}
			if _, _, err := n.Propose(ctx, []byte(entry)); err == nil {
				c.mu.Lock()
				c.acked = append(c.acked, entry)
				c.mu.Unlock()
			}
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// reboot crashes a server and brings its successor in, as kds/node would.
func (c *chaos) reboot(old *testNode) {
	c.t.Helper()
	old.Shutdown()
	c.boots++
	next := c.net.start(c.t, fmt.Sprint("boot-", c.boots))
	rest := slices.DeleteFunc(c.live(), func(n *testNode) bool { return n == old })
	step := func(what string, f func(*testNode, uint64) error) {
		eventually(c.t, what, func() bool {
			leader := leaderOf(c.t, rest...)
			_, prev := leader.Members()
			return f(leader, prev) == nil
		})
	}
	step("nonvoter", func(l *testNode, prev uint64) error {
		_, err := l.AddNonvoter(c.t.Context(), next.id, next.addr, prev)
		return err
	})
	eventually(c.t, "caught up", func() bool { _, at := rest[0].Members(); return at > 0 && next.AppliedIndex() >= at })
	step("removed", func(l *testNode, prev uint64) error { _, err := l.Remove(c.t.Context(), old.id, prev); return err })
	step("voter", func(l *testNode, prev uint64) error {
		_, err := l.AddVoter(c.t.Context(), next.id, next.addr, prev)
		return err
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	c.nodes = append(rest, next)
}

func (c *chaos) check() int {
	t := c.t
	var leader *testNode
	eventually(t, "a last entry", func() bool { // what writers left in flight is before it or nowhere
		leader = leaderOf(t, c.live()...)
		_, _, err := leader.Propose(t.Context(), []byte("end"))
		return err == nil
	})
	want := leader.machine.list()
	for _, n := range c.live() {
		eventually(t, "all machines equal", func() bool { return slices.Equal(n.machine.list(), want) })
		if err := n.Err(); err != nil {
			t.Errorf("a store broke its own rules: %v", err)
		}
	}
	have := map[string]int{}
	for _, e := range want {
		have[e]++
	}
	for _, e := range c.acked {
		if have[e] == 0 {
			t.Errorf("the acknowledged entry %s is lost", e)
		}
	}
	c.checkTerms()
	return len(c.acked)
}

// checkTerms opens every archive, those of dead boots too: one entry per index
// and term, and no server voted twice in a term.
func (c *chaos) checkTerms() {
	type place struct{ index, term uint64 }
	entries := map[place]string{}
	for _, n := range c.net.nodes {
		votes := map[uint64]string{}
		for _, r := range openAll(c.t, n) {
			switch r.Kind {
			case RecordLog:
				p := place{r.Index, r.Term}
				text := fmt.Sprint(r.Type, r.Data)
				if old, ok := entries[p]; ok && old != text {
					c.t.Errorf("index %d term %d has two contents", r.Index, r.Term)
				}
				entries[p] = text
			case RecordVote:
				if old, ok := votes[r.Term]; ok && old != string(r.Data) {
					c.t.Errorf("two votes in term %d", r.Term)
				}
				votes[r.Term] = string(r.Data)
			}
		}
	}
}

// A member that was cut off while a new one joined must follow when the new one leads.
func TestLaggingMemberFollowsALeaderItNeverSaw(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		lagging := nodes[1]
		net.cut(lagging.id)
		d := net.join(t, leaderOf(t, nodes[0], nodes[2]), "d")
		others := []*testNode{nodes[0], nodes[2], d}
		eventually(t, "the new member leads", func() bool {
			l := leaderOf(t, others...)
			if l != d {
				l.raft.LeadershipTransferToServer(d.id.raftID(), raftAddress(d.id, d.addr)).Error()
			}
			return d.IsLeader() && d.SafeRead(t.Context()) == nil
		})
		propose(t, d, "from the new leader")
		net.heal(lagging.id)
		eventually(t, "the lagging member has it", func() bool { return slices.Contains(lagging.machine.list(), "from the new leader") })
	})
}
