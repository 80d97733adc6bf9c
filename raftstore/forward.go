package raftstore

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// forwardLimit bounds the wait for the outcome of a proposal that is with the
// leader, and then for its result here.
const forwardLimit = 10 * time.Second

// errNotTaken says that a proposal was certainly not appended: another try is safe.
var errNotTaken = errors.New("raftstore: the proposal was not taken")

// Submit commits entry through whichever server leads, waits until it is
// applied here and returns its index and what Apply returned for it here. Any
// server of the configuration can. Errors are those of Propose, and mean the same.
//
// A proposal that no leader has taken is tried again, with the next leader, for
// as long as an election takes at most; then Submit says ErrNoQuorum, or
// *NotLeaderError where a leader is known that cannot be reached from here. One
// that may have been taken is never sent again: where the leader, or the
// connection to it, was lost before its outcome was known, Submit says
// ErrOutcomeUnknown. It says so, too, where the entry is known to be committed
// and its result is not known here: when this server caught up past it by a
// snapshot.
func (s *Store) Submit(ctx context.Context, entry []byte) (uint64, any, error) {
	if err := checkEntrySize(entry); err != nil {
		return 0, nil, err
	}
	search := &search{s: s}
	for {
		if err := s.usable(ctx); err != nil {
			return 0, nil, err
		}
		index, result, err := s.submitOnce(ctx, entry)
		if !errors.Is(err, errNotTaken) {
			return index, result, err
		}
		if err := search.again(ctx); err != nil {
			return 0, nil, err
		}
	}
}

func (s *Store) submitOnce(ctx context.Context, entry []byte) (uint64, any, error) {
	if s.raft.State() != raft.Leader {
		return s.forwards.submit(ctx, entry)
	}
	return s.commit(ctx, entry)
}

// usable refuses what this server must not answer, whoever leads.
func (s *Store) usable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.Halted() {
		return ErrHalted
	}
	if s.fence.check() != nil || s.isStopped() {
		return s.translate(raft.ErrRaftShutdown)
	}
	return nil
}

// proposal is an entry on its way to the leader.
type proposal struct {
	ctx   context.Context // of the submitter; not sent once it has ended
	entry []byte
	done  chan struct{}

	index, term uint64 // where the leader has committed it; written before done is closed
	err         error  // as index
}

// forwarder sends the proposals of this server to the leader, gathered into
// frames, of which several are in flight. One goroutine sends while there is
// something to send.
type forwarder struct {
	s     *Store
	slots chan struct{} // one token for each frame in flight

	mu      sync.Mutex
	queue   []*proposal
	pending int // taken from submitters and not given back
	bytes   int // of those pending
	running bool
	closed  bool
	total   uint64
	work    sync.WaitGroup

	stream *forwardStream // of the sending goroutine alone
}

func newForwarder(s *Store) *forwarder {
	return &forwarder{s: s, slots: make(chan struct{}, maxForwardsInFlight)}
}

// submit sends entry to the leader and waits for its result here.
func (f *forwarder) submit(ctx context.Context, entry []byte) (uint64, any, error) {
	hash := sha256.Sum256(entry)
	enough := f.s.fsm.results.want(hash) // before it is sent: it may be applied before the leader's answer is here
	defer enough()
	p := &proposal{ctx: ctx, entry: bytes.Clone(entry), done: make(chan struct{})}
	if err := f.take(p); err != nil {
		return 0, nil, err
	}
	defer f.give(p)
	start := time.Now()
	select {
	case <-p.done:
	case <-ctx.Done():
		return 0, nil, ctx.Err()
	case <-f.s.fsm.haltedCh:
		return 0, nil, f.s.unknown(ctx, ErrHalted)
	}
	if p.err != nil {
		return 0, nil, p.err
	}
	result, err := f.s.resultOf(ctx, hash, p.index, p.term)
	if err != nil {
		return 0, nil, err
	}
	f.s.metrics.submits.Observe(time.Since(start).Seconds())
	return p.index, result, nil
}

func (f *forwarder) take(p *proposal) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.closed:
		return f.s.translate(raft.ErrRaftShutdown)
	case f.pending >= maxPending || f.bytes+len(p.entry) > maxPendingBytes:
		return ErrBusy
	}
	f.pending++
	f.bytes += len(p.entry)
	f.queue = append(f.queue, p)
	if !f.running {
		f.running = true
		f.work.Go(f.run)
	}
	return nil
}

// give ends a submitter's wait. What was not sent yet goes with it: the bounds of
// take are those of the queue, too.
func (f *forwarder) give(p *proposal) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.pending--
	f.bytes -= len(p.entry)
	select {
	case <-p.done:
	default:
		if i := slices.Index(f.queue, p); i >= 0 {
			f.queue = slices.Delete(f.queue, i, i+1)
		}
	}
}

