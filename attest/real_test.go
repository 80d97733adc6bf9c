package attest_test

import (
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

func TestRealQuote(t *testing.T) {
	raw, collateral := realEvidence(t)
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	v, err := intelVerifier(t).Verify(q, collateral, realTime)
	if err != nil {
		t.Fatal(err)
	}
	c := v.Claims()
	t.Logf("%+v", c)
}
