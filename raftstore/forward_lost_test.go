package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// The leader dies while a proposal is with it: unknown, and never sent again.
func TestLeaderChangeMidwayIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		// b is in no hurry: it has given up the old leader, at the latest, when three of its heartbeat timeouts are over,
		// and waits for four. With equal ones a divided vote may take longer than a call waits for a leader.
		net.timeouts["b"] = Timeouts{Heartbeat: time.Second, Election: time.Second}
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		net.dropping(func(from, _ ServerID, _ []byte) bool { return from == a.id }) // a is not heard, and hears
		done := submitting(t.Context(), b, "once")
		unanswered(t, done, "only the leader has it")
		read := make(chan error, 1)
		go func() { read <- b.Read(t.Context()) }()
		synctest.Wait()
		a.Shutdown()
		net.dropping(nil)
		if got := <-done; !errors.Is(got.err, ErrOutcomeUnknown) {
			t.Fatalf("%+v", got)
		}
		if err := <-read; err != nil {
			t.Errorf("a read is tried again with the next leader: %v", err)
		}
		next := leaderOf(t, nodes[1:]...)
		propose(t, next, "end")
		if got := count(next.machine.list(), "once"); got != 0 {
			t.Errorf("the entry is in the log %d times: it was sent again", got)
		}
	})
}

// cutting is a leader whose host cuts the connection once what it carried is committed.
type cutting struct {
	host
	t *transport
}

func (c cutting) proposeFor(peer ServerID, entries [][]byte, fr *forwarded) error {
	real := &forwarded{done: make(chan struct{})}
	if err := c.host.proposeFor(peer, entries, real); err != nil {
		return err
	}
	fr.outcomes = make([]wireOutcome, len(entries))
	go func() {
		<-real.done
		c.t.mu.Lock()
		defer c.t.mu.Unlock()
		c.t.streams[peer].Close()
		close(fr.done)
	}()
	return nil
}

// The attack: the host cuts the connection after the commit and before the
// answer. The entry must not be sent again, and nothing is said of it.
func TestAnswerCutOffIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		a.trans.host = cutting{host: a.Store, t: a.trans}
		for _, e := range entries("once", 5) {
			if got := <-submitting(t.Context(), b, e); !errors.Is(got.err, ErrOutcomeUnknown) {
				t.Fatalf("%+v", got)
			}
		}
		if got := a.machine.list(); !slices.Equal(got, entries("once", 5)) {
			t.Errorf("the log has %q", got)
		}
	})
}

// A graceful change of leaders: what no leader has taken is tried with the next
// one, nothing is sent twice, and clients of followers see no error.
func TestSubmitsOutliveATransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		var mu sync.Mutex
		acked, unknown := map[string]bool{}, 0
		for i, n := range nodes {
			clients.Go(func() {
				for k := 0; ctx.Err() == nil; k++ {
					entry := fmt.Sprintf("%d-%d", i, k)
					_, _, err := n.Submit(t.Context(), []byte(entry))
					mu.Lock()
					switch {
					case err == nil:
						acked[entry] = true
					case errors.Is(err, ErrOutcomeUnknown):
						unknown++
					default:
						t.Errorf("%s: %v", entry, err)
					}
					mu.Unlock()
					time.Sleep(time.Millisecond)
				}
			})
		}
		for range 4 {
			time.Sleep(300 * time.Millisecond)
			leaderOf(t, nodes...).TransferLeadership(t.Context())
		}
		time.Sleep(300 * time.Millisecond)
		cancel()
		clients.Wait()
		next := leaderOf(t, nodes...)
		list := next.machine.list()
		for e := range acked {
			if count(list, e) != 1 {
				t.Errorf("%s is in the log %d times", e, count(list, e))
			}
		}
		if len(acked) < 1000 || unknown > 40 {
			t.Errorf("%d acknowledged, %d in doubt", len(acked), unknown)
		}
	})
}

