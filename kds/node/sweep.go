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
	if before := n.standings.of[peer].unfit; err != nil && before == nil {
		n.metrics.unfit.Inc()
		n.log.Error("UNFIT MEMBER: its platform is revoked or behind the node policy; replace it", "server", peer, "reason", err)
	}
	n.standings.of[peer] = standing{ev, err}
}

// refusal decides. A platform that is revoked is always refused. One whose TCB
// has fallen behind the policy is refused as long as the rest are a majority
// without it: when Intel raises the bar, all members may be behind at once, and
// a cluster that stops talking to itself then cannot even let the repaired ones
// in again. It holds its roots already; nobody new gets any below the policy.
func (n *Node) refusal(peer raftstore.ServerID, err error) error {
	if errors.Is(err, errOutdated) && n.needed(peer) {
		n.log.Warn("a member behind the node policy stays connected: there is no majority without it", "server", peer)
		return nil
	}
	return err
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
	judged := map[raftstore.ServerID]error{}
	for id, st := range n.peersToSweep(s) { // all of them first: who is needed depends on the others
		_, err := n.judgeNode(ctx, m.manifest, st.evidence, kds.ForMembers)
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
	for _, put := range n.judge.Pending() {
		put.Epoch = m.Epoch
		if _, err := n.propose(ctx, put); err != nil {
			n.log.Info("collateral was not replicated", "reason", err)
		}
	}
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
		if !place[id] {
			delete(n.standings.of, id)
			continue
		}
		list[id] = st
	}
	return list
}
