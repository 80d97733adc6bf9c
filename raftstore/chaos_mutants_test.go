package raftstore

import (
	"context"

	"github.com/hashicorp/raft"
)

// between is what stands between raft and the transport.
func (m mutation) between(w *world, b *boot) func(*transport) raft.Transport {
	return func(t *transport) raft.Transport { return t }
}

// safeRead is how clients read.
func (m mutation) safeRead(b *boot) func(context.Context) error {
	if m != readsByVerifyLeader {
		return b.SafeRead
	}
	return func(ctx context.Context) error { return b.await(ctx, b.raft.VerifyLeader()) }
}

func (w *world) bootOld(slot int) {}
