package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

var (
	// ErrNotMember says that a peer is not, or no longer, a member of the cluster.
	ErrNotMember = errors.New("node: the peer is not a member")
	errUnjoined  = errors.New("node: not yet a member")
)

// These refuse raft/1 to a boot that is out for good, and say why. The refusal
// comes over a channel to the key of a member.
const (
	codeSuperseded ratls.Code = "superseded"
	codeRemoved    ratls.Code = "removed"
	codeExpelled   ratls.Code = "expelled"
)

// verifyMember is for a joiner that meets a member: pinned cluster, statement
// bound to the TLS key, the newest node policy that the operators of the pinned
// manifest are known to have signed.
func (n *Node) verifyMember(ctx context.Context, hello ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
	st, err := api.ParseNodeStatement(ev.Attachment)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	manifest, err := st.Verify(n.cfg.ClusterID, max(n.cfg.MinEpoch, 1), hello.PeerKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	if st.Membership.Epoch != hello.Epoch {
		return nil, fmt.Errorf("%w: its statement is of epoch %d, its channel of epoch %d", ErrNotMember, st.Membership.Epoch, hello.Epoch)
	}
	if err := n.checkRoot(manifest); err != nil {
		return nil, err
	}
	p, err := n.shownPolicy(manifest, st)
	if err != nil {
		return nil, err
	}
	// Roots come from this member: the same rule as for those who receive them.
	v, err := n.judgeNode(ctx, p.Constraints, ev, kds.ForRoots)
	if err != nil {
		return nil, err
	}
	n.learnPolicy(p, st.Policy)
	return v, nil
}

// checkRoot refuses a cluster under another root of trust than this build's.
func (n *Node) checkRoot(m *api.Manifest) error {
	if root := n.verifier.Root(); m.Root.ID != root.ID() || m.Root.Simulated != root.Simulated {
		return fmt.Errorf("%w: the cluster's root of trust is not this node's", ErrNotMember)
	}
	return nil
}

// judgeNode asks of evidence that it is genuine, by the newest collateral, and
// of a node.
func (n *Node) judgeNode(ctx context.Context, constraints []string, ev ratls.Evidence, d kds.Demand) (*attest.Verified, error) {
	a, err := n.judge.Assess(ctx, ev.Quote, ev.Collateral, d)
	if err != nil {
		return nil, err
	}
	if err := checkConstraints(constraints, a.Verified(), a.Now()); err != nil {
		return a.Verified(), err
	}
	return a.Verified(), nil
}

// judgePeer judges one end of a raft/1 channel and remembers the outcome for
// the sweep. A source that is slow must not hold up elections.
func (n *Node) judgePeer(ctx context.Context, m *membership, peer raftstore.ServerID, st *api.NodeStatement, ev ratls.Evidence) (*attest.Verified, error) {
	p, err := n.shownPolicy(m.manifest, st)
	if err != nil {
		return nil, err
	}
	patient, cancel := context.WithTimeout(ctx, sourcePatience)
	defer cancel()
	v, err := n.judgeNode(patient, p.Constraints, ev, kds.ForChannel)
	if err == nil {
		n.learnPolicy(p, st.Policy)
	}
	if err = n.stand(peer, ev, err); err != nil {
		return nil, n.orExpelled(m, peer, err)
	}
	return v, nil
}

// orExpelled tells a boot that its code is not accepted any more, and that it
// is out of the configuration for good: no admission gives a vote to such code.
// That is known only to who has applied the change of the policy: another may
// have learnt of it before it learns who is in the configuration.
func (n *Node) orExpelled(m *membership, peer raftstore.ServerID, err error) error {
	if !errors.Is(err, errCode) || n.machine.View().NodePolicy != n.policy(m.manifest).Version {
		return err
	}
	if members, _ := n.store.Load().Members(); contains(members, peer) {
		return err
	}
	return &ratls.RefusedError{Code: codeExpelled, Message: "the node policy no longer accepts this code, and the server is in the configuration no more"}
}

// verifyInbound judges whoever connects to the peer listener, before anything
// else is read from it.
func (n *Node) verifyInbound(ctx context.Context, hello ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
	m := n.membership()
	if m == nil {
		return nil, errUnjoined
	}
	if hello.Protocol == protocolRaft {
		st, err := n.checkRaftPeer(m, hello.PeerKey, ev.Attachment)
		if err != nil {
			return nil, err
		}
		return n.judgePeer(ctx, m, hello.PeerKey, st, ev)
	}
	// join/1 and recover/1: both ask for roots.
	v, err := n.judgeNode(ctx, n.policy(m.manifest).Constraints, ev, kds.ForRoots)
	if err != nil && hello.Protocol == protocolJoin {
		v, err = n.judgeUpToDate(ctx, m, ev, err)
	}
	if errors.Is(err, kds.ErrStale) { // our trouble, not the joiner's: it shall try again
		return nil, &ratls.RefusedError{Code: ratls.CodeInternal, Message: err.Error()}
	}
	if err != nil {
		return nil, err
	}
	return v, nil
}

// judgeUpToDate judges a joiner again that this member refuses, by all that was
// committed before: a refusal ends a boot for good, and this member may lag
// behind the change of the policy that lets it in. Where the leader does not
// answer, the joiner shall ask again. A recovering boot is not judged so: it
// comes to survivors of a cluster that has no leader any more.
func (n *Node) judgeUpToDate(ctx context.Context, m *membership, ev ratls.Evidence, refused error) (*attest.Verified, error) {
	s := n.store.Load()
	if s == nil {
		return nil, refused
	}
	if err := s.Read(ctx); err != nil {
		return nil, &ratls.RefusedError{Code: ratls.CodeInternal, Message: "this member knows no policy and collateral by which it would admit the joiner, " +
			"and cannot learn from a leader whether it lags behind; try again, or another member. It says: " + refused.Error()}
	}
	n.followPolicy(n.machine.View())
	return n.judgeNode(ctx, n.policy(m.manifest).Constraints, ev, kds.ForRoots)
}

// verifyRaftPeer judges a peer we dialled; ratls has compared its key with the id.
func (n *Node) verifyRaftPeer(ctx context.Context, hello ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
	m := n.membership()
	if m == nil {
		return nil, errUnjoined
	}
	st, err := api.ParseNodeStatement(ev.Attachment)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	if _, err := st.Verify(m.clusterID, m.Epoch, hello.PeerKey); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	return n.judgePeer(ctx, m, hello.PeerKey, st, ev)
}

// checkRaftPeer wants a statement of this very epoch by the identity key, and a
// place in the cluster: in the configuration, or in a slot, or newer than what
// this node knows of the slot. The last is for a member that lags behind: it
// must hear from a leader admitted after its last entry.
func (n *Node) checkRaftPeer(m *membership, peer [32]byte, attachment []byte) (*api.NodeStatement, error) {
	st, err := api.ParseNodeStatement(attachment)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	if err := checkEnded(m, st, peer); err != nil {
		return nil, err
	}
	if _, err := st.Verify(m.clusterID, m.Epoch, peer); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	if st.Membership.Epoch != m.Epoch {
		return nil, fmt.Errorf("%w: its epoch is %d, ours %d", ErrNotMember, st.Membership.Epoch, m.Epoch)
	}
	view := n.machine.View() // first: who is not in a configuration that is no older than this has left it
	n.atPlace(peer)
	if s := n.store.Load(); s != nil {
		if members, _ := s.Members(); contains(members, peer) {
			return st, nil
		}
	}
	if err := placeRefused(view, peer, st.Membership); err != nil {
		return nil, err
	}
	return st, nil
}

// placeRefused refuses a boot outside the configuration that had its place once:
// the state has another one in its slot after it, or no slot. What a membership
// says was committed, so a boot that the state has never had is one that this node
// has not heard of yet, whatever its count is: a slot that was removed and is taken
// again counts from 1. Only boots that the slot has forgotten go by the count.
func placeRefused(view state.View, peer [32]byte, m api.Membership) error {
	for _, slot := range view.Members {
		forgotten := len(slot.Former) == state.MaxFormer && m.Incarnation <= slot.Incarnation-state.MaxFormer
		if slot.Slot == m.Slot && slot.ServerID != peer && (slices.Contains(slot.Former, peer) || forgotten) {
			return &ratls.RefusedError{Code: codeSuperseded, Message: fmt.Sprintf("%v: incarnation %d of slot %s has been superseded and is in the configuration no more",
				ErrNotMember, m.Incarnation, slot.Slot)}
		}
	}
	if slices.Contains(view.Removed, peer) {
		return &ratls.RefusedError{Code: codeRemoved, Message: fmt.Sprintf("%v: the operators have removed slot %s, and this server is in the configuration no more",
			ErrNotMember, m.Slot)}
	}
	return nil
}

// Dial opens raft/1 to exactly the server id; it makes n a raftstore.Dialer.
func (n *Node) dialPeer(ctx context.Context, id raftstore.ServerID, addr string) (net.Conn, error) {
	m := n.membership()
	if m == nil {
		return nil, errUnjoined
	}
	key := [32]byte(id)
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c, err := ratls.Client(ctx, conn, &ratls.Config{Protocols: []string{protocolRaft}, ClusterID: m.clusterID, Epoch: m.Epoch,
		Key: n.boot.key, PeerKey: &key, Attest: n.prover.prove, Verify: n.verifyRaftPeer})
	if err != nil {
		return nil, err
	}
	return n.channels.track(id, c, n.tune.channelAge), nil
}

type dialer struct{ n *Node }

func (d dialer) Dial(ctx context.Context, id raftstore.ServerID, addr string) (net.Conn, error) {
	return d.n.dialPeer(ctx, id, addr)
}

// servePeers accepts join/1, recover/1 and raft/1 until the listener closes.
func (n *Node) servePeers(l net.Listener) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		c, ok := conn.(*ratls.Conn)
		if !ok {
			conn.Close()
			continue
		}
		n.work.Go(func() { n.servePeer(c) })
	}
}

func (n *Node) servePeer(c *ratls.Conn) {
	defer c.Close()
	stop := context.AfterFunc(n.ctx, func() { c.Close() })
	defer stop()
	peer := c.Peer()
	switch peer.Protocol {
	case protocolRaft:
		if s := n.store.Load(); s != nil {
			s.Serve(n.channels.track(peer.Key, c, n.tune.channelAge), raftstore.ServerID(peer.Key))
		}
	case protocolJoin:
		n.admit(c)
	case protocolRecover:
		n.survive(c)
	}
}
