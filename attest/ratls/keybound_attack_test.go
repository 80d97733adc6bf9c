package ratls

import (
	"bytes"
	"context"
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
	"time"
)

// keyAttacks are aimed at the key-bound mode. What that mode cannot stop, replay of a live key's own evidence and diversion
// where the key is not pinned, is in TestKeyBoundLimits.
var keyAttacks = []attack{
	{"evidence for another key", "copies the extension of a genuine certificate into one for its own key", attackCopied},
	{"evidence for another key, as a client", "presents such a copy to a server that asks clients for evidence", attackCopiedClient},
	{"proxy in the middle", "ends the TLS session with a key of its own, under a genuine server's evidence, and passes all on", attackKeyMiddle},
	{"genuine certificate, no key", "presents a genuine certificate as it is, without its private key", attackNoPrivateKey},
	{"diversion", "lets a connection meant for one enclave end at another genuine one of the same measurement, where the key is pinned", attackKeyDiversion},
	{"replay after the key's end", "presents a certificate past the date that its enclave set", attackExpired},
	{"reflection", "joins an enclave to itself, so that both sides hold one key", attackKeySame},
	{"session resumption", "issues a ticket on one connection and resumes it on the next", attackKeyResumption},
	{"quote over more than a key", "presents a quote whose first 32 bytes are the key's hash and whose others say something else", attackUpperHalf},
	{"trailing bytes in the quote", "appends a byte to the quote, counted by the header", attackReport(func(_ *testing.T, q []byte) []byte { return AppendOEReport(nil, append(q, 0)) }, ErrOEReport)},
	{"trailing bytes in the report", "appends a byte to the report", attackReport(func(_ *testing.T, q []byte) []byte { return append(AppendOEReport(nil, q), 0) }, ErrOEReport)},
	{"local report", "says that the report is a local one", attackReport(func(_ *testing.T, q []byte) []byte { r := AppendOEReport(nil, q); r[4] = 1; return r }, ErrOEReport)},
	{"oversized report", "presents a report of 200 KB", attackReport(func(_ *testing.T, q []byte) []byte { return AppendOEReport(nil, append(q, make([]byte, 200_000)...)) }, ErrOEReport)},
	{"no report", "presents an extension that holds nothing", attackReport(func(*testing.T, []byte) []byte { return nil }, ErrOEReport)},
	{"bare quote", "presents the quote without its header", attackReport(func(_ *testing.T, q []byte) []byte { return q }, ErrOEReport)},
	{"forged quote", "flips a bit in what the quoting enclave signed", attackReport(func(_ *testing.T, q []byte) []byte { q[48+64] ^= 1; return AppendOEReport(nil, q) }, ErrEvidence)},
	{"no extension", "presents a self-signed certificate without evidence", attackNoExtension},
	{"TLS talked down", "is a client that knows TLS 1.2 only", attackKeyTLS12},
}

// modeAttacks offer the weaker mode where the stronger is required.
var modeAttacks = []attack{
	{"key-bound server, channel required", "answers a channel-bound client with a genuine enclave's key-bound listener", attackKeyForChannel},
	{"key-bound client, channel required", "connects a genuine enclave's key-bound client to a channel-bound listener", attackChannelFromKey},
	{"key-bound certificate on a channel", "speaks claviger/1 with a genuine key-bound certificate and sends no evidence for the channel", attackCertificateOnly},
	{"key-bound quote on a channel", "sends the quote of a genuine key-bound certificate as the channel's evidence", attackKeyQuote},
	{"channel quote in a certificate", "puts a quote that was made for a channel into a certificate", attackChannelQuote},
	{"channel ALPN on a key-bound connection", "is a client that offers claviger/1 to a key-bound server, hoping that it passes for a channel", attackALPNOffered},
	{"key-bound request, channel required", "sends a request over a proved key-bound connection to a handler that requires a channel", attackHandler},
}

// genuineReport is the evidence that a genuine enclave shows to anyone who connects.
func genuineReport(t *testing.T, b *bed) []byte {
	t.Helper()
	addr, _, _ := keyServe(t, &KeyBoundConfig{Attest: b.keyQuote("node")})
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return must(reportIn(conn.ConnectionState().PeerCertificates[0]))
}

