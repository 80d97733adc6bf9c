package kds

import (
	"crypto/ed25519"
	"errors"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// After the operators' stop nothing is answered for the epoch any more, and
// nothing is written in it: neither keys nor public keys nor verdicts, for the
// epoch that follows may say otherwise, and not even refused entries, which
// would keep final checkpoints from being taken.
func TestAnEndedEpochAnswersNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.release(ev, request())
	raw := must[[]byte](t)(api.NewAdmin(w.id, 1, 1, &api.Stop{}))
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	if _, err := w.service.Operate(t.Context(), api.AdminRequest{Statement: raw, Approvals: api.Approve(raw, key)}); err != nil {
		t.Fatal(err)
	}
	before := w.machine.Applied()
	ended := &api.Problem{Code: api.CodeEnded}
	w.refused("a key", ev, request(), api.CodeEnded)
	if r, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest{Constraint: constraint, Name: "n", Purpose: "age"}); !errors.Is(err, ended) || r.PublicKey != nil {
		t.Errorf("public key: %v", err)
	}
	if v, err := w.service.Attest(t.Context(), api.AttestRequest{Quote: ev.Quote, Collateral: ev.Collateral}); !errors.Is(err, ended) || v.OK || v.Token != "" {
		t.Errorf("attest: %+v %v", v, err)
	}
	if got := w.machine.Applied(); got != before {
		t.Errorf("requests after the end wrote %d entries", got-before)
	}
	c, err := w.service.Cluster(t.Context())
	if err != nil || !c.Ended {
		t.Errorf("the cluster's own description: %v", err)
	}
}
