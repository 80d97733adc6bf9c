package raftstore

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// counters are what a run has done, over all seeds and workers.
type counters struct {
	seeds, rounds, messages, acked, histories, operations atomic.Int64

	mu    sync.Mutex
	kinds map[string]int
}

func newCounters() *counters { return &counters{kinds: map[string]int{}} }

func (c *counters) count(kind string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kinds[kind]++
}

func (c *counters) of(kind string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kinds[kind]
}

func (c *counters) faults() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var b strings.Builder
	for _, k := range slices.Sorted(maps.Keys(c.kinds)) {
		fmt.Fprintf(&b, "\n    %-34s %d", k, c.kinds[k])
	}
	return b.String()
}

// dice is a source of randomness for goroutines of one bubble.
type dice struct {
	mu sync.Mutex
	r  *rand.Rand
}

func newDice(seed, stream uint64) *dice { return &dice{r: rand.New(rand.NewPCG(seed, stream))} }

// again begins another stream.
func (d *dice) again(seed, stream uint64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.r = rand.New(rand.NewPCG(seed, stream))
}

func (d *dice) n(n int) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.r.IntN(n)
}

func (d *dice) upTo(max time.Duration) time.Duration { return time.Duration(d.n(int(max))) }

// world is one cluster under one seed.
type world struct {
	t        *testing.T
	seed     uint64
	mutation mutation
	stats    *counters
	net      *chaosNet
	dice     *dice
	start    time.Time
	founded  int  // slots that the cluster begins with
	grows    bool // from three slots to five, when the host finds it opportune: see holdVotes
	history  *history
	ctx      context.Context // of everything that runs in the world; ends with it
	stop     context.CancelFunc
	work     sync.WaitGroup

	mu         sync.Mutex
	boots      []*boot // all there ever were
	current    []*boot // the newest of each slot, dead or alive
	round      int
	trace      []string
	violations []string
	leaders    map[uint64]int      // term: number of the boot
	applied    map[uint64][32]byte // index: the entry
	chains     map[uint64][32]byte // index: running hash
	states     map[uint64][32]byte // index: the machine
	members    map[uint64][]Member
	placed     map[place][32]byte
	holders    map[place]int // boots that have the entry on disk
	acks       []ack
	looked     int               // so many of them checkAcks has seen
	covered    map[uint64]string // index of a snapshot: its configuration
}

type ack struct {
	index uint64
	term  uint64 // beyond all terms if it was not to be seen any more
	entry [32]byte
	text  string
}

func newWorld(t *testing.T, seed uint64, m mutation, stats *counters) *world {
	w := &world{t: t, seed: seed, mutation: m, stats: stats, net: newChaosNet(seed, stats), dice: newDice(seed, 1),
		start: time.Now(), history: newHistory(), leaders: map[uint64]int{}, applied: map[uint64][32]byte{},
		chains: map[uint64][32]byte{}, states: map[uint64][32]byte{}, members: map[uint64][]Member{},
		placed: map[place][32]byte{}, holders: map[place]int{}, covered: map[uint64]string{}}
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.founded = 3
	switch size := w.dice.n(6); {
	case m == votesOverASnapshot || size == 0:
		w.grows = true
	case size < 3:
		w.founded = 5
	}
	w.current = make([]*boot, w.founded)
	w.net.spins = func() {
		w.noteServers()
		w.violate("%d messages at one instant: servers go on without a pause", maxBusy)
	}
	if m != sound {
		// Servers that have forgotten what they said can go on asking each other
		// without a pause; where every message takes its time, the clock moves on.
		w.net.begin(&hazard{match: everything, slow: 1, delay: 4 * time.Millisecond})
	}
	return w
}

func (w *world) note(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noteLocked(format, args...)
}

func (w *world) noteLocked(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf("%9.3fs r%-3d ", time.Since(w.start).Seconds(), w.round)+fmt.Sprintf(format, args...))
}

// violate records a broken invariant; the first ones tell, the rest follow from them.
func (w *world) violate(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.violateLocked(format, args...)
}

func (w *world) violateLocked(format string, args ...any) {
	if len(w.violations) < 20 {
		w.violations = append(w.violations, fmt.Sprintf(format, args...))
		w.noteLocked("VIOLATION "+format, args...)
	}
}

func (w *world) broken() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.violations) > 0
}

func (w *world) live() (list []*boot) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, b := range w.boots {
		if !b.dead.Load() {
			list = append(list, b)
		}
	}
	return list
}

func (w *world) byID(id ServerID) *boot {
	w.net.mu.Lock()
	defer w.net.mu.Unlock()
	return w.net.boots[id]
}

// slots is how many there are by now.
func (w *world) slots() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.current)
}

func (w *world) newest(slot int) *boot {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.current[slot]
}

