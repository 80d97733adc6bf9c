package kds

import (
	"context"
	"errors"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/kds/api"
)

// Intel's lists all carry number 1. A good platform that brings today's TCB info with the list of before a revocation must
// not take the replicated list back: the revoked platform would pass wherever it has not been met.
func TestReplicatedListNeverGoesBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	src := &source{w: w, err: errors.New("the host drops packets")}
	w.service.Assessor.Source = src
	bad, good := w.platform("bad", ""), w.platform("good", "")
	before := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, w.clock))
	w.clock = w.clock.AddDate(0, 0, 10)
	w.pki.Revoke(bad, w.clock.AddDate(0, 0, -5))
	w.release(w.evidence(good, app()), request()) // replicates the list that names bad
	known, _ := w.machine.Collateral(platformKey)

	w.clock = w.clock.AddDate(0, 0, 1)
	mixed := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, w.clock))
	mixed.PCKCRL, mixed.RootCRL = before.PCKCRL, before.RootCRL
	ev := w.evidence(good, app())
	ev.Collateral = must[[]byte](t)(mixed.Marshal())
	w.release(ev, request())
	if now, _ := w.machine.Collateral(platformKey); now.Version != known.Version {
		t.Errorf("the list of %d replaced that of %d", now.Meta.PCKCRLIssue, known.Meta.PCKCRLIssue)
	}
	// Another node, which has not met the revoked platform.
	w.service = must[*Service](t)(New(w.config()))
	w.service.Assessor.Source = src
	ev = w.evidence(bad, app())
	ev.Collateral = nil
	w.refused("a revoked platform", ev, request(), api.CodeEvidenceRefused)
	if _, err := w.service.Assessor.Assess(t.Context(), ev.Quote, nil, ForRoots); stageOf(err) != attest.StageRevocation {
		t.Errorf("for roots: %v", err)
	}
}

// A set whose signer has been revoked says nothing of the platform. Anybody can bring one beside anybody's quote, without an
// enclave of their own, and must not have the platform remembered as revoked.
func TestRevokedSignerLocksNobodyOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	victim := w.platform("victim", "")
	old := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, w.clock))
	w.clock = w.clock.AddDate(0, 0, 2)
	w.pki.RevokeTCBSigning(w.clock.AddDate(0, 0, -1))
	if err := w.pki.ReplaceTCBSigning(); err != nil {
		t.Fatal(err)
	}
	w.release(w.evidence(victim, app()), request())
	fresh := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, w.clock))
	old.RootCRL = fresh.RootCRL
	for name, forged := range map[string]bool{"the victim's own quote": false, "a forgery with its chain": true} {
		ev := w.evidence(victim, app())
		if forged {
			ev.Quote[48+64] ^= 1
		}
		ev.Collateral = must[[]byte](t)(old.Marshal())
		if _, err := w.service.Verify(t.Context(), ev); forged == (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		w.release(w.evidence(victim, app()), request())
	}
}

// One app's early data of a TCB recovery must not keep the sets out that the cluster's own source serves.
func TestEarlySetKeepsNobodyOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	standard := must[*simpki.PKI](t)(simpki.New(simpki.Config{Seed: [32]byte{1}, Now: start.AddDate(0, -6, 0)}))
	w.clock = w.clock.AddDate(0, 0, 2)
	if err := w.pki.Recover(w.clock.AddDate(0, 0, -1)); err != nil {
		t.Fatal(err)
	}
	early := w.evidence(w.platform("early", ""), app())
	w.pki = standard // which is what our source serves
	src := &source{w: w}
	w.service.Assessor.Source = src
	w.release(early, request())
	member := w.platform("member", "")
	for _, days := range []int{4, 30} {
		w.clock = w.clock.AddDate(0, 0, days)
		ev := w.evidence(member, app())
		if _, err := w.service.Assessor.Assess(t.Context(), ev.Quote, nil, ForRoots); err != nil {
			t.Errorf("%d days later, with a healthy source: %v", days, err)
		}
		w.release(ev, request())
	}
}

// A platform that was made up costs our source, and Intel's service behind it, nothing.
func TestMadeUpPlatformAsksNobody(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	src := &source{w: w}
	w.service.Assessor.Source = src
	other := must[*simpki.PKI](t)(simpki.New(simpki.Config{Seed: [32]byte{66}, Now: start.AddDate(0, -6, 0)}))
	made := must[*simpki.Platform](t)(other.Platform(simpki.PlatformConfig{Name: "made up", FMSPC: [6]byte{6, 6, 6}}))
	quote := must[[]byte](t)(made.QuoteSGX(app()))
	for _, d := range []Demand{ForChannel, ForMembers, ForRoots} {
		if _, err := w.service.Assessor.Assess(context.Background(), quote, nil, d); stageOf(err) != attest.StageChain {
			t.Errorf("%d: %v", d, err)
		}
	}
	if src.asked != 0 {
		t.Errorf("the source was asked %d times", src.asked)
	}
}

func stageOf(err error) attest.Stage {
	if e, ok := errors.AsType[*attest.Error](err); ok {
		return e.Stage
	}
	return ""
}