// hostServer is a TLS server that presents cert.
func hostServer(t *testing.T, cert tls.Certificate) string {
	t.Helper()
	l := loopback(t)
	go func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				conn := tls.Server(raw, &tls.Config{Certificates: []tls.Certificate{cert}})
				conn.Handshake()
				io.Copy(io.Discard, conn)
				conn.Close()
			}()
		}
	}()
	return l.Addr().String()
}

func attackCopied(t *testing.T, b *bed) []refusal {
	own := must(newLeaf(nil, oeExtension(genuineReport(t, b))))
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, own.cert))
	return []refusal{found("client", err, ErrUnbound)}
}

func attackCopiedClient(t *testing.T, b *bed) []refusal {
	addr, _, refused := keyServe(t, keyConfig(b, "node"))
	own := must(newLeaf(nil, oeExtension(genuineReport(t, b))))
	return []refusal{found("server", hostClient(t, addr, refused, own.cert), ErrUnbound)}
}

// hostClient presents cert to a server of ours and returns what the server makes of it.
func hostClient(t *testing.T, addr string, refused <-chan error, cert tls.Certificate) error {
	t.Helper()
	conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}})
	if err == nil {
		if n, err := conn.Read(make([]byte, 1)); err == nil {
			t.Errorf("the server sent %d bytes", n)
		}
		conn.Close()
	}
	return <-refused
}

// The client's secrets would pass through the host in clear.
func attackKeyMiddle(t *testing.T, b *bed) []refusal {
	node, _, _ := keyServe(t, &KeyBoundConfig{Attest: b.keyQuote("node")})
	l := loopback(t)
	go func() {
		victim, err := l.Accept()
		if err != nil {
			return
		}
		out, err := tls.Dial("tcp", node, &tls.Config{InsecureSkipVerify: true})
		if err != nil {
			return
		}
		report, _ := reportIn(out.ConnectionState().PeerCertificates[0])
		in := tls.Server(victim, &tls.Config{Certificates: []tls.Certificate{must(newLeaf(nil, oeExtension(report))).cert}})
		go func() { io.Copy(in, out); in.Close() }()
		io.Copy(out, in)
		out.Close()
	}()
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, l.Addr().String())
	return []refusal{found("client", err, ErrUnbound)}
}

func attackNoPrivateKey(t *testing.T, b *bed) []refusal {
	genuine := must(KeyBoundServerTLS(t.Context(), &KeyBoundConfig{Attest: b.keyQuote("node")})).Certificates[0]
	genuine.PrivateKey = must(NewKey())
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, genuine))
	return []refusal{found("client", err, ErrTLS)}
}

func attackKeyDiversion(t *testing.T, b *bed) []refusal {
	meant := must(KeyHash(must(NewKey()).Public()))
	addr, _, _ := keyServe(t, &KeyBoundConfig{Attest: b.keyQuote("node")})
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify, PeerKey: &meant}, addr)
	return []refusal{found("client", err, ErrPeerKey)}
}

func attackExpired(t *testing.T, b *bed) []refusal {
	key := must(NewKey())
	quote := must(b.keyQuote("node")(t.Context(), must(KeyBoundReportData(key.Public(), FormatEGo))))
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(-time.Hour),
		ExtraExtensions: []pkix.Extension{oeExtension(AppendOEReport(nil, quote))}}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}))
	return []refusal{found("client", err, ErrLeaf)}
}

func attackKeySame(t *testing.T, b *bed) []refusal {
	client, server := keyConfig(b, "node"), keyConfig(b, "node")
	client.Key = must(NewKey())
	server.Key = client.Key
	addr, _, refused := keyServe(t, server)
	_, err := keyDial(t, client, addr)
	return []refusal{found("client", err, ErrSameKey), found("server", <-refused, ErrTLS)}
}

// As on a channel, the precautions are broken first, and the check in VerifyConnection is what is left.
func attackKeyResumption(t *testing.T, b *bed) []refusal {
	client := must(KeyBoundClientTLS(t.Context(), keyConfig(b, "app")))
	client.ClientSessionCache, client.ServerName = tls.NewLRUClientSessionCache(4), "node"
	client.SessionTicketsDisabled = false
	host := must(KeyBoundServerTLS(t.Context(), keyConfig(b, "node")))
	host.SessionTicketsDisabled, host.VerifyConnection = false, nil
	byClient, _ := twice(t, client, host)
	client.VerifyConnection = nil
	own := must(KeyBoundServerTLS(t.Context(), keyConfig(b, "node")))
	own.SessionTicketsDisabled = false
	_, byServer := twice(t, client, own)
	return []refusal{found("client", byClient, ErrTLS), found("server", byServer, ErrTLS)}
}

