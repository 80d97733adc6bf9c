package node

import (
	"context"
	"errors"
	"fmt"
	"net"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

var (
	// ErrNotMember says that a peer is not, or no longer, a member of the cluster.
	ErrNotMember = errors.New("node: the peer is not a member")
	errUnjoined  = errors.New("node: not yet a member")
)

// verifyMember is for a joiner that meets a member: pinned cluster, statement
// bound to the TLS key, node policy of the pinned manifest.
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
	return n.judgeNode(ctx, manifest, ev)
}

// checkRoot refuses a cluster under another root of trust than this build's.
func (n *Node) checkRoot(m *api.Manifest) error {
	if root := n.verifier.Root(); m.Root.ID != root.ID() || m.Root.Simulated != root.Simulated {
		return fmt.Errorf("%w: the cluster's root of trust is not this node's", ErrNotMember)
	}
	return nil
}

func (n *Node) judgeNode(ctx context.Context, m *api.Manifest, ev ratls.Evidence) (*attest.Verified, error) {
	j, err := n.judge.judge(ctx, ev)
	if err != nil {
		return nil, err
	}
	if err := checkNodePolicy(m, j.verified, n.judge.now()); err != nil {
		return nil, err
	}
	return j.verified, nil
}

// verifyInbound judges whoever connects to the peer listener, before anything
// else is read from it.
func (n *Node) verifyInbound(ctx context.Context, hello ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
	m := n.membership()
	if m == nil {
		return nil, errUnjoined
	}
	if hello.Protocol == protocolRaft {
		if err := n.checkRaftPeer(m, hello.PeerKey, ev.Attachment); err != nil {
			return nil, err
		}
	}
	return n.judgeNode(ctx, m.manifest, ev)
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
	return n.judgeNode(ctx, m.manifest, ev)
}

// checkRaftPeer wants a statement of this very epoch by the identity key, and a
// place in the cluster: in the configuration, or in a slot, or newer than what
// this node knows of the slot. The last is for a member that lags behind: it
// must hear from a leader admitted after its last entry.
func (n *Node) checkRaftPeer(m *membership, peer [32]byte, attachment []byte) error {
	st, err := api.ParseNodeStatement(attachment)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	if _, err := st.Verify(m.clusterID, m.Epoch, peer); err != nil {
		return fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	if st.Membership.Epoch != m.Epoch {
		return fmt.Errorf("%w: its epoch is %d, ours %d", ErrNotMember, st.Membership.Epoch, m.Epoch)
	}
	if s := n.store.Load(); s != nil {
		members, _ := s.Members()
		for _, member := range members {
			if member.ID == raftstore.ServerID(peer) {
				return nil
			}
		}
	}
	for _, slot := range n.machine.View().Members {
		if slot.Slot == st.Membership.Slot && slot.ServerID != peer && st.Membership.Incarnation <= slot.Incarnation {
			return fmt.Errorf("%w: incarnation %d of slot %s has been superseded", ErrNotMember, st.Membership.Incarnation, slot.Slot)
		}
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
	return c, nil
}

type dialer struct{ n *Node }

func (d dialer) Dial(ctx context.Context, id raftstore.ServerID, addr string) (net.Conn, error) {
	return d.n.dialPeer(ctx, id, addr)
}

// servePeers accepts join/1 and raft/1 until the listener closes.
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
			s.Serve(c, raftstore.ServerID(peer.Key))
		}
	case protocolJoin:
		n.admit(c)
	}
}
