package ratls

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
)

// keyQuote is a genuine enclave that quotes what its own program asks for.
func (b *bed) keyQuote(machine string) func(context.Context, [64]byte) ([]byte, error) {
	return func(ctx context.Context, reportData [64]byte) ([]byte, error) {
		ev, err := b.attester(machine)(ctx, reportData)
		return ev.Quote, err
	}
}

func (b *bed) keyVerify(ctx context.Context, _ KeyBoundHello, quote []byte) (*attest.Verified, error) {
	return b.verify(ctx, Hello{}, Evidence{Quote: quote, Collateral: b.collateral})
}

// keyConfig attests and verifies.
func keyConfig(b *bed, machine string) *KeyBoundConfig {
	return &KeyBoundConfig{Attest: b.keyQuote(machine), Verify: b.keyVerify, HandshakeTimeout: 10 * time.Second}
}

// keyServe listens with cfg and passes on what it accepts and refuses.
func keyServe(t *testing.T, cfg *KeyBoundConfig) (addr string, accepted <-chan net.Conn, refused <-chan error) {
	t.Helper()
	bad := make(chan error, 8)
	cfg.OnRefused = func(_ net.Addr, err error) { bad <- err }
	l, err := NewKeyBoundListener(t.Context(), loopback(t), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	good := make(chan net.Conn, 8)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			t.Cleanup(func() { c.Close() })
			good <- c
		}
	}()
	return l.Addr().String(), good, bad
}

// keyDial connects and reads what a refusal by the server leaves to be read.
func keyDial(t *testing.T, cfg *KeyBoundConfig, addr string) (net.Conn, error) {
	t.Helper()
	d, err := NewKeyBoundDialer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err == nil {
		t.Cleanup(func() { c.Close() })
	}
	return c, err
}

func TestKeyBoundMutual(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, format := range []KeyFormat{FormatEGo, FormatOpenEnclave} {
		t.Run(string(format), func(t *testing.T) {
			t.Parallel()
			client, server := keyConfig(b, "app"), keyConfig(b, "node")
			client.Format, server.Format = format, format
			addr, accepted, _ := keyServe(t, server)
			c, err := keyDial(t, client, addr)
			if err != nil {
				t.Fatal(err)
			}
			s := <-accepted
			for name, end := range map[string]net.Conn{"client": c, "server": s} {
				peer, ok := KeyBoundPeerOf(end)
				if !ok || peer.Verified == nil || peer.Format != format || peer.Key == [32]byte{} {
					t.Fatalf("%s knows of its peer: %+v, %t", name, peer, ok)
				}
				if claims := peer.Verified.Claims(); claims.ReportData != peer.ReportData || [32]byte(claims.ReportData[32:]) != [32]byte{} {
					t.Errorf("%s: report data %x", name, claims.ReportData)
				}
			}
			echo(t, c, s)
		})
	}
}

func TestKeyBoundOneSided(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	server, client := keyConfig(b, "node"), keyConfig(b, "app")
	server.Verify, client.Attest = nil, nil
	addr, accepted, _ := keyServe(t, server)
	c, err := keyDial(t, client, addr)
	if err != nil {
		t.Fatal(err)
	}
	if peer, ok := KeyBoundPeerOf(<-accepted); !ok || peer.Verified != nil || peer.Key != [32]byte{} {
		t.Errorf("the server knows of a client that showed nothing: %+v, %t", peer, ok)
	}
	if peer, ok := KeyBoundPeerOf(c); !ok || peer.Verified == nil {
		t.Error("the client has no proof")
	}
	// The other way: a server without evidence, known by its key; the client attests.
	server, client = keyConfig(b, "node"), keyConfig(b, "app")
	server.Attest, server.Key = nil, must(NewKey())
	hash := must(KeyHash(server.Key.Public()))
	client.Verify, client.PeerKey = nil, &hash
	addr, accepted, _ = keyServe(t, server)
	if c, err = keyDial(t, client, addr); err != nil {
		t.Fatal(err)
	}
	if peer, _ := KeyBoundPeerOf(<-accepted); peer.Verified == nil {
		t.Error("the server has no proof")
	}
	if peer, ok := KeyBoundPeerOf(c); !ok || peer.Verified != nil || peer.Key != hash {
		t.Errorf("the client knows of its server: %+v", peer)
	}
}

