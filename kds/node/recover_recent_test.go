package node

import (
	"errors"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds"
)

// A machine is revoked, and its host sends the collateral of a better day beside the request for shares. It counts for as
// long as with anybody who hands over roots; a holder who brings a bundle of their own sees the revocation at once, and can
// judge an enclave that has waited for longer.
func TestRequestsAreJudgedByRecentCollateral(t *testing.T) {
	t.Parallel()
	clock := &offset{}
	l := newLostSite(t)
	l.world, l.clock = sim.NewWorld([32]byte{4}, clock.now), clock.now
	l.found("a")
	l.crash()
	x := l.claimant("a")
	var err error
	if x.r.key, err = kds.NewShareRecipient(); err != nil {
		t.Fatal(err)
	}
	request, err := x.r.request(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	v, err := attest.NewVerifier(attest.Config{Root: l.world.Root()})
	if err != nil {
		t.Fatal(err)
	}
	judge := func(own bool) error {
		j := Judge{Verifier: v, Now: l.now()}
		if own {
			c, err := l.world.Collateral(t.Context(), request.Quote)
			if err != nil {
				t.Fatal(err)
			}
			if j.Collateral, err = c.Marshal(); err != nil {
				t.Fatal(err)
			}
		}
		_, err := request.Verify(j)
		return err
	}
	for _, own := range []bool{false, true} {
		if err := judge(own); err != nil {
			t.Errorf("today, by a bundle of the holder's own %t: %v", own, err)
		}
	}
	clock.advance(kds.RootsAge + 24*time.Hour)
	if err := judge(false); !errors.Is(err, ErrOldCollateral) {
		t.Errorf("after four days, by what the host sent then: %v", err)
	}
	if err := judge(true); err != nil {
		t.Errorf("after four days, by a bundle of the holder's own: %v", err)
	}
	x.n.cfg.TEE.(*sim.Enclave).Machine().Revoke()
	clock.days(1)
	if err := judge(true); !errors.Is(err, pck.ErrRevoked) {
		t.Errorf("a revoked machine: %v", err)
	}
}
