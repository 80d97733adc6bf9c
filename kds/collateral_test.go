package kds

import (
	"context"
	"errors"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/kds/api"
)

// source serves the simulated Intel's collateral of the present, and counts.
type source struct {
	w     *world
	err   error
	asked int
}

func (s *source) Collateral(context.Context, []byte) (*attest.Collateral, error) {
	s.asked++
	if s.err != nil {
		return nil, s.err
	}
	return s.w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, s.w.clock)
}

func TestSourceFillsIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	src := &source{w: w}
	w.service.Collateral = src
	ev := w.evidence(w.platform("one", ""), app())
	ev.Collateral = nil
	w.release(ev, request())
	w.release(ev, request())
	if src.asked != 1 {
		t.Errorf("the source was asked %d times; a fresh replicated set needs no second", src.asked)
	}
	src.err = errors.New("unreachable")
	w.clock = w.clock.AddDate(0, 0, 3)
	w.release(ev, request())
	w.release(ev, request())
	if src.asked != 2 {
		t.Errorf("asked %d times: an unreachable source must not be asked on every release", src.asked)
	}
	w.clock = w.clock.AddDate(0, 0, 40)
	if p := w.refused("everything expired", ev, request(), api.CodeEvidenceRefused); p.Stage == "" {
		t.Error("no stage")
	}
}

// The host of a revoked platform keeps sending the bundle from before the
// revocation. The node's own source ends that within a day.
func TestOldBundleCannotHideRevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.service.Collateral = &source{w: w}
	p := w.platform("one", "")
	ev := w.evidence(p, app())
	w.release(ev, request())
	w.clock = w.clock.AddDate(0, 0, 2)
	w.pki.Revoke(p, w.clock.AddDate(0, 0, -1))
	for range 3 { // not only at the moment when the source is asked
		if got := w.refused("revoked", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
			t.Errorf("stage %q", got.Stage)
		}
	}
	honest := w.evidence(w.platform("two", ""), app())
	honest.Collateral = nil
	w.release(honest, request()) // replicates the list that revokes the other
	w.service.Collateral = nil
	if got := w.refused("revoked, on the replicated list", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
		t.Errorf("stage %q", got.Stage)
	}
}
