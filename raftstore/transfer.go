package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// Leadership is handed over here and not by raft, which has a call for it. Raft's waits for the target's replication in
// a goroutine that, where the network keeps that peer's answers back, is still waiting when leadership has ended
// otherwise; it then waits for ever, and this server, which can be elected again and does send heartbeats, says for ever
// that it is handing over and takes no entry. Nor does raft look whether the target is alive before it stops taking
// entries.

// errHandingOver refuses a second transfer at the same time.
var errHandingOver = errors.New("raftstore: leadership is being handed over already; wait for the outcome")

// TransferLeadership hands leadership to the voter that is the first to answer and to have the whole log; the new leader
// is elected within a few round trips. It fails with ErrNoQuorum when no other voter has done so within the election
// timeout. Until then entries are taken as usual. After that none is taken until leadership has gone, for twice the
// election timeout at most: proposals are refused as by a server that does not lead. A transfer succeeds, too, when
// leadership is lost meanwhile for another reason.
func (s *Store) TransferLeadership(ctx context.Context) error {
	if err := s.servable(ctx); err != nil {
		return err
	}
	return s.yield(ctx, func(raft.Server) bool { return true })
}

// TransferLeadershipTo is TransferLeadership to one voter of the configuration, for a leader that must not leave the
// choice to who answers first. It fails for this server, a nonvoter and a stranger.
func (s *Store) TransferLeadershipTo(ctx context.Context, id ServerID) error {
	if err := s.servable(ctx); err != nil {
		return err
	}
	to := func(v raft.Server) bool { return v.ID == id.raftID() }
	if !slices.ContainsFunc(s.otherVoters(), to) {
		return fmt.Errorf("%w: %s is not another voter of the configuration", ErrPeer, id)
	}
	return s.yield(ctx, to)
}

// otherVoters are those of the latest configuration, committed or not.
func (s *Store) otherVoters() (list []raft.Server) {
	for _, v := range s.configuration().Servers {
		if v.Suffrage == raft.Voter && v.ID != s.cfg.ID.raftID() {
			list = append(list, v)
		}
	}
	return list
}

// yield hands leadership over, also where the machine has halted.
func (s *Store) yield(ctx context.Context, may func(raft.Server) bool) error {
	term, ok := s.leading()
	if !ok {
		return s.translate(raft.ErrNotLeader)
	}
	err := s.yieldIn(ctx, term, may)
	if err != nil && !s.isStopped() && !s.stillLeads(term) {
		return nil
	}
	return err
}

func (s *Store) yieldIn(ctx context.Context, term uint64, may func(raft.Server) bool) error {
	election := s.raft.ReloadableConfig().ElectionTimeout
	to, err := s.successor(ctx, term, election, s.raft.LastIndex(), may)
	if err != nil {
		return err
	}
	if !s.handing.CompareAndSwap(false, true) {
		return errHandingOver
	}
	defer s.handing.Store(false)
	limited, cancel := context.WithTimeout(ctx, election)
	defer cancel()
	// What raft has taken before is in the log when this is, and committed.
	if err := s.awaitRaft(limited, s.raft.Barrier(wait(limited))); err != nil {
		return s.notHandedOver(ctx, err)
	}
	if to, err = s.successor(limited, term, election, s.raft.LastIndex(), func(v raft.Server) bool { return v.ID == to.ID }); err != nil {
		return s.notHandedOver(ctx, err)
	}
	return s.depose(ctx, term, election, to)
}

// notHandedOver is the error of a transfer that has changed nothing.
func (s *Store) notHandedOver(ctx context.Context, err error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, raft.ErrEnqueueTimeout) {
		return ErrNoQuorum
	}
	return s.translate(err)
}

// successor waits for another voter for which may says yes, that has answered a request of term sent after this call
// and has the log up to index.
func (s *Store) successor(ctx context.Context, term uint64, patience time.Duration, index uint64, may func(raft.Server) bool) (raft.Server, error) {
	count := s.trans.acks.begin(term)
	defer count.end()
	limit := time.NewTimer(min(patience, wait(ctx)))
	defer limit.Stop()
	s.beat()
	for {
		has := s.trans.matched.in(term)
		for _, v := range s.otherVoters() {
			if id, err := ParseServerID(string(v.ID)); err == nil && may(v) && count.answered(v.ID) && has[id] >= index {
				return v, nil
			}
		}
		if err := pauseOn(s, term, count.news, limit.C); err != nil {
			return raft.Server{}, err
		}
	}
}

// depose tells to that it shall campaign now, and waits until this server leads no more. What it tells may be on its way
// for longer than that; a server that is told so by one which it does not follow does nothing.
func (s *Store) depose(ctx context.Context, term uint64, patience time.Duration, to raft.Server) error {
	h := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(s.cfg.ID.String()), Addr: []byte(s.trans.addr)}
	told := make(chan error, 1)
	go func() { // ends with the request's own deadline, or with the transport
		told <- s.trans.TimeoutNow(to.ID, to.Address, &raft.TimeoutNowRequest{RPCHeader: h}, &raft.TimeoutNowResponse{})
	}()
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for {
		news := s.leaders.news()
		if !s.stillLeads(term) {
			return nil
		}
		select {
		case <-news:
		case err := <-told:
			if err != nil {
				return s.translate(err)
			}
			told = nil
		case <-limit.C:
			return ErrNoQuorum
		case <-ctx.Done():
			return ctx.Err()
		case <-s.trans.ctx.Done():
			return s.translate(raft.ErrRaftShutdown)
		}
	}
}
