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

// awaitRemoval ends a boot that is out of the configuration. Until it is, it
// stays a voter, since the admission of the newer boot may never finish, and its
// roots may be the last. The leader stops talking to a removed server before that
// can learn of its removal, or of what led to it, so silence makes it ask; but
// only an answer makes it stop.
func (n *Node) awaitRemoval() {
	s := n.store.Load()
	tick := time.NewTicker(min(supersedeLook, n.tune.supersedeGrace))
	defer tick.Stop()
	for heard := time.Now(); ; {
		select {
		case <-n.ctx.Done():
			return
		case <-n.fenced.done: // it has no place to lose any more, and its roots may still be asked for
			return
		case <-tick.C:
		}
		if _, _, ok := s.Leader(); ok {
			heard = time.Now()
		} else if time.Since(heard) > n.tune.supersedeGrace {
			if why := n.peerSaysRemoved(); why != nil {
				n.cancel(why)
				return
			}
			if n.leaver() != nil {
				n.metrics.waiting.Inc()
			}
			heard = time.Now()
		}
	}
}

// peerSaysRemoved asks those who are, or were, members with this boot. One that
// has applied the newer boot's admission, or what else put this boot out, and
// does not have it in its configuration refuses with a code that says so. No vote
// can be given to this boot after that (promote), so what one peer has committed
// is final. It returns nil without such an answer.
func (n *Node) peerSaysRemoved() error {
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
		if r, ok := errors.AsType[*ratls.RefusedError](err); ok && outFor[r.Code] != nil {
			return outFor[r.Code]
		}
	}
	return nil
}

// outFor is what Run returns where a peer has said that this boot is out.
var outFor = map[ratls.Code]error{codeSuperseded: ErrSuperseded, codeRemoved: ErrRemoved, codeExpelled: ErrExpelled}
