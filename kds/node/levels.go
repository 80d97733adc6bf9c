package node

import (
	"context"

	"github.com/claviger/claviger/kds/state"
)

// raiseLevel raises the feature level by one step when every member's build
// knows the next.
func (n *Node) raiseLevel(ctx context.Context, view state.View) error {
	next := nextLevel(view, n.level)
	if next == 0 {
		return nil
	}
	if _, err := n.propose(ctx, &state.RaiseLevel{Epoch: view.Epoch, Level: next}); err != nil {
		return err
	}
	n.log.Info("raised the feature level", "level", next)
	return nil
}

// nextLevel is the level to raise the state to, or 0. Members that are not
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
