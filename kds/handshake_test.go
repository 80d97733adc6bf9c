package kds

import (
	"errors"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// A node that lags behind must not refuse in the handshake what the cluster knows to be genuine: clients take a refusal for
// the last word, and do not ask another node.
func TestHandshakeRefusalCountsByStateThatIsNotOld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	bare := w.evidence(p, app())
	bare.Collateral = nil
	w.replica.readErr = ErrNoQuorum
	if v, err := w.service.Verify(t.Context(), bare); v != nil || !errors.Is(err, &api.Problem{Code: api.CodeNoQuorum}) {
		t.Errorf("cut off: %v", err)
	}
	w.replica.readErr = nil
	if v, err := w.service.Verify(t.Context(), bare); v != nil || !errors.Is(err, &api.Problem{Code: api.CodeEvidenceRefused}) {
		t.Errorf("nobody knows collateral: %v", err)
	}
	w.replica.onRead = func() { // what another node has replicated arrives
		w.replica.onRead = nil
		w.release(w.evidence(p, app()), request())
	}
	if v, err := w.service.Verify(t.Context(), bare); v == nil || err != nil {
		t.Errorf("behind by one entry: %v", err)
	}
}
