package pcs_test

import (
	"context"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
	"github.com/claviger/claviger/attest/tdx"
)

const day = 24 * time.Hour

var birth = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// bed is a simulated Intel with its service, and the verifier under its root.
type bed struct {
	pki      *simpki.PKI
	verifier *attest.Verifier
	server   *pcsserver.Server
	skew     atomic.Int64 // moves the service's clock and ours, in nanoseconds
	lag      atomic.Int64 // moves only the service's clock back
	base     func() time.Time
}

// newBed starts at birth and stands still; nothing moves its clock but skew.
func newBed(t testing.TB, change func(*pcsserver.Config)) *bed {
	t.Helper()
	return newBedAt(t, func() time.Time { return birth }, change)
}

func newBedAt(t testing.TB, clock func() time.Time, change func(*pcsserver.Config)) *bed {
	t.Helper()
	b := &bed{base: clock}
	var err error
	if b.pki, err = simpki.New(simpki.Config{Seed: [32]byte{7}, Now: clock()}); err != nil {
		t.Fatal(err)
	}
	if b.verifier, err = attest.NewVerifier(attest.Config{Root: b.pki.Root()}); err != nil {
		t.Fatal(err)
	}
	config := pcsserver.Config{PKI: b.pki, Clock: func() time.Time { return b.now().Add(-time.Duration(b.lag.Load())) }}
	if change != nil {
		change(&config)
	}
	if b.server, err = pcsserver.New(config); err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bed) now() time.Time { return b.base().Add(time.Duration(b.skew.Load())) }

// memory carries requests to the handler without a network, so that synctest owns the time.
type memory struct{ handler http.Handler }

func (m memory) RoundTrip(r *http.Request) (*http.Response, error) {
	recorder := httptest.NewRecorder()
	m.handler.ServeHTTP(recorder, r)
	if err := r.Context().Err(); err != nil {
		return nil, err
	}
	return recorder.Result(), nil
}

// client returns a client without a network, made of the bed's service.
func (b *bed) client(t testing.TB, change func(*pcs.Config)) *pcs.Client {
	t.Helper()
	config := pcs.Config{
		Verifier: b.verifier, BaseURL: "https://pcs.test", RootCRLURL: "https://pcs.test/IntelSGXRootCA.der",
		HTTPClient: &http.Client{Transport: memory{b.server}}, Clock: b.now,
	}
	if change != nil {
		change(&config)
	}
	c, err := pcs.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// online returns a client to the bed's service on a loopback port, over TLS, that tries once.
func (b *bed) online(t testing.TB, change func(*pcs.Config)) (*pcs.Client, *httptest.Server) {
	t.Helper()
	server := httptest.NewUnstartedServer(b.server)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes that the tests make fail
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	config := pcs.Config{
		Verifier: b.verifier, BaseURL: server.URL, RootCRLURL: server.URL + "/IntelSGXRootCA.der", RootCAs: roots,
		Clock: b.now, Attempts: 1,
	}
	if change != nil {
		change(&config)
	}
	c, err := pcs.NewClient(config)
	if err != nil {
		t.Fatal(err)
	}
	return c, server
}

// source returns a source that the test closes.
func (b *bed) source(t testing.TB, fetcher pcs.Fetcher, change func(*pcs.SourceConfig)) *pcs.Source {
	t.Helper()
	config := pcs.SourceConfig{Fetcher: fetcher, Verifier: b.verifier, Clock: b.now}
	if change != nil {
		change(&config)
	}
	s, err := pcs.NewSource(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

// quote makes a quote of a TEE on a platform under a CA.
func (b *bed) quote(t testing.TB, tee attest.TEE, ca simpki.CA) []byte {
	t.Helper()
	m, err := b.pki.Platform(simpki.PlatformConfig{Name: "machine", CA: ca})
	if err != nil {
		t.Fatal(err)
	}
	var raw []byte
	if tee == attest.SGX {
		raw, err = m.QuoteSGX(sgx.Report{MREnclave: [32]byte{1}, Attributes: [16]byte{5}})
	} else {
		raw, err = m.QuoteTDX(tdx.Body{MRTD: [48]byte{1}})
	}
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// request is the usual one.
func request() pcs.Request {
	return pcs.Request{TEE: attest.SGX, FMSPC: simpki.DefaultFMSPC, CA: pcs.PlatformCA}
}

// count says how often a document was asked for.
func (b *bed) count(d pcsserver.Document) (n int) {
	for _, r := range b.server.Requests() {
		if r.Document == d {
			n++
		}
	}
	return n
}

// fetcherFunc is a Fetcher made of a function.
type fetcherFunc func(context.Context, pcs.Request) (*pcs.Set, error)

func (f fetcherFunc) Fetch(ctx context.Context, r pcs.Request) (*pcs.Set, error) { return f(ctx, r) }

// wants checks an error: its sentinel, that nothing came beside it, and that it says what to do.
func wants(t *testing.T, name string, got any, err, sentinel error) {
	t.Helper()
	e, ok := errors.AsType[*pcs.Error](err)
	switch {
	case !errors.Is(err, sentinel) || !ok:
		t.Errorf("%s: %v, want %v", name, err, sentinel)
	case e.Hint == "":
		t.Errorf("%s: %v does not say what to do", name, err)
	}
	switch got := got.(type) {
	case *pcs.Set:
		if got != nil {
			t.Errorf("%s: a set beside the error", name)
		}
	case *attest.Collateral:
		if got != nil {
			t.Errorf("%s: collateral beside the error", name)
		}
	}
}

func newPool() *x509.CertPool { return x509.NewCertPool() }
