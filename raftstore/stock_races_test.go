package raftstore

import (
	"bytes"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// stalledTerm is the stable store of a server whose host stops the thread that has just stored one term, once.
type stalledTerm struct {
	raft.StableStore
	mu      sync.Mutex
	term    uint64        // the term whose storing is stopped; 0: none
	stopped chan struct{} // closed when the thread has stopped
	resume  chan struct{}
}

func (s *stalledTerm) SetUint64(key []byte, val uint64) error {
	err := s.StableStore.SetUint64(key, val)
	s.mu.Lock()
	stop := s.term != 0 && string(key) == "CurrentTerm" && val == s.term
	if stop {
		s.term = 0
	}
	s.mu.Unlock()
	if stop {
		close(s.stopped)
		<-s.resume
	}
	return err
}

func isHeartbeat(request any) bool {
	req, ok := request.(*raft.AppendEntriesRequest)
	return ok && req.PrevLogEntry == 0 && req.LeaderCommitIndex == 0 && len(req.Entries) == 0
}

// The attack: a heartbeat is handled beside raft's main loop. The host stops its thread between storing the term and
// taking it on, lets the server vote in the next term meanwhile, and goes on: the term falls back, and the server
// follows the old leader after it has voted for the new one.
func TestStockHeartbeatRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		stall := &stalledTerm{stopped: make(chan struct{}), resume: make(chan struct{})}
		nodes := n.cluster(map[raft.ServerAddress]stockOptions{"a:1": {slowClock: true},
			"v:1": {stable: func(s raft.StableStore) raft.StableStore { stall.StableStore = s; return stall }}}, "a:1", "v:1", "c:1")
		a, v, c := nodes[0], nodes[1], nodes[2]
		n.crown(c, nodes...)
		n.rooms([]*stockNode{v}, []*stockNode{a, c})
		n.crown(a, a, c) // in a term that v has not heard of
		term := a.CurrentTerm()
		if v.CurrentTerm() >= term {
			t.Fatalf("v is in term %d already", v.CurrentTerm())
		}
		stall.mu.Lock()
		stall.term = term
		stall.mu.Unlock()
		goneOn := make(chan struct{})
		n.filter(func(m stockMessage) bool {
			_, entries := m.request.(*raft.AppendEntriesRequest)
			switch {
			case m.from == a.addr && m.to == v.addr:
				return isHeartbeat(m.request) || n.wait(goneOn) // only heartbeats before that
			case m.from == c.addr && m.to == v.addr:
				return n.wait(stall.stopped) && !entries // only votes, and not before the heartbeat
			}
			return false
		})
		n.rooms(nodes)
		eventually(t, "c is elected by v", func() bool { return c.State() == raft.Leader })
		if got := v.CurrentTerm(); got <= term {
			t.Fatalf("v voted for c in term %d", got)
		}
		voted := v.CurrentTerm()
		close(stall.resume)
		synctest.Wait()
		if got := v.CurrentTerm(); got != term {
			t.Fatalf("the attack does not work any more: the term went from %d to %d", voted, got)
		}
		close(goneOn)
		n.write(a, "acknowledged") // by a and v, in the old term
		n.filter(func(m stockMessage) bool { return m.from != a.addr && m.to != a.addr })
		lead := n.leader(c, v)
		n.write(lead, "another")
		n.filter(nil)
		eventually(t, "the old leader follows", func() bool { return slices.Contains(a.logged(), "another") })
		lost(t, "acknowledged", nodes...)
		outcome(t, "the term falls after a vote; an acknowledged write is in no log any more")
	})
}

// stalledArchive stops the thread that writes to it while it is shut.
type stalledArchive struct {
	memArchive
	shut chan struct{} // nil: open
}

func (a *stalledArchive) Sync() error {
	if a.shut != nil {
		<-a.shut
	}
	return a.memArchive.Sync()
}

// commanded gives n a configuration of itself, boss and voters, and a committed entry, and returns boss's channel.
func commanded(t *testing.T, n *testNode, boss ServerID, voters ...ServerID) *wireClient {
	t.Helper()
	conf := raft.Configuration{Servers: []raft.Server{{ID: n.id.raftID(), Address: raftAddress(n.id, n.addr)}, {ID: boss.raftID(), Address: raftAddress(boss, "boss:1")}}}
	for _, id := range voters {
		conf.Servers = append(conf.Servers, raft.Server{ID: id.raftID(), Address: raftAddress(id, "same:1")})
	}
	c := dialAs(n, boss)
	t.Cleanup(func() { c.Close() })
	rep := ask(t, c, frameAppend, &wireAppend{Header: header(boss, "boss:1"), Term: 1, Commit: 2, Entries: []wireEntry{
		{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: raft.EncodeConfiguration(conf)}, {Index: 2, Term: 1, Data: []byte("old")}}})
	if !rep.OK {
		t.Fatal("the first entries were refused")
	}
	return c
}

