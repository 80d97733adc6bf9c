package story

import (
	"testing"

	"github.com/claviger/claviger/attest"
)

func TestRealQuote(t *testing.T) {
	t.Parallel()
	claims, err := verifyRealQuote()
	if err != nil {
		t.Fatal(err)
	}
	if claims.TEE != attest.TDX || claims.Root.Simulated || claims.Debug || claims.TCB.Status == "" {
		t.Errorf("claims of the sample: %s, root %s, debug %t, status %q", claims.TEE, claims.Root.Name, claims.Debug, claims.TCB.Status)
	}
	t.Logf("%s, evaluation %d", claims.TCB.Status, claims.TCB.EvaluationNumber)
}
