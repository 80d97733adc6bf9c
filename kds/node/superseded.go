package node

import (
	"context"
	"errors"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/raftstore"
)

// leaver says why this boot has to leave the cluster, or nil. A change of the
// node policy may be taken back before it has left.
func (n *Node) leaver() error {
	select {
	case <-n.replaced:
		return n.outcome
	default:
	}
	if n.foreign(n.boot.id) {
		return ErrExpelled
	}
	return nil
}

// loseSlot notes that the state no longer has this boot in the slot.
func (n *Node) loseSlot(why error) {
	n.replace.Do(func() {
		n.outcome = why
		close(n.replaced)
	})
}

// awaitRemoval is for a boot that must leave. Until it is removed it stays a voter,
// since the admission of the newer boot may never finish, and its roots may be
// the last. The leader stops talking to a removed server before that can learn
// of its removal, so silence makes it ask; but only an answer makes it stop.
func (n *Node) awaitRemoval() {
	s := n.store.Load()
	tick := time.NewTicker(min(supersedeLook, n.tune.supersedeGrace))
	defer tick.Stop()
	for heard := time.Now(); ; {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		why := n.leaver()
		if _, _, ok := s.Leader(); ok || why == nil {
			heard = time.Now()
		} else if time.Since(heard) > n.tune.supersedeGrace {
			if n.peerSaysRemoved() {
				n.cancel(why)
				return
			}
			n.metrics.waiting.Inc()
			heard = time.Now()
		}
	}
}

// peerSaysRemoved asks those who are, or were, members with this boot. One that
// has applied the newer boot's admission and does not have this boot in its
// configuration refuses with codeSuperseded. No vote can be given to this boot
// after that admission (promote), so what one peer has committed is final.
func (n *Node) peerSaysRemoved() bool {
	peers := map[raftstore.ServerID]string{}
	for _, m := range n.machine.View().Members {
		peers[m.ServerID] = m.RaftAddr
	}
	members, _ := n.store.Load().Members()
	for _, m := range members {
		peers[m.ID] = m.Address
	}
	delete(peers, n.boot.id)
	for id, addr := range peers {
		ctx, cancel := context.WithTimeout(n.ctx, askLimit)
		c, err := n.dialPeer(ctx, id, addr)
		cancel()
		if err == nil {
			c.Close()
		}
		if r, ok := errors.AsType[*ratls.RefusedError](err); ok && r.Code == codeSuperseded {
			return true
		}
	}
	return false
}