// An optional client may show nothing, or a key without evidence; evidence that it does show is judged.
func TestKeyBoundOptional(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	server := keyConfig(b, "node")
	server.PeerOptional = true
	addr, accepted, refused := keyServe(t, server)
	bare, keyed, attested := keyConfig(b, "app"), keyConfig(b, "app"), keyConfig(b, "app")
	bare.Attest = nil
	keyed.Attest, keyed.Key = nil, must(NewKey())
	for _, tt := range []struct {
		cfg         *KeyBoundConfig
		key, proved bool
	}{{bare, false, false}, {keyed, true, false}, {attested, true, true}} {
		if _, err := keyDial(t, tt.cfg, addr); err != nil {
			t.Fatal(err)
		}
		peer, ok := KeyBoundPeerOf(<-accepted)
		if !ok || (peer.Key != [32]byte{}) != tt.key || (peer.Verified != nil) != tt.proved {
			t.Errorf("want key %t, proof %t, got %+v", tt.key, tt.proved, peer)
		}
	}
	foreign := keyConfig(b, "app")
	foreign.Key = must(NewKey())
	cfg := must(KeyBoundClientTLS(t.Context(), foreign))
	cfg.Certificates = []tls.Certificate{must(newLeaf(nil, oeExtension([]byte("no report")))).cert}
	if conn, err := tls.Dial("tcp", addr, cfg); err == nil {
		conn.Read(make([]byte, 1))
		conn.Close()
	}
	if err := <-refused; !errors.Is(err, ErrOEReport) {
		t.Errorf("bad evidence of an optional client: %v", err)
	}
}

func TestKeyBoundConfigDenies(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	hash := [32]byte{1}
	server := map[string]*KeyBoundConfig{
		"nil":              nil,
		"zero":             {},
		"nobody attests":   {Key: must(NewKey())},
		"foreign format":   {Attest: b.keyQuote("node"), Format: "sha-1"},
		"our ALPN":         {Attest: b.keyQuote("node"), NextProtos: []string{"h2", alpn}},
		"optional but one": {Attest: b.keyQuote("node"), Verify: b.keyVerify, PeerOptional: true, PeerKey: &hash},
	}
	for name, cfg := range server {
		if _, err := KeyBoundServerTLS(t.Context(), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("server, %s: %v", name, err)
		}
		if _, err := NewKeyBoundListener(t.Context(), loopback(t), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("listener, %s: %v", name, err)
		}
	}
	client := map[string]*KeyBoundConfig{"nil": nil, "zero": {}, "would trust anyone": {Attest: b.keyQuote("app")}}
	for name, cfg := range client {
		if _, err := KeyBoundClientTLS(t.Context(), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("client, %s: %v", name, err)
		}
		if _, err := NewKeyBoundDialer(t.Context(), cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("dialer, %s: %v", name, err)
		}
	}
	if _, err := new(KeyBoundDialer).DialContext(t.Context(), "tcp", "127.0.0.1:1"); !errors.Is(err, ErrConfig) {
		t.Errorf("zero dialer: %v", err)
	}
}

