package node

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// changePolicy has the operators sign a node policy, and a leader commit it.
func (l *lostSite) changePolicy(images ...sim.Image) {
	l.t.Helper()
	leader := l.leader()
	v := leader.machine.View()
	raw, err := api.NewAdmin(v.ClusterID, v.Epoch, v.Sequence+1, policyChange(v.NodePolicy, images...))
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := leader.propose(l.t.Context(), &state.Operate{Statement: raw, Approvals: api.Approve(raw, l.keys[:2]...)}); err != nil {
		l.t.Fatal(err)
	}
}

// claimantOf is a recovering boot of an image on a machine.
func (l *lostSite) claimantOf(machine string, image sim.Image, minPolicy uint64) *claimant {
	l.t.Helper()
	r := &Recovery{Manifest: l.pins.Manifest, IdentityKey: l.pins.IdentityKey, Survivors: []string{"127.0.0.1:1"}, Approve: l.approve(nil)}
	cfg := l.recoverConfig("d", r)
	cfg.TEE, cfg.MinNodePolicy = l.launch(machine, image), minPolicy
	n, err := New(cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { n.Close() })
	return &claimant{l, n, &recovery{Recovery: r, n: n}}
}

// wantNothing: neither a look nor a statement gets anything out of a survivor, or
// anything into it, and the survivor keeps its place.
func (e *claimant) wantNothing(what string, alive *running, want func(error) bool) {
	e.l.t.Helper()
	if v, err := e.look(alive); !want(err) || v.a.history != nil {
		e.l.t.Errorf("%s looks: %v", what, err)
	}
	if err := e.ask(alive, e.statement(alive, nil), e.l.keys[:2]...); !want(err) || len(e.r.held) > 0 {
		e.l.t.Errorf("%s, with the operators' signatures: %v", what, err)
	}
	if alive.fenced.up() || alive.store.Load().Err() != nil {
		e.l.t.Fatalf("%s stopped the survivor", what)
	}
}

func words(want ...string) func(error) bool {
	return func(err error) bool {
		return err != nil && !slices.ContainsFunc(want, func(w string) bool { return !strings.Contains(err.Error(), w) })
	}
}

// The operators have expelled the code of all nodes, and the last of them lives on. Neither does that code take over as
// the recovering enclave, nor does code that is accepted take anything from it. The operators' signatures do not help.
func TestExpelledCodeOnEitherSideOfASurvivor(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	l.changePolicy(newImage())
	alive := l.follower()
	poll(t, "the survivor knows the policy", func() bool { return alive.machine.View().NodePolicy == 2 })
	l.lose(alive)
	l.claimantOf("machine-d", nodeImage, 0).wantNothing("expelled code", alive, words("node policy"))
	l.claimantOf("machine-d", newImage(), 0).wantNothing("accepted code, and an expelled survivor", alive, words("node policy"))
}

// A platform is revoked, that of the recovering enclave or that of the survivor: no history, no roots, and nobody stops.
func TestRevokedPlatformOnEitherSideOfASurvivor(t *testing.T) {
	t.Parallel()
	clock := &offset{}
	l := survivorSite(t)
	l.world, l.clock = sim.NewWorld([32]byte{3}, clock.now), clock.now
	l.found("a", "b", "c")
	alive := l.follower()
	dead := l.lose(alive)
	good := l.claimantOf("machine-"+dead[0].slot, nodeImage, 0)
	if _, err := good.look(alive); err != nil {
		t.Fatal(err)
	}
	bad := l.claimantOf("machine-d", nodeImage, 0)
	clock.days(1)
	bad.n.cfg.TEE.(*sim.Enclave).Machine().Revoke()
	clock.advance(time.Hour)
	bad.wantNothing("a revoked platform", alive, words("revoked"))
	if _, err := good.look(alive); err != nil { // it is not about the day
		t.Fatal(err)
	}
	alive.cfg.TEE.(*sim.Enclave).Machine().Revoke()
	clock.advance(time.Hour)
	good.wantNothing("a good platform, and a revoked survivor", alive, func(err error) bool { return errors.Is(err, pck.ErrRevoked) })
}

// A survivor of old code was cut off while the operators expelled that code, so that it shows a policy of before. Who
// remembers the newer one refuses it at once. Who does not learns of it when the archives open: then neither what the
// survivor holds counts, nor that it has stopped, and the recovery goes on from the archives.
func TestExpelledSurvivorThatHidesIt(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.policy = policyChange(0, nodeImage, newImage()).Constraints
	l.found("a", "b", "c")
	before, _ := l.keyOf(l.client(l.endpoints()...), 0)
	l.settled()
	alive := l.follower()
	l.net.partition(alive)
	l.nodes = slices.DeleteFunc(slices.Clone(l.nodes), func(n *running) bool { return n == alive })
	l.changePolicy(newImage())
	l.settled()
	dead := l.lose()
	l.claimantOf("machine-d", newImage(), 2).wantNothing("who remembers version 2", alive, words("up to version 1", "wants 2"))

	calls := 0
	r := l.fromSurvivors(dead, []*running{alive}, nil)
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		calls++
		showReport(t, report)
		s := l.statement(report)
		switch calls {
		case 1:
			stopAlive(report, s)
		case 2: // as if its stop were proof
			if !words("expelled its code", "version 2")(refused) {
				t.Errorf("an expelled survivor as the source: %v", refused)
			}
			if a := report.Archive(report.Newest); a == nil || a.Kind != KindArchive || a.NodePolicy != 2 || report.Archive(api.ID(alive.ServerID())) != nil {
				t.Errorf("the newest: %+v", a)
			}
			s.Epoch = 3
			setFate(s, api.ID(alive.ServerID()), api.FateStopped)
		case 3:
			if !words("said to be stopped")(refused) {
				t.Errorf("the word of an expelled survivor that it has stopped: %v", refused)
			}
			s.Epoch = 4
		default:
			return nil, errors.Join(errOperator, refused)
		}
		return l.sign(s, l.keys[:2]...)
	}
	cfg := l.recoverConfig(dead[0].slot, r)
	cfg.TEE = l.launch("machine-"+dead[0].slot, newImage())
	first := l.run(cfg)
	l.awaitReady(first)
	if v := first.machine.View(); v.Epoch != 4 || v.NodePolicy != 2 || calls != 3 {
		t.Errorf("epoch %d, node policy %d after %d statements", v.Epoch, v.NodePolicy, calls)
	}
	if k, _ := l.keyOf(l.client(first.APIAddr()), 1); !bytes.Equal(k, before) {
		t.Error("another key")
	}
}
