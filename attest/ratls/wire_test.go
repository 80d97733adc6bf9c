package ratls

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha512"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"math/big"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// refusedTLS runs a foreign TLS client against our server, which must not let it through.
func refusedTLS(t *testing.T, change func(*tls.Config), cause error) {
	t.Helper()
	b := newBed(t)
	addr, server := serve(t, serverConfig(b, "node"))
	conn, _ := rawTLS(t, addr, change)
	if err := conn.Handshake(); err == nil {
		// In TLS 1.3 the client learns of a refused certificate after its own handshake.
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("the server sent %d bytes", n)
		}
	}
	if s := <-server; !errors.Is(s.err, cause) {
		t.Errorf("server: got %v, want %v", s.err, cause)
	}
}

func TestForeignClients(t *testing.T) {
	t.Parallel()
	tests := map[string]struct {
		change func(*tls.Config)
		cause  error
	}{
		"TLS 1.2":        {func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 }, ErrTLS},
		"no ALPN":        {func(c *tls.Config) { c.NextProtos = nil }, ErrALPN},
		"other ALPN":     {func(c *tls.Config) { c.NextProtos = []string{"h2", "http/1.1"} }, ErrTLS},
		"no certificate": {func(c *tls.Config) { c.Certificates = nil }, ErrTLS},
		"two certificates": {func(c *tls.Config) {
			chain := c.Certificates[0].Certificate
			c.Certificates[0].Certificate = append(chain[:1:1], chain[0])
		}, ErrLeaf},
		"P-384 key": {withKey(must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader))), ErrLeaf},
		"RSA key":   {withKey(must(rsa.GenerateKey(rand.Reader, 2048))), ErrLeaf},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			refusedTLS(t, tt.change, tt.cause)
		})
	}
}

// certificateFor signs a certificate with any kind of key.
func certificateFor(key any, public any) tls.Certificate {
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Date(2049, 1, 1, 0, 0, 0, 0, time.UTC)}
	der := must(x509.CreateCertificate(rand.Reader, template, template, public, key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func withKey(key any) func(*tls.Config) {
	var public any
	switch k := key.(type) {
	case *ecdsa.PrivateKey:
		public = k.Public()
	case *rsa.PrivateKey:
		public = k.Public()
	case ed25519.PrivateKey:
		public = k.Public()
	}
	return func(c *tls.Config) { c.Certificates = []tls.Certificate{certificateFor(key, public)} }
}

// An Ed25519 leaf is as good as a P-256 one.
func TestEd25519Leaf(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	public, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	server := serverConfig(b, "node")
	server.PeerOptional = true
	addr, out := serve(t, server)
	conn, _ := rawTLS(t, addr, withKey(key))
	if _, err := serverEvidence(conn); err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(conn, kindClientEvidence, evidenceFrame{}); err != nil {
		t.Fatal(err)
	}
	if err := readFrame(conn, kindAccept, &accept{}); err != nil {
		t.Fatal(err)
	}
	s := <-out
	if s.err != nil {
		t.Fatal(s.err)
	}
	defer s.conn.Close()
	if want := must(KeyHash(public)); s.conn.Peer().Key != want {
		t.Error("the peer's key is not named by its SPKI hash")
	}
}

// A foreign server that does not negotiate our ALPN, or speaks TLS 1.2, gets nothing from our client.
func TestForeignServers(t *testing.T) {
	t.Parallel()
	tests := map[string]func(*tls.Config){
		"no ALPN": func(c *tls.Config) { c.NextProtos = nil },
		"TLS 1.2": func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS12, tls.VersionTLS12 },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t)
			l, foreign := loopback(t), must(newLeaf(nil)).tlsConfig(&Config{})
			foreign.VerifyConnection = nil
			change(foreign)
			go func() {
				if raw, err := l.Accept(); err == nil {
					conn := tls.Server(raw, foreign)
					conn.Handshake()
					io.Copy(io.Discard, conn)
					conn.Close()
				}
			}()
			cfg := clientConfig(b, "app")
			cfg.Attest = func(context.Context, [64]byte) (Evidence, error) {
				t.Error("evidence was made for a foreign server")
				return Evidence{}, errors.New("no")
			}
			_, err := Client(t.Context(), dial(t, l.Addr().String()), cfg)
			if !errors.Is(err, ErrTLS) {
				t.Errorf("got %v, want ErrTLS", err)
			}
		})
	}
}

