package state

import (
	"bytes"
	"crypto/ed25519"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// operatorKeys are three people; the manifests of the tests need one or two.
var operatorKeys = func() (keys []ed25519.PrivateKey) {
	for i := range 3 {
		keys = append(keys, ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1, byte(i)}, 16)))
	}
	return keys
}()

// statement encodes the next statement for a machine.
func statement(t testing.TB, m *Machine, body api.AdminBody) []byte {
	t.Helper()
	v := m.View()
	raw, err := api.NewAdmin(v.ClusterID, v.Epoch, v.Sequence+1, body)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// signed is an entry with the signatures that the manifest of the tests needs.
func signed(raw []byte) *Operate {
	return &Operate{Statement: raw, Approvals: api.Approve(raw, operatorKeys[0])}
}

// operate applies a statement of the operators.
func operate(t testing.TB, m *Machine, body api.AdminBody) {
	t.Helper()
	if err, bad := m.Apply(m.View().Applied+1, encode(t, signed(statement(t, m, body)))).(error); bad {
		t.Fatalf("%s: %v", body.AdminKind(), err)
	}
}
