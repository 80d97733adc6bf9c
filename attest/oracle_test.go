package attest_test

import (
	"fmt"
	"net/url"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// quoteOf returns a quote of a plausible enclave or TD.
func quoteOf(t testing.TB, m *simpki.Platform, tee attest.TEE) (raw []byte) {
	t.Helper()
	var err error
	if tee == attest.TDX {
		raw, err = m.QuoteTDX(tdx.Body{TDAttributes: [8]byte{3: 0x10}, XFAM: [8]byte{0xe7, 2, 6}, MRTD: [48]byte{1}, ReportData: [64]byte{2}})
	} else {
		raw, err = m.QuoteSGX(sgx.Report{Attributes: [16]byte{5}, MREnclave: [32]byte{1}, ReportData: [64]byte{2}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// service answers from memory as Intel's provisioning certification service does, for the independent verifier.
type service struct {
	c         *attest.Collateral
	pckIssuer []byte
}

func newService(t testing.TB, pki *simpki.PKI, c *attest.Collateral) *service {
	t.Helper()
	issuer, err := pki.IssuerChain(simpki.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	return &service{c, issuer}
}

func (s *service) Get(address string) (map[string][]string, []byte, error) {
	header := func(name string, chain []byte) map[string][]string {
		return map[string][]string{name: {url.QueryEscape(string(chain))}}
	}
	switch {
	case strings.Contains(address, "/pckcrl?"):
		return header("Sgx-Pck-Crl-Issuer-Chain", s.pckIssuer), s.c.PCKCRL, nil
	case strings.Contains(address, "/tcb?"):
		return header("Tcb-Info-Issuer-Chain", s.c.TCBSigningChain), s.c.TCBInfo, nil
	case strings.Contains(address, "/qe/identity"):
		return header("Sgx-Enclave-Identity-Issuer-Chain", s.c.TCBSigningChain), s.c.QEIdentity, nil
	case strings.Contains(address, "IntelSGXRootCA.der"):
		return nil, s.c.RootCRL, nil
	}
	return nil, nil, fmt.Errorf("unexpected request %s", address)
}
