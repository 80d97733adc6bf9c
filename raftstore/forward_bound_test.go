package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func TestSubmitQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct{ size, fits int }{"entries": {1, maxPending}, "bytes": {MaxEntry, maxPendingBytes / MaxEntry}} {
			net := newTestNet()
			nodes := net.cluster(t, "a", "b", "c")
			follows(t, nodes[1], nodes[0])
			release := net.hold(nodes[1].id)
			ctx, cancel := context.WithCancel(t.Context())
			var busy, other atomic.Int64
			var clients sync.WaitGroup
			for range c.fits + 10 {
				clients.Go(func() {
					switch _, _, err := nodes[1].Submit(ctx, bytes.Repeat([]byte{1}, c.size)); {
					case errors.Is(err, ErrBusy):
						busy.Add(1)
					case err != nil && !errors.Is(err, context.Canceled):
						other.Add(1)
					}
				})
			}
			synctest.Wait()
			if busy.Load() != 10 || other.Load() != 0 {
				t.Errorf("%s: %d were told to come back, %d something else", name, busy.Load(), other.Load())
			}
			cancel()
			clients.Wait()
			release()
			eventually(t, name+": free again", func() bool {
				nodes[1].forwards.mu.Lock()
				defer nodes[1].forwards.mu.Unlock()
				return nodes[1].forwards.pending == 0 && nodes[1].forwards.bytes == 0 && len(nodes[1].forwards.queue) == 0
			})
			for _, n := range nodes {
				n.Shutdown()
			}
		}
	})
}

// The attack: clients that ask and go away, while the host holds back what was sent to the leader. What they asked for
// must not wait for the leader when nobody waits for it.
func TestSubmittersThatGoLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		follows(t, nodes[1], nodes[0])
		release := net.hold(nodes[1].id)
		defer release()
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			for range maxPendingBytes / MaxEntry {
				clients.Go(func() { nodes[1].Submit(ctx, bytes.Repeat([]byte{1}, MaxEntry)) })
			}
			synctest.Wait()
			cancel()
			clients.Wait()
		}
		f := nodes[1].forwards
		f.mu.Lock()
		defer f.mu.Unlock()
		size := 0
		for _, p := range f.queue {
			size += len(p.entry)
		}
		if f.pending != 0 || size > maxForwardBytes {
			t.Errorf("%d bytes wait for the leader and %d submitters", size, f.pending)
		}
	})
}

// sleepyMachine takes its time for every entry.
type sleepyMachine struct{ listMachine }

func (m *sleepyMachine) Apply(index uint64, entry []byte) any {
	time.Sleep(50 * time.Millisecond)
	return m.listMachine.Apply(index, entry)
}

// A leader stops, or its archive fails, with proposals in every queue of raft, which answers for none of them: whoever
// waits must not wait for ever, and keep the store in memory. The bubble fails if a goroutine is left.
func TestShutdownLeavesNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		net.machines["a"] = &sleepyMachine{}
		nodes := net.cluster(t, "a", "b", "c")
		follows(t, nodes[1], nodes[0])
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var clients sync.WaitGroup
		var unknown atomic.Int64
		for i := range 200 {
			for _, n := range nodes[:2] {
				clients.Go(func() {
					if _, _, err := n.Submit(ctx, []byte(fmt.Sprint(n.addr, i))); errors.Is(err, ErrOutcomeUnknown) {
						unknown.Add(1)
					}
				})
			}
		}
		time.Sleep(200 * time.Millisecond)
		nodes[0].Shutdown()
		clients.Wait()
		if unknown.Load() == 0 {
			t.Error("nothing was under way")
		}
		for _, n := range nodes {
			n.Shutdown()
		}
	})
}
