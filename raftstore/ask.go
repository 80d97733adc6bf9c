package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/hashicorp/raft"
)

// Read returns once a read of the machine here is linearizable, on any server
// of the configuration: everything committed before the call has been applied
// here. The leader does a SafeRead; another server asks the leader, which runs
// the same round for it and names the index that must be applied. All that wait
// here share one question, and all questions share the leader's rounds. It
// writes nothing. It tries again while leaders change, for as long as an
// election takes at most; then it says ErrNoQuorum, or *NotLeaderError where a
// leader is known that cannot be reached from here.
func (s *Store) Read(ctx context.Context) error {
	search := &search{s: s}
	for {
		if err := s.usable(ctx); err != nil {
			return err
		}
		err := s.readOnce(ctx)
		switch _, elsewhere := errors.AsType[*NotLeaderError](err); {
		case err == nil:
			return s.usable(ctx)
		case errors.Is(err, ErrRefusedByPeer), !elsewhere && !errors.Is(err, ErrNoQuorum) && !errors.Is(err, errNotTaken):
			return err
		}
		if err := search.again(ctx); err != nil {
			return err
		}
	}
}

func (s *Store) readOnce(ctx context.Context) error {
	if s.raft.State() == raft.Leader {
		return s.SafeRead(ctx)
	}
	r := s.asks.join()
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
	limit, cancel := context.WithTimeout(ctx, roundLimit)
	defer cancel()
	err := s.reach(limit, r.index)
	if err != nil && ctx.Err() == nil && limit.Err() != nil {
		return ErrNoQuorum // cut off, or out of the configuration
	}
	return err
}

// askLeader asks the leader for a read index, for as long as it is the leader
// known here. Nothing it hears is believed beyond the index: an index that is
// too low can only come from a server that answers for a term it does not lead,
// which none does whose round has not succeeded after the question arrived.
func (s *Store) askLeader(r *round) error {
	id, addr, ok := s.Leader()
	if !ok || id == s.cfg.ID {
		return errNotTaken
	}
	ctx, cancel := s.whileLeader(s.trans.ctx, id)
	defer cancel()
	answer, err := s.trans.ask(ctx, id, addr)
	switch {
	case errors.Is(err, ErrRefusedByPeer):
		return fmt.Errorf("%w: %w", ErrNoQuorum, err)
	case err != nil, answer.Code != outcomeDone:
		return errNotTaken
	}
	r.index, r.term = answer.Index, answer.LeaderTerm
	s.hints.give(hint{leader: id, addr: addr, leaderTerm: answer.LeaderTerm, index: answer.Index, term: answer.EntryTerm})
	return nil
}

// ask sends one question. A question may arrive twice.
func (t *transport) ask(ctx context.Context, id ServerID, addr string) (wireIndex, error) {
	peer, addr, err := t.target(id.raftID(), raftAddress(id, addr))
	if err != nil {
		return wireIndex{}, err
	}
	payload, err := encMode.Marshal(&wireAsk{Header: t.header()})
	if err != nil {
		return wireIndex{}, err
	}
	if c := t.pooled(peer); c != nil {
		answer, err := t.askOn(ctx, c, payload)
		if err == nil || ctx.Err() != nil || isRefusal(err) {
			return answer, err
		}
	}
	c, err := t.dialFor(ctx, peer, addr)
	if err != nil {
		return wireIndex{}, err
	}
	return t.askOn(ctx, c, payload)
}

// askOn gives the connection up when ctx ends: an answer may still be on its way.
func (t *transport) askOn(ctx context.Context, c *peerConn, payload []byte) (wireIndex, error) {
	stop := context.AfterFunc(ctx, func() { c.Close() })
	answer, err := t.askFor(c, payload)
	if !stop() || err != nil {
		t.release(c)
		return wireIndex{}, errors.Join(err, ctx.Err())
	}
	t.put(c)
	return answer, nil
}

func (t *transport) askFor(c *peerConn, payload []byte) (wireIndex, error) {
	c.SetDeadline(t.deadline(len(payload)))
	if err := writeFrame(c.w, frameAsk, payload); err != nil {
		return wireIndex{}, err
	}
	if err := c.w.Flush(); err != nil {
		return wireIndex{}, err
	}
	ft, answer, err := readFrame(c.r, nil)
	switch {
	case err != nil:
		return wireIndex{}, err
	case ft == frameRefusal && len(answer) == 1 && answer[0] == refusedPeer:
		return wireIndex{}, ErrRefusedByPeer
	case ft != frameIndex:
		return wireIndex{}, fmt.Errorf("%w: a frame of type %d for a read index", ErrPeer, ft)
	}
	return decodeIndex(answer)
}

// answerAsk runs a round of reads for another server and reports whether the
// connection may go on.
func (t *transport) answerAsk(conn net.Conn, w *bufio.Writer, peer ServerID, payload []byte) bool {
	answer, err := t.takeAsk(peer, payload)
	if t.fence.check() != nil || t.ctx.Err() != nil {
		return false
	}
	conn.SetDeadline(t.deadline(0))
	if err != nil {
		t.refuse(peer, err)
		if writeFrame(w, frameRefusal, []byte{refusedPeer}) == nil {
			w.Flush()
		}
		return false
	}
	out, err := encMode.Marshal(&answer)
	return err == nil && writeFrame(w, frameIndex, out) == nil && w.Flush() == nil
}

func (t *transport) takeAsk(peer ServerID, payload []byte) (wireIndex, error) {
	if t.members.removed(peer) {
		return wireIndex{}, fmt.Errorf("%w: server %s was removed", ErrPeer, peer.short())
	}
	if err := decodeAsk(payload, peer); err != nil {
		return wireIndex{}, err
	}
	return t.host.readIndexFor(peer)
}

// readIndexFor joins the round of reads that begins next.
func (s *Store) readIndexFor(peer ServerID) (wireIndex, error) {
	if code := s.cannotLead(); code != 0 {
		return wireIndex{Code: code}, nil
	}
	if !s.hasMember(peer) {
		return wireIndex{}, fmt.Errorf("%w: server %s is not in the configuration", ErrPeer, peer.short())
	}
	limit := time.NewTimer(s.cfg.Timeouts.RPC) // the asker waits no longer
	defer limit.Stop()
	r := s.reads.join()
	if r == nil {
		return wireIndex{Code: outcomeNotLeader}, nil
	}
	select {
	case <-r.done:
	case <-limit.C:
		return wireIndex{Code: outcomeNotLeader}, nil
	case <-s.trans.ctx.Done():
		return wireIndex{Code: outcomeNotLeader}, nil
	}
	if r.err != nil {
		return wireIndex{Code: outcomeNotLeader}, nil
	}
	answer := wireIndex{Code: outcomeDone, LeaderTerm: r.term, Index: r.index}
	var entry raft.Log
	if s.logs.GetLog(r.index, &entry) == nil && entry.Term <= r.term {
		answer.EntryTerm = entry.Term
	}
	return answer, nil
}
