package raftstore

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// slowArchive takes its time over every Sync.
type slowArchive struct {
	memArchive
	pause atomic.Int64 // nanoseconds
}

func (a *slowArchive) Sync() error {
	time.Sleep(time.Duration(a.pause.Load()))
	return a.memArchive.Sync()
}

// A disk that is slow by the bubble's clock keeps nobody in a mutex: were one
// held across a write, the clock would stand still and this test would hang.
// Readers of the log do not wait for the disk at all.
func TestReadersOfTheLogDoNotWaitForTheDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		disk := &slowArchive{}
		net.archives["a"] = disk
		a := net.start(t, "a")
		if err := a.Genesis(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "leads", a.IsLeader)
		disk.pause.Store(int64(3 * time.Second))
		go a.Propose(t.Context(), []byte("x"))
		go a.Compact(t.Context())
		synctest.Wait()
		before := time.Now()
		if last, err := a.logs.LastIndex(); err != nil || last == 0 {
			t.Fatalf("%d, %v", last, err)
		}
		if d := time.Since(before); d != 0 {
			t.Errorf("a reader of the log waited %v", d)
		}
		eventually(t, "the entry is applied", func() bool { return len(a.machine.list()) == 1 })
		go a.Shutdown()
		if err := a.Shutdown(); err != nil {
			t.Error(err)
		}
	})
}
