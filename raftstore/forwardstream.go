package raftstore

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// forwardStream is a connection to one leader that carries proposals, several
// frames at a time; the leader answers in their order. It is never used again
// after a fault: what was in flight then has an unknown outcome.
type forwardStream struct {
	s     *Store
	peer  ServerID
	addr  string
	conn  *peerConn
	slots <-chan struct{}
	begun time.Time
	over  chan struct{} // closed by the receiving goroutine at its end

	mu       sync.Mutex
	seq      uint64 // of the frame sent last
	inflight []flight
	broken   error     // set once: nothing more is sent
	retired  time.Time // no answer is waited for any longer; zero while peer leads
}

type flight struct {
	seq   uint64
	batch []*proposal
	until time.Time
}

// openForwards dials the leader, for as long as it is the leader known here.
func (s *Store) openForwards(id ServerID, addr string, slots <-chan struct{}) (*forwardStream, error) {
	peer, addr, err := s.trans.target(id.raftID(), raftAddress(id, addr))
	if err != nil {
		return nil, err
	}
	ctx, cancel := s.whileLeader(s.trans.ctx, id)
	defer cancel()
	conn, err := s.trans.dialFor(ctx, peer, addr)
	if err != nil {
		return nil, err
	}
	return &forwardStream{s: s, peer: peer, addr: addr, conn: conn, begun: time.Now(), slots: slots, over: make(chan struct{})}, nil
}

// whileLeader is a context that ends when id is no longer the leader known here.
func (s *Store) whileLeader(ctx context.Context, id ServerID) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		for {
			news := s.leaders.news()
			if now, _, ok := s.Leader(); !ok || now != id {
				cancel()
				return
			}
			select {
			case <-news:
			case <-ctx.Done():
				return
			}
		}
	}()
	return ctx, cancel
}

func (st *forwardStream) ended() bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.broken != nil || !st.retired.IsZero()
}

// send writes one frame. The forwarder's one goroutine calls it, and it takes
// no lock while it writes.
func (st *forwardStream) send(batch []*proposal) {
	w := wireForward{Header: st.s.trans.header()}
	for _, p := range batch {
		w.Entries = append(w.Entries, p.entry)
	}
	if seq, ok := st.begin(batch); ok {
		w.Seq = seq
	} else {
		finishAll(batch, errNotTaken)
		<-st.slots
		return
	}
	payload, err := encMode.Marshal(&w)
	if err == nil {
		st.conn.SetWriteDeadline(st.s.trans.deadline(len(payload)))
		if err = writeFrame(st.conn.w, frameForward, payload); err == nil {
			err = st.conn.w.Flush()
		}
	}
	if err != nil {
		st.fail(err) // the receiving goroutine answers what is in flight
	}
}

// begin notes a frame as in flight, before a byte of it is sent.
func (st *forwardStream) begin(batch []*proposal) (seq uint64, ok bool) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.broken != nil || !st.retired.IsZero() {
		return 0, false
	}
	st.seq++
	st.inflight = append(st.inflight, flight{seq: st.seq, batch: batch, until: time.Now().Add(forwardLimit)})
	st.setDeadline()
	return st.seq, true
}

// setDeadline is the instant until which an answer is waited for; it needs mu.
func (st *forwardStream) setDeadline() {
	var until time.Time
	if len(st.inflight) > 0 {
		until = st.inflight[0].until
	}
	if !st.retired.IsZero() && (until.IsZero() || st.retired.Before(until)) {
		until = st.retired
	}
	st.conn.SetReadDeadline(until)
}

// fail ends the stream.
func (st *forwardStream) fail(err error) {
	st.mu.Lock()
	if st.broken == nil {
		st.broken = err
	}
	st.mu.Unlock()
	st.s.trans.release(st.conn)
}

// watch retires the stream when its peer is no longer the leader known here. An
// answer that is on its way gets a moment to arrive; then what is in flight has
// an unknown outcome.
func (st *forwardStream) watch() {
	ctx, cancel := st.s.whileLeader(st.s.trans.ctx, st.peer)
	defer cancel()
	select {
	case <-ctx.Done():
	case <-st.over:
		return
	}
	st.mu.Lock()
	defer st.mu.Unlock()
	st.retired = time.Now()
	if len(st.inflight) > 0 {
		st.retired = st.retired.Add(st.s.patience())
	}
	st.setDeadline()
}

// receive takes the answers until the stream ends.
func (st *forwardStream) receive() {
	defer close(st.over)
	for {
		err := st.receiveOne()
		if err == nil {
			continue
		}
		st.fail(err)
		break
	}
	st.mu.Lock()
	left := st.inflight
	st.inflight = nil
	err := ErrOutcomeUnknown
	if isRefusal(st.broken) {
		// Frames are taken in order, and a refusal ends the connection: no frame
		// from the refused one on was taken.
		err = fmt.Errorf("%w: %w", ErrNoQuorum, st.broken)
	}
	st.mu.Unlock()
	for _, fl := range left {
		finishAll(fl.batch, err)
		<-st.slots
	}
}

func (st *forwardStream) receiveOne() error {
	ft, payload, err := readFrame(st.conn.r, nil)
	if err != nil {
		return err
	}
	st.mu.Lock()
	if len(st.inflight) == 0 {
		st.mu.Unlock()
		return fmt.Errorf("%w: an answer to nothing", ErrPeer)
	}
	fl := st.inflight[0]
	st.mu.Unlock()
	switch {
	case ft == frameRefusal && len(payload) == 1 && payload[0] == refusedPeer:
		return ErrRefusedByPeer
	case ft != frameOutcome:
		return fmt.Errorf("%w: a frame of type %d for outcomes", ErrPeer, ft)
	}
	outcomes, err := decodeOutcomes(payload, fl.seq, len(fl.batch))
	if err != nil {
		return err
	}
	st.mu.Lock()
	st.inflight = st.inflight[1:]
	st.setDeadline()
	st.mu.Unlock()
	st.settle(fl.batch, outcomes)
	<-st.slots
	return nil
}

// settle gives each proposal its outcome.
func (st *forwardStream) settle(batch []*proposal, outcomes []wireOutcome) {
	var newest wireOutcome
	for i, o := range outcomes {
		p := batch[i]
		switch o.Code {
		case outcomeDone:
			p.index, p.term = o.Index, o.Term
			if o.Index > newest.Index {
				newest = o
			}
			p.finish(nil)
		case outcomeNotLeader, outcomeHalted:
			p.finish(errNotTaken)
		case outcomeBusy:
			p.finish(ErrBusy)
		default:
			p.finish(ErrOutcomeUnknown)
		}
	}
	if newest.Index > 0 {
		st.s.hints.give(hint{leader: st.peer, addr: st.addr, leaderTerm: newest.Term, index: newest.Index, term: newest.Term})
	}
}