func TestOursHeartbeatRace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		archive := &stalledArchive{}
		n := newTestNet().open(t, ServerID{1}, "v:1", testKey(t), func(c *Config) {
			c.Archive, c.Timeouts = archive, Timeouts{Heartbeat: time.Minute}
		})
		a, c := ServerID{7}, ServerID{8}
		old := commanded(t, n, a, c)
		candidate := dialAs(n, c)
		defer candidate.Close()
		archive.shut = make(chan struct{})
		beat, vote := make(chan wireReply, 1), make(chan wireReply, 1)
		go func() { beat <- ask(t, old, frameAppend, &wireAppend{Header: header(a, "boss:1"), Term: 2}) }()
		synctest.Wait() // its term is being stored, and that takes as long as the host likes
		go func() {
			vote <- ask(t, candidate, frameVote, &wireVote{Header: header(c, "same:1"), Term: 3, LastIndex: 2, LastTerm: 1, Transfer: true})
		}()
		synctest.Wait()
		if len(beat) != 0 || len(vote) != 0 {
			t.Fatal("something was answered while the term was being stored")
		}
		close(archive.shut)
		if rep := <-beat; !rep.OK || rep.Term != 2 {
			t.Fatalf("the heartbeat: %+v", rep)
		}
		if rep := <-vote; !rep.OK || rep.Term != 3 {
			t.Fatalf("the vote: %+v", rep)
		}
		rep := ask(t, old, frameAppend, &wireAppend{Header: header(a, "boss:1"), Term: 2, PrevIndex: 2, PrevTerm: 1,
			Entries: []wireEntry{{Index: 3, Term: 2, Data: []byte("of the old leader")}}})
		if rep.OK || n.Term() != 3 {
			t.Fatalf("the old leader after the vote: %+v, term %d", rep, n.Term())
		}
		outcome(t, "one after the other: the vote waits for the term, and the old leader is refused")
	})
}

// The attack: honest servers only. A new leader's thread that begins to replicate to v has looked at the end of the log
// and is stopped by the host; meanwhile the leader's first entry is committed by others. Then it goes on: its request
// matches v up to the entry before, carries none, and says that one more is committed. v has another entry there.
func TestStockCommitBeyond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		host := &stoppedThread{net: n, arm: make(chan struct{}), stopped: make(chan struct{}), resume: make(chan struct{})}
		nodes := n.cluster(map[raft.ServerAddress]stockOptions{"b:1": {wire: func(w *stockWire) { w.scheduler = host.scheduler }}}, "v:1", "b:1", "c:1")
		v, b, c := nodes[0], nodes[1], nodes[2]
		n.crown(v, nodes...)
		n.write(v, "old")
		n.everywhere("old", nodes...)
		host.on.Store(true)
		b.RegisterObserver(raft.NewObserver(nil, false, host.observe(v.id)))
		n.filter(func(m stockMessage) bool { // b is elected, and not c
			_, pre := m.request.(*raft.RequestPreVoteRequest)
			return m.from != c.addr || !pre
		})
		n.rooms([]*stockNode{v}, []*stockNode{b, c})
		if err := v.Apply([]byte("never committed"), time.Second).Error(); err == nil {
			t.Fatal("a leader without a majority acknowledged")
		}
		n.wait(host.stopped)
		index := v.indexOf("never committed").Index
		eventually(t, "the new leader commits with c", func() bool { return b.CommitIndex() >= index })
		if !slices.Equal(v.machine.list(), []string{"old"}) {
			t.Fatalf("v has applied %q", v.machine.list())
		}
		n.rooms(nodes)
		close(host.resume)
		eventually(t, "v applies what was never committed", func() bool { return slices.Contains(v.machine.list(), "never committed") })
		n.write(b, "another")
		n.everywhere("another", nodes...)
		if slices.Contains(b.machine.list(), "never committed") || slices.Contains(v.logged(), "never committed") {
			t.Fatalf("the attack does not work any more: the leader has %q", b.machine.list())
		}
		outcome(t, "honest servers, one thread stopped: a follower applies an entry that was never committed, for good")
	})
}

// stoppedThread stops one thread of a server that begins to lead: the one that replicates to a follower, before it has
// asked what is committed. The other threads begin when that one stands still.
type stoppedThread struct {
	net     *stockNet
	on      atomic.Bool // the host is at work
	begun   atomic.Bool
	stood   atomic.Bool
	arm     chan struct{} // closed when the server begins to replicate to the follower
	stopped chan struct{} // closed when the thread stands still
	resume  chan struct{}
}

func (h *stoppedThread) observe(follower raft.ServerID) raft.FilterFn {
	return func(o *raft.Observation) bool {
		if p, ok := o.Data.(raft.PeerObservation); ok && p.Peer.ID == follower && !p.Removed {
			if h.begun.CompareAndSwap(false, true) {
				close(h.arm)
				h.net.wait(h.stopped)
			}
		}
		return false
	}
}

func (h *stoppedThread) scheduler() {
	if !h.on.Load() || !bytes.Contains(debug.Stack(), []byte("setupAppendEntries")) {
		return
	}
	h.net.wait(h.arm) // the thread may be here before the observer is told of the follower
	if h.stood.CompareAndSwap(false, true) {
		close(h.stopped)
		h.net.wait(h.resume)
	}
}
