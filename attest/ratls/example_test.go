package ratls_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
)

// enclave stands for what a program inside a TEE has: a quote for the asking, and a verifier with current collateral.
type enclave struct {
	platform   *simpki.Platform
	verifier   *attest.Verifier
	collateral *attest.Collateral
	now        time.Time
}

func newEnclave() *enclave {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	pki := must(simpki.New(simpki.Config{Seed: [32]byte{1}, Now: now}))
	return &enclave{
		platform:   must(pki.Platform(simpki.PlatformConfig{Name: "host-1"})),
		verifier:   must(attest.NewVerifier(attest.Config{Root: pki.Root()})),
		collateral: must(pki.Collateral(attest.SGX, simpki.DefaultFMSPC, now)),
		now:        now,
	}
}

// Quote has the signature of enclave.TEE's.
func (e *enclave) Quote(_ context.Context, reportData [64]byte) ([]byte, error) {
	return e.platform.QuoteSGX(sgx.Report{MREnclave: [32]byte{0xaa}, ReportData: reportData})
}

// verify is where a caller says whom to trust: here one measurement.
func (e *enclave) verify(raw []byte) (*attest.Verified, error) {
	quote, err := attest.Parse(raw)
	if err != nil {
		return nil, err
	}
	v, err := e.verifier.Verify(quote, e.collateral, e.now)
	if err != nil {
		return nil, err
	}
	if v.Claims().SGX.MREnclave != [32]byte{0xaa} {
		return nil, errors.New("another enclave than expected")
	}
	return v, nil
}

func must[T any](v T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return v
}

func listen() net.Listener { return must(net.Listen("tcp", "127.0.0.1:0")) }

// Two enclaves prove themselves to each other on every connection, and speak HTTP/2 over it.
func Example() {
	e := newEnclave()
	config := &ratls.Config{
		Protocols: []string{"app/1"},
		ClusterID: [32]byte{1}, // pinned, in measured bytes
		Attest: func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
			quote, err := e.Quote(ctx, reportData)
			return ratls.Evidence{Quote: quote}, err
		},
		Verify: func(_ context.Context, _ ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
			return e.verify(ev.Quote)
		},
	}

	listener := ratls.NewListener(listen(), config)
	server := &http.Server{Handler: ratls.RequireChannelBound(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, _ := ratls.FromContext(r.Context())
		fmt.Fprintf(w, "%s from enclave %x", r.Proto, peer.Verified.Claims().SGX.MREnclave[:2])
	}))}
	ratls.ConfigureServer(server)
	go server.Serve(listener)
	defer server.Close()

	dialer := &ratls.Dialer{Config: config}
	client := &http.Client{Transport: dialer.HTTP2Transport()}
	defer client.CloseIdleConnections()
	res := must(client.Get("https://" + listener.Addr().String()))
	defer res.Body.Close()
	fmt.Printf("%s\n", must(io.ReadAll(res.Body)))
	// Output: HTTP/2.0 from enclave aa00
}

// A server that plain EGo apps reach with enclave.CreateAttestationClientTLSConfig or eclient's, and which asks those that
// have evidence for it.
func ExampleNewKeyBoundListener() {
	e := newEnclave()
	listener, err := ratls.NewKeyBoundListener(context.Background(), listen(), &ratls.KeyBoundConfig{
		Attest: e.Quote,
		Verify: func(_ context.Context, _ ratls.KeyBoundHello, quote []byte) (*attest.Verified, error) {
			return e.verify(quote)
		},
		PeerOptional: true,
		NextProtos:   []string{"h2", "http/1.1"},
	})
	if err != nil {
		log.Fatal(err)
	}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := ratls.KeyBoundFromContext(r.Context())
		fmt.Fprintln(w, "proved since its key was made:", ok && peer.Verified != nil)
	})}
	ratls.ConfigureServer(server)
	go server.Serve(listener)
	defer server.Close()
}

// A client of an EGo app that serves with enclave.CreateAttestationServerTLSConfig, in net/http's own terms.
func ExampleKeyBoundClientTLS() {
	e := newEnclave()
	config, err := ratls.KeyBoundClientTLS(context.Background(), &ratls.KeyBoundConfig{
		Verify: func(_ context.Context, _ ratls.KeyBoundHello, quote []byte) (*attest.Verified, error) {
			return e.verify(quote)
		},
	})
	if err != nil {
		log.Fatal(err)
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config}}
	defer client.CloseIdleConnections()
}

// A dialer keeps hold of the proof.
func ExampleKeyBoundDialer() {
	e := newEnclave()
	server := must(ratls.KeyBoundServerTLS(context.Background(), &ratls.KeyBoundConfig{Attest: e.Quote}))
	listener := tls.NewListener(listen(), server)
	defer listener.Close()
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		io.Copy(conn, conn)
		conn.Close()
	}()

	dialer := must(ratls.NewKeyBoundDialer(context.Background(), &ratls.KeyBoundConfig{
		Verify: func(_ context.Context, _ ratls.KeyBoundHello, quote []byte) (*attest.Verified, error) {
			return e.verify(quote)
		},
	}))
	conn := must(dialer.DialContext(context.Background(), "tcp", listener.Addr().String()))
	defer conn.Close()
	peer, _ := ratls.KeyBoundPeerOf(conn)
	fmt.Printf("%s key of enclave %x\n", peer.Format, peer.Verified.Claims().SGX.MREnclave[:2])
	// Output: ego key of enclave aa00
}