// counts are the proposals waiting to be sent, the frames in flight and the
// proposals sent so far.
func (f *forwarder) counts() (queued, frames int, total uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.queue), len(f.slots), f.total
}

// close ends all that is in flight; the transport has been closed before.
func (f *forwarder) close() {
	f.mu.Lock()
	f.closed = true
	f.mu.Unlock()
	f.work.Wait()
}

func (f *forwarder) run() {
	for {
		runtime.Gosched() // submitters that were just answered may have more: fuller frames
		select {
		case f.slots <- struct{}{}:
		case <-f.s.trans.ctx.Done():
			f.abandon()
			return
		}
		batch := f.next()
		if batch == nil {
			<-f.slots
			return
		}
		f.send(batch)
	}
}

// next takes a frame's worth of proposals; nil ends the sending goroutine.
func (f *forwarder) next() []*proposal {
	f.mu.Lock()
	defer f.mu.Unlock()
	var batch []*proposal
	size := 0
	for len(f.queue) > 0 && len(batch) < maxForwardEntries {
		p := f.queue[0]
		if p.ctx.Err() != nil { // its submitter has gone, and it was never sent
			f.queue = f.queue[1:]
			continue
		}
		if size += len(p.entry); size > maxForwardBytes {
			break
		}
		batch = append(batch, p)
		f.queue = f.queue[1:]
	}
	if batch == nil {
		f.queue, f.running = nil, false
	}
	f.total += uint64(len(batch))
	return batch
}

// abandon answers what was never sent when the store stops.
func (f *forwarder) abandon() {
	f.mu.Lock()
	queue := f.queue
	f.queue, f.running = nil, false
	f.mu.Unlock()
	for _, p := range queue {
		p.finish(f.s.translate(raft.ErrRaftShutdown))
	}
}

func (p *proposal) finish(err error) {
	p.err = err
	close(p.done)
}

func finishAll(batch []*proposal, err error) {
	for _, p := range batch {
		p.finish(err)
	}
}

// send gives a frame to the stream to the present leader. The stream gives back
// the slot when the frame is answered.
func (f *forwarder) send(batch []*proposal) {
	id, addr, ok := f.s.Leader()
	if !ok || id == f.s.cfg.ID {
		finishAll(batch, errNotTaken)
		<-f.slots
		return
	}
	if f.stream != nil && f.stream.peer == id && time.Since(f.stream.begun) > maxStreamAge {
		f.drain()
	}
	if f.stream == nil || f.stream.peer != id || f.stream.ended() {
		st, err := f.s.openForwards(id, addr, f.slots)
		if err != nil {
			finishAll(batch, errNotTaken) // nothing was sent
			<-f.slots
			return
		}
		f.stream = st
		f.work.Go(st.receive)
		f.work.Go(st.watch)
	}
	f.stream.send(batch)
}

// maxStreamAge is when a stream to a leader is replaced, between two frames. The
// caller's channels have an age, too, and one that ends in the middle of a frame
// leaves its outcome unknown.
const maxStreamAge = 5 * time.Minute

// drain waits until nothing is in flight and ends the stream. The sender has one
// slot already; when it has all, every frame has been answered.
func (f *forwarder) drain() {
	taken := 0
	for ; taken < maxForwardsInFlight-1; taken++ {
		select {
		case f.slots <- struct{}{}:
			continue
		case <-f.s.trans.ctx.Done():
		}
		break
	}
	for range taken {
		<-f.slots
	}
	f.stream.fail(errStreamAge)
	f.stream = nil
}

var errStreamAge = errors.New("raftstore: the stream is replaced because of its age")

// resultOf waits until index is applied here and gives the result of the entry
// with this hash that is there, if it is this one: with the leader's term, and
// with its bytes. A leader that says otherwise is not believed. It is committed,
// so every error is one of unknown.
func (s *Store) resultOf(ctx context.Context, hash [32]byte, index, term uint64) (any, error) {
	limit, cancel := context.WithTimeout(ctx, forwardLimit)
	defer cancel()
	if err := s.reach(limit, index); err != nil {
		if limit.Err() != nil { // cut off, or out of the configuration
			err = ErrOutcomeUnknown
		}
		return nil, s.unknown(ctx, err)
	}
	result, ok := s.fsm.results.take(hash, index, term)
	if !ok {
		return nil, fmt.Errorf("%w: what is at index %d was not applied here, or is another entry", ErrOutcomeUnknown, index)
	}
	if err := s.fence.check(); err != nil {
		return nil, s.unknown(ctx, err)
	}
	return result, nil
}