// frame makes raw frames, good and bad.
func frame(k kind, length uint32, body []byte) []byte {
	out := binary.BigEndian.AppendUint32([]byte{byte(k)}, length)
	return append(out, body...)
}

func TestHostileFrames(t *testing.T) {
	t.Parallel()
	good := encode(clientHello{Protocol: "app/1", WantEvidence: true})
	n := uint32(len(good))
	tests := map[string]struct {
		raw   []byte
		cause error
		code  Code
	}{
		"oversized":          {frame(kindClientHello, 1<<10+1, nil), ErrFrameSize, CodeFrameSize},
		"oversized 4 GiB":    {frame(kindClientHello, 1<<32-1, nil), ErrFrameSize, CodeFrameSize},
		"oversized refusal":  {frame(kindRefuse, 1<<20, nil), ErrFrameSize, CodeFrameSize},
		"trailing garbage":   {frame(kindClientHello, n+1, append(bytes.Clone(good), 0)), ErrFrame, CodeFrame},
		"unknown kind":       {frame(9, n, good), ErrFrame, CodeFrame},
		"frame out of turn":  {frame(kindAccept, 1, encode(accept{})), ErrFrame, CodeFrame},
		"empty body":         {frame(kindClientHello, 0, nil), ErrFrame, CodeFrame},
		"map":                {frame(kindClientHello, 1, []byte{0xa0}), ErrFrame, CodeFrame},
		"one element more":   {frame(kindClientHello, 9, hexed("836561 70702f31 f5 f5")), ErrFrame, CodeFrame},
		"one element less":   {frame(kindClientHello, 7, hexed("81656170702f31")), ErrFrame, CodeFrame},
		"indefinite array":   {frame(kindClientHello, 9, hexed("9f656170702f31f5ff")), ErrFrame, CodeFrame},
		"wide length":        {frame(kindClientHello, 9, hexed("8278056170702f31f5")), ErrFrame, CodeFrame},
		"invalid UTF-8":      {frame(kindClientHello, 4, hexed("8261fff5")), ErrFrame, CodeFrame},
		"tagged":             {frame(kindClientHello, n+1, append([]byte{0xc1}, good...)), ErrFrame, CodeFrame},
		"null for a boolean": {frame(kindClientHello, 8, hexed("82656170702f31f6")), ErrFrame, CodeFrame},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, out := serve(t, serverConfig(newBed(t), "node"))
			conn, _ := rawTLS(t, addr, nil)
			if _, err := conn.Write(tt.raw); err != nil {
				t.Fatal(err)
			}
			err := readFrame(conn, kindServerHello, &serverHello{})
			wantRefusal(t, <-out, outcome{err: err}, tt.cause, tt.code)
		})
	}
}

func hexed(s string) []byte { return must(hex.DecodeString(strings.ReplaceAll(s, " ", ""))) }

// The second frame of a client is hostile input as much as the first.
func TestHostileClientEvidence(t *testing.T) {
	t.Parallel()
	huge := encode(evidenceFrame{Quote: make([]byte, MaxEvidence+1)})
	noQuote := encode(evidenceFrame{Attachment: []byte{1}})
	tests := map[string]struct {
		body  []byte
		cause error
		code  Code
	}{
		"over the bound":           {huge, ErrFrameSize, CodeFrameSize},
		"attachment, no quote":     {noQuote, ErrFrame, CodeFrame},
		"quote of four bytes":      {encode(evidenceFrame{Quote: []byte{1, 2, 3, 4}}), ErrEvidence, CodeEvidence},
		"no evidence though asked": {encode(evidenceFrame{}), ErrNoEvidence, CodeNoEvidence},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			addr, out := serve(t, serverConfig(newBed(t), "node"))
			conn, _ := rawTLS(t, addr, nil)
			if _, err := serverEvidence(conn); err != nil {
				t.Fatal(err)
			}
			if _, err := conn.Write(frame(kindClientEvidence, uint32(len(tt.body)), tt.body)); err != nil {
				t.Fatal(err)
			}
			err := readFrame(conn, kindAccept, &accept{})
			wantRefusal(t, <-out, outcome{err: err}, tt.cause, tt.code)
		})
	}
}

// Evidence that nobody asked for has no reader: it must not end up in a Peer unverified.
func TestUnaskedEvidence(t *testing.T) {
	t.Parallel()
	server := serverConfig(newBed(t), "node")
	server.Verify = nil
	addr, out := serve(t, server)
	conn, _ := rawTLS(t, addr, nil)
	if _, err := serverEvidence(conn); err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(conn, kindClientEvidence, evidenceFrame{Quote: []byte{1}}); err != nil {
		t.Fatal(err)
	}
	err := readFrame(conn, kindAccept, &accept{})
	wantRefusal(t, <-out, outcome{err: err}, ErrFrame, CodeFrame)
}

