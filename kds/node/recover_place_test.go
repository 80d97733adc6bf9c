package node

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/bolt"
)

// All machines are gone: another one takes a dead slot, because the operators
// have signed for that very boot. A machine that has a slot takes no second one.
func TestRecoveryOnAnotherMachine(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	cfg := c.recoverConfig("a", c.recovery(c.dead))
	cfg.TEE = c.launch("machine-b", nodeImage)
	if err := c.refused(cfg); !errors.Is(err, ErrRecovery) || !strings.Contains(err.Error(), "this machine has slot b") {
		t.Errorf("a second slot for a machine: %v", err)
	}
	tee := c.launch("machine-new", nodeImage)
	cfg = c.recoverConfig("a", c.recovery(c.dead))
	cfg.TEE = tee
	first := c.run(cfg)
	c.awaitReady(first)
	for _, m := range first.machine.View().Members {
		if m.Slot == "a" && (m.PlatformID != tee.Machine().PlatformID() || m.Incarnation != 2 || m.ServerID != [32]byte(first.ServerID())) {
			t.Errorf("slot a: incarnation %d of %x", m.Incarnation, m.PlatformID)
		}
	}
	// The others come back to slots of their own, without tickets.
	c.awaitReady(c.run(c.config("b", c.launch("machine-b", nodeImage))))
}

// The node policy outlives the epoch: code that the operators have expelled does
// not come back by way of a recovery, though the manifest still names it.
func TestRecoveryKeepsTheNodePolicy(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.found("a")
	l.keyOf(l.client(l.endpoints()...), 0)
	newer := nodeImage
	newer.Version = "2"
	leader := l.leader()
	v := leader.machine.View()
	raw, err := api.NewAdmin(v.ClusterID, v.Epoch, v.Sequence+1, &api.NodePolicyChange{Parent: 1, Constraints: []string{newer.Constraint()}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := leader.propose(t.Context(), &state.Operate{Statement: raw, Approvals: api.Approve(raw, l.keys[:2]...)}); err != nil {
		t.Fatal(err)
	}
	dead := l.crash()
	if err := l.refusedRecovery("a", l.recovery(dead)); !errors.Is(err, ErrNodePolicy) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("expelled code recovers the cluster: %v", err)
	}
	r := l.recovery(dead)
	r.MinNodePolicy = 2
	r.Shares = func(_ context.Context, q *RecoveryRequest, refused error) ([]SealedShare, error) {
		verifier, err := attest.NewVerifier(attest.Config{Root: l.world.Root()})
		if err != nil || refused != nil {
			return nil, errors.Join(err, refused)
		}
		if _, err := q.Verify(Judge{Verifier: verifier, Now: l.now()}); !errors.Is(err, ErrNodePolicy) {
			t.Errorf("by the manifest's policy: %v", err)
		}
		if _, err := q.Verify(Judge{Verifier: verifier, Constraints: []string{newer.Constraint()}, Now: l.now()}); err != nil {
			return nil, err
		}
		return sealShares(q, l.shares[1:]...)
	}
	cfg := l.recoverConfig("a", r)
	cfg.TEE = l.launch("machine-a", newer)
	first := l.run(cfg)
	l.awaitReady(first)
	if v := first.machine.View(); v.NodePolicy != 2 || v.Epoch != 2 || len(v.NodePolicyText) != 1 || v.NodePolicyText[0] != newer.Constraint() {
		t.Errorf("node policy version %d: %q", v.NodePolicy, v.NodePolicyText)
	}
	// A joiner pins the manifest alone; the new epoch still shows what the operators signed in the old one.
	joiner := l.config("b", l.launch("machine-b", newer))
	joiner.MinEpoch = 2
	l.awaitReady(l.run(joiner))
	if err := l.refused(l.config("c", l.launch("machine-c", nodeImage))); !errors.Is(err, ErrNodePolicy) && !strings.Contains(err.Error(), "node policy") {
		t.Errorf("expelled code joins the new epoch: %v", err)
	}
}

// The archives of a bolt database, as simulated nodes have them, do as well.
func TestRecoveryFromBolt(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.archive = func(dir string, id raftstore.ServerID) (raftstore.Archive, error) { return bolt.Create(dir, id) }
	l.found("a", "b")
	before, _ := l.keyOf(l.client(l.endpoints()...), 0)
	l.settled()
	dead := l.crash()
	r := l.recovery(dead)
	r.Records = bolt.Records
	first := l.recoverOn("b", r)
	l.awaitReady(first)
	if again, _ := l.keyOf(l.client(first.APIAddr()), 1); string(again) != string(before) {
		t.Error("another key")
	}
}
