package raftstore

import (
	"context"
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// Members is the last configuration committed and applied here, and its index:
// the prevIndex of the next change.
func (s *Store) Members() (list []Member, configIndex uint64) {
	list, index, _ := s.trans.members.list()
	return list, index
}

// MembersChanged is closed at the next change of what Members returns.
func (s *Store) MembersChanged() <-chan struct{} {
	_, _, changed := s.trans.members.list()
	return changed
}

const (
	opAddVoter = "add voter"
	opRemove   = "remove"
)

// AddNonvoter adds a server that receives the log and does not count. The
// change is refused unless the configuration at prevIndex is still the latest;
// a prevIndex of 0 is refused. It returns the index of the new configuration,
// committed and applied here. Errors are a *MembershipError.
func (s *Store) AddNonvoter(ctx context.Context, id ServerID, addr string, prevIndex uint64) (uint64, error) {
	return s.change(ctx, "add nonvoter", id, addr, prevIndex, func() raft.IndexFuture {
		return s.raft.AddNonvoter(id.raftID(), raftAddress(id, addr), prevIndex, wait(ctx))
	})
}

// AddVoter adds a voter, or gives a nonvoter its vote; rules as for AddNonvoter.
// Unless a majority of the voters with it answers at once it is refused with ErrNoQuorum.
func (s *Store) AddVoter(ctx context.Context, id ServerID, addr string, prevIndex uint64) (uint64, error) {
	return s.change(ctx, opAddVoter, id, addr, prevIndex, func() raft.IndexFuture {
		return s.raft.AddVoter(id.raftID(), raftAddress(id, addr), prevIndex, wait(ctx))
	})
}

// Remove takes a server out of the configuration, for ever: its identity can
// never be added again. Rules as for AddNonvoter. A voter is not removed unless a
// majority of the voters that would be left answers at once: ErrNoQuorum.
func (s *Store) Remove(ctx context.Context, id ServerID, prevIndex uint64) (uint64, error) {
	return s.change(ctx, opRemove, id, "removed", prevIndex, func() raft.IndexFuture {
		return s.raft.RemoveServer(id.raftID(), prevIndex, wait(ctx))
	})
}

func (s *Store) change(ctx context.Context, op string, id ServerID, addr string, prevIndex uint64, do func() raft.IndexFuture) (uint64, error) {
	fail := func(err error) (uint64, error) { return 0, &MembershipError{Op: op, Server: id, Err: err} }
	switch {
	case id.IsZero():
		return fail(fmt.Errorf("%w: the zero server id", ErrPeer))
	case addr == "" || len(addr) > MaxAddress:
		return fail(fmt.Errorf("%w: an address has 1 to %d bytes", ErrPeer, MaxAddress))
	case prevIndex == 0:
		return fail(fmt.Errorf("%w: a change needs the index of the configuration it is based on", ErrPeer))
	case op != opRemove && s.trans.members.removed(id):
		return fail(fmt.Errorf("%w: the server was removed before and its identity cannot return", ErrPeer))
	}
	if list, _ := s.Members(); op != opRemove && len(list) >= MaxServers {
		return fail(fmt.Errorf("%w: the configuration has %d servers already", ErrPeer, MaxServers))
	}
	if err := s.servable(ctx); err != nil {
		return fail(err)
	}
	if err := s.wouldHaveMajority(ctx, op, id); err != nil {
		return fail(err)
	}
	f := do()
	if err := s.await(ctx, f); err != nil {
		return fail(err)
	}
	return f.Index(), nil
}

// wouldHaveMajority refuses a change of the voters unless a majority of those
// there would be have just answered this leader. A configuration is in force
// once it is appended, and to be committed it needs that majority: without it
// the cluster would be stuck for good, also where only one voter of three is
// down and the leader removes the older boot of its own slot.
func (s *Store) wouldHaveMajority(ctx context.Context, op string, id ServerID) error {
	next, moved := raft.Configuration{}, op == opAddVoter
	for _, m := range s.configuration().Servers {
		switch {
		case m.ID != id.raftID():
			next.Servers = append(next.Servers, m)
		case op == opRemove && m.Suffrage == raft.Voter:
			moved = true
		}
	}
	if !moved {
		return nil
	}
	if op == opAddVoter {
		next.Servers = append(next.Servers, raft.Server{ID: id.raftID(), Suffrage: raft.Voter})
	}
	term, ok := s.leading()
	if !ok {
		return s.translate(raft.ErrNotLeader)
	}
	limit := time.NewTimer(min(s.cfg.Timeouts.RPC, wait(ctx)))
	defer limit.Stop()
	return s.heardFrom(term, limit.C, func() raft.Configuration { return next })
}
