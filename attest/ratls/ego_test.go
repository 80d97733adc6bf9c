package ratls

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"math/big"
	"net/http"
	"testing"
	"time"
	_ "unsafe" // for go:linkname

	"github.com/claviger/claviger/attest"
	"github.com/edgelesssys/ego/attestation"
)

// These tests run EGo's own code, of the version in go.mod, against ours. Its public helpers are wrappers around one internal
// package, with two functions of the enclave's runtime filled in: getRemoteReport and verifyRemoteReport. Those two are
// played here, from the layout in Open Enclave's headers; everything else, certificates, hashes, checks, is EGo's.

//go:linkname egoHashPublicKey github.com/edgelesssys/ego/internal/attestation.HashPublicKey
func egoHashPublicKey(pub any) ([]byte, error)

//go:linkname egoHashPublicKeyOE github.com/edgelesssys/ego/internal/attestation.HashPublicKeyOE
func egoHashPublicKeyOE(pub any) ([]byte, error)

//go:linkname egoCertificate github.com/edgelesssys/ego/internal/attestation.CreateAttestationCertificate
func egoCertificate(hash func(any) ([]byte, error), getRemoteReport func([]byte) ([]byte, error), template, parent *x509.Certificate, pub, priv any) ([]byte, error)

//go:linkname egoServerTLS github.com/edgelesssys/ego/internal/attestation.CreateAttestationServerTLSConfig
func egoServerTLS(hash func(any) ([]byte, error), getRemoteReport func([]byte) ([]byte, error)) (*tls.Config, error)

//go:linkname egoClientTLS github.com/edgelesssys/ego/internal/attestation.CreateAttestationClientTLSConfig
func egoClientTLS(verifyRemoteReport func([]byte) (attestation.Report, error), opts egoOptions, verifyReport func(attestation.Report) error) *tls.Config

// egoOptions is internal/attestation.Options; attestation.Report is internal/attestation.Report field by field, as EGo's own
// conversions between the two prove.
type egoOptions struct{ IgnoreErr error }

// oeHeader is oe_report_header_t, written down a second time.
type oeHeader struct {
	Version, Type uint32
	Size          uint64
}

// getRemoteReport plays EGo's runtime: up to 64 bytes of report data, padded with zeros, and a report around the quote.
func (b *bed) getRemoteReport(machine string) func([]byte) ([]byte, error) {
	return func(data []byte) ([]byte, error) {
		var reportData [64]byte
		copy(reportData[:], data)
		quote, err := b.keyQuote(machine)(context.Background(), reportData)
		if err != nil {
			return nil, err
		}
		var report bytes.Buffer
		binary.Write(&report, binary.LittleEndian, oeHeader{1, 2, uint64(len(quote))})
		report.Write(quote)
		return report.Bytes(), nil
	}
}

// verifyRemoteReport plays EGo's verifier, a C library, by our own.
func (b *bed) verifyRemoteReport(report []byte) (attestation.Report, error) {
	var h oeHeader
	r := bytes.NewReader(report)
	if err := binary.Read(r, binary.LittleEndian, &h); err != nil {
		return attestation.Report{}, err
	}
	if h != (oeHeader{1, 2, uint64(r.Len())}) {
		return attestation.Report{}, fmt.Errorf("header %+v over %d bytes", h, r.Len())
	}
	v, err := b.keyVerify(context.Background(), KeyBoundHello{}, report[16:])
	if err != nil {
		return attestation.Report{}, err
	}
	c := v.Claims()
	return attestation.Report{Data: c.ReportData[:], UniqueID: c.SGX.MREnclave[:], SignerID: c.SGX.MRSigner[:]}, nil
}

var egoHashes = map[KeyFormat]func(any) ([]byte, error){FormatEGo: egoHashPublicKey, FormatOpenEnclave: egoHashPublicKeyOE}

func TestEGoHashes(t *testing.T) {
	t.Parallel()
	key := must(NewKey())
	for format, hash := range egoHashes {
		want := append(must(hash(key.Public())), make([]byte, 32)...)
		if got := must(KeyBoundReportData(key.Public(), format)); !bytes.Equal(got[:], want) {
			t.Errorf("%s: got %x, EGo makes %x", format, got, want)
		}
	}
}

