package node

import (
	"context"

	"github.com/claviger/claviger/kds/state"
)

// raiseLevel raises the feature level by one step when every member's build
// knows the next. Members that are not there now count: they come back with
// the build that they were admitted with, and would halt.
func (n *Node) raiseLevel(ctx context.Context, view state.View) error {
	next := view.Level + 1
	if view.Ended || view.Level == 0 || next > n.level || len(view.Members) == 0 {
		return nil
	}
	for _, m := range view.Members {
		if m.Level < next {
			return nil
		}
	}
	if _, err := n.propose(ctx, &state.RaiseLevel{Epoch: view.Epoch, Level: next}); err != nil {
		return err
	}
	n.log.Info("raised the feature level", "level", next)
	return nil
}
