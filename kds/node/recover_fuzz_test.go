package node

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
)

// What lies in the files of a recovery is anybody's: it is refused or understood,
// and never believed without its quote or its signatures.
func FuzzRecoveryFiles(f *testing.F) {
	world := sim.NewWorld([32]byte{'f'}, nil)
	v, err := attest.NewVerifier(attest.Config{Root: world.Root()})
	if err != nil {
		f.Fatal(err)
	}
	m := &api.Manifest{Version: api.ManifestVersion, Name: "fuzz", Root: api.RootOfTrust{ID: world.Root().ID(), Simulated: true},
		NodePolicy: []string{nodeImage.Constraint()}, Operators: api.Operators{Threshold: 1, Keys: [][]byte{make([]byte, 32)}}, Nonce: [32]byte{1}}
	raw, err := m.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	for _, seed := range []any{
		RecoveryRequest{Manifest: raw, IdentityKey: make([]byte, 32), HPKEKey: []byte{1}},
		RecoveryReport{Manifest: raw, IdentityKey: make([]byte, 32), Archives: []ArchiveReport{{Path: "x", Epoch: 1}}, Servers: []ReportedServer{{Slot: "a"}}},
		[]SealedShare{{Sealed: []byte{1}}}, RecoveryApprovals{Statement: []byte{0x80}},
	} {
		text, err := json.Marshal(seed)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	now := time.Now()
	f.Fuzz(func(t *testing.T, text []byte) {
		var q RecoveryRequest
		if api.DecodeJSON(text, MaxRecoveryFile, &q) == nil {
			if _, err := q.Verify(Judge{Verifier: v, Now: now}); err == nil {
				t.Fatal("a request without evidence is believed")
			}
		}
		var r RecoveryReport
		if api.DecodeJSON(text, MaxRecoveryFile, &r) == nil {
			if _, err := r.Verify(Judge{Verifier: v, Now: now}); err == nil {
				t.Fatal("a report without evidence is believed")
			}
			r.Archive(r.Newest)
		}
		var a RecoveryApprovals
		if api.DecodeJSON(text, MaxRecoveryFile, &a) == nil {
			if s, err := api.ParseRecovery(a.Statement); err == nil && s.Check(s.ClusterID, &m.Operators, a.Approvals) == nil {
				t.Fatal("approvals of nobody are believed")
			}
		}
	})
}