// An EGo client, http.Transport and all, accepts our server and speaks HTTP to it.
func TestEGoClient(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for format := range egoHashes {
		for _, h2 := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, h2 %t", format, h2), func(t *testing.T) {
				t.Parallel()
				cfg := keyConfig(b, "node")
				cfg.Format, cfg.Verify, cfg.NextProtos = format, nil, []string{"h2", "http/1.1"}
				l, err := NewKeyBoundListener(t.Context(), loopback(t), cfg)
				if err != nil {
					t.Fatal(err)
				}
				serveHTTP(t, l)
				var seen attestation.Report
				client := egoClientTLS(b.verifyRemoteReport, egoOptions{}, func(r attestation.Report) error { seen = r; return nil })
				transport := &http.Transport{TLSClientConfig: client, ForceAttemptHTTP2: h2}
				want := map[bool]string{false: "HTTP/1.1", true: "HTTP/2.0"}[h2] + " key-bound without proof"
				if got := get(t, transport, "https://"+l.Addr().String()); got != want {
					t.Errorf("got %q, want %q", got, want)
				}
				if len(seen.UniqueID) != 32 || seen.UniqueID[0] != 0xaa {
					t.Errorf("EGo saw %+v", seen)
				}
			})
		}
	}
}

// An EGo client refuses what it should: the test above would pass with a client that checks nothing.
func TestEGoClientRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	stolen := must(b.getRemoteReport("node")(make([]byte, 32)))
	l := loopback(t)
	server := &http.Server{TLSConfig: &tls.Config{Certificates: []tls.Certificate{must(newLeaf(nil, oeExtension(stolen))).cert}}}
	go server.ServeTLS(l, "", "")
	t.Cleanup(func() { server.Close() })
	cfg := egoClientTLS(b.verifyRemoteReport, egoOptions{}, func(attestation.Report) error { return nil })
	if _, err := tls.Dial("tcp", l.Addr().String(), cfg); err == nil || err.Error() != "certificate hash does not match report data" {
		t.Errorf("got %v", err)
	}
}

// Our client accepts an EGo server.
func TestEGoServer(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for format, hash := range egoHashes {
		cfg, err := egoServerTLS(hash, b.getRemoteReport("app"))
		if err != nil {
			t.Fatal(err)
		}
		l := loopback(t)
		server := &http.Server{TLSConfig: cfg, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })}
		go server.ServeTLS(l, "", "")
		t.Cleanup(func() { server.Close() })
		for proto, nextProtos := range map[string][]string{"HTTP/1.1": nil, "HTTP/2.0": {"h2", "http/1.1"}} {
			var told KeyBoundHello
			d, err := NewKeyBoundDialer(t.Context(), &KeyBoundConfig{NextProtos: nextProtos, Verify: capturing(b, &told)})
			if err != nil {
				t.Fatal(err)
			}
			if got := get(t, d.HTTPTransport(), "https://"+l.Addr().String()); got != proto || told.Format != format {
				t.Errorf("%s: got %q in format %q, want %q", format, got, told.Format, proto)
			}
		}
	}
}

// An EGo app attests itself as a client: EGo's client configuration with a certificate that EGo made, over our key-bound
// listener, mutual.
func TestEGoMutual(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l, err := NewKeyBoundListener(t.Context(), loopback(t), keyConfig(b, "node"))
	if err != nil {
		t.Fatal(err)
	}
	serveHTTP(t, l)
	for format, hash := range egoHashes {
		key := must(NewKey())
		template := &x509.Certificate{SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "app"}, NotAfter: time.Now().Add(time.Hour)}
		der, err := egoCertificate(hash, b.getRemoteReport("app"), template, template, key.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cfg := egoClientTLS(b.verifyRemoteReport, egoOptions{}, func(attestation.Report) error { return nil })
		cfg.Certificates = []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}
		want := "HTTP/1.1 key-bound as " + string(format)
		if got := get(t, &http.Transport{TLSClientConfig: cfg}, "https://"+l.Addr().String()); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
		// Its policy is its own, and so is its refusal.
		cfg = egoClientTLS(b.verifyRemoteReport, egoOptions{}, func(attestation.Report) error { return errors.New("another unique ID") })
		if _, err := tls.Dial("tcp", l.Addr().String(), cfg); err == nil {
			t.Error("EGo's callback was not asked")
		}
	}
}

func capturing(b *bed, out *KeyBoundHello) func(context.Context, KeyBoundHello, []byte) (*attest.Verified, error) {
	return func(ctx context.Context, h KeyBoundHello, quote []byte) (*attest.Verified, error) {
		*out = h
		return b.keyVerify(ctx, h, quote)
	}
}
