package attest_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/url"
	"slices"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	tdxtesting "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"
)

// realTime lies within the validity of all the collateral that go-tdx-guest carries beside its real quote.
var realTime = time.Date(2023, time.July, 1, 1, 0, 0, 0, time.UTC)

// realEvidence is a quote from a production machine and the collateral that Intel served for it in June 2023. It comes
// with a dependency, so these tests run on every clone.
func realEvidence(t testing.TB) (raw []byte, collateral *attest.Collateral) {
	t.Helper()
	chain, err := url.QueryUnescape(tdxtesting.TcbInfoHeader["Tcb-Info-Issuer-Chain"][0])
	if err != nil {
		t.Fatal(err)
	}
	size, err := attest.QuoteSize(testdata.RawQuote) // a line of text follows the quote in that file
	if err != nil {
		t.Fatal(err)
	}
	return slices.Clone(testdata.RawQuote[:size]), &attest.Collateral{
		TCBInfo:         slices.Clone(testdata.TcbInfoBody),
		QEIdentity:      slices.Clone(testdata.QeIdentityBody),
		TCBSigningChain: []byte(chain),
		PCKCRL:          slices.Clone(testdata.PckCrlBody),
		RootCRL:         slices.Clone(testdata.RootCrlBody),
	}
}

// TestRealQuote verifies a production quote with Intel's collateral of the time. That platform ran a TDX module older than
// any that Intel lists, so NotSupported is the right verdict: genuine, and not acceptable.
func TestRealQuote(t *testing.T) {
	t.Parallel()
	raw, collateral := realEvidence(t)
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	if q.TEE() != attest.TDX || q.Version() != 4 || q.TDX() == nil || q.SGX() != nil || !bytes.Equal(q.Raw(), raw) {
		t.Fatalf("parsed as %s version %d", q.TEE(), q.Version())
	}
	platform, err := attest.PlatformOf(q)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := intelVerifier(t).Verify(q, collateral, realTime)
	if err != nil {
		t.Fatal(err)
	}
	c := verified.Claims()
	if c.Platform != platform || c.Platform.FMSPC != [6]byte{0x50, 0x80, 0x6f} || c.Platform.CA != "platform" || c.Platform.PCESVN != 11 {
		t.Errorf("platform %+v, before verification %+v", c.Platform, platform)
	}
	if c.TEE != attest.TDX || c.Debug || c.SGX != nil || c.TDX == nil || c.Root.Simulated || c.ReportData != q.ReportData() ||
		hex.EncodeToString(c.TDX.MRTD[:4]) != hex.EncodeToString(raw[184:188]) || c.TDX.MRServiceTD != nil {
		t.Errorf("claims %+v", c)
	}
	if c.TCB.Status != attest.StatusNotSupported || c.TCB.QE.Status != attest.StatusUpToDate || c.TCB.EvaluationNumber != 15 || c.TCB.Module == nil {
		t.Errorf("TCB %+v", c.TCB)
	}
	want := time.Date(2023, 7, 8, 7, 24, 59, 0, time.UTC)
	if !c.Collateral.EarliestExpiry.Equal(want) || !c.Collateral.LatestIssue.Equal(time.Date(2023, 6, 18, 8, 42, 58, 0, time.UTC)) ||
		c.Collateral.RootCRLNumber != "1" || c.Collateral.Hash != collateral.Hash() {
		t.Errorf("collateral %+v", c.Collateral)
	}
}

