package node

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

const sweepLimit = time.Minute // of one sweep, slow sources included

// standings are what this node thinks of the servers it has channels with.
type standings struct {
	mu sync.Mutex
	of map[raftstore.ServerID]standing // guarded by mu
}

// standing is the last judgement of a peer.
type standing struct {
	evidence ratls.Evidence
	unfit    error // nil while it satisfies the node policy
}

// stand notes the judgement err of a peer's evidence and returns whether it is
// refused.
func (n *Node) stand(peer raftstore.ServerID, ev ratls.Evidence, err error) error {
	n.note(peer, ev, err)
	return n.refusal(peer, err)
}

// unfit tells evidence that speaks against a peer from evidence that could not
// be judged, for want of collateral in force.
func unfit(err error) bool {
	return errors.Is(err, pck.ErrRevoked) || errors.Is(err, ErrNodePolicy)
}

// note remembers a judgement, and raises the alarm when it turns.
func (n *Node) note(peer raftstore.ServerID, ev ratls.Evidence, err error) {
	if err != nil && !unfit(err) {
		return
	}
	n.standings.mu.Lock()
	defer n.standings.mu.Unlock()
	if n.standings.of == nil {
		n.standings.of = map[raftstore.ServerID]standing{}
	}
	if before := n.standings.of[peer].unfit; err != nil && before == nil && peer == n.boot.id {
		n.log.Error("THIS NODE IS UNFIT: its platform is revoked or it is behind the node policy; replace it", "reason", err)
	} else if err != nil && before == nil {
		n.metrics.unfit.Inc()
		n.log.Error("UNFIT MEMBER: its platform is revoked or behind the node policy; replace it", "server", peer, "reason", err)
	}
	n.standings.of[peer] = standing{ev, err}
}

// refusal decides. A platform that is revoked is always refused. One whose TCB
// has fallen behind the policy is refused as long as the rest are a majority
// without it, and so is one whose code the operators' policy no longer accepts,
// after a grace in which the leader takes it out of the configuration: when Intel raises the bar, all members may be behind at once, and
// a cluster that stops talking to itself then cannot even let the repaired ones
// in again. It holds its roots already; nobody new gets any below the policy.
func (n *Node) refusal(peer raftstore.ServerID, err error) error {
	if errors.Is(err, errOutdated) && n.needed(peer) {
		n.log.Warn("a member behind the node policy stays connected: there is no majority without it", "server", peer)
		return nil
	}
	if errors.Is(err, errCode) && (n.needed(peer) || n.leaving(peer)) {
		n.log.Warn("a member of code that is not accepted any more stays connected for now", "server", peer)
		return nil
	}
	return err
}

// leaving reports whether a server of the configuration may still be on its way
// out: nobody gains by the policy's taking effect in the middle of a request.
func (n *Node) leaving(peer raftstore.ServerID) bool {
	p, s := n.inForce.Load(), n.store.Load()
	if p == nil || s == nil || time.Since(p.since) > n.tune.expelGrace {
		return false
	}
	members, _ := s.Members()
	return contains(members, peer)
}

// needed reports whether peer is a voter and the voters known to be fit are no
// majority without it. This node counts itself.
func (n *Node) needed(peer raftstore.ServerID) bool {
	s := n.store.Load()
	if s == nil {
		return false
	}
	n.standings.mu.Lock()
	defer n.standings.mu.Unlock()
	members, _ := s.Members()
	voters, fit, votes := 0, 0, false
	for _, m := range members {
		if !m.Voter {
			continue
		}
		voters++
		votes = votes || m.ID == peer
		st, known := n.standings.of[m.ID]
		if m.ID == n.boot.id || m.ID != peer && known && st.unfit == nil {
			fit++
		}
	}
	return votes && fit < voters/2+1
}

// sweeps looks at all members again, from time to time and whenever collateral
// is replicated, until the node stops.
func (n *Node) sweeps() {
	for {
		every := n.tune.sweepEvery
		timer := time.NewTimer(every - rand.N(every/4+1))
		select {
		case <-n.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-n.newSets:
			timer.Stop()
		}
		n.sweep(n.ctx)
	}
}

// onCollateral asks for a sweep; one that is asked for already will do.
func (n *Node) onCollateral() {
	select {
	case n.newSets <- struct{}{}:
	default:
	}
}

// sweep judges the last evidence of every member by the collateral of now. It
// closes the channels of those that are refused and raises an alarm. It never
// changes the configuration: removing servers is for people, since a source of
// collateral that a host controls must not be able to take a quorum apart. A
// leader replicates what it has learnt, so that all nodes judge alike.
func (n *Node) sweep(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, sweepLimit)
	defer cancel()
	m, s := n.membership(), n.store.Load()
	policy := n.policy(m.manifest)
	judged := map[raftstore.ServerID]error{}
	n.judgeSelf(ctx, policy)
	for id, st := range n.peersToSweep(s) { // all of them first: who is needed depends on the others
		_, err := n.judgeNode(ctx, policy.Constraints, st.evidence, kds.ForMembers)
		n.note(id, st.evidence, err)
		judged[id] = err
	}
	for id, err := range judged {
		switch err = n.refusal(id, err); {
		case unfit(err):
			n.log.Warn("closed the channels of a member", "server", id, "channels", n.channels.drop(id))
		case err != nil:
			n.log.Warn("a member could not be judged again", "server", id, "reason", err)
		}
	}
	if !s.IsLeader() {
		return
	}
	n.askReconcile()
	if n.machine.View().Ended { // it would be refused, and final checkpoints wait for rest
		return
	}
	for _, put := range n.judge.Pending() {
		put.Epoch = m.Epoch
		if _, err := n.propose(ctx, put); err != nil {
			n.log.Info("collateral was not replicated", "reason", err)
		}
	}
}

// judgeSelf is how this node learns that its own code is not accepted any more.
func (n *Node) judgeSelf(ctx context.Context, p api.NodePolicy) {
	ev, err := n.prover.prove(ctx, [64]byte{})
	if err != nil {
		n.log.Info("no evidence of our own to judge", "reason", err)
		return
	}
	_, err = n.judgeNode(ctx, p.Constraints, ev, kds.ForChannel)
	n.note(n.boot.id, ev, err)
}

// peersToSweep copies the standings and forgets servers that have no place.
func (n *Node) peersToSweep(s *raftstore.Store) map[raftstore.ServerID]standing {
	place := map[raftstore.ServerID]bool{}
	members, _ := s.Members()
	for _, m := range members {
		place[m.ID] = true
	}
	for _, m := range n.machine.View().Members {
		place[m.ServerID] = true
	}
	n.standings.mu.Lock()
	defer n.standings.mu.Unlock()
	list := map[raftstore.ServerID]standing{}
	for id, st := range n.standings.of {
		if id == n.boot.id {
			continue
		}
		if !place[id] {
			delete(n.standings.of, id)
			continue
		}
		list[id] = st
	}
	return list
}