// What a peer would refuse is not made: the operator hears of it at once, not from every peer.
func TestKeyBoundAttestFails(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	inner := errors.New("quoting enclave is gone")
	for name, attester := range map[string]func(context.Context, [64]byte) ([]byte, error){
		"error":         func(context.Context, [64]byte) ([]byte, error) { return nil, inner },
		"nothing":       func(context.Context, [64]byte) ([]byte, error) { return nil, nil },
		"no quote":      func(context.Context, [64]byte) ([]byte, error) { return make([]byte, 500), nil },
		"oversized":     func(context.Context, [64]byte) ([]byte, error) { return make([]byte, MaxOEReport), nil },
		"TDX":           func(_ context.Context, rd [64]byte) ([]byte, error) { return b.tdxQuote(rd) },
		"another quote": func(ctx context.Context, _ [64]byte) ([]byte, error) { return b.keyQuote("node")(ctx, [64]byte{1}) },
	} {
		_, err := KeyBoundServerTLS(t.Context(), &KeyBoundConfig{Attest: attester})
		if !errors.Is(err, ErrAttest) || name == "error" && !errors.Is(err, inner) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Refusals of the verifier reach the side that made them, and no proof is not a proof.
func TestKeyBoundVerifyRefuses(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	denied := errors.New("policy: another MRSIGNER")
	addr, _, _ := keyServe(t, &KeyBoundConfig{Attest: b.keyQuote("node")})
	cfg := &KeyBoundConfig{Verify: func(context.Context, KeyBoundHello, []byte) (*attest.Verified, error) { return nil, denied }}
	if _, err := keyDial(t, cfg, addr); !errors.Is(err, denied) || !errors.Is(err, ErrEvidence) {
		t.Errorf("denied: %v", err)
	}
	cfg.Verify = func(context.Context, KeyBoundHello, []byte) (*attest.Verified, error) { return nil, nil }
	if _, err := keyDial(t, cfg, addr); !errors.Is(err, ErrEvidence) {
		t.Errorf("no proof: %v", err)
	}
	other := must(b.keyQuote("node")(t.Context(), [64]byte{7})) // a verifier that answers for another quote than it was asked about
	cfg.Verify = func(ctx context.Context, h KeyBoundHello, _ []byte) (*attest.Verified, error) {
		return b.keyVerify(ctx, h, other)
	}
	if _, err := keyDial(t, cfg, addr); !errors.Is(err, ErrUnbound) {
		t.Errorf("proof of something else: %v", err)
	}
	cfg.Verify = func(ctx context.Context, h KeyBoundHello, q []byte) (*attest.Verified, error) {
		if h.Role != RoleServer || h.PeerKey == [32]byte{} || h.Format != FormatEGo || h.ReportData == [64]byte{} {
			t.Errorf("hello: %+v", h)
		}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	cfg.HandshakeTimeout = 10 * time.Millisecond
	if _, err := keyDial(t, cfg, addr); !errors.Is(err, ErrTimeout) {
		t.Errorf("a verifier that hangs: %v", err)
	}
}

// The dates in a certificate are the peer's own wish, and honoured.
func TestKeyBoundDates(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	addr, _, _ := keyServe(t, &KeyBoundConfig{Attest: b.keyQuote("node")})
	for _, year := range []int{2019, 2050} {
		cfg := &KeyBoundConfig{Verify: b.keyVerify, Time: func() time.Time { return time.Date(year, 6, 1, 0, 0, 0, 0, time.UTC) }}
		if _, err := keyDial(t, cfg, addr); !errors.Is(err, ErrLeaf) || !strings.Contains(err.Error(), "by its own dates") {
			t.Errorf("%d: %v", year, err)
		}
	}
}

// The configurations alone, in the hands of crypto/tls and net/http.
func TestKeyBoundTLSConfigs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprint(w, r.Proto) })}
	server.TLSConfig = must(KeyBoundServerTLS(t.Context(), keyConfig(b, "node")))
	l := loopback(t)
	go server.ServeTLS(l, "", "")
	t.Cleanup(func() { server.Close() })
	for proto, nextProtos := range map[string][]string{"HTTP/1.1": nil, "HTTP/2.0": {"h2", "http/1.1"}} {
		cfg := keyConfig(b, "app")
		cfg.NextProtos = nextProtos
		transport := &http.Transport{TLSClientConfig: must(KeyBoundClientTLS(t.Context(), cfg)), ForceAttemptHTTP2: nextProtos != nil}
		if got := get(t, transport, "https://"+l.Addr().String()); got != proto {
			t.Errorf("got %q, want %q", got, proto)
		}
	}
	stranger := must(KeyBoundClientTLS(t.Context(), &KeyBoundConfig{Verify: b.keyVerify})) // shows no evidence
	if _, err := (&http.Client{Transport: &http.Transport{TLSClientConfig: stranger}}).Get("https://" + l.Addr().String()); err == nil {
		t.Error("a client without evidence was served")
	}
}

