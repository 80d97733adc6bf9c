package story

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"time"

	guest "github.com/google/go-tdx-guest/testing"
	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/policy"
)

// realQuoteTime is when the collateral of the sample was in force; it has run out since.
var realQuoteTime = time.Date(2023, time.July, 1, 1, 0, 0, 0, time.UTC)

var errSample = errors.New("story: the sample of go-tdx-guest has no TCB signing chain")

// verifyRealQuote verifies a quote that a real machine made and Intel's certificates vouch for, at a pinned time. It
// also sees a quote with one changed bit refused: a verifier that accepts everything would pass without.
func verifyRealQuote() (attest.Claims, error) {
	// The sample has a remark behind its last byte, which a strict parser refuses.
	size, err := attest.QuoteSize(testdata.RawQuote)
	if err != nil {
		return attest.Claims{}, err
	}
	raw := testdata.RawQuote[:size]
	collateral, err := sampleCollateral()
	if err != nil {
		return attest.Claims{}, err
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: attest.IntelRoot()})
	if err != nil {
		return attest.Claims{}, err
	}
	verified, err := verifyAt(verifier, raw, collateral)
	if err != nil {
		return attest.Claims{}, err
	}
	forged := append([]byte(nil), raw...)
	forged[200] ^= 1
	if _, err := verifyAt(verifier, forged, collateral); err == nil {
		return attest.Claims{}, fmt.Errorf("%w: a quote with one changed bit was accepted", ErrStep)
	} else if e, ok := errors.AsType[*attest.Error](err); !ok || e.Stage != attest.StageSignature {
		return attest.Claims{}, fmt.Errorf("%w: a quote with one changed bit was refused for another reason: %w", ErrStep, err)
	}
	return verified.Claims(), refusedByPolicy(verified)
}

// refusedByPolicy sees that the most lenient constraint for this very TD still refuses the platform's TCB.
func refusedByPolicy(verified *attest.Verified) error {
	constraint, err := policy.ParseConstraint(fmt.Sprintf("TD:%x FIRMWARE_ONLY_UNSAFE SEC:STALE", verified.Claims().TDX.MRTD))
	if err != nil {
		return err
	}
	denied, ok := errors.AsType[*policy.Denied](constraint.Check(verified, realQuoteTime))
	if !ok || !slices.ContainsFunc(denied.Failures, func(f policy.Failure) bool { return f.Clause == "SEC:STALE" }) {
		return fmt.Errorf("%w: the policy says %v about the sample, want clause SEC:STALE", ErrStep, denied)
	}
	return nil
}

func verifyAt(verifier *attest.Verifier, raw []byte, collateral *attest.Collateral) (*attest.Verified, error) {
	quote, err := attest.Parse(raw)
	if err != nil {
		return nil, err
	}
	return verifier.Verify(quote, collateral, realQuoteTime)
}

func sampleCollateral() (*attest.Collateral, error) {
	header := guest.TcbInfoHeader["Tcb-Info-Issuer-Chain"]
	if len(header) != 1 {
		return nil, errSample
	}
	chain, err := url.PathUnescape(header[0])
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errSample, err)
	}
	return &attest.Collateral{
		TCBInfo: testdata.TcbInfoBody, QEIdentity: testdata.QeIdentityBody, TCBSigningChain: []byte(chain),
		PCKCRL: testdata.PckCrlBody, RootCRL: testdata.RootCrlBody,
	}, nil
}
