package attest_test

import (
	"bytes"
	"encoding/json"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
)

// TestReserializedCollateral: what a caching service wrote again is refused unless the verifier was told otherwise, and then it
// still says only what was signed.
func TestReserializedCollateral(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	relaxed, err := attest.NewVerifier(attest.Config{Root: w.pki.Root(), ReserializedCollateralUnsafe: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		m := w.machine(t, simpki.PlatformConfig{Name: "a", TCB: attest.StatusOutOfDate})
		q := mustParse(t, quoteOf(t, m, tee))
		good := w.collateral(t, tee, m.FMSPC())
		again := *good
		for _, part := range []*[]byte{&again.TCBInfo, &again.QEIdentity} {
			var any map[string]any
			if err := json.Unmarshal(*part, &any); err != nil {
				t.Fatal(err)
			}
			if *part, err = json.MarshalIndent(any, "", "  "); err != nil {
				t.Fatal(err)
			}
		}
		for range 2 { // the second time the relaxed one knows it
			verified, err := w.verifier.Verify(q, &again, simNow)
			checkStage(t, "strict", verified, err, attest.StageCollateral)
			verified, err = relaxed.Verify(q, &again, simNow)
			checkStage(t, "relaxed", verified, err, "")
			if got := verified.Claims().TCB; got.Status != attest.StatusOutOfDate || len(got.Advisories) == 0 {
				t.Errorf("relaxed claims %+v", got)
			}
		}
		if s := relaxed.Stats().Collateral; s.Hits == 0 {
			t.Errorf("%+v", s)
		}
		forged := again
		forged.TCBInfo = bytes.ReplaceAll(again.TCBInfo, []byte(`"OutOfDate"`), []byte(`"UpToDate"`))
		if bytes.Equal(forged.TCBInfo, again.TCBInfo) {
			t.Fatal("nothing changed")
		}
		verified, err := relaxed.Verify(q, &forged, simNow)
		checkStage(t, "relaxed, forged", verified, err, attest.StageCollateral)
	}
}
