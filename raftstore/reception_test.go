package raftstore

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// The attack: the host cuts a leader's connection in the middle of a snapshot, again and again, and keeps the end of
// each from us. Only the last one is received.
func TestSnapshotsAreReceivedOneAtATime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t)
		head := mustMarshal(t, &wireSnapshot{Header: header(p.boss, "boss:1"), Term: 3, LastIndex: 5, LastTerm: 2, Config: p.conf, ConfigIndex: 1, Size: 10 * chunkSize})
		begin := func() *wireClient {
			c := dialAs(p.n, p.boss)
			if err := errors.Join(writeFrame(c.w, frameSnapshot, head), writeFrame(c.w, frameChunk, make([]byte, chunkSize)), c.w.Flush()); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			return c
		}
		var last *wireClient
		for i := range maxInboundPerPeer + 4 {
			next := begin()
			defer next.Close()
			if last != nil {
				last.SetDeadline(time.Now().Add(time.Second))
				if _, _, err := readFrame(last.r, nil); err == nil || errTimeout(err) == err {
					t.Fatalf("snapshot %d goes on beside the next: %v", i, err)
				}
			}
			last = next
		}
		if rep := p.snapshot(3, 5, 2, "a", "b"); !rep.OK || len(p.n.machine.list()) != 2 {
			t.Errorf("the snapshot that is sent whole: %+v, %q", rep, p.n.machine.list())
		}
	})
}
