package raftstore

import (
	"bufio"
	"context"
	"net"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// gatedArchive is a disk that answers no Sync, once it is stuck, before the gate opens.
type gatedArchive struct {
	memArchive
	stuck atomic.Bool
	gate  chan struct{}
}

func (a *gatedArchive) Sync() error {
	if a.stuck.Load() {
		<-a.gate
	}
	return a.memArchive.Sync()
}

// stalled is a cluster whose leader's raft waits for its disk until the test releases it.
func stalled(t *testing.T, names ...string) (leader *testNode, release func()) {
	t.Helper()
	world, disk := newTestNet(), &gatedArchive{gate: make(chan struct{})}
	world.archives[names[0]] = disk
	leader = world.cluster(t, names...)[0]
	disk.stuck.Store(true)
	done := submitting(t.Context(), leader, "waits for the disk")
	synctest.Wait()
	return leader, func() {
		close(disk.gate)
		if got := <-done; got.err != nil {
			t.Errorf("the entry that waited: %v", got.err)
		}
	}
}

// The attack: the host lets a server wait for its disk. A peer gives up, dials again and asks again; what it asked
// first waits for raft all the same, and must not be joined by more and more.
func TestRequestsThatWaitForRaftAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, release := stalled(t, "a")
		peer := ServerID{9}
		vote := mustMarshal(t, &wireVote{Header: header(peer, "peer:1")})
		answered, waiting := make(chan error, 3*maxInboundPerPeer), 0
		for range 3 * maxInboundPerPeer {
			c := dialAs(a, peer)
			defer c.Close()
			if writeFrame(c.w, framePreVote, vote) == nil && c.w.Flush() == nil {
				waiting++
				go func() {
					_, _, err := readFrame(c.r, nil)
					answered <- err
				}()
			}
			synctest.Wait()
		}
		if waiting != maxInboundPerPeer {
			t.Errorf("%d requests wait", waiting)
		}
		release()
		for range waiting {
			if err := <-answered; err != nil {
				t.Errorf("a request that waited has no answer: %v", err)
			}
		}
		c := dialAs(a, peer)
		defer c.Close()
		if ft, _, err := c.send(t, framePreVote, vote); err != nil || ft != frameReply {
			t.Errorf("when the disk answers again: frame %d, %v", ft, err)
		}
	})
}

// A leader's heartbeats go on while its raft waits for the disk, and so do the proofs that it leads: no read waits for raft.
func TestReadsDoNotWaitForTheDisk(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		a, release := stalled(t, "a", "b", "c")
		for i := range 200 { // raft's queue of them is shorter
			start := time.Now()
			if err := a.SafeRead(t.Context()); err != nil {
				t.Fatalf("read %d: %v", i, err)
			}
			if d := time.Since(start); d > roundLimit {
				t.Fatalf("read %d took %v", i, d)
			}
		}
		release()
	})
}

// Reads ask raft for heartbeats while its main loop waits for the disk, more often than it can answer in between. That
// must not fill the queue in which raft is also told what the heartbeats came to: those who send them would wait for a
// place there, leadership would end although a slow disk costs none, and Shutdown would not return.
func TestReadsOnASlowDiskKeepTheLeader(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		world, disk := newTestNet(), &slowArchive{}
		world.archives["a"] = disk
		a := world.cluster(t, "a", "b")[0] // with a third one a test that fails would wait in a mutex, and the clock with it
		term := a.Term()
		disk.pause.Store(int64(a.cfg.Timeouts.Disk / 3))
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
		defer cancel()
		var work sync.WaitGroup
		for range 4 {
			work.Go(func() {
				for ctx.Err() == nil { // without a pause: raft finds the next entries as soon as it has stored some
					if _, _, err := a.Propose(ctx, []byte("slowly")); err != nil {
						time.Sleep(time.Millisecond)
					}
				}
			})
		}
		work.Go(func() {
			for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
				a.SafeRead(ctx)
			}
		})
		longest := 0
		for ctx.Err() == nil && a.Term() == term && a.IsLeader() {
			time.Sleep(10 * time.Millisecond)
			longest = max(longest, asked(a))
		}
		if ctx.Err() == nil {
			t.Errorf("term %d has become %d, leads: %v", term, a.Term(), a.IsLeader())
		}
		if longest == 0 || longest > maxBeats {
			t.Errorf("%d calls were in raft's queue", longest)
		}
		cancel()
		work.Wait()
		disk.pause.Store(0)
	})
}

// asked is how many calls for heartbeats, and votes that answer them, are in raft's queue.
func asked(n *testNode) int { return reflect.ValueOf(n.raft).Elem().FieldByName("verifyCh").Len() }

// sluggish is a channel whose end nobody takes.
type sluggish struct {
	net.Conn
	gate <-chan struct{}
}

func (c sluggish) Close() error {
	<-c.gate
	return c.Conn.Close()
}

// The attack: the host takes nothing more of what a removed server's channels send, and so lets their end wait. Neither
// the machine nor anybody who wants a connection waits with it.
func TestEndsOfChannelsKeepNobodyWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c", "d")
		a, d := nodes[0], nodes[3]
		gate := make(chan struct{})
		near, far := net.Pipe()
		go a.Serve(sluggish{far, gate}, d.id)
		c := &wireClient{near, bufio.NewReader(near), bufio.NewWriter(near)}
		if _, _, err := c.send(t, framePreVote, mustMarshal(t, &wireVote{Header: header(d.id, d.addr)})); err != nil {
			t.Fatal(err)
		}
		_, prev := a.Members()
		if _, err := a.Remove(t.Context(), d.id, prev); err != nil {
			t.Fatal(err)
		}
		start := time.Now()
		propose(t, a, "after")
		if err := a.SafeRead(t.Context()); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(start); took > time.Second || !a.IsLeader() {
			t.Errorf("a write and a read took %v", took)
		}
		if _, _, err := c.send(t, framePreVote, nil); err == nil {
			t.Error("the removed server is answered")
		}
		close(gate)
	})
}
