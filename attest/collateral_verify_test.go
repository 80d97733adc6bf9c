package attest_test

import (
	"bytes"
	"errors"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
)

var collateralBirth = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// collateralBed is a simulated Intel, the verifier under its root, and a machine.
func collateralBed(t *testing.T) (*simpki.PKI, *attest.Verifier, *simpki.Platform) {
	t.Helper()
	p, err := simpki.New(simpki.Config{Seed: [32]byte{9}, Now: collateralBirth})
	if err != nil {
		t.Fatal(err)
	}
	v, err := attest.NewVerifier(attest.Config{Root: p.Root()})
	if err != nil {
		t.Fatal(err)
	}
	m, err := p.Platform(simpki.PlatformConfig{Name: "machine"})
	if err != nil {
		t.Fatal(err)
	}
	return p, v, m
}

// TestVerifyCollateral compares the report with the claims of a quote that was verified with the same set.
func TestVerifyCollateral(t *testing.T) {
	t.Parallel()
	p, v, m := collateralBed(t)
	raw, err := m.QuoteSGX(sgx.Report{})
	if err != nil {
		t.Fatal(err)
	}
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := attest.PCKIssuer(q)
	if err != nil {
		t.Fatal(err)
	}
	if served, err := p.IssuerChain(simpki.PlatformCA); err != nil || !bytes.Equal(issuer, served) {
		t.Fatalf("the quote's PCK CA chain differs from the served one (%v)", err)
	}
	c, err := p.Collateral(attest.SGX, m.FMSPC(), collateralBirth)
	if err != nil {
		t.Fatal(err)
	}
	report, err := v.VerifyCollateral(c, issuer, collateralBirth)
	if err != nil {
		t.Fatal(err)
	}
	if report.TEE != attest.SGX || report.FMSPC != m.FMSPC() || report.CA != "platform" || report.PCEID != [2]byte{} {
		t.Errorf("report %+v", report)
	}
	verified, err := v.Verify(q, c, collateralBirth)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := report.Set, verified.Claims().Collateral; got != want {
		t.Errorf("report says\n%+v\nthe claims\n%+v", got, want)
	}
}

// TestVerifyCollateralRefuses changes one thing at a time.
func TestVerifyCollateralRefuses(t *testing.T) {
	t.Parallel()
	p, v, m := collateralBed(t)
	if err := p.RevokeCA(simpki.ProcessorCA, collateralBirth); err != nil {
		t.Fatal(err)
	}
	q, err := simpki.New(simpki.Config{Seed: [32]byte{10}, Now: collateralBirth})
	if err != nil {
		t.Fatal(err)
	}
	set := func(p *simpki.PKI, tee attest.TEE, ca simpki.CA) *attest.Collateral {
		c, err := p.CollateralFor(tee, m.FMSPC(), ca, collateralBirth)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	issuer := func(p *simpki.PKI, ca simpki.CA) []byte {
		chain, err := p.IssuerChain(ca)
		if err != nil {
			t.Fatal(err)
		}
		return chain
	}
	good, other := set(p, attest.SGX, simpki.PlatformCA), set(q, attest.SGX, simpki.PlatformCA)
	with := func(change func(c *attest.Collateral)) *attest.Collateral {
		c := *good
		change(&c)
		return &c
	}
	platform := issuer(p, simpki.PlatformCA)
	for name, tc := range map[string]struct {
		c      *attest.Collateral
		issuer []byte
		at     time.Time
		stage  attest.Stage
		is     error
	}{
		"nothing":           {nil, platform, collateralBirth, attest.StageParse, attest.ErrInput},
		"no issuer":         {good, nil, collateralBirth, attest.StageParse, attest.ErrInput},
		"no time":           {good, platform, time.Time{}, attest.StageParse, attest.ErrInput},
		"empty":             {&attest.Collateral{}, platform, collateralBirth, attest.StageParse, attest.ErrBundle},
		"not a chain":       {good, []byte("chain"), collateralBirth, attest.StageRevocation, pck.ErrFormat},
		"whole PCK chain":   {good, m.Chain(), collateralBirth, attest.StageRevocation, pck.ErrFormat},
		"signing chain":     {good, good.TCBSigningChain, collateralBirth, attest.StageRevocation, pck.ErrName},
		"other CA":          {good, issuer(p, simpki.ProcessorCA), collateralBirth, attest.StageRevocation, pck.ErrRevoked},
		"list of other CA":  {set(p, attest.SGX, simpki.ProcessorCA), platform, collateralBirth, attest.StageRevocation, pck.ErrCRLIssuer},
		"foreign issuer":    {good, issuer(q, simpki.PlatformCA), collateralBirth, attest.StageRevocation, pck.ErrUntrusted},
		"foreign root list": {with(func(c *attest.Collateral) { c.RootCRL = other.RootCRL }), platform, collateralBirth, attest.StageRevocation, pck.ErrSignature},
		"foreign PCK list":  {with(func(c *attest.Collateral) { c.PCKCRL = other.PCKCRL }), platform, collateralBirth, attest.StageRevocation, pck.ErrSignature},
		"foreign signer":    {with(func(c *attest.Collateral) { c.TCBSigningChain = other.TCBSigningChain }), platform, collateralBirth, attest.StageCollateral, pck.ErrUntrusted},
		"foreign info":      {with(func(c *attest.Collateral) { c.TCBInfo = other.TCBInfo }), platform, collateralBirth, attest.StageCollateral, nil},
		"foreign identity":  {with(func(c *attest.Collateral) { c.QEIdentity = other.QEIdentity }), platform, collateralBirth, attest.StageCollateral, nil},
		"mixed TEEs":        {with(func(c *attest.Collateral) { c.QEIdentity = set(p, attest.TDX, simpki.PlatformCA).QEIdentity }), platform, collateralBirth, attest.StageCollateral, attest.ErrMismatch},
		"too early":         {good, platform, collateralBirth.Add(-48 * time.Hour), attest.StageRevocation, pck.ErrValidity},
		"expired":           {good, platform, collateralBirth.Add(31 * 24 * time.Hour), attest.StageRevocation, pck.ErrValidity},
		"certificate over":  {good, platform, collateralBirth.AddDate(40, 0, 0), attest.StageRevocation, pck.ErrValidity},
	} {
		report, err := v.VerifyCollateral(tc.c, tc.issuer, tc.at)
		var refusal *attest.Error
		if !errors.As(err, &refusal) || refusal.Stage != tc.stage || refusal.Hint == "" || tc.is != nil && !errors.Is(err, tc.is) || report != nil {
			t.Errorf("%s: %v, want stage %s and %v", name, err, tc.stage, tc.is)
		}
	}
	if _, err := v.VerifyCollateral(good, platform, collateralBirth.Add(31*24*time.Hour), nil, attest.WithGrace(48*time.Hour)); err != nil {
		t.Errorf("in the grace: %v", err)
	}
	if _, err := (*attest.Verifier)(nil).VerifyCollateral(good, platform, collateralBirth); !errors.Is(err, attest.ErrConfig) {
		t.Errorf("no verifier: %v", err)
	}
}