func attackUpperHalf(t *testing.T, b *bed) []refusal {
	key := must(NewKey())
	reportData := must(KeyBoundReportData(key.Public(), FormatEGo))
	reportData[63] = 1
	own := must(newLeaf(key, oeExtension(AppendOEReport(nil, must(b.keyQuote("node")(t.Context(), reportData))))))
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, own.cert))
	return []refusal{found("client", err, ErrUnbound)}
}

// attackReport changes the report of a certificate that would pass unchanged.
func attackReport(change func(*testing.T, []byte) []byte, want error) func(*testing.T, *bed) []refusal {
	return func(t *testing.T, b *bed) []refusal {
		key := must(NewKey())
		quote := must(b.keyQuote("node")(t.Context(), must(KeyBoundReportData(key.Public(), FormatEGo))))
		for _, unchanged := range []bool{true, false} {
			report := AppendOEReport(nil, quote)
			if !unchanged {
				report = change(t, bytes.Clone(quote))
			}
			_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, must(newLeaf(key, oeExtension(report))).cert))
			if !unchanged {
				return []refusal{found("client", err, want)}
			}
			if err != nil {
				t.Fatalf("the unchanged report is refused: %v", err)
			}
		}
		return nil
	}
}

func attackNoExtension(t *testing.T, b *bed) []refusal {
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, must(newLeaf(nil)).cert))
	addr, _, refused := keyServe(t, keyConfig(b, "node"))
	return []refusal{found("client", err, ErrNoEvidence), found("server", hostClient(t, addr, refused, must(newLeaf(nil)).cert), ErrNoEvidence)}
}

func attackKeyTLS12(t *testing.T, b *bed) []refusal {
	addr, _, refused := keyServe(t, &KeyBoundConfig{Attest: b.keyQuote("node")})
	if _, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
	return []refusal{found("server", <-refused, ErrTLS)}
}

func attackKeyForChannel(t *testing.T, b *bed) []refusal {
	bare := keyConfig(b, "node")
	addr, _, refused := keyServe(t, bare) // negotiates no ALPN at all, as EGo
	_, err := Client(t.Context(), dial(t, addr), clientConfig(b, "app"))
	withHTTP := keyConfig(b, "node")
	withHTTP.NextProtos = []string{"h2", "http/1.1"}
	addr, _, refusedHTTP := keyServe(t, withHTTP)
	_, errHTTP := Client(t.Context(), dial(t, addr), clientConfig(b, "app"))
	return []refusal{found("client", err, ErrALPN), found("server", <-refused, ErrTLS),
		found("client, server with ALPN", errHTTP, ErrTLS), found("server with ALPN", <-refusedHTTP, ErrTLS)}
}

// The client's own check refuses such a server as well; a client without it gets no further.
func attackChannelFromKey(t *testing.T, b *bed) []refusal {
	addr, server := serve(t, serverConfig(b, "node"))
	_, err := keyDial(t, keyConfig(b, "app"), addr)
	<-server
	addr, server = serve(t, serverConfig(b, "node"))
	conn, failed := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{keyLeaf(t, b).cert}})
	if failed == nil {
		if n, failed := conn.Read(make([]byte, 1)); failed == nil {
			t.Errorf("the server sent %d bytes", n)
		}
		conn.Close()
	}
	return []refusal{found("client", err, ErrNoEvidence), found("server", (<-server).err, ErrALPN)}
}

// keyLeaf is a genuine key-bound identity, in the hands of the enclave that made it.
func keyLeaf(t *testing.T, b *bed) *leaf {
	t.Helper()
	return must(newKeyBound(t.Context(), keyConfig(b, "app"), RoleClient)).leaf
}

func attackCertificateOnly(t *testing.T, b *bed) []refusal {
	addr, out := serve(t, serverConfig(b, "node"))
	l := keyLeaf(t, b)
	conn, _ := rawTLS(t, addr, func(c *tls.Config) { c.Certificates = []tls.Certificate{l.cert} })
	if _, err := serverEvidence(conn); err != nil {
		t.Fatal(err)
	}
	if err := writeFrame(conn, kindClientEvidence, evidenceFrame{}); err != nil {
		t.Fatal(err)
	}
	err := readFrame(conn, kindAccept, &accept{})
	return both("server", "host", <-out, outcome{err: err}, ErrNoEvidence, CodeNoEvidence)
}

