package raftstore

import (
	"bytes"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// patient servers lose no leader while the host of the test is at work.
var patient = Timeouts{Heartbeat: 5 * time.Second, Election: 5 * time.Second, Lease: 5 * time.Second}

// The attack: the host keeps back the acknowledgements of a leader's entries, whose clients give up and try again. What
// they gave up is in the log and stays there: the leader must not take more of it than it can hold.
func TestUncommittedLogIsBounded(t *testing.T) {
	for name, c := range map[string]struct{ size, fits int }{
		"entries": {1, maxUncommitted}, "bytes": {MaxEntry, maxUncommittedBytes / MaxEntry},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				net := newTestNet()
				for _, name := range []string{"a", "b", "c"} {
					net.timeouts[name] = patient
				}
				nodes := net.cluster(t, "a", "b", "c")
				a, b := nodes[0], nodes[1]
				follows(t, b, a)
				propose(t, a, "before")
				begin := a.raft.LastIndex()
				release := net.hold(a.id)
				var busy, gaveUp atomic.Int64
				entry := bytes.Repeat([]byte{1}, c.size)
				for range 2 * c.fits / 64 { // one wave after the other, all of which give up
					ctx, cancel := context.WithCancel(t.Context())
					var clients sync.WaitGroup
					for range 64 {
						clients.Go(func() {
							switch _, _, err := a.Propose(ctx, entry); {
							case errors.Is(err, ErrBusy):
								busy.Add(1)
							case errors.Is(err, context.Canceled):
								gaveUp.Add(1)
							default:
								t.Errorf("a proposal that nobody acknowledges: %v", err)
							}
						})
					}
					synctest.Wait()
					cancel()
					clients.Wait()
				}
				taken := int(a.raft.LastIndex() - begin)
				if got := int(gaveUp.Load()); got != taken || taken < c.fits || taken > c.fits+maxAppendEntries {
					t.Errorf("%d entries are in the log, %d were given up, %d fit", taken, got, c.fits)
				}
				if int(busy.Load()) < c.fits-maxAppendEntries {
					t.Errorf("%d were refused", busy.Load())
				}
				if _, _, err := b.Submit(t.Context(), entry); !errors.Is(err, ErrBusy) {
					t.Errorf("through a follower: %v", err)
				}
				if entries, size := a.logs.behind(begin); entries != taken || size != taken*c.size {
					t.Errorf("%d entries of %d bytes are counted", entries, size)
				}
				release()
				eventually(t, "the leader takes entries again", func() bool { _, _, err := a.Propose(t.Context(), entry); return err == nil })
				if got := len(a.machine.list()); got != 1+taken+1 {
					t.Errorf("%d entries were committed, %d were taken", got, 1+taken+1)
				}
			})
		})
	}
}