// found begins a cluster and lets it grow to its size, without faults.
func (w *world) found() bool {
	first := w.boot(0, "wiped")
	first.roots.Store(true)
	if err := first.Genesis(); err != nil {
		w.violate("genesis: %v", err)
		return false
	}
	if !w.wait(20*time.Second, func() bool {
		_, _, err := first.Propose(w.ctx, admitEntry(0, first.id))
		return err == nil
	}) {
		w.violate("the founder does not lead")
		return false
	}
	for slot := 1; slot < w.founded; slot++ {
		b := w.boot(slot, "wiped")
		w.work.Go(func() { w.claim(b) })
	}
	return w.settled(60 * time.Second)
}

// wait polls by the world's clock.
func (w *world) wait(limit time.Duration, f func() bool) bool {
	for end := time.Now().Add(limit); ; {
		if f() {
			return true
		}
		if time.Now().After(end) || w.broken() {
			return false
		}
		time.Sleep(20 * time.Millisecond)
	}
}

const notWhole = "the cluster did not become whole"

// settled waits until the cluster is whole: the newest boot of every slot is a
// voter, a leader serves, and all have applied the same.
func (w *world) settled(limit time.Duration) bool {
	if w.mutation != sound {
		limit = min(limit, 10*time.Second) // the first that is not made whole is left
	}
	var missing string
	ok := w.wait(limit, func() bool {
		missing = ""
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		var leader *boot
		for _, b := range w.live() {
			if leader == nil && b.IsLeader() && b.SafeRead(ctx) == nil {
				leader = b
			}
		}
		if leader == nil {
			missing = "no leader that can read"
			return false
		}
		list, _ := leader.Members()
		slots := leader.machine.slots()
		at, _ := leader.Chain()
		for slot := range w.slots() {
			id := slots[slot]
			i := slices.IndexFunc(list, func(m Member) bool { return m.ID == id && m.Voter })
			b := w.byID(id)
			if b == nil || i < 0 || b.dead.Load() {
				missing = fmt.Sprintf("slot %d has no living voter", slot)
				return false
			}
			if b.AppliedIndex() < at {
				missing = fmt.Sprintf("boot %d of slot %d has applied %d of %d; log to %d, commit %d, term %d", b.number, slot, b.AppliedIndex(), at, b.raft.LastIndex(), b.CommitIndex(), b.Term())
				return false
			}
		}
		if len(list) != w.slots() {
			missing = fmt.Sprintf("%d members", len(list))
			return false
		}
		return true
	})
	if !ok && !w.broken() {
		w.noteServers()
		w.violate("%s in %v: %s", notWhole, limit, missing)
	}
	return ok
}

// noteServers writes down where everybody stands.
func (w *world) noteServers() {
	for _, b := range w.live() {
		list, at := b.Members()
		var who []string
		for _, m := range list {
			who = append(who, fmt.Sprintf("%d:%v", w.byID(m.ID).number, m.Voter))
		}
		first, _ := b.logs.FirstIndex()
		last, _ := b.logs.LastIndex()
		leader := -1
		if id, _, ok := b.Leader(); ok {
			leader = w.byID(id).number
		}
		conf := reflect.ValueOf(b.raft).Elem().FieldByName("configurations")
		w.note("  boot %d: configurations committed %d, latest %d", b.number, conf.FieldByName("committedIndex").Uint(), conf.FieldByName("latestIndex").Uint())
		w.note("  boot %d slot %d clock %s: %v, leader %d, term %d, says last %d, log %d to %d, commit %d, applied %d, configuration of %d: %v",
			b.number, b.slot, b.clock.name, b.raft.State(), leader, b.Term(), b.raft.LastIndex(), first, last, b.CommitIndex(), b.AppliedIndex(), at, who)
	}
}

// close ends the world and everything in it.
func (w *world) close() {
	w.stop()
	w.net.mu.Lock()
	w.net.hazards = nil
	w.net.mu.Unlock()
	for _, b := range w.live() {
		b.dead.Store(true)
		b.disk.crash()
		w.work.Go(func() { b.Shutdown() })
	}
	w.net.sever(false, func(*boot, *boot) bool { return true })
	// A server that does not stop would keep the bubble open for ever.
	stuck := time.AfterFunc(10*time.Minute, func() {
		for _, b := range w.boots {
			select {
			case <-b.Done():
			default:
				panic(fmt.Sprintf("seed %d: boot %d does not shut down; trace:\n%s", w.seed, b.number, strings.Join(w.trace, "\n")))
			}
		}
	})
	defer stuck.Stop()
	w.work.Wait()
	for _, b := range w.boots {
		<-b.Done()
	}
	time.Sleep(time.Minute) // what was to be delivered again finds nobody
}