func attackKeyQuote(t *testing.T, b *bed) []refusal {
	client := clientConfig(b, "app")
	client.Key = must(NewKey())
	client.Attest = func(ctx context.Context, _ [64]byte) (Evidence, error) {
		return b.attester("app")(ctx, must(KeyBoundReportData(client.Key.Public(), FormatEGo)))
	}
	c, s := meet(t, client, serverConfig(b, "node"))
	return both("server", "host", s, c, ErrUnbound, CodeUnbound)
}

func attackChannelQuote(t *testing.T, b *bed) []refusal {
	seen := make(chan Evidence, 1)
	client, server := clientConfig(b, "app"), serverConfig(b, "node")
	client.Key, client.Verify = must(NewKey()), capture(b, seen)
	server.Key = must(NewKey())
	if c, s := meet(t, client, server); c.err != nil || s.err != nil {
		t.Fatalf("client %v, server %v", c.err, s.err)
	}
	own := must(newLeaf(server.Key, oeExtension(AppendOEReport(nil, (<-seen).Quote))))
	_, err := keyDial(t, &KeyBoundConfig{Verify: b.keyVerify}, hostServer(t, own.cert))
	return []refusal{found("client", err, ErrUnbound)}
}

func attackALPNOffered(t *testing.T, b *bed) []refusal {
	careless := must(KeyBoundServerTLS(t.Context(), keyConfig(b, "node")))
	careless.NextProtos = []string{alpn} // added by a caller who did not read on
	l := loopback(t)
	done := make(chan error, 1)
	go func() {
		raw, err := l.Accept()
		if err == nil {
			err = tls.Server(raw, careless).Handshake()
			raw.Close()
		}
		done <- err
	}()
	_, err := Client(t.Context(), dial(t, l.Addr().String()), clientConfig(b, "app"))
	return []refusal{found("server", <-done, ErrALPN), found("client", err, ErrTLS)}
}

// One server, one set of handlers, both listeners.
func attackHandler(t *testing.T, b *bed) []refusal {
	l, err := NewKeyBoundListener(t.Context(), loopback(t), keyConfig(b, "node"))
	if err != nil {
		t.Fatal(err)
	}
	serveHTTP(t, l)
	d := must(NewKeyBoundDialer(t.Context(), keyConfig(b, "app")))
	url := "https://" + l.Addr().String()
	if got := get(t, d.HTTPTransport(), url); !strings.HasSuffix(got, "key-bound as ego") {
		t.Fatalf("the connection itself is not proved: %q", got)
	}
	transport := d.HTTPTransport()
	t.Cleanup(transport.CloseIdleConnections)
	res, err := (&http.Client{Transport: transport}).Get(url + "/required")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, _ := io.ReadAll(res.Body)
	if res.StatusCode != http.StatusForbidden {
		return []refusal{found("handler", nil, errForbidden)}
	}
	return []refusal{found("handler", fmt.Errorf("%w: %s", errForbidden, bytes.TrimSpace(body)), errForbidden)}
}

var errForbidden = errors.New("403 Forbidden")

// What the key-bound mode does not stop, so that nobody believes it does: its evidence says that a genuine enclave made this
// key at some time, and the same evidence serves every connection, in either role, with any peer.
func TestKeyBoundLimits(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	key := must(NewKey())
	made := 0
	cfg := keyConfig(b, "app")
	cfg.Key = key
	cfg.Attest = func(ctx context.Context, rd [64]byte) ([]byte, error) { made++; return b.keyQuote("app")(ctx, rd) }
	d := must(NewKeyBoundDialer(t.Context(), cfg))
	for range 2 { // two connections to two enclaves
		addr, accepted, _ := keyServe(t, keyConfig(b, "node"))
		conn, err := d.DialContext(t.Context(), "tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		if peer, ok := KeyBoundPeerOf(<-accepted); !ok || peer.Verified == nil {
			t.Error("the server has no proof")
		}
	}
	if made != 1 {
		t.Errorf("%d quotes were made for one key", made)
	}
	// And it never passes for more than it is.
	var conn net.Conn = &tls.Conn{}
	if _, ok := KeyBoundPeerOf(conn); ok {
		t.Error("a foreign *tls.Conn has a peer")
	}
}