// TestRealQuoteInTime walks over the ends of the collateral's validity.
func TestRealQuoteInTime(t *testing.T) {
	t.Parallel()
	raw, collateral := realEvidence(t)
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	expiry := time.Date(2023, 7, 8, 7, 24, 59, 0, time.UTC) // of the QE identity
	issue := time.Date(2023, 6, 18, 8, 42, 58, 0, time.UTC) // of the TCB info
	for name, tc := range map[string]struct {
		at    time.Time
		opts  []attest.Option
		stage attest.Stage
	}{
		"at the issue of TCB info":      {issue, nil, ""},
		"before the issue of TCB info":  {issue.Add(-time.Second), nil, attest.StageCollateral},
		"before the revocation list":    {time.Date(2023, 6, 8, 7, 0, 0, 0, time.UTC), nil, attest.StageRevocation},
		"before the certificate":        {time.Date(2017, 1, 1, 0, 0, 0, 0, time.UTC), nil, attest.StageChain},
		"at the expiry of QE identity":  {expiry, nil, ""},
		"after it":                      {expiry.Add(time.Second), nil, attest.StageCollateral},
		"after it, in the grace":        {expiry.Add(time.Hour), []attest.Option{attest.WithGrace(time.Hour)}, ""},
		"after the grace":               {expiry.Add(time.Hour + time.Second), []attest.Option{attest.WithGrace(time.Hour)}, attest.StageCollateral},
		"negative grace":                {expiry, []attest.Option{attest.WithGrace(-time.Hour), nil}, ""},
		"grace for lists as well":       {time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), []attest.Option{attest.WithGrace(8760 * time.Hour)}, ""},
		"lists expired":                 {time.Date(2024, 1, 1, 0, 0, 0, 0, time.UTC), nil, attest.StageRevocation},
		"no grace for certificates":     {time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC), []attest.Option{attest.WithGrace(1 << 62)}, attest.StageChain},
		"no grace before the issue":     {issue.Add(-time.Second), []attest.Option{attest.WithGrace(time.Hour)}, attest.StageCollateral},
		"the zero time is not accepted": {time.Time{}, nil, attest.StageParse},
	} {
		verified, err := intelVerifier(t).Verify(q, collateral, tc.at, tc.opts...)
		checkStage(t, name, verified, err, tc.stage)
	}
}

// checkStage compares a verdict with the stage that should refuse, "" for none. A refusal must leave nothing usable and
// tell the reader what to do.
func checkStage(t *testing.T, name string, verified *attest.Verified, err error, want attest.Stage) {
	t.Helper()
	if want == "" {
		if err != nil || verified == nil {
			t.Errorf("%s: %v", name, err)
		}
		return
	}
	var refusal *attest.Error
	if !errors.As(err, &refusal) || refusal.Stage != want || verified != nil {
		t.Errorf("%s: got %v, want stage %s", name, err, want)
		return
	}
	if refusal.Hint == "" || errors.Unwrap(err) == nil {
		t.Errorf("%s: the refusal does not say what to do: %v", name, err)
	}
}

// TestEveryByteCounts changes single bytes all over a real quote. None of them may be accepted, and every field is covered
// because the step is coprime to the sizes of the fields.
func TestEveryByteCounts(t *testing.T) {
	t.Parallel()
	raw, collateral := realEvidence(t)
	verifier := intelVerifier(t)
	step := 13
	if testing.Short() {
		step = 101
	}
	changed := 0
	for i := 0; i < len(raw); i += step {
		mutated := bytes.Clone(raw)
		mutated[i] ^= 1 << (i % 8)
		q, err := attest.Parse(mutated)
		if err == nil {
			_, err = verifier.Verify(q, collateral, realTime)
		}
		var refusal *attest.Error
		if !errors.As(err, &refusal) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		changed++
	}
	if changed < 40 {
		t.Fatalf("only %d bytes were changed", changed)
	}
}

// TestCollateralBytesCount changes single bytes of each part of the real collateral.
func TestCollateralBytesCount(t *testing.T) {
	t.Parallel()
	raw, collateral := realEvidence(t)
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	verifier := intelVerifier(t)
	for name, part := range map[string]*[]byte{
		"TCB info": &collateral.TCBInfo, "QE identity": &collateral.QEIdentity, "chain": &collateral.TCBSigningChain,
		"PCK list": &collateral.PCKCRL, "root list": &collateral.RootCRL,
	} {
		good := *part
		for i := 0; i < len(good); i += 1 + len(good)/60 {
			*part = bytes.Clone(good)
			(*part)[i] ^= 1 << (i % 7)
			if bytes.EqualFold(*part, good) { // the case of the signature's hexadecimal digits means nothing
				continue
			}
			if verified, err := verifier.Verify(q, collateral, realTime); err == nil || verified != nil {
				t.Errorf("%s: byte %d changed and accepted", name, i)
			}
		}
		for _, n := range []int{0, 1, len(good) / 2, len(good) - 2} {
			*part = good[:n]
			if verified, err := verifier.Verify(q, collateral, realTime); err == nil || verified != nil {
				t.Errorf("%s: %d of %d bytes accepted", name, n, len(good))
			}
		}
		*part = good
	}
	if _, err := verifier.Verify(q, collateral, realTime); err != nil {
		t.Fatalf("restored collateral: %v", err)
	}
}
