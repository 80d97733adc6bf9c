package raftstore

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The attack of TestStockHeldBackTransfer.
func TestOursHeldBackTransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		net.dropping(func(from, to ServerID, _ []byte) bool { return from == a.id && to == b.id })
		propose(t, a, "b does not get this")
		for range 4 {
			if err := a.TransferLeadershipTo(t.Context(), b.id); !errors.Is(err, ErrNoQuorum) {
				t.Fatalf("leadership to a server that hears nothing: %v", err)
			}
			propose(t, a, "taken all the same")
		}
		net.split(a.id)
		eventually(t, "a leads no more", func() bool { return !a.IsLeader() })
		next := leaderOf(t, b, c)
		net.dropping(nil)
		eventually(t, "a leads again", func() bool {
			next.TransferLeadershipTo(t.Context(), a.id)
			next = leaderOf(t, nodes...)
			return next == a
		})
		propose(t, a, "more")
		outcome(t, "leadership is handed to a voter that has just answered, and by nobody who waits without an end: entries are taken before and after")
	})
}

// A voter that does not answer costs a transfer time and no entry: entries are taken until a successor is ready.
func TestEntriesAreTakenWhileASuccessorIsAwaited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		net.cut(b.id)
		done := make(chan error, 1)
		go func() { done <- a.TransferLeadershipTo(t.Context(), b.id) }()
		synctest.Wait()
		for i := range 10 {
			propose(t, a, fmt.Sprint(i))
		}
		if err := <-done; !errors.Is(err, ErrNoQuorum) || !a.IsLeader() {
			t.Fatalf("a transfer to a server that is down: %v, leads: %v", err, a.IsLeader())
		}
		propose(t, a, "after")
	})
}

// The host holds back what tells the successor to campaign: entries are refused for two election timeouts and no longer.
func TestEntriesAreTakenAgainSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a := nodes[0]
		net.dropping(func(_, _ ServerID, request []byte) bool {
			return len(request) > 4 && frameType(request[4]) == frameTimeoutNow
		})
		begun := time.Now()
		if err := a.TransferLeadership(t.Context()); !errors.Is(err, ErrNoQuorum) || !a.IsLeader() {
			t.Fatalf("a transfer that nobody hears of: %v, leads: %v", err, a.IsLeader())
		}
		if took := time.Since(begun); took > 2*a.cfg.Timeouts.Election {
			t.Errorf("no entry was taken for %v", took)
		}
		propose(t, a, "after")
	})
}

// Nobody is told to lead who is down, however much of the log it was known to have.
func TestSuccessorIsAlive(t *testing.T) {
	for _, down := range []int{1, 2} {
		t.Run("without "+string("abc"[down]), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				net := newTestNet()
				nodes := net.cluster(t, "a", "b", "c")
				propose(t, nodes[0], "all have this")
				eventually(t, "all have it", func() bool { return nodes[down].AppliedIndex() == nodes[0].AppliedIndex() })
				net.cut(nodes[down].id)
				if err := nodes[0].TransferLeadership(t.Context()); err != nil {
					t.Fatal(err)
				}
				propose(t, leaderOf(t, nodes[3-down]), "the other one leads")
			})
		})
	}
}

func TestTransferIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b")
		a, b, stranger := nodes[0], nodes[1], net.start(t, "x")
		_, prev := a.Members()
		if _, err := a.AddNonvoter(t.Context(), stranger.id, stranger.addr, prev); err != nil {
			t.Fatal(err)
		}
		for name, id := range map[string]ServerID{"itself": a.id, "a nonvoter": stranger.id, "a stranger": {9}} {
			if err := a.TransferLeadershipTo(t.Context(), id); !errors.Is(err, ErrPeer) {
				t.Errorf("to %s: %v", name, err)
			}
		}
		if _, elsewhere := errors.AsType[*NotLeaderError](b.TransferLeadership(t.Context())); !elsewhere {
			t.Error("a follower has handed over")
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		if err := a.TransferLeadership(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("after the end of the context: %v", err)
		}
		if !a.IsLeader() {
			t.Fatal("a has lost leadership")
		}
	})
}

// One transfer at a time; and all that is proposed around it is either committed or refused, never in doubt.
func TestTransfersUnderLoad(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		ctx, cancel := context.WithCancel(t.Context())
		var work sync.WaitGroup
		var mu sync.Mutex
		committed := 0
		for i, n := range nodes {
			work.Go(func() {
				for k := 0; ctx.Err() == nil; k++ {
					_, _, err := n.Submit(t.Context(), fmt.Appendf(nil, "%d-%d", i, k))
					if err != nil {
						t.Errorf("an entry during a transfer: %v", err)
					}
					mu.Lock()
					committed++
					mu.Unlock()
					time.Sleep(time.Millisecond)
				}
			})
		}
		for range 20 {
			time.Sleep(50 * time.Millisecond)
			leader := leaderOf(t, nodes...)
			var both sync.WaitGroup
			errs := make([]error, 2)
			for i := range errs {
				both.Go(func() { errs[i] = leader.TransferLeadership(t.Context()) })
			}
			both.Wait()
			if errs[0] != nil && errs[1] != nil {
				t.Fatalf("neither of two transfers: %v, %v", errs[0], errs[1])
			}
		}
		cancel()
		work.Wait()
		t.Logf("%d entries around 20 transfers", committed)
		if committed < 20 {
			t.Errorf("%d entries are too few to show anything", committed)
		}
	})
}
