package kds

import (
	"crypto/ed25519"
	"errors"
	"testing"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
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

// A statement is sent twice at the same time, or once more because an answer is
// late: both are told that it was carried out, and it was, once.
func TestAStatementSentTwiceIsAcceptedOnce(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	raw := must[[]byte](t)(api.NewAdmin(w.id, 1, 1, &api.Ticket{Slot: "b", ServerID: api.ID{1}, PlatformID: api.ID{2}}))
	req := api.AdminRequest{Statement: raw, Approvals: api.Approve(raw, ed25519.NewKeyFromSeed(make([]byte, 32)))}
	w.replica.before = func(state.Entry) error { // the other one arrives first
		w.replica.before = nil
		_, err := w.service.Operate(t.Context(), req)
		return err
	}
	if reply, err := w.service.Operate(t.Context(), req); err != nil || reply.Sequence != 1 || reply.Index == 0 {
		t.Errorf("the second of two: %+v, %v", reply, err)
	}
	if v := w.machine.View(); v.Sequence != 1 || len(v.Tickets) != 1 {
		t.Errorf("sequence %d, %d tickets", v.Sequence, len(v.Tickets))
	}
	other := must[[]byte](t)(api.NewAdmin(w.id, 1, 1, &api.Ticket{Slot: "c", ServerID: api.ID{3}, PlatformID: api.ID{4}}))
	req = api.AdminRequest{Statement: other, Approvals: api.Approve(other, ed25519.NewKeyFromSeed(make([]byte, 32)))}
	if _, err := w.service.Operate(t.Context(), req); !errors.Is(err, &api.Problem{Code: api.CodeStatement}) {
		t.Errorf("another statement of that number: %v", err)
	}
}
