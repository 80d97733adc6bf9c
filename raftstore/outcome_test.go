package raftstore

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Errors say whether an entry may be there: an ErrOutcomeUnknown and the end of the context say that it may, whatever
// the reason, and all others that it is not and never will be.
func TestErrorsSayWhetherTheEntryMayBeThere(t *testing.T) {
	type does = func(*Store, context.Context, []byte) (uint64, any, error)
	for how, do := range map[string]does{"propose": (*Store).Propose, "submit": (*Store).Submit} {
		for name, c := range map[string]struct {
			before func(*testing.T, *testNet, *testNode) // what happens to the leader
			entry  string
			also   error
			open   bool
		}{
			"stopped before": {func(_ *testing.T, _ *testNet, a *testNode) { a.Shutdown() }, "x", ErrStopped, false},
			"broken before": {func(t *testing.T, _ *testNet, a *testNode) {
				a.archive.breakDisk()
				a.Propose(t.Context(), []byte("the first to meet the broken disk"))
				<-a.Done()
			}, "x", ErrStopped, false},
			"breaks under it": {func(_ *testing.T, _ *testNet, a *testNode) { a.archive.breakDisk() }, "x", ErrStopped, true},
			"stops under it": {func(_ *testing.T, net *testNet, a *testNode) {
				net.dropping(func(from, _ ServerID, _ []byte) bool { return from == a.id })
				time.AfterFunc(50*time.Millisecond, func() { a.Shutdown() })
			}, "x", ErrNoQuorum, true},
			"leadership lost under it": {func(_ *testing.T, net *testNet, a *testNode) { net.split(a.id) }, "x", ErrNoQuorum, true},
			"halts at it":              {func(*testing.T, *testNet, *testNode) {}, "panic", ErrHalted, true},
			"halted before":            {func(t *testing.T, _ *testNet, a *testNode) { a.Propose(t.Context(), []byte("panic")) }, "x", ErrHalted, false},
		} {
			t.Run(how+"/"+name, func(t *testing.T) {
				t.Parallel()
				synctest.Test(t, func(t *testing.T) {
					net := newTestNet()
					a := net.cluster(t, "a", "b", "c")[0]
					c.before(t, net, a)
					_, _, err := do(a.Store, t.Context(), []byte(c.entry))
					if !errors.Is(err, c.also) || errors.Is(err, ErrOutcomeUnknown) != c.open {
						t.Errorf("%v", err)
					}
				})
			})
		}
	}
}

// A follower that stops or halts after the leader took its entry does not know.
func TestFollowersErrorsSayWhetherTheEntryMayBeThere(t *testing.T) {
	for name, c := range map[string]struct {
		end  func(n *testNode)
		also error
	}{
		"stops": {func(n *testNode) { n.Shutdown() }, ErrNoQuorum},
		"halts": {func(n *testNode) { n.fsm.stop("the test says so") }, ErrHalted},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newTestNet()
				nodes := net.cluster(t, "a", "b", "c")
				a, b := nodes[0], nodes[1]
				follows(t, b, a)
				net.dropping(func(from, _ ServerID, _ []byte) bool { return from == a.id }) // a is not heard, and hears
				done := submitting(t.Context(), b, "x")
				unanswered(t, done, "only the leader has it")
				c.end(b)
				if got := <-done; !errors.Is(got.err, ErrOutcomeUnknown) || !errors.Is(got.err, c.also) {
					t.Errorf("%v", got.err)
				}
				net.dropping(nil)
				eventually(t, "committed all the same", func() bool { return count(nodes[2].machine.list(), "x") == 1 })
			})
		})
	}
}

// Many submitters of equal entries get a result each, also where more of them are applied than have been answered.
func TestEqualEntriesKeepTheirResults(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		b := nodes[1]
		follows(t, b, nodes[0])
		release := net.hold(b.id)
		var clients sync.WaitGroup
		var places sync.Map
		const submitters = 2 * maxForwardsInFlight * maxForwardEntries
		for range submitters {
			clients.Go(func() {
				_, at, err := b.Submit(t.Context(), []byte("equal"))
				if err != nil {
					t.Error(err)
				}
				if _, twice := places.LoadOrStore(at, true); twice {
					t.Errorf("two submitters got the result %v", at)
				}
			})
		}
		eventually(t, "all that may be in flight is applied here", func() bool {
			return len(b.machine.list()) > maxForwardsInFlight*maxForwardEntries/2
		})
		release()
		clients.Wait()
		if got := count(b.machine.list(), "equal"); got != submitters {
			t.Errorf("%d entries of %d submitters", got, submitters)
		}
	})
}

// fragileMachine panics where it is told to.
type fragileMachine struct {
	listMachine
	capture, write, restore bool
}

func (m *fragileMachine) Snapshot() (io.WriterTo, error) {
	if m.capture {
		panic("no snapshot")
	}
	return m, nil
}

func (m *fragileMachine) WriteTo(w io.Writer) (int64, error) {
	if m.write {
		panic("no bytes")
	}
	return listSnapshot(m.list()).WriteTo(w)
}

func (m *fragileMachine) Restore(r io.Reader) error {
	if m.restore {
		panic("no state")
	}
	return m.listMachine.Restore(r)
}

// A machine that panics ends its own service and never the process, whose memory holds the roots.
func TestPanicsOfTheMachineEndNoProcess(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		m, late := &fragileMachine{}, &fragileMachine{restore: true}
		net.machines["a"], net.machines["late"] = m, late
		a := net.cluster(t, "a")[0]
		propose(t, a, "before")
		for name, panics := range map[string]*bool{"captured": &m.capture, "written": &m.write} {
			*panics = true
			if err := a.Compact(t.Context()); err == nil || a.Halted() {
				t.Errorf("a state that cannot be %s: error %v, halted %v", name, err, a.Halted())
			}
			*panics = false
		}
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		for _, e := range entries("more", 5) {
			propose(t, a, e)
		}
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := net.start(t, "late")
		_, prev := a.Members()
		if _, err := a.AddNonvoter(t.Context(), b.id, b.addr, prev); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the server that cannot restore is halted", b.Halted)
		if b.AppliedIndex() != 0 || b.Err() != nil {
			t.Errorf("it counts as having applied %d, and says %v", b.AppliedIndex(), b.Err())
		}
	})
}

// The numbers of a store that has failed stay, and another store in its process takes nobody's away.
func TestStoresOfOneRegistryKeepTheirNumbers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, net := prometheus.NewRegistry(), newTestNet()
		first := net.start(t, "first")
		second := net.start(t, "second")
		for _, n := range []*testNode{first, second} {
			n.metrics.registerer = r
			n.metrics.register()
		}
		shown := func() int {
			list, err := r.Gather()
			if err != nil {
				t.Error(fmt.Errorf("gathering: %w", err))
			}
			return len(list)
		}
		all := shown()
		second.Shutdown()
		if got := shown(); got != all || all == 0 {
			t.Errorf("%d numbers are left of %d", got, all)
		}
		first.Shutdown()
		if got := shown(); got != 0 {
			t.Errorf("%d numbers are left of none", got)
		}
	})
}
