package simpki_test

import (
	"crypto/x509"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/google/go-tdx-guest/verify"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// service answers as Intel's provisioning certification service does, from a simulated PKI.
type service struct {
	set      *attest.Collateral
	pckChain string // PCK CA and root in PEM
	asked    map[string]bool
}

func (s *service) Get(address string) (map[string][]string, []byte, error) {
	chain := func(header string, pem []byte) map[string][]string {
		return map[string][]string{header: {url.QueryEscape(string(pem))}}
	}
	for part, answer := range map[string]struct {
		header map[string][]string
		body   []byte
	}{
		"/pckcrl?":           {chain("Sgx-Pck-Crl-Issuer-Chain", []byte(s.pckChain)), s.set.PCKCRL},
		"/tcb?":              {chain("Tcb-Info-Issuer-Chain", s.set.TCBSigningChain), s.set.TCBInfo},
		"/qe/identity":       {chain("Sgx-Enclave-Identity-Issuer-Chain", s.set.TCBSigningChain), s.set.QEIdentity},
		"IntelSGXRootCA.der": {nil, s.set.RootCRL},
	} {
		if strings.Contains(address, part) {
			s.asked[part] = true
			return answer.header, answer.body, nil
		}
	}
	return nil, nil, fmt.Errorf("unexpected request %s", address)
}

// A verifier that shares no code with this project accepts what simpki mints for TDX, and refuses what it should.
func TestIndependentVerifier(t *testing.T) {
	b := newBench(t, 1)
	root, err := x509.ParseCertificate(b.RootCertificate())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	for name, c := range map[string]struct {
		config simpki.PlatformConfig
		revoke bool
		ok     bool
	}{
		"good":           {simpki.PlatformConfig{}, false, true},
		"revoked PCK":    {simpki.PlatformConfig{Name: "stolen"}, true, false},
		"out of date":    {simpki.PlatformConfig{TCB: attest.StatusOutOfDate}, false, false},
		"revoked TCB":    {simpki.PlatformConfig{TCB: attest.StatusRevoked}, false, false},
		"unlisted TCB":   {simpki.PlatformConfig{TCB: attest.StatusNotSupported}, false, false},
		"old QE":         {simpki.PlatformConfig{QE: attest.StatusOutOfDate}, false, false},
		"old TDX module": {simpki.PlatformConfig{Module: attest.StatusOutOfDate}, false, false},
	} {
		m := b.machine(t, c.config)
		if c.revoke {
			b.Revoke(m, now)
		}
		set, err := b.Collateral(attest.TDX, m.FMSPC(), now)
		if err != nil {
			t.Fatal(err)
		}
		chain := strings.SplitAfterN(string(m.Chain()), "-----END CERTIFICATE-----\n", 2)
		s := &service{set: set, pckChain: chain[1], asked: map[string]bool{}}
		raw, err := m.QuoteTDX(tdx.Body{TDAttributes: [8]byte{3: 0x10}, XFAM: [8]byte{0xe7, 2, 6}})
		if err != nil {
			t.Fatal(err)
		}
		err = verify.RawTdxQuote(raw, &verify.Options{
			CheckRevocations: true, GetCollateral: true, Getter: s, Now: now, TrustedRoots: pool,
		})
		if c.ok != (err == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if len(s.asked) < 4 {
			t.Errorf("%s: only %v was fetched", name, s.asked)
		}
	}
}
