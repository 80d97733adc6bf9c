package raftstore

import (
	"context"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// roundLimit ends a round that neither a majority nor a loss of leadership ends.
	roundLimit = 5 * time.Second
	// commitPoll is how often a new leader looks whether it has committed in its
	// term: raft tells nobody when its commit index moves.
	commitPoll = time.Millisecond
)

// SafeRead returns once a read of the machine is linearizable: everything
// committed before the call has been applied here. It writes nothing.
//
// It is a read index (Ongaro, §6.4) with these conditions. This server leads a
// term T and has committed an entry of T, so that its commit index covers all
// that earlier terms committed. The commit index is taken after the read began.
// Then a majority of the voters of the latest appended configuration answer, in
// term T, requests that were sent after the read began: none of them can have
// helped a leader of a later term to commit anything before it. At last the
// machine has applied the index. No clock is trusted.
//
// Reads are batched: all that wait share one round, and one that arrives during
// a round waits for the next. Errors are those of Propose, but nothing is ever
// in doubt.
func (s *Store) SafeRead(ctx context.Context) error {
	if err := s.servable(ctx); err != nil {
		return err
	}
	r := s.reads.join()
	if r == nil {
		return s.translate(raft.ErrRaftShutdown)
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return ctx.Err()
	}
	if r.err != nil {
		return r.err
	}
	return s.reach(ctx, r.index)
}

