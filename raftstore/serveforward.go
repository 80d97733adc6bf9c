package raftstore

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// forwarded is a frame of proposals of another server, with the leader.
type forwarded struct {
	seq      uint64
	refused  bool          // the peer may not forward; ends the connection
	done     chan struct{} // closed when outcomes are complete
	outcomes []wireOutcome
	entries  int
}

// serveForwards takes the proposals of one peer, frame by frame from the first
// one, which has been read. Frames are answered in their order, each once every
// entry of it has an outcome. More than maxForwardsInFlight are not read: that
// is the back-pressure.
func (t *transport) serveForwards(conn net.Conn, r *bufio.Reader, w *bufio.Writer, peer ServerID, payload []byte) {
	t.onlyStream(conn, peer)
	frames := make(chan *forwarded, maxForwardsInFlight)
	var answering sync.WaitGroup
	answering.Go(func() { t.answerForwards(conn, w, frames) })
	defer answering.Wait()
	defer close(frames)
	conn.SetDeadline(time.Time{})
	for seq := uint64(1); ; seq++ {
		fr, err := t.takeForwards(peer, payload, seq)
		if err != nil {
			t.refuse(peer, err)
			fr = &forwarded{seq: seq, refused: true}
		}
		select {
		case frames <- fr:
		case <-t.ctx.Done():
			return
		}
		if fr.refused {
			return
		}
		conn.SetReadDeadline(time.Time{})
		var ft frameType
		ft, payload, err = readFrame(r, func(n int) { conn.SetReadDeadline(t.deadline(n)) })
		if err == nil && ft != frameForward {
			err = fmt.Errorf("%w: frame type %d among proposals", ErrPeer, ft)
		}
		if err != nil {
			if errors.Is(err, ErrPeer) {
				t.refuse(peer, err)
			}
			conn.Close()
			return
		}
	}
}

// onlyStream ends the stream that peer had before: it opens a new one only
// after the old one broke.
func (t *transport) onlyStream(conn net.Conn, peer ServerID) {
	t.mu.Lock()
	old := t.streams[peer]
	t.streams[peer] = conn
	t.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

func (t *transport) takeForwards(peer ServerID, payload []byte, seq uint64) (*forwarded, error) {
	if t.members.removed(peer) {
		return nil, fmt.Errorf("%w: server %s was removed", ErrPeer, peer.short())
	}
	entries, err := decodeForward(payload, peer, seq)
	if err != nil {
		return nil, err
	}
	if err := t.fence.check(); err != nil {
		return nil, err
	}
	fr := &forwarded{seq: seq, done: make(chan struct{}), entries: len(entries)}
	return fr, t.host.proposeFor(peer, entries, fr)
}

// answerForwards writes the answers. After a fault it goes on taking frames,
// without answering them, so that the reader never waits for it.
func (t *transport) answerForwards(conn net.Conn, w *bufio.Writer, frames <-chan *forwarded) {
	broken := false
	for fr := range frames {
		if broken {
			continue
		}
		if err := t.answerForward(conn, w, fr); err != nil {
			broken = true
			conn.Close() // the reader ends
		}
	}
}

func (t *transport) answerForward(conn net.Conn, w *bufio.Writer, fr *forwarded) error {
	if fr.refused {
		conn.SetWriteDeadline(t.deadline(0))
		return errors.Join(writeFrame(w, frameRefusal, []byte{refusedPeer}), w.Flush(), ErrRefusedByPeer)
	}
	limit := time.NewTimer(forwardLimit)
	defer limit.Stop()
	answer := wireOutcomes{Seq: fr.seq}
	select {
	case <-fr.done:
		answer.Outcomes = fr.outcomes
	case <-limit.C: // fr.outcomes are still being written
		for range fr.entries {
			answer.Outcomes = append(answer.Outcomes, wireOutcome{Code: outcomeUnknown})
		}
	case <-t.ctx.Done():
		return ErrStopped
	}
	// Looked at after raft has answered, as for every reply.
	if err := t.fence.check(); err != nil {
		return err
	}
	payload, err := encMode.Marshal(&answer)
	if err != nil {
		return err
	}
	conn.SetWriteDeadline(t.deadline(len(payload)))
	return errors.Join(writeFrame(w, frameOutcome, payload), w.Flush())
}

// proposeFor proposes the entries of another server. Each goes to raft by
// itself and at once, as if its submitter were here; raft gathers them. The
// goroutines end when raft answers, at the latest when the store has stopped.
func (s *Store) proposeFor(peer ServerID, entries [][]byte, fr *forwarded) error {
	fr.outcomes = make([]wireOutcome, len(entries))
	if code := s.cannotLead(); code != 0 {
		for i := range fr.outcomes {
			fr.outcomes[i].Code = code
		}
		close(fr.done)
		return nil
	}
	if !s.hasMember(peer) {
		return fmt.Errorf("%w: server %s is not in the configuration", ErrPeer, peer.short())
	}
	s.metrics.taken.Add(float64(len(entries)))
	var all sync.WaitGroup
	for i, e := range entries {
		all.Go(func() { fr.outcomes[i] = s.proposeOne(e) })
	}
	go func() {
		all.Wait()
		close(fr.done)
	}()
	return nil
}

// cannotLead is why this server proposes nothing for others; 0 when it may.
func (s *Store) cannotLead() outcomeCode {
	switch {
	case s.raft.State() != raft.Leader:
		return outcomeNotLeader
	case s.Halted():
		return outcomeHalted
	}
	return 0
}

// hasMember reports whether the latest configuration, committed or not, has id.
func (s *Store) hasMember(id ServerID) bool {
	for _, m := range s.configuration().Servers {
		if m.ID == id.raftID() {
			return true
		}
	}
	return false
}

func (s *Store) proposeOne(entry []byte) wireOutcome {
	start := time.Now()
	s.metrics.proposing.Inc()
	defer s.metrics.proposing.Dec()
	f, err := s.apply(entry, enqueueTimeout)
	if err == nil {
		err = s.outcome(f)
	}
	if err != nil {
		switch refused := s.notAppended(err); {
		case errors.Is(refused, errNotTaken):
			return wireOutcome{Code: outcomeNotLeader}
		case errors.Is(refused, ErrBusy):
			return wireOutcome{Code: outcomeBusy}
		}
		return wireOutcome{Code: outcomeUnknown}
	}
	done, ok := f.Response().(applied)
	if !ok {
		return wireOutcome{Code: outcomeUnknown}
	}
	s.metrics.committed(time.Since(start))
	return wireOutcome{Code: outcomeDone, Index: f.Index(), Term: done.term}
}
