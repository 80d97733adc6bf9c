package node

import (
	"context"
	"errors"
)

// ErrStoreFailed is what readiness says once the store has stopped by itself.
var ErrStoreFailed = errors.New("not ready: the archive cannot be written, or the store broke one of its own rules (see the log); " +
	"this node serves nothing and keeps its roots. Let the other nodes be a healthy majority, then mend the disk and restart it")

// outlast keeps the process after the store has failed, until an operator
// stops it. A full disk is the host's to make, and it may fill every node's:
// if each of them ended itself, the roots in their memory would be gone, and all
// keys with them. The failed node takes no part in anything: its transport is
// fenced, its API answers no_quorum, it is not ready. What it holds can still
// save the cluster.
func (n *Node) outlast(ctx context.Context, cause error) {
	n.log.Error("THE STORE HAS FAILED: this node serves nothing any more and keeps its roots in memory; "+
		"do not stop it before a majority of the other nodes is healthy", "reason", cause)
	select {
	case <-ctx.Done():
	case <-n.ctx.Done():
	}
}
