package raftstore

import (
	"bufio"
	"context"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// A harness that has never failed has shown nothing. Here one rule at a time is
// taken away, by what stands between the tests and the store and never in the
// store, and the harness must see it within a number of seeds.

// mutation takes one rule away.
type mutation int

const (
	sound               mutation = iota
	readsByVerifyLeader          // clients trust raft's own count of answers
	heartbeatFastPath            // heartbeats are answered beside raft's main loop
	// Every request tells the newest commit index of its leader, and it is not
	// clamped. Leaders of this library leave it out of heartbeats, so that without
	// the clamp alone nothing is seen here; a hostile one is in attack_test.go.
	commitUnclamped
	bootsFromOldDisk   // a machine that starts again is the server that its disk tells of
	votesOverASnapshot // a candidate takes entries and snapshots, and goes on being one
)

func TestChaosSeesWhatIsMissing(t *testing.T) {
	t.Parallel()
	pick := func(names ...string) (list []fault) {
		for _, f := range faults {
			if slices.Contains(names, f.name) {
				list = append(list, f)
			}
		}
		if len(list) != len(names) {
			t.Fatalf("only %d of %q are faults", len(list), names)
		}
		return list
	}
	for name, c := range map[string]struct {
		mutation mutation
		within   int // seeds
		clients  int
		faults   []fault
	}{
		"VerifyLeader in the place of SafeRead": {readsByVerifyLeader, 200, 8, pick("held replies, then alone", "hand over leadership")},
		"heartbeats beside the main loop":       {heartbeatFastPath, 20, 0, pick("a vote before a heartbeat")},
		"newest commit indexes, not clamped":    {commitUnclamped, 20, 5, pick("the leader alone until another leads")},
		"snapshots for a candidate":             {votesOverASnapshot, 20, 5, pick("votes held over a snapshot")},
		"a server that starts from its disk":    {bootsFromOldDisk, 20, 5, pick("isolate", "crash and boot at once", "hears and is not heard", "hand over leadership")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			stats := newCounters()
			for seed := range uint64(c.within) {
				o := runSeed(t, seed, plan{mutation: c.mutation, rounds: 40, faults: c.faults, clients: c.clients}, stats)
				if o.failed() && !strings.HasPrefix(o.violations[0], notWhole) { // that alone would be no wrong answer
					t.Logf("%s: seen at seed %d: %s", name, seed, o.violations[0])
					return
				}
			}
			t.Errorf("%s: not seen within %d seeds, %d rounds, %d operations", name, c.within, stats.rounds.Load(), stats.operations.Load())
		})
	}
}

// safeRead is how clients read.
func (m mutation) safeRead(b *boot) func(context.Context) error {
	if m != readsByVerifyLeader {
		return b.SafeRead
	}
	return func(ctx context.Context) error { return b.await(ctx, b.raft.VerifyLeader()) }
}

// between is what stands between raft and the transport of b.
func (m mutation) between(w *world, b *boot) func(*transport) raft.Transport {
	return func(t *transport) raft.Transport {
		switch m {
		case heartbeatFastPath, commitUnclamped, votesOverASnapshot:
			f := &mutant{transport: t, b: b, m: m, out: make(chan raft.RPC)}
			t.growing.Lock() // so that it has a token to look at
			t.growing.Unlock()
			w.work.Go(f.forward)
			return f
		}
		return t
	}
}

// mutant passes requests on to raft, some of them otherwise than they should be.
type mutant struct {
	*transport
	b   *boot
	m   mutation
	out chan raft.RPC

	mu   sync.Mutex
	fast func(raft.RPC)
}

func (f *mutant) Consumer() <-chan raft.RPC { return f.out }

func (f *mutant) SetHeartbeatHandler(h func(raft.RPC)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fast = h
}

func (f *mutant) forward() {
	for {
		select {
		case rpc := <-f.transport.consumer:
			f.pass(rpc)
		case <-f.transport.ctx.Done():
			return
		}
	}
}

func (f *mutant) pass(rpc raft.RPC) {
	a, ok := rpc.Command.(*raft.AppendEntriesRequest)
	if ok && f.m == commitUnclamped {
		id, _ := ParseServerID(string(a.ID))
		if l := f.b.w.byID(id); l != nil && l.IsLeader() && l.Term() == a.Term {
			a.LeaderCommitIndex = l.CommitIndex()
		}
	}
	heartbeat := ok && a.PrevLogEntry == 0 && len(a.Entries) == 0
	f.mu.Lock()
	fast := f.fast
	f.mu.Unlock()
	if heartbeat && f.m == heartbeatFastPath && fast != nil {
		go fast(rpc)
		return
	}
	if heartbeat && f.m == votesOverASnapshot && len(f.growing.token) == 1 && f.b.raft.State() == raft.Candidate {
		rpc.Respond(&raft.AppendEntriesResponse{Term: a.Term, Success: true}, nil) // the one before a snapshot: see installSnapshot
		return
	}
	select {
	case f.out <- rpc:
	case <-f.transport.ctx.Done():
	}
}

// bootOld starts the machine of a slot again as the server it was, with what its
// disk held at some time not long ago: the host keeps copies.
func (w *world) bootOld(slot int) {
	old := w.newest(slot)
	<-old.Done()
	sealed := old.disk.durable(0)
	if len(sealed) == 0 {
		return
	}
	r := w.recovered(old, sealed[:len(sealed)-w.dice.n(min(len(sealed), 40))])
	b := w.server(w.count(), slot, old.id, old.key, clocks[0])
	b.roots.Store(true)
	b.feed(r)
	w.enlist(b)
	w.note("boot %d is boot %d of slot %d again, from its disk, with %d entries", b.number, old.number, slot, len(r.log))
	w.stats.count("boot from an old disk")
}

// recovered is what records of b tell: term, snapshot and log.
func (w *world) recovered(b *boot, sealed [][]byte) (r recovered) {
	r.log = map[uint64]Record{}
	o, err := NewOpener(b.key, Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: b.id})
	if err != nil {
		w.t.Fatal(err)
	}
	for _, raw := range sealed {
		rec, err := o.Open(raw)
		if err != nil {
			return r
		}
		switch rec.Kind {
		case RecordTerm:
			r.term = rec.Term
		case RecordLog:
			for i := range r.log {
				if i >= rec.Index {
					delete(r.log, i)
				}
			}
			r.log[rec.Index] = rec
		}
	}
	return r
}

// feed gives a server the term and the log it once had, in the name of a leader.
func (b *boot) feed(r recovered) {
	near, far := net.Pipe()
	defer near.Close()
	boss := ServerID{0xff}
	go b.Serve(far, boss)
	rd, wr := bufio.NewReader(near), bufio.NewWriter(near)
	send := func(prev, prevTerm uint64, entries ...wireEntry) {
		payload, err := encMode.Marshal(&wireAppend{Header: wireHeader{Version: 3, ID: []byte(boss.String()), Addr: []byte(raftAddress(boss, "disk:1"))},
			Term: max(r.term, 1), PrevIndex: prev, PrevTerm: prevTerm, Entries: entries})
		if err == nil && writeFrame(wr, frameAppend, payload) == nil && wr.Flush() == nil {
			near.SetDeadline(time.Now().Add(time.Second))
			readFrame(rd, nil)
		}
	}
	send(0, 0)
	prevTerm := uint64(0)
	for i := uint64(1); ; i++ {
		e, ok := r.log[i]
		if !ok {
			return
		}
		send(i-1, prevTerm, wireEntry{Index: e.Index, Term: e.Term, Type: e.Type, Data: e.Data})
		prevTerm = e.Term
	}
}
