package raftstore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
)

// How often and how long the smaller tests under faults run.
const churnSeeds, churnRounds = 4, 40

// chaos is a small cluster whose servers are cut off and rebooted while clients
// write. What the host can do besides is in TestChaos.
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
				l.TransferLeadershipTo(t.Context(), d.id)
			}
			return d.IsLeader() && d.SafeRead(t.Context()) == nil
		})
		propose(t, d, "from the new leader")
		net.heal(lagging.id)
		eventually(t, "the lagging member has it", func() bool { return slices.Contains(lagging.machine.list(), "from the new leader") })
	})
}

// operation is one call of a client as it saw it. Call and Return are instants
// of one clock that ticks at every call and return. Position is, for a write,
// the place the entry got in the list, and for a read the length it saw.
// Operations without an outcome are not in a history: of a write that may have
// happened the reads tell.
type operation struct {
	Client       int
	Write        bool
	Call, Return int64
	Position     int
}

// places is the specification of a list that only grows, as operation tells of it: a write is at a place of its own,
// behind all that was there; what stands between may be of writes that are not in the history.
var places = porcupine.Model{
	Init: func() any { return 0 },
	Step: func(state, input, output any) (bool, any) {
		last, write, at := state.(int), input.(bool), output.(int)
		return at > last || at == last && !write, at
	},
}

// checkHistory says whether a history is linearizable.
func checkHistory(history []operation) error {
	var ops []porcupine.Operation
	for _, o := range history {
		ops = append(ops, porcupine.Operation{ClientId: o.Client, Input: o.Write, Call: o.Call, Output: o.Position, Return: o.Return})
	}
	if !porcupine.CheckOperations(places, ops) {
		return fmt.Errorf("%d operations have no order", len(ops))
	}
	return nil
}

func TestListHistoryChecker(t *testing.T) {
	w := func(call, ret int64, pos int) operation {
		return operation{Write: true, Call: call, Return: ret, Position: pos}
	}
	r := func(call, ret int64, pos int) operation { return operation{Call: call, Return: ret, Position: pos} }
	for name, c := range map[string]struct {
		history []operation
		good    bool
	}{
		"empty":                         {nil, true},
		"one after the other":           {[]operation{w(1, 2, 1), r(3, 4, 1), w(5, 6, 2), r(7, 8, 2)}, true},
		"a read during a write, either": {[]operation{w(1, 6, 1), r(2, 3, 0), r(4, 5, 1)}, true},
		"writes at once, any order":     {[]operation{w(1, 4, 2), w(2, 3, 1)}, true},
		"a stale read":                  {[]operation{w(1, 2, 1), r(3, 4, 0)}, false},
		"reads that go back":            {[]operation{w(1, 8, 1), r(2, 3, 1), r(4, 5, 0)}, false},
		"a read of the future":          {[]operation{r(1, 2, 1), w(3, 4, 1)}, false},
		"a write before an older one":   {[]operation{w(1, 2, 2), w(3, 4, 1)}, false},
		"a lost write":                  {[]operation{w(1, 2, 1), w(3, 4, 1)}, false},
		"two writes at one place":       {[]operation{w(1, 4, 1), w(2, 3, 1)}, false},
	} {
		if err := checkHistory(c.history); (err == nil) != c.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// recorder collects a history.
type recorder struct {
	clock atomic.Int64
	mu    sync.Mutex
	done  []operation
}

// record runs one operation; f returns its position and whether it had an outcome.
func (r *recorder) record(client int, write bool, f func() (int, bool)) {
	o := operation{Client: client, Write: write, Call: r.clock.Add(1)}
	position, ok := f()
	o.Return, o.Position = r.clock.Add(1), position
	if !ok {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.done = append(r.done, o)
}

// fault begins one and returns its end. Half of them meet the leader.
func (c *chaos) fault() (undo func()) {
	n := c.live()[c.rand.IntN(3)]
	for _, l := range c.live() {
		if l.IsLeader() && c.rand.IntN(2) == 0 {
			n = l
		}
	}
	switch c.rand.IntN(7) {
	case 0:
		c.net.cut(n.id)
		return func() { c.net.heal(n.id) }
	case 1: // what n asks is answered late
		return c.net.hold(n.id)
	case 2: // n hears and is not heard
		c.net.dropping(func(from, _ ServerID, _ []byte) bool { return from == n.id })
	case 3:
		c.net.split(n.id)
	case 4: // one request in three is lost
		var mu sync.Mutex
		dice := rand.New(rand.NewPCG(c.rand.Uint64(), 3))
		c.net.dropping(func(ServerID, ServerID, []byte) bool {
			mu.Lock()
			defer mu.Unlock()
			return dice.IntN(3) == 0
		})
	case 5:
		c.reboot(n)
		return func() {}
	case 6: // n is alone, and gets answers from before it was
		release := c.net.hold(n.id)
		time.Sleep(80 * time.Millisecond)
		c.net.split(n.id)
		return func() {
			release()
			time.Sleep(time.Duration(c.rand.IntN(50)) * time.Millisecond)
			c.net.dropping(nil)
		}
	}
	return func() { c.net.dropping(nil) }
}