// A server's words reach logs and terminals: they are bounded and printable, and its code is a word.
func TestRefusalIsCleaned(t *testing.T) {
	t.Parallel()
	var wire bytes.Buffer
	message := "no\x1b]0;title\a\n" + strings.Repeat("x", 3000)
	if err := writeFrame(&wire, kindRefuse, refuse{Code: "Bad Code!", Message: message}); err != nil {
		t.Fatal(err)
	}
	err := readFrame(&wire, kindAccept, &accept{})
	r, ok := errors.AsType[*RefusedError](err)
	if !ok || r.Code != CodeInternal || len(r.Message) != maxMessage || strings.ContainsAny(r.Message, "\x1b\a\n") {
		t.Fatalf("got %#v", err)
	}
	if got := clean(strings.Repeat("é", 10), 5); got != "éé" {
		t.Errorf("a bounded message is cut inside a character: %q", got)
	}
}

// Known answer for the report data, computed from its written definition byte by byte.
func TestReportDataKnownAnswer(t *testing.T) {
	t.Parallel()
	fill := func(v byte) (out [32]byte) {
		for i := range out {
			out[i] = v
		}
		return out
	}
	b := binding{Protocol: "app/1", Role: RoleClient, ClusterID: fill(1), Epoch: 300, Exporter: fill(2), ClientKey: fill(3), ServerKey: fill(4)}
	rep := func(v string) string { return "5820" + strings.Repeat(v, 32) }
	raw := hexed("88" + "71" + hex.EncodeToString([]byte("claviger/ratls/v1")) + "65" + hex.EncodeToString([]byte("app/1")) +
		"66" + hex.EncodeToString([]byte("client")) + rep("01") + "19012c" + rep("02") + rep("03") + rep("04"))
	if got, want := b.reportData(), sha512.Sum512(raw); got != want {
		t.Fatalf("got %x, want %x", got, want)
	}
	if checkBound(b.reportData(), b.reportData()) != nil {
		t.Error("equal report data is refused")
	}
	other := b.reportData()
	other[63] ^= 1
	if !errors.Is(checkBound(other, b.reportData()), ErrUnbound) {
		t.Error("one flipped bit at the end passes")
	}
}

// A peer that connects and says nothing is let go when the handshake's time is over, in every phase.
func TestSilentPeer(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for _, role := range []Role{RoleClient, RoleServer} {
		synctest.Test(t, func(t *testing.T) {
			near, far := net.Pipe()
			go io.Copy(io.Discard, far) // reads, never answers
			cfg := clientConfig(b, "app")
			cfg.HandshakeTimeout = 3 * time.Second
			want := 3 * time.Second
			if role == RoleServer { // to connect costs a client nothing
				want = DefaultTLSTimeout
			}
			start := time.Now()
			_, err := runFresh(context.Background(), near, cfg, role)
			if !errors.Is(err, ErrTimeout) {
				t.Errorf("%s: got %v, want ErrTimeout", role, err)
			}
			if d := time.Since(start); d != want {
				t.Errorf("%s: gave up after %v", role, d)
			}
			far.Close()
		})
	}
}

// Silence after TLS: the peer has shown a key and holds its evidence back.
func TestSilentAfterTLS(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go func() {
			conn := tls.Client(far, must(newLeaf(nil)).tlsConfig(&Config{}))
			conn.Handshake()
			serverEvidence(conn)
			io.Copy(io.Discard, conn)
			far.Close()
		}()
		cfg := serverConfig(b, "node")
		cfg.HandshakeTimeout = 3 * time.Second
		start := time.Now()
		_, err := Server(context.Background(), near, cfg)
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want ErrTimeout", err)
		}
		if d := time.Since(start); d < 3*time.Second || d > 3*time.Second+refusalGrace {
			t.Errorf("gave up after %v", d)
		}
	})
}

// The caller's context ends the handshake at once.
func TestCancel(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		ctx, cancel := context.WithCancel(context.Background())
		time.AfterFunc(time.Second, cancel)
		start := time.Now()
		_, err := Client(ctx, near, clientConfig(b, "app"))
		if !errors.Is(err, ErrTimeout) || !errors.Is(err, context.Canceled) || time.Since(start) != time.Second {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		far.Close()
	})
}