// reach waits until the machine has applied index.
func (s *Store) reach(ctx context.Context, index uint64) error {
	for {
		if s.Halted() {
			return ErrHalted
		}
		applied, changed := s.fsm.progress.look()
		if applied >= index {
			return nil
		}
		select {
		case <-changed:
		case <-s.fsm.haltedCh:
		case <-s.trans.ctx.Done():
			return s.translate(raft.ErrRaftShutdown)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// reads gathers readers into rounds. One goroutine runs the rounds, one after
// the other, and ends when nobody waits.
type reads struct {
	prove func(*round) error // fills in what is to be applied

	mu        sync.Mutex
	gathering *round // readers of the next round; nil when nobody waits
	running   bool
	closed    bool // no round begins any more
	rounds    uint64
	work      sync.WaitGroup
}

// close lets no further round begin and waits for the one under way.
func (b *reads) close() {
	b.mu.Lock()
	b.closed = true
	b.mu.Unlock()
	b.work.Wait()
}

type round struct {
	done  chan struct{}
	index uint64 // to be applied; written before done is closed
	term  uint64 // in which leadership was proved; as index
	err   error  // as index
}

// join returns the round that begins after this call, nil after close.
func (b *reads) join() *round {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return nil
	}
	if b.gathering == nil {
		b.gathering = &round{done: make(chan struct{})}
	}
	if !b.running {
		b.running = true
		b.work.Go(b.run)
	}
	return b.gathering
}

func (b *reads) run() {
	for {
		runtime.Gosched() // those whom the last round has just answered may ask again: one more round saved
		b.mu.Lock()
		r := b.gathering
		b.gathering = nil
		if r == nil {
			b.running = false
			b.mu.Unlock()
			return
		}
		b.rounds++
		b.mu.Unlock()
		r.err = b.prove(r)
		close(r.done)
	}
}

func (b *reads) count() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.rounds
}

// leading returns the term this server leads. Raft leaves the state Leader
// before its term rises and enters it in the term it was elected for, so the
// state belongs to a term that is the same on both sides of the look at it.
func (s *Store) leading() (term uint64, ok bool) {
	term = s.raft.CurrentTerm()
	ok = s.raft.State() == raft.Leader
	return term, ok && s.raft.CurrentTerm() == term
}

func (s *Store) stillLeads(term uint64) bool {
	now, ok := s.leading()
	return ok && now == term
}

// proveLeadership runs one round.
func (s *Store) proveLeadership(r *round) error {
	term, ok := s.leading()
	if !ok {
		return s.translate(raft.ErrNotLeader)
	}
	limit := time.NewTimer(roundLimit)
	defer limit.Stop()
	if err := s.awaitCommitIn(term, limit.C); err != nil {
		return err
	}
	index := s.logs.lastApplicable(s.raft.CommitIndex())
	if index == 0 { // compacted, so applied here; for others it needs its number
		index = s.AppliedIndex()
	}
	start := s.configuration()
	if err := s.heardFrom(term, limit.C, func() raft.Configuration { return start }, s.configuration); err != nil {
		return err
	}
	// Our own vote: it has gone to nobody of a later term yet.
	if !s.stillLeads(term) {
		return s.translate(raft.ErrNotLeader)
	}
	r.index, r.term = index, term
	return nil
}

// configuration is the latest appended one, committed or not.
func (s *Store) configuration() raft.Configuration {
	f := s.raft.GetConfiguration() // answered from memory, without the main loop
	return f.Configuration()
}

// heardFrom waits until a majority of the voters of every one of the
// configurations has answered requests of term that were sent after this call.
func (s *Store) heardFrom(term uint64, limit <-chan time.Time, configurations ...func() raft.Configuration) error {
	self, count := s.cfg.ID.raftID(), s.trans.acks.begin(term)
	defer count.end()
	missing := func() bool {
		return slices.ContainsFunc(configurations, func(c func() raft.Configuration) bool { return !count.majority(c(), self) })
	}
	if missing() {
		s.beat()
	}
	for missing() {
		if err := pauseOn(s, term, count.news, limit); err != nil {
			return err
		}
	}
	return nil
}

// beat makes raft send heartbeats now. The call waits for raft's main loop, which
// the host may keep waiting for the disk while heartbeats go on and prove
// leadership: nobody waits with it, and where maxBeats wait already no more do.
// One waits until it has raft's answer, and not only until raft has taken it:
// raft's queue for these calls is also that of the votes which answer them, and
// where it is full the goroutines that send heartbeats wait for a place in it,
// and after a Shutdown for ever.
func (s *Store) beat() {
	select {
	case s.beats <- struct{}{}:
	default:
		return
	}
	go func() { // ends with the store at the latest
		_ = s.outcome(s.raft.VerifyLeader()) // what it answers is not used
		<-s.beats
	}()
}

// maxBeats is more than there are rounds at one time, and far less than the 64
// that raft's queue holds.
const maxBeats = 8

// electing says that this server is a candidate, and whom raft takes for the
// leader all the same. A candidate has no leader; but raft remembers as one who
// sends a candidate a snapshot, or entries to one that was told to campaign, and
// where that one is gone it refuses all others for ever because of it. Then only
// what asks about the leader is left out of a request: that raft does for a vote
// that follows a transfer, and for a pre-vote of the leader itself.
func (s *Store) electing() (last raft.ServerAddress, ok bool) {
	last, _ = s.raft.LeaderWithID()
	return last, s.raft.State() == raft.Candidate
}

// compacted says whether the entry at index is applied here and not in the log
// any more, and up to where everything is applied.
func (s *Store) compacted(index uint64) (applied uint64, gone bool) {
	applied = s.raft.AppliedIndex()
	return applied, index > 0 && index <= applied && !s.logs.contains(index)
}

// awaitCommitIn waits until an entry of term is committed: raft appends one as
// soon as it leads. Before that, the commit index may miss what an earlier
// leader has acknowledged.
func (s *Store) awaitCommitIn(term uint64, limit <-chan time.Time) error {
	committed := func() bool {
		first, ok := s.logs.firstOf(term)
		return ok && s.raft.CommitIndex() >= first
	}
	if committed() {
		return nil
	}
	tick := time.NewTicker(commitPoll)
	defer tick.Stop()
	for !committed() {
		if err := pauseOn(s, term, tick.C, limit); err != nil {
			return err
		}
	}
	return nil
}

// pauseOn waits for news, or fails when leadership of term, the store or the
// limit has ended. All who wait hear of a change of leader, and look for themselves.
func pauseOn[T any](s *Store, term uint64, news <-chan T, limit <-chan time.Time) error {
	changed := s.leaders.news() // of what happens after the look
	if !s.stillLeads(term) {
		return s.translate(raft.ErrNotLeader)
	}
	select {
	case <-news:
		return nil
	case <-changed:
		return nil
	case <-s.trans.ctx.Done():
		return s.translate(raft.ErrRaftShutdown)
	case <-limit:
		return ErrNoQuorum
	}
}