func get(t *testing.T, transport http.RoundTripper, url string) string {
	t.Helper()
	client := &http.Client{Transport: transport}
	t.Cleanup(client.CloseIdleConnections)
	res, err := client.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestOEReport(t *testing.T) {
	t.Parallel()
	quote := must(newBed(t).keyQuote("node")(t.Context(), [64]byte{}))
	report := AppendOEReport(nil, quote)
	if got, err := ParseOEReport(report); err != nil || string(got) != string(quote) {
		t.Fatalf("round trip: %v", err)
	}
	change := func(at int, v byte) []byte {
		out := append([]byte(nil), report...)
		out[at] = v
		return out
	}
	for name, raw := range map[string][]byte{
		"nil":             nil,
		"header alone":    AppendOEReport(nil, nil),
		"short header":    report[:15],
		"version 0":       change(0, 0),
		"version 2":       change(0, 2),
		"version, byte 3": change(3, 1),
		"local report":    change(4, 1),
		"type 3":          change(4, 3),
		"type, byte 7":    change(7, 1),
		"size one less":   change(8, byte(len(quote)-1)),
		"size one more":   change(8, byte(len(quote)+1)),
		"size, byte 15":   change(15, 0x80),
		"trailing byte":   append(append([]byte(nil), report...), 0),
		"one byte short":  report[:len(report)-1],
		"oversized":       AppendOEReport(nil, make([]byte, MaxOEReport-oeHeaderSize+1)),
		"a bare quote":    quote,
	} {
		if got, err := ParseOEReport(raw); !errors.Is(err, ErrOEReport) || got != nil {
			t.Errorf("%s: %d bytes, %v", name, len(got), err)
		}
	}
}

func FuzzOEReport(f *testing.F) {
	f.Add(AppendOEReport(nil, make([]byte, sgx.HeaderSize)))
	f.Add(AppendOEReport(nil, nil))
	f.Fuzz(func(t *testing.T, raw []byte) {
		quote, err := ParseOEReport(raw)
		if err != nil {
			if quote != nil {
				t.Fatal("a quote beside an error")
			}
			return
		}
		if got := AppendOEReport(nil, quote); string(got) != string(raw) {
			t.Fatalf("%x parses, and encodes as %x", raw, got)
		}
	})
}

// A peer that connects and says nothing is let go when the handshake's time is over, and Close ends everything: synctest
// fails the test if a goroutine remains.
func TestKeyBoundSilentPeer(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		inner := newPipes()
		cfg := keyConfig(b, "node")
		cfg.HandshakeTimeout, cfg.MaxHandshakes = 3*time.Second, 1
		refused := make(chan error, 1)
		cfg.OnRefused = func(_ net.Addr, err error) { refused <- err }
		l := must(NewKeyBoundListener(context.Background(), inner, cfg))
		go io.Copy(io.Discard, inner.connect())
		start := time.Now()
		if err := <-refused; !errors.Is(err, ErrTimeout) || time.Since(start) != DefaultTLSTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		client := must(newKeyBound(context.Background(), keyConfig(b, "app"), RoleClient))
		l.Close()
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		start = time.Now()
		client.cfg.HandshakeTimeout = time.Second
		if c, err := client.handshake(context.Background(), near); c != nil || !errors.Is(err, ErrTimeout) || time.Since(start) != time.Second {
			t.Errorf("client, after %v: %v", time.Since(start), err)
		}
		far.Close()
	})
}

// A verifier that panics over a peer's bytes costs that peer its connection.
func TestKeyBoundVerifierPanics(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cfg := keyConfig(b, "node")
	cfg.Verify = func(context.Context, KeyBoundHello, []byte) (*attest.Verified, error) { panic("a parser's fault") }
	addr, _, refused := keyServe(t, cfg)
	if c, err := keyDial(t, keyConfig(b, "app"), addr); err == nil {
		c.Read(make([]byte, 1))
	}
	if err := <-refused; !strings.Contains(err.Error(), "a parser's fault") {
		t.Errorf("reported: %v", err)
	}
}

// Keys and certificates of other kinds are refused for what they are, before their evidence is looked at.
func TestKeyBoundForeignCertificates(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	addr, _, refused := keyServe(t, keyConfig(b, "node"))
	p384 := must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))
	chain := must(newKeyBound(t.Context(), keyConfig(b, "app"), RoleClient)).leaf.cert
	chain.Certificate = append(chain.Certificate, chain.Certificate[0])
	for name, cert := range map[string]tls.Certificate{"P-384": certificateFor(p384, p384.Public()), "chain": chain} {
		if err := hostClient(t, addr, refused, cert); !errors.Is(err, ErrLeaf) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := hostClient(t, addr, refused, tls.Certificate{}); !errors.Is(err, ErrTLS) {
		t.Errorf("no certificate: %v", err)
	}
	if _, err := KeyBoundReportData(p384.Public(), FormatEGo); !errors.Is(err, ErrLeaf) {
		t.Errorf("P-384: %v", err)
	}
	if _, err := KeyBoundReportData(must(NewKey()).Public(), ""); !errors.Is(err, ErrConfig) {
		t.Errorf("no format: %v", err)
	}
	twice := &x509.Certificate{Extensions: []pkix.Extension{oeExtension([]byte{1}), oeExtension([]byte{1})}}
	if _, err := reportIn(twice); !errors.Is(err, ErrOEReport) {
		t.Errorf("two extensions: %v", err)
	}
	// Ed25519 is as good as P-256.
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	quote := must(b.keyQuote("node")(t.Context(), must(KeyBoundReportData(public, FormatOpenEnclave))))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour),
		ExtraExtensions: []pkix.Extension{oeExtension(AppendOEReport(nil, quote))}}
	der := must(x509.CreateCertificate(rand.Reader, template, template, public, key))
	conn, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}))
	if err != nil {
		t.Fatal(err)
	}
	if peer, ok := KeyBoundPeerOf(conn); !ok || peer.Key != must(KeyHash(public)) || peer.Format != FormatOpenEnclave {
		t.Errorf("peer %+v", peer)
	}
}
