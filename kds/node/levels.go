package node

import (
	"context"
	"slices"

	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

// raiseLevel raises the feature level by one step when every member's build
// knows the next, and does what the level asks for.
func (n *Node) raiseLevel(ctx context.Context, view state.View, members []raftstore.Member) error {
	if next := n.levelDue(view, members); next != 0 {
		if _, err := n.propose(ctx, &state.RaiseLevel{Epoch: view.Epoch, Level: next}); err != nil {
			return err
		}
		n.log.Info("raised the feature level", "level", next)
	}
	return n.commitRoots(ctx)
}

// levelDue is the level to raise the state to, or 0. The older boot of a slot may be
// of an older build, and is a voter until the admission of the newer one is
// complete: it would halt, and its roots may be the last.
func (n *Node) levelDue(view state.View, members []raftstore.Member) uint64 {
	if slices.ContainsFunc(members, func(m raftstore.Member) bool { return m.Voter && placeOf(view, m.ID) == wasSuperseded }) {
		return 0
	}
	return nextLevel(view, n.level)
}

// commitRoots puts the ids of the roots into the state, where the level has them
// and they are not there yet: at the beginning of an epoch, and when a cluster that
// was founded below that level has been raised to it.
func (n *Node) commitRoots(ctx context.Context) error {
	view := n.machine.View()
	if !rootsDue(view) {
		return nil
	}
	_, err := n.propose(ctx, &state.CommitRoots{Epoch: view.Epoch, IDs: n.secrets.GenerationIDs()})
	return err
}

// rootsDue reports whether the state lacks the id of a root.
func rootsDue(view state.View) bool {
	return !view.Ended && view.Level >= state.LevelRoots && uint64(len(view.GenerationIDs)) < view.Generation
}

// nextLevel is the level after the state's if every slot's build knows it, or 0. Members that are not
// there now count: they come back with the build that they were admitted with,
// and would halt. Level 1 has no entry that raises it.
func nextLevel(view state.View, known uint64) uint64 {
	next := view.Level + 1
	if view.Ended || view.Level < 2 || next > known || len(view.Members) == 0 {
		return 0
	}
	for _, m := range view.Members {
		if m.Level < next {
			return 0
		}
	}
	return next
}
