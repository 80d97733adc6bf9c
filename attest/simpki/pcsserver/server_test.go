package pcsserver_test

import (
	"bytes"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

var birth = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

func serve(t *testing.T, change func(*pcsserver.Config)) (*simpki.PKI, *pcsserver.Server) {
	t.Helper()
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{3}, Now: birth})
	if err != nil {
		t.Fatal(err)
	}
	config := pcsserver.Config{PKI: pki, Clock: func() time.Time { return birth }}
	if change != nil {
		change(&config)
	}
	s, err := pcsserver.New(config)
	if err != nil {
		t.Fatal(err)
	}
	return pki, s
}

func get(s http.Handler, target string, header ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(http.MethodGet, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// TestDocuments compares what is served with what the PKI issues.
func TestDocuments(t *testing.T) {
	t.Parallel()
	pki, s := serve(t, nil)
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		c, err := pki.Collateral(tee, [6]byte{0, 0x60, 0x6a}, birth)
		if err != nil {
			t.Fatal(err)
		}
		issuer, err := pki.IssuerChain(simpki.PlatformCA)
		if err != nil {
			t.Fatal(err)
		}
		base := "/" + string(tee) + "/certification/v4/"
		for _, tc := range []struct {
			target, kind, header string
			body, chain          []byte
		}{
			{base + "tcb?fmspc=00606a000000", "application/json", "TCB-Info-Issuer-Chain", c.TCBInfo, c.TCBSigningChain},
			{base + "tcb?fmspc=00606A000000&update=early", "application/json", "TCB-Info-Issuer-Chain", c.TCBInfo, c.TCBSigningChain},
			{base + "tcb?fmspc=00606A000000&tcbEvaluationDataNumber=17", "application/json", "TCB-Info-Issuer-Chain", c.TCBInfo, c.TCBSigningChain},
			{base + "qe/identity", "application/json", "SGX-Enclave-Identity-Issuer-Chain", c.QEIdentity, c.TCBSigningChain},
			{base + "qe/identity?update=standard", "application/json", "SGX-Enclave-Identity-Issuer-Chain", c.QEIdentity, c.TCBSigningChain},
			{"/sgx/certification/v4/pckcrl?ca=platform&encoding=der", "application/pkix-crl", "SGX-PCK-CRL-Issuer-Chain", c.PCKCRL, issuer},
			{"/sgx/certification/v4/pckcrl?ca=platform", "application/x-pem-file", "SGX-PCK-CRL-Issuer-Chain", pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: c.PCKCRL}), issuer},
			{"/IntelSGXRootCA.der", "application/pkix-crl", "", c.RootCRL, nil},
		} {
			w := get(s, tc.target)
			if w.Code != http.StatusOK || w.Header().Get("Content-Type") != tc.kind || !bytes.Equal(w.Body.Bytes(), tc.body) {
				t.Errorf("%s: %d, %s, %d bytes", tc.target, w.Code, w.Header().Get("Content-Type"), w.Body.Len())
			}
			if tc.header == "" {
				continue
			}
			value := w.Header().Get(tc.header)
			chain, err := url.PathUnescape(value)
			if err != nil || chain != string(tc.chain) || strings.ContainsAny(value, " \n+=/") {
				t.Errorf("%s: chain %.40q (%v)", tc.target, value, err)
			}
		}
	}
}

// TestPCCS checks the differences of the caching service.
func TestPCCS(t *testing.T) {
	t.Parallel()
	pki, s := serve(t, func(c *pcsserver.Config) { c.PCCS = true })
	c, err := pki.CollateralFor(attest.SGX, [6]byte{1}, simpki.ProcessorCA, birth)
	if err != nil {
		t.Fatal(err)
	}
	if w := get(s, "/sgx/certification/v4/rootcacrl"); w.Body.String() != hex.EncodeToString(c.RootCRL) {
		t.Errorf("root list: %d, %.20q", w.Code, w.Body)
	}
	if w := get(s, "/sgx/certification/v4/pckcrl?ca=processor"); w.Body.String() != hex.EncodeToString(c.PCKCRL) {
		t.Errorf("PCK list: %d, %.20q", w.Code, w.Body)
	}
	if w := get(s, "/sgx/certification/v4/pckcrl?ca=processor&encoding=der"); !bytes.Equal(w.Body.Bytes(), c.PCKCRL) {
		t.Errorf("PCK list in DER: %d, %.20q", w.Code, w.Body)
	}
	if w := get(s, "/sgx/certification/v4/tcb?fmspc=010000000000"); w.Header().Get("SGX-TCB-Info-Issuer-Chain") == "" || w.Header().Get("TCB-Info-Issuer-Chain") != "" {
		t.Errorf("headers %v", w.Header())
	}
	if w := get(s, "/IntelSGXRootCA.der"); w.Code != http.StatusNotFound {
		t.Errorf("distribution point: %d", w.Code)
	}
}

