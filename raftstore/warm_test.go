package raftstore

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// between counts the channels that from has ever opened to to.
func (n *testNet) between(from, to *testNode) (count int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, ends := range n.conns {
		if ends == [2]ServerID{from.id, to.id} {
			count++
		}
	}
	return count
}

// Followers are connected before they need it, and an election dials nobody.
func TestFailoverFindsConnectionsOpen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		eventually(t, "the followers are connected", func() bool { return b.trans.connected(c.id) && c.trans.connected(b.id) })
		dialled := net.between(b, c) + net.between(c, b)
		a.Shutdown()
		start := time.Now()
		next := leaderOf(t, b, c)
		// Pipelines of the new leader are connections of their own, opened later.
		if got := net.between(b, c) + net.between(c, b); got > dialled+1 {
			t.Errorf("the election dialled %d times", got-dialled)
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("the failover took %v", d)
		}
		propose(t, next, "goes on")
	})
}

type countingDialer struct {
	dials *atomic.Int64
	most  *atomic.Int64
	now   *atomic.Int64
	err   error
}

func (d countingDialer) Dial(ctx context.Context, _ ServerID, _ string) (net.Conn, error) {
	d.dials.Add(1)
	d.most.Store(max(d.most.Load(), d.now.Add(1)))
	defer d.now.Add(-1)
	time.Sleep(20 * time.Millisecond)
	if d.err != nil {
		return nil, d.err
	}
	a, _ := net.Pipe()
	return a, nil
}

func members20(self ServerID) raft.Configuration {
	c := raft.Configuration{Servers: []raft.Server{{ID: self.raftID(), Address: raftAddress(self, "self:1")}}}
	for i := range byte(20) {
		id := ServerID{100 + i}
		c.Servers = append(c.Servers, raft.Server{ID: id.raftID(), Address: raftAddress(id, "x:1")})
	}
	return c
}

// Peers that cannot be reached are not stormed: few dials at a time, and fewer
// and fewer.
func TestColdPeersAreNotStormed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := countingDialer{new(atomic.Int64), new(atomic.Int64), new(atomic.Int64), errors.New("no route")}
		tr := newTransport(ServerID{1}, "self:1", d, Timeouts{}.withDefaults(), newFence(), slog.New(slog.DiscardHandler))
		go (&warmer{t: tr}).run()
		time.Sleep(10 * time.Second)
		if d.dials.Load() != 0 {
			t.Error("a server outside any configuration dials")
		}
		tr.members.update(1, members20(tr.self))
		time.Sleep(10 * time.Minute)
		if n := d.dials.Load() / 20; n < 15 || n > 60 {
			t.Errorf("each peer was dialled %d times in ten minutes", n)
		}
		if d.most.Load() > warmAtOnce {
			t.Errorf("%d dials at once", d.most.Load())
		}
		before := d.dials.Load()
		tr.members.update(2, raft.Configuration{Servers: members20(ServerID{200}).Servers[1:]}) // without self
		time.Sleep(time.Minute)
		if d.dials.Load() != before {
			t.Error("a server that is out of the configuration dials")
		}
		tr.Close()
	})
}

// Connections that are idle grow old and are replaced, one at a time; those of
// a server that left are closed.
func TestIdleConnectionsAreReplacedAndClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := countingDialer{new(atomic.Int64), new(atomic.Int64), new(atomic.Int64), nil}
		tr := newTransport(ServerID{1}, "self:1", d, Timeouts{}.withDefaults(), newFence(), slog.New(slog.DiscardHandler))
		go (&warmer{t: tr}).run()
		all := members20(tr.self)
		tr.members.update(1, all)
		time.Sleep(time.Minute)
		if got := d.dials.Load(); got != 20 {
			t.Errorf("%d dials for 20 peers", got)
		}
		time.Sleep(time.Hour)
		if got := d.dials.Load(); got < 20*11 || got > 20*13 {
			t.Errorf("%d dials in an hour", got)
		}
		gone := ServerID{100}
		tr.members.update(2, raft.Configuration{Servers: append(all.Servers[:1:1], all.Servers[2:]...)})
		time.Sleep(time.Minute)
		if tr.connected(gone) || !tr.connected(ServerID{101}) {
			t.Error("the connection of the server that left is open, or others are not")
		}
		tr.Close()
	})
}
