package raftstore

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	chaosSeeds  = flag.Int("chaos.seeds", 4, "seeds of the linearizability test; more for longer runs")
	chaosFirst  = flag.Uint64("chaos.first", 0, "first seed, to replay one")
	chaosRounds = flag.Int("chaos.rounds", 40, "faults for each seed")
)

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

// checkHistory says whether a history is linearizable. A general checker can
// take its place; for a list that only grows this one is exact: the positions
// are an order of all operations, a read standing behind the write it saw last,
// so the history is linearizable if that order never contradicts real time.
var checkHistory = func(history []operation) error {
	byReturn := slices.SortedFunc(slices.Values(history), func(a, b operation) int { return cmp.Compare(a.Return, b.Return) })
	places := map[int]bool{}
	settled, next := operation{}, 0 // of what had returned before, the one furthest on
	for _, o := range slices.SortedFunc(slices.Values(history), func(a, b operation) int { return cmp.Compare(a.Call, b.Call) }) {
		for ; byReturn[next].Return < o.Call; next++ {
			if byReturn[next].Position > settled.Position {
				settled = byReturn[next]
			}
		}
		if o.Position < settled.Position || o.Write && o.Position == settled.Position {
			return fmt.Errorf("%+v came after %+v had returned", o, settled)
		}
		if o.Write && places[o.Position] {
			return fmt.Errorf("two writes are at place %d", o.Position)
		}
		places[o.Position] = places[o.Position] || o.Write
	}
	return nil
}

func TestHistoryChecker(t *testing.T) {
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

// TestReadsAndWritesAreLinearizable lets a seeded adversary lose, hold back and
// cut, run clocks at different speeds and reboot servers, while clients write to
// and read from every server that lets them. Replay one with -chaos.first and -chaos.seeds=1.
func TestReadsAndWritesAreLinearizable(t *testing.T) {
	t.Parallel()
	var reads, writes int
	for i := range *chaosSeeds {
		seed := *chaosFirst + uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h := linearRun(t, seed, *chaosRounds)
				if err := checkHistory(h); err != nil {
					t.Errorf("seed %d: the history is not linearizable: %v", seed, err)
				}
				for _, o := range h {
					if o.Write {
						writes++
					} else {
						reads++
					}
				}
			})
		})
	}
	t.Logf("%d seeds, %d rounds each, %d reads and %d writes checked", *chaosSeeds, *chaosRounds, reads, writes)
	if reads < 50**chaosSeeds || writes < 50**chaosSeeds {
		t.Errorf("%d reads, %d writes: the test has not tested", reads, writes)
	}
}

func linearRun(t *testing.T, seed uint64, rounds int) []operation {
	c := &chaos{t: t, net: newTestNet(), rand: rand.New(rand.NewPCG(seed, 2))}
	names := []string{"a", "b", "c"}
	for i := range rounds {
		names = append(names, fmt.Sprint("boot-", i+1))
	}
	for _, name := range names { // clocks that run at different speeds: a slow leader's lease outlives the others' patience
		d := time.Duration(1+7*c.rand.IntN(2)) * 100 * time.Millisecond
		c.net.timeouts[name] = Timeouts{Heartbeat: d, Election: d, Lease: d, RPC: 2 * time.Second}
	}
	c.nodes = c.net.cluster(t, "a", "b", "c")
	ctx, cancel := context.WithCancel(t.Context())
	rec := &recorder{}
	var clients sync.WaitGroup
	for id := range 4 {
		clients.Go(func() { c.client(ctx, rec, id) })
	}
	for range rounds {
		undo := c.fault()
		time.Sleep(time.Duration(c.rand.IntN(500)) * time.Millisecond)
		undo()
		time.Sleep(time.Duration(c.rand.IntN(200)) * time.Millisecond)
	}
	cancel()
	clients.Wait()
	c.check()
	return rec.done
}

// client writes to and reads from whoever answers; each call waits 300 ms at most.
func (c *chaos) client(ctx context.Context, rec *recorder, id int) {
	for i := 0; ctx.Err() == nil; i++ {
		for _, n := range c.live() {
			call, cancel := context.WithTimeout(ctx, 300*time.Millisecond)
			rec.record(id, id%2 == 0, func() (int, bool) {
				if id%2 == 0 {
					_, at, err := n.Propose(call, fmt.Appendf(nil, "%d-%d-%s", id, i, n.addr))
					position, ok := at.(int)
					return position, err == nil && ok
				}
				err := n.SafeRead(call)
				if err != nil && !refused(err) && !errors.Is(err, ErrStopped) && call.Err() == nil {
					c.t.Errorf("a read failed with %v", err)
				}
				return len(n.machine.list()), err == nil
			})
			cancel()
		}
		time.Sleep(5 * time.Millisecond)
	}
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