// TestRefusals asks for what is not there.
func TestRefusals(t *testing.T) {
	t.Parallel()
	_, s := serve(t, func(c *pcsserver.Config) { c.APIKey, c.FMSPCs = "secret", [][6]byte{{1}} })
	key := []string{"Ocp-Apim-Subscription-Key", "secret"}
	const base = "/sgx/certification/v4/"
	for target, want := range map[string]int{
		base + "tcb?fmspc=010000000000": 200, base + "tcb?fmspc=020000000000": 404, base + "tcb": 400, base + "tcb?fmspc=01": 400, base + "tcb?fmspc=zz0000000000": 400,
		base + "tcb?fmspc=010000000000&fmspc=020000000000": 400, base + "tcb?fmspc=010000000000&update=late": 400,
		base + "tcb?fmspc=010000000000&update=early&tcbEvaluationDataNumber=17": 400, base + "tcb?fmspc=010000000000&tcbEvaluationDataNumber=x": 400,
		base + "tcb?fmspc=010000000000&tcbEvaluationDataNumber=16": 410, base + "tcb?fmspc=010000000000&tcbEvaluationDataNumber=18": 404,
		base + "tcb?%zz": 400, base + "qe/identity?tcbEvaluationDataNumber=16": 410, base + "pckcrl": 400, base + "pckcrl?ca=root": 400, base + "pckcrl?ca=platform&encoding=xml": 400,
		base + "rootcacrl": 404, "/tdx/certification/v4/pckcrl?ca=platform": 404, "/sgx/certification/v3/tcb?fmspc=010000000000": 404, "/": 404,
	} {
		if w := get(s, target, key...); w.Code != want {
			t.Errorf("%s: %d, want %d", target, w.Code, want)
		}
	}
	if w := get(s, base+"tcb?fmspc=010000000000"); w.Code != http.StatusUnauthorized {
		t.Errorf("no key: %d", w.Code)
	}
	if w := get(s, "/IntelSGXRootCA.der"); w.Code != http.StatusOK {
		t.Errorf("no key for the root list: %d", w.Code)
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, base+"tcb?fmspc=010000000000", nil))
	if w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST: %d", w.Code)
	}
	if s, err := pcsserver.New(pcsserver.Config{}); !errors.Is(err, pcsserver.ErrConfig) || s != nil {
		t.Errorf("no PKI: %v", err)
	}
}

// TestInjection counts faulty answers. That each fault is what it says, package pcs's tests show from the other side.
func TestInjection(t *testing.T) {
	t.Parallel()
	_, s := serve(t, nil)
	codes := func(n int) (list []int) {
		for range n {
			list = append(list, get(s, "/sgx/certification/v4/qe/identity").Code)
		}
		return list
	}
	s.Inject(pcsserver.QEIdentity, 2, pcsserver.Status(503))
	if c := codes(3); c[0] != 503 || c[1] != 503 || c[2] != 200 {
		t.Errorf("two faults: %v", c)
	}
	s.Inject(pcsserver.QEIdentity, -1, pcsserver.Status(500))
	if w := get(s, "/sgx/certification/v4/tcb?fmspc=010000000000"); w.Code != 200 {
		t.Errorf("another document: %d", w.Code)
	}
	if c := codes(3); c[0] != 500 || c[2] != 500 {
		t.Errorf("for ever: %v", c)
	}
	s.Inject(pcsserver.QEIdentity, 0, pcsserver.Fault{})
	if c := codes(1); c[0] != 200 {
		t.Errorf("healed: %v", c)
	}
	if n := len(s.Requests()); n != 8 {
		t.Errorf("%d requests in the log", n)
	}
	good := get(s, "/sgx/certification/v4/qe/identity").Body.Bytes()
	s.Inject(pcsserver.QEIdentity, 1, pcsserver.WrongSignature())
	if bad := get(s, "/sgx/certification/v4/qe/identity").Body.Bytes(); len(bad) != len(good) || bytes.Equal(bad, good) {
		t.Error("the signature is as it was")
	}
	if again := get(s, "/sgx/certification/v4/qe/identity").Body.Bytes(); !bytes.Equal(again, good) {
		t.Error("the fault reached the PKI's own copy")
	}
}
