package raftstore

import (
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	chaosSeeds   = flag.Int("chaos.seeds", 100, "seeds of the chaos test")
	chaosFirst   = flag.Uint64("chaos.first", 0, "first seed, to run one again")
	chaosRounds  = flag.Int("chaos.rounds", 40, "rounds of faults for each seed")
	chaosMinutes = flag.Float64("chaos.minutes", 0, "run seeds until so many minutes are over, instead of a number of seeds")
	chaosTrace   = flag.Bool("chaos.trace", false, "print the trace of every seed")
)

// plan is what a run does to a world.
type plan struct {
	mutation mutation
	rounds   int
	faults   []fault
	clients  int
}

// played is what became of one seed.
type played struct {
	seed       uint64
	violations []string
	trace      []string
	history    *history
	culprit    string
}

func (o *played) failed() bool { return len(o.violations) > 0 }

// runSeed plays one seed in a bubble of its own and checks its history outside.
func runSeed(t *testing.T, seed uint64, p plan, stats *counters) *played {
	out := &played{seed: seed}
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, seed, p.mutation, stats)
		w.play(p)
		w.close()
		out.violations, out.trace, out.history = w.violations, w.trace, w.history
	})
	stats.seeds.Add(1)
	stats.operations.Add(int64(len(out.history.done)))
	culprit, err := out.history.verify()
	stats.histories.Add(1)
	if err != nil {
		out.violations, out.culprit = append(out.violations, err.Error()), culprit
	}
	return out
}

func (w *world) play(p plan) {
	if !w.found() {
		return
	}
	ctx, cancel := context.WithCancel(w.ctx)
	defer cancel()
	for i := range p.clients {
		w.work.Go(func() { w.client(ctx, i) })
	}
	for round := range p.rounds {
		w.mu.Lock()
		w.round = round
		w.mu.Unlock()
		// What the host does in a round, and how long, hangs on seed and round alone.
		w.dice.again(w.seed, 1<<20+uint64(round))
		first, also, hurt, calm := w.pick(p.faults), w.pick(p.faults), w.ms(50, 700), w.ms(10, 400)
		twice := w.dice.n(4) == 0
		undo := w.strike(first)
		var second func()
		if twice {
			second = w.strike(also)
		}
		time.Sleep(hurt)
		for _, f := range []func(){undo, second} {
			if f != nil {
				f()
			}
		}
		w.tend(false)
		time.Sleep(calm)
		w.check()
		w.stats.rounds.Add(1)
		if w.broken() {
			return
		}
	}
	w.end(cancel)
}

// end heals everything, waits until the cluster is whole and looks at what is left.
func (w *world) end(stopClients func()) {
	stopClients()
	w.note("the end: nothing is wrong any more")
	for _, b := range w.live() {
		if b.doomed.Load() {
			w.crash(b)
		}
	}
	for range 10 {
		w.tend(true)
		time.Sleep(time.Second)
	}
	if !w.settled(120 * time.Second) {
		return
	}
	for round := range w.round/6 + 1 { // the last reads are part of the history
		for i := range 3 {
			live := w.live()
			for _, b := range live {
				if b.IsLeader() {
					w.read(w.ctx, 99, b, fmt.Sprintf("%d/%d", round, i), 10*time.Second, false)
				}
			}
		}
	}
	w.checkEnd()
}

// TestChaos plays a hostile host against clusters of three and five and checks
// the invariants of DESIGN.md after every round, and the histories of clients
// for linearizability. A failing seed is named, with its trace; play it again with
//
//	go test ./raftstore -run 'TestChaos$' -chaos.first=N -chaos.seeds=1 -v
//
// and for a long time with -chaos.minutes=60 -timeout=0.
func TestChaos(t *testing.T) {
	t.Parallel()
	stats, start := newCounters(), time.Now()
	p := plan{rounds: *chaosRounds, faults: faults, clients: 5}
	var next, failures atomic.Uint64
	more := func() (uint64, bool) {
		i := next.Add(1) - 1
		if *chaosMinutes > 0 {
			return *chaosFirst + i, time.Since(start).Minutes() < *chaosMinutes
		}
		return *chaosFirst + i, i < uint64(*chaosSeeds)
	}
	t.Run("seeds", func(t *testing.T) {
		for worker := range runtime.GOMAXPROCS(0) {
			t.Run(fmt.Sprint("worker ", worker), func(t *testing.T) {
				t.Parallel()
				for seed, ok := more(); ok && failures.Load() < 5; seed, ok = more() {
					o := runSeed(t, seed, p, stats)
					if *chaosTrace {
						t.Log(strings.Join(o.trace, "\n"))
					}
					if o.failed() {
						failures.Add(1)
						report(t, o)
					}
					if *chaosMinutes > 0 && stats.seeds.Load()%500 == 0 {
						fmt.Fprintf(os.Stderr, "chaos: %v, seed %d, %d rounds, %d operations\n", time.Since(start).Round(time.Second), seed, stats.rounds.Load(), stats.operations.Load())
					}
				}
			})
		}
	})
	summary(t, stats, start)
	if r := stats.rounds.Load(); stats.acked.Load() < 2*r || stats.of("client: safe read") < int(r)/2 {
		t.Errorf("%d acknowledged entries and %d reads in %d rounds: the test has not tested", stats.acked.Load(), stats.of("client: safe read"), r)
	}
}

func summary(t *testing.T, s *counters, start time.Time) {
	took := time.Since(start)
	t.Logf("%d seeds, %d rounds, %d histories with %d operations checked, %d acknowledged entries, %d messages in %v (%.0f rounds/s); faults and events:%s",
		s.seeds.Load(), s.rounds.Load(), s.histories.Load(), s.operations.Load(), s.acked.Load(), s.messages.Load(), took.Round(time.Millisecond),
		float64(s.rounds.Load())/took.Seconds(), s.faults())
}

// report says what a seed found and leaves its whole trace where the test keeps its artifacts.
func report(t *testing.T, o *played) {
	t.Helper()
	file := filepath.Join(t.ArtifactDir(), fmt.Sprintf("chaos-seed-%d.txt", o.seed))
	text := strings.Join(slices.Concat(o.violations, []string{"", o.culprit}, o.trace), "\n")
	if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
		file = err.Error()
	}
	last := o.trace[max(0, len(o.trace)-40):]
	t.Errorf("seed %d (-chaos.first=%d -chaos.seeds=1; the whole trace is in %s):\n%s\n%s\n%s",
		o.seed, o.seed, file, strings.Join(o.violations, "\n"), o.culprit, strings.Join(last, "\n"))
}
