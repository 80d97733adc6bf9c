package raftstore

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"

	"github.com/claviger/claviger/enclave/secret"
)

// boot is one life of a server.
type boot struct {
	*Store
	w       *world
	number  int
	slot    int
	id      ServerID
	addr    string
	clock   clock
	machine *chaosMachine
	disk    *chaosDisk
	key     secret.Key
	dead    atomic.Bool
	doomed  atomic.Bool // its disk is full: it ends at its next write
	roots   atomic.Bool // it was admitted by the cluster and has its secrets

	intended []Member // the configuration it is bringing about; under the world's mu
	until    time.Time

	opener  *Opener // follows its archive; in invariants
	opened  int
	votes   map[uint64]string
	highest uint64 // term on disk
	held    map[place]bool
	log     map[uint64]uint64 // in its archive: index and term
	covers  uint64            // index of the newest snapshot there
	configs []storedConfig    // of that log and what is behind it, in order
	reached [3]uint64         // by its last look: see checkProgress
}

// clock is the speed of a server: all its timers are rate times as long, and some
// of them longer still, where the host stops the thread that would be woken. No
// safety decision may depend on them.
type clock struct {
	name  string
	rate  float64
	lead  float64 // of what a leader believes, and a follower of its leader
	votes float64 // of a candidate's wait for votes, and of every call
}

var clocks = []clock{{"x1", 1, 1, 1}, {"x1", 1, 1, 1}, {"x2 slow", 2, 1, 1}, {"x4 slow", 4, 1, 1}, {"x2 fast", 0.5, 1, 1}}

// growing are the clocks of the slots that a cluster has before it grows; see holdVotes.
var growing = []clock{{"x1, leads for long", 1, 8, 1}, {"x1, campaigns for long", 1, 1, 20}, {"x1", 1, 1, 1}}

func (w *world) clock(slot int) clock {
	c := clocks[w.dice.n(len(clocks))]
	if w.mutation == readsByVerifyLeader && w.dice.n(2) == 0 { // one that believes in its lease for long
		c = clock{"x8 slow", 8, 1, 1}
	}
	if w.grows && slot < len(growing) {
		c = growing[slot]
	}
	return c
}

// boot starts a server in a slot. It is a new one whatever the disk in its
// machine holds: nothing of that can be handed to Open.
func (w *world) boot(slot int, disk string) *boot {
	number := w.count()
	key, err := secret.New(slices.Repeat([]byte{byte(number + 1)}, ArchiveKeySize))
	if err != nil {
		w.t.Fatal(err)
	}
	b := w.server(number, slot, sha256.Sum256(fmt.Append(nil, "boot ", number)), key, w.clock(slot))
	w.enlist(b)
	w.note("boot %d in slot %d, clock %s, disk %s", number, slot, b.clock.name, disk)
	w.stats.count("boot, disk " + disk)
	return b
}

func (w *world) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.boots)
}

// server opens a server that nobody knows of yet.
func (w *world) server(number, slot int, id ServerID, key secret.Key, c clock) *boot {
	b := &boot{w: w, number: number, slot: slot, id: id, clock: c, addr: fmt.Sprintf("slot-%d:1", slot), machine: newChaosMachine(w, number),
		disk: newChaosDisk(w.stats), key: key, votes: map[uint64]string{}, held: map[place]bool{}, log: map[uint64]uint64{}}
	w.open(b)
	var err error
	if b.opener, err = NewOpener(key, Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: b.id}); err != nil {
		w.t.Fatal(err)
	}
	return b
}

// enlist makes it the newest of its slot, and one that can be reached.
func (w *world) enlist(b *boot) {
	w.mu.Lock()
	if w.boots = append(w.boots, b); b.slot == len(w.current) {
		w.current = append(w.current, b)
	} else {
		w.current[b.slot] = b
	}
	w.mu.Unlock()
	w.net.mu.Lock()
	w.net.boots[b.id] = b
	w.net.mu.Unlock()
	w.work.Go(b.drive)
}

func (w *world) open(b *boot) {
	scale := func(d time.Duration, f float64) time.Duration {
		return time.Duration(float64(d) * b.clock.rate * f)
	}
	lead, votes := b.clock.lead, b.clock.votes
	trailing := []uint64{0, 1, 3, 20}[w.dice.n(4)]
	cfg := Config{ID: b.id, Address: b.addr, ClusterID: [32]byte{1}, Epoch: 1, Machine: b.machine,
		Dialer: chaosDialer{w.net, b}, Archive: b.disk, ArchiveKey: b.key, Logger: testLogger(),
		Timeouts: Timeouts{Heartbeat: scale(200*time.Millisecond, lead), Election: scale(200*time.Millisecond, votes),
			Lease: scale(150*time.Millisecond, lead), Commit: scale(40*time.Millisecond, 1), RPC: scale(400*time.Millisecond, votes), Dial: scale(300*time.Millisecond, 1)},
		Compaction: Compaction{Threshold: uint64(5 + w.dice.n(40)), Trailing: max(trailing, 1), Interval: scale(500*time.Millisecond, 1)}}
	var err error
	if b.Store, err = open(cfg, w.mutation.between(w, b)); err != nil {
		w.t.Fatal(err)
	}
	if w.mutation == votesOverASnapshot {
		b.logs.campaigns = nil
	}
	if trailing == 0 { // a zero would be the default
		b.keepNothing()
	}
	b.raft.RegisterObserver(raft.NewObserver(nil, false, func(o *raft.Observation) bool {
		if s, ok := o.Data.(raft.RaftState); ok && s == raft.Leader {
			w.leads(b, o.Raft.CurrentTerm())
		}
		return false
	}))
}

// keepNothing lets b compact its log up to the snapshot.
func (b *boot) keepNothing() {
	rc := b.raft.ReloadableConfig()
	rc.TrailingLogs = 0
	if err := b.raft.ReloadConfig(rc); err != nil {
		b.w.t.Fatal(err)
	}
}

// crash ends a server in the middle of whatever it does: from here on nothing
// of it reaches network or disk. What it had sent may still arrive.
func (w *world) crash(b *boot) {
	if b.dead.Swap(true) {
		return
	}
	b.disk.crash()
	quiet := w.dice.n(2) == 0
	w.net.sever(quiet, func(x, y *boot) bool { return x == b || y == b })
	w.note("boot %d of slot %d is off, quietly: %v", b.number, b.slot, quiet)
	w.work.Go(func() { b.Shutdown() })
}

// reached reports a fault of a store that is not of the disk's making.
func reached(err error) bool {
	return errors.Is(err, ErrTermFell) || errors.Is(err, ErrSecondVote)
}
