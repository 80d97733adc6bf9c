package node

import (
	"context"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// found makes a new cluster with this node as its only member:
//
//  1. identity key, first root and log key are made in this enclave;
//  2. the manifest commits to root of trust, node policy and operators;
//  3. this enclave quotes (manifest, identity key), and the operators verify and
//     sign that: they alone say that this is their cluster and not one of a host's;
//  4. the store begins with the entries Genesis and Admit.
//
// Nothing is served before the last step.
func (n *Node) found(ctx context.Context) error {
	raw, err := newManifest(n.cfg.Genesis, n.cfg.Root)
	if err != nil {
		return err
	}
	s, err := kds.GenerateSecrets()
	if err != nil {
		return err
	}
	ev, err := n.approve(ctx, raw, s)
	if err != nil {
		return err
	}
	recoveryKey, err := n.shareRecovery(s)
	if err != nil {
		return err
	}
	id, err := api.ClusterID(raw, s.Identity().Public())
	if err != nil {
		return err
	}
	statement, err := newMembership(s, raw, api.Membership{ClusterID: id, Epoch: 1, Slot: n.cfg.Slot, Incarnation: 1, ServerID: n.boot.id})
	if err != nil {
		return err
	}
	m, err := parseMembership(statement, id, 1, n.boot.id)
	if err != nil {
		return err
	}
	if err := n.become(s, m); err != nil {
		return err
	}
	if err := n.firstEntries(ctx, m, ev, recoveryKey); err != nil {
		return fmt.Errorf("node: genesis: %w", err)
	}
	if n.cfg.Genesis.Founded != nil {
		pins, _ := n.Pins()
		if err := n.cfg.Genesis.Founded(pins); err != nil {
			return fmt.Errorf("node: genesis: %w", err)
		}
	}
	return nil
}

// approve gets the operators' signatures over this enclave's statement.
func (n *Node) approve(ctx context.Context, rawManifest []byte, s *kds.Secrets) (ratls.Evidence, error) {
	st := &Statement{Manifest: rawManifest, IdentityKey: s.Identity().Public()}
	reportData, err := st.ReportData()
	if err != nil {
		return ratls.Evidence{}, err
	}
	ev, err := n.prover.prove(ctx, reportData)
	if err != nil {
		return ratls.Evidence{}, err
	}
	st.Quote, st.Collateral = ev.Quote, ev.Collateral
	// Our own look first: a node that its policy refuses could never let itself in again.
	manifest, err := st.Verify(n.verifier, n.judge.Now())
	if err != nil {
		return ratls.Evidence{}, err
	}
	approvals, err := n.cfg.Genesis.Approve(ctx, st)
	if err != nil {
		return ratls.Evidence{}, fmt.Errorf("%w: %w", ErrApproval, err)
	}
	return ev, st.checkApprovals(manifest.Operators, approvals)
}

// firstEntries commits Genesis, the id of the first root, the collateral of our
// own platform and our own admission.
func (n *Node) firstEntries(ctx context.Context, m *membership, ev ratls.Evidence, recoveryKey []byte) error {
	store := n.store.Load()
	if err := store.Genesis(); err != nil {
		return err
	}
	if err := n.awaitLeadership(ctx); err != nil {
		return err
	}
	if _, err := n.propose(ctx, &state.Genesis{Level: n.level, Manifest: m.raw, IdentityKey: m.identity, Epoch: 1, Generation: 1, RecoveryKey: recoveryKey}); err != nil {
		return err
	}
	if err := n.commitRoots(ctx); err != nil {
		return err
	}
	return n.admitSelf(ctx, ev, m)
}

// admitSelf commits the collateral of our own platform and our own admission,
// as the first member of an epoch.
func (n *Node) admitSelf(ctx context.Context, ev ratls.Evidence, m *membership) error {
	// The operators have judged this evidence; it receives roots from nobody.
	a, err := n.judge.Assess(ctx, ev.Quote, ev.Collateral, kds.ForChannel)
	if err != nil {
		return err
	}
	if err := a.Replicate(ctx, replica{n.store.Load()}, m.Epoch); err != nil {
		return err
	}
	_, err = n.propose(ctx, n.admitEntry(a, n.machine.View().NodePolicy, joinRequest{Slot: m.Slot, RaftAddr: n.peerAddr, APIAddr: n.apiAddr, Level: n.level}, m.Incarnation, n.boot.id))
	return err
}

// awaitLeadership waits until this node can commit: a store of one voter elects itself.
func (n *Node) awaitLeadership(ctx context.Context) error {
	store := n.store.Load()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		if err := store.SafeRead(ctx); err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-store.Done():
			return store.Err()
		case <-tick.C:
		}
	}
}

// propose commits an entry and turns a rejection into an error.
func (n *Node) propose(ctx context.Context, e state.Entry) (any, error) {
	raw, err := state.Encode(e)
	if err != nil {
		return nil, err
	}
	_, result, err := n.store.Load().Propose(ctx, raw)
	if err != nil {
		return nil, err
	}
	if err, ok := result.(error); ok {
		return nil, err
	}
	return result, nil
}