// A follower that catches up past its entry by a snapshot never applied it.
func TestResultLostToASnapshotIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		net.dropping(func(_, to ServerID, req []byte) bool { // b gets nothing, and what it asks is answered
			return to == b.id
		})
		done := submitting(t.Context(), b, "mine")
		eventually(t, "committed", func() bool { return slices.Contains(a.machine.list(), "mine") })
		for _, e := range entries("more", 50) {
			propose(t, a, e)
		}
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		net.dropping(nil)
		if got := <-done; !errors.Is(got.err, ErrOutcomeUnknown) {
			t.Fatalf("%+v", got)
		}
		if kinds := recordKinds(t, b); kinds[RecordSnapshot] == 0 {
			t.Fatalf("no snapshot was installed: %v", kinds)
		}
		eventually(t, "the entry is there", func() bool { return count(b.machine.list(), "mine") == 1 })
	})
}

func TestFollowerWithoutALeaderGivesUpSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		b := nodes[1]
		net.cut(nodes[0].id)
		net.cut(nodes[2].id)
		eventually(t, "no leader", func() bool { _, _, ok := b.Leader(); return !ok })
		for name, f := range map[string]func() error{
			"submit": func() error { _, _, err := b.Submit(t.Context(), []byte("x")); return err },
			"read":   func() error { return b.Read(t.Context()) },
		} {
			start := time.Now()
			err := f()
			if !errors.Is(err, ErrNoQuorum) || errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("%s: %v", name, err)
			}
			if d := time.Since(start); d > b.patience() {
				t.Errorf("%s took %v", name, d)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, _, err := b.Submit(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("past its context: %v", err)
		}
		net.heal(nodes[0].id)
		net.heal(nodes[2].id)
		eventually(t, "healed", func() bool { _, _, err := b.Submit(t.Context(), []byte("healed")); return err == nil })
		if slices.Contains(b.machine.list(), "x") {
			t.Error("what was refused was committed")
		}
	})
}

// A leader that is known and cannot be reached from here is named: a client may reach it.
func TestUnreachableLeaderIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		net.wall(b.id, a.id)
		_, _, err := b.Submit(t.Context(), []byte("x"))
		if nl, ok := errors.AsType[*NotLeaderError](err); !ok || nl.Leader != a.id {
			t.Errorf("submit: %v", err)
		}
		if nl, ok := errors.AsType[*NotLeaderError](b.Read(t.Context())); !ok || nl.Leader != a.id {
			t.Error("read: the leader is not named")
		}
	})
}

func TestBrokenServersRefuseSubmitAndRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, old := newTestNet(), &olderMachine{}
		net.machines["b"] = old
		nodes := net.cluster(t, "a", "b", "c")
		a, halted, fenced := nodes[0], nodes[1], nodes[2]
		follows(t, halted, a)
		if _, _, err := halted.Submit(t.Context(), []byte("new")); !errors.Is(err, ErrHalted) {
			t.Errorf("the entry that halts its own server: %v", err)
		}
		if _, _, err := halted.Submit(t.Context(), []byte("x")); !errors.Is(err, ErrHalted) {
			t.Errorf("a halted server submitted: %v", err)
		}
		if err := halted.Read(t.Context()); !errors.Is(err, ErrHalted) {
			t.Errorf("a halted server read: %v", err)
		}
		follows(t, fenced, a)
		fenced.archive.breakDisk()
		if got := <-submitting(t.Context(), fenced, "during"); got.err == nil {
			t.Error("a server with a broken disk answered")
		}
		<-fenced.Done()
		if _, _, err := fenced.Submit(t.Context(), []byte("x")); !errors.Is(err, ErrStopped) {
			t.Errorf("a failed server submitted: %v", err)
		}
		if err := fenced.Read(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("a failed server read: %v", err)
		}
		if got := count(a.machine.list(), "x"); got != 0 {
			t.Error("a refused entry was committed")
		}
	})
}
