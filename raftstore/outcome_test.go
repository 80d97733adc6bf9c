package raftstore

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"
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
