package raftstore

import (
	"context"
	"crypto/sha256"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// farDialer puts a way between two servers: what is written arrives later, in
// order, and any amount of it may be on the way.
type farDialer struct {
	testDialer
	way time.Duration
}

func (d farDialer) Dial(ctx context.Context, id ServerID, addr string) (net.Conn, error) {
	far, err := d.testDialer.Dial(ctx, id, addr)
	if err != nil {
		return nil, err
	}
	a, b := net.Pipe()
	go d.carry(b, far)
	go d.carry(far, b)
	return a, nil
}

func (d farDialer) carry(from, to net.Conn) {
	type piece struct {
		due  time.Time
		data []byte
	}
	onTheWay := make(chan piece, 1024)
	go func() {
		defer close(onTheWay)
		for {
			buf := make([]byte, 64<<10)
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			onTheWay <- piece{time.Now().Add(d.way), buf[:n]}
		}
	}()
	for p := range onTheWay {
		time.Sleep(time.Until(p.due))
		if _, err := to.Write(p.data); err != nil {
			break
		}
	}
	from.Close()
	to.Close()
	for range onTheWay {
	}
}

// startFar is testNet.start with a slow disk and a way to everybody.
func (n *testNet) startFar(t *testing.T, name string, way time.Duration, pipelined bool) *testNode {
	t.Helper()
	disk := &slowArchive{}
	disk.pause.Store(int64(time.Millisecond))
	node := n.open(t, sha256.Sum256([]byte(name)), name+":1", testKey(t), func(c *Config) {
		c.Timeouts = Timeouts{Heartbeat: time.Second, Election: time.Second, Lease: time.Second}
		c.Dialer, c.Archive = farDialer{testDialer{n, c.ID}, way}, disk
	})
	if !pipelined {
		never := brokenPipe{until: time.Now().Add(1000 * time.Hour)}
		node.trans.pipes.broken = map[ServerID]brokenPipe{}
		for _, peer := range []string{"a", "b", "c"} {
			node.trans.pipes.broken[sha256.Sum256([]byte(peer))] = never
		}
	}
	return node
}

// pace is how many entries three servers commit in 0.4 s of the bubble's
// time, with disks that take a millisecond and this way between them.
func pace(t *testing.T, way time.Duration, writers int, pipelined bool) (commits int) {
	synctest.Test(t, func(t *testing.T) {
		t.Cleanup(func() { time.Sleep(time.Second) }) // what is on the way arrives
		net := newTestNet()
		a := net.startFar(t, "a", way, pipelined)
		if err := a.Genesis(); err != nil {
			t.Fatal(err)
		}
		eventually(t, "leads", func() bool { return a.SafeRead(t.Context()) == nil })
		for _, name := range []string{"b", "c"} {
			n := net.startFar(t, name, way, pipelined)
			_, prev := a.Members()
			index, err := a.AddNonvoter(t.Context(), n.id, n.addr, prev)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "caught up", func() bool { return n.AppliedIndex() >= index })
			if _, err := a.AddVoter(t.Context(), n.id, n.addr, index); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(2 * time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 400*time.Millisecond)
		defer cancel()
		var all sync.WaitGroup
		var done atomic.Int64
		for w := range writers {
			all.Go(func() {
				for i := 0; ctx.Err() == nil; i++ {
					if _, _, err := a.Propose(ctx, fmt.Appendf(nil, "%d-%d", w, i)); err == nil {
						done.Add(1)
					}
				}
			})
		}
		all.Wait()
		commits = int(done.Load())
	})
	return commits
}

// Pipelining must not cost commits, with any number of writers: not near, where
// it has nothing to win, and far it must win. Time is the bubble's.
func TestPipelinesKeepThePace(t *testing.T) {
	t.Parallel()
	for _, way := range []time.Duration{0, time.Millisecond, 10 * time.Millisecond} {
		for _, writers := range []int{16, 256} {
			single, piped := pace(t, way, writers, false), pace(t, way, writers, true)
			t.Logf("way %v, %d writers: %d commits with single requests, %d with pipelines (%.2f)", way, writers, single, piped, float64(piped)/float64(single))
			if single == 0 || float64(piped) < 0.9*float64(single) {
				t.Errorf("way %v, %d writers: %d commits with single requests, %d with pipelines", way, writers, single, piped)
			}
		}
	}
}
