package node

import "errors"

// ErrEnded is what readiness says once the operators have ended the epoch.
var ErrEnded = errors.New("not ready: the operators have ended this epoch; this node keeps its roots in memory and writes nothing any more. " +
	"Stop it when its final checkpoint is safe; what comes next is a recovery into a new epoch")

// onEnded is told, once, by the goroutine that applies entries, that this node
// has applied the operators' stop: it must not wait for anything that is
// replicated. The process stays: its memory holds the roots.
func (n *Node) onEnded() {
	n.endOnce.Do(func() {
		n.log.Warn("the operators have ended the epoch; nothing is written any more")
		close(n.epochEnded)
		n.work.Go(n.finish)
	})
}
