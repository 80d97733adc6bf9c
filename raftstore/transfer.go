package raftstore

import (
	"context"
	"fmt"
	"slices"
)

// TransferLeadershipTo hands leadership to one voter of the configuration, for
// a leader that must not leave the choice to who is most advanced: see
// TransferLeadership. It fails for this server, a nonvoter and a stranger.
func (s *Store) TransferLeadershipTo(ctx context.Context, id ServerID) error {
	if err := s.servable(ctx); err != nil {
		return err
	}
	list, _ := s.Members()
	i := slices.IndexFunc(list, func(m Member) bool { return m.ID == id && m.Voter && id != s.cfg.ID })
	if i < 0 {
		return fmt.Errorf("%w: %s is not another voter of the configuration", ErrPeer, id)
	}
	return s.await(ctx, s.raft.LeadershipTransferToServer(id.raftID(), raftAddress(id, list[i].Address)))
}
