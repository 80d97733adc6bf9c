package raftstore

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// The fault: the leader's disk neither writes nor fails. Its heartbeats need no disk; they must not keep it leader.
func TestLeaderWhoseDiskHangsIsReplaced(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		world, disk := newTestNet(), &gatedArchive{gate: make(chan struct{})}
		world.archives["a"] = disk
		nodes := world.cluster(t, "a", "b", "c")
		a, others := nodes[0], nodes[1:]
		disk.stuck.Store(true)
		hangs := time.Now()
		waits := submitting(t.Context(), a, "with the disk")
		ctx, cancel := context.WithTimeout(t.Context(), 2*a.cfg.Timeouts.Disk)
		defer cancel()
		for {
			if _, _, err := others[0].Submit(ctx, []byte("without it")); err == nil {
				break
			}
			if ctx.Err() != nil {
				t.Fatal("nothing is committed while one disk of three hangs")
			}
			time.Sleep(10 * time.Millisecond)
		}
		if d := time.Since(hangs); d < a.cfg.Timeouts.Disk {
			t.Errorf("the leader fell silent after %v: a slow disk is no broken one", d)
		}
		next := leaderOf(t, others...)
		close(disk.gate)
		<-waits
		propose(t, next, "all of them")
		eventually(t, "the one with the disk follows", func() bool { return a.AppliedIndex() == next.AppliedIndex() })
	})
}

// A disk that is slow costs a leader nothing but time.
func TestLeaderWhoseDiskIsSlowStays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		world, disk := newTestNet(), &slowArchive{}
		world.archives["a"] = disk
		a := world.cluster(t, "a", "b", "c")[0]
		term := a.Term()
		disk.pause.Store(int64(a.cfg.Timeouts.Disk / 2))
		for range 5 {
			propose(t, a, "slowly")
		}
		if now := a.Term(); now != term || !a.IsLeader() {
			t.Errorf("term %d has become %d, leads: %v", term, now, a.IsLeader())
		}
	})
}
