package raftstore

import (
	"context"
	"fmt"

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
func (s *Store) AddVoter(ctx context.Context, id ServerID, addr string, prevIndex uint64) (uint64, error) {
	return s.change(ctx, "add voter", id, addr, prevIndex, func() raft.IndexFuture {
		return s.raft.AddVoter(id.raftID(), raftAddress(id, addr), prevIndex, wait(ctx))
	})
}

// Remove takes a server out of the configuration, for ever: its identity can
// never be added again. Rules as for AddNonvoter.
func (s *Store) Remove(ctx context.Context, id ServerID, prevIndex uint64) (uint64, error) {
	return s.change(ctx, "remove", id, "removed", prevIndex, func() raft.IndexFuture {
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
	case op != "remove" && s.trans.members.removed(id):
		return fail(fmt.Errorf("%w: the server was removed before and its identity cannot return", ErrPeer))
	}
	if list, _ := s.Members(); op != "remove" && len(list) >= MaxServers {
		return fail(fmt.Errorf("%w: the configuration has %d servers already", ErrPeer, MaxServers))
	}
	if err := s.servable(ctx); err != nil {
		return fail(err)
	}
	f := do()
	if err := s.await(ctx, f); err != nil {
		return fail(err)
	}
	return f.Index(), nil
}

// TransferLeadership hands leadership to the most advanced voter; the new
// leader is elected within a few round trips. It fails when there is no other voter.
func (s *Store) TransferLeadership(ctx context.Context) error {
	if err := s.servable(ctx); err != nil {
		return err
	}
	return s.await(ctx, s.raft.LeadershipTransfer())
}
