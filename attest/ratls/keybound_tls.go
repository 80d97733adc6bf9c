package ratls

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/claviger/claviger/attest"
)

// keyBound is one side's configuration and identity, prepared once: the quote in its certificate is as old as its key.
type keyBound struct {
	cfg  *KeyBoundConfig
	role Role
	leaf *leaf // nil for a client without evidence, which presents no certificate
}

// newKeyBound makes the key and attests it. A quote that peers would refuse is refused here, as ErrAttest.
func newKeyBound(ctx context.Context, cfg *KeyBoundConfig, role Role) (*keyBound, error) {
	if err := cfg.check(role); err != nil {
		return nil, err
	}
	k := &keyBound{cfg: cfg, role: role}
	if cfg.Attest == nil && cfg.Key == nil && role == RoleClient {
		return k, nil
	}
	key := cfg.Key
	if key == nil {
		var err error
		if key, err = NewKey(); err != nil {
			return nil, fmt.Errorf("ratls: making a leaf key: %w", err)
		}
	}
	if cfg.Attest == nil {
		var err error
		k.leaf, err = newLeaf(key)
		return k, err
	}
	reportData, err := KeyBoundReportData(key.Public(), cfg.format())
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	quote, err := cfg.Attest(ctx, reportData)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAttest, err)
	}
	report := AppendOEReport(nil, quote)
	if _, _, err := quoteIn(report, key.Public()); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAttest, err)
	}
	k.leaf, err = newLeaf(key, oeExtension(report))
	return k, err
}

// tlsConfig is for one connection, or for many where the caller wants no peer: done is told what VerifyConnection proved.
// TLS 1.3 only; no tickets are issued, and none is offered since there is no session cache.
func (k *keyBound) tlsConfig(ctx context.Context, done func(KeyBoundPeer)) *tls.Config {
	c := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		MaxVersion:             tls.VersionTLS13,
		NextProtos:             append([]string(nil), k.cfg.NextProtos...),
		InsecureSkipVerify:     true, // there is no authority; VerifyConnection takes the place of chain building
		SessionTicketsDisabled: true,
		Time:                   k.cfg.Time,
		ClientAuth:             k.clientAuth(),
		VerifyConnection: func(cs tls.ConnectionState) error {
			ctx, cancel := context.WithTimeout(ctx, k.cfg.timeout())
			defer cancel()
			peer, err := k.verify(ctx, cs)
			if err == nil {
				done(peer)
			}
			return err
		},
	}
	if k.leaf != nil {
		c.Certificates = []tls.Certificate{k.leaf.cert}
	}
	return c
}

func (k *keyBound) clientAuth() tls.ClientAuthType {
	switch {
	case k.cfg.Verify == nil && k.cfg.PeerKey == nil:
		return tls.NoClientCert
	case k.cfg.PeerOptional:
		return tls.RequestClientCert
	}
	return tls.RequireAnyClientCert
}

// verify is the whole check of a key-bound connection: version, no resumption, another ALPN than the channel-bound one, a
// key that is not ours and is the expected one, dates, evidence.
func (k *keyBound) verify(ctx context.Context, cs tls.ConnectionState) (KeyBoundPeer, error) {
	if cs.Version != tls.VersionTLS13 || cs.DidResume {
		return KeyBoundPeer{}, fmt.Errorf("%w: version %#x, resumed %t", ErrTLS, cs.Version, cs.DidResume)
	}
	if cs.NegotiatedProtocol == alpn {
		return KeyBoundPeer{}, fmt.Errorf("%w: negotiated %q on a key-bound connection", ErrALPN, alpn)
	}
	if len(cs.PeerCertificates) == 0 && k.role == RoleServer && k.clientAuth() != tls.RequireAnyClientCert {
		return KeyBoundPeer{}, nil
	}
	key, err := peerKeyHash(cs.PeerCertificates)
	if err != nil {
		return KeyBoundPeer{}, err
	}
	if k.leaf != nil && key == k.leaf.hash {
		return KeyBoundPeer{}, ErrSameKey
	}
	if want := k.cfg.PeerKey; want != nil && key != *want {
		return KeyBoundPeer{}, fmt.Errorf("%w: want %x, got %x", ErrPeerKey, want[:8], key[:8])
	}
	cert := cs.PeerCertificates[0]
	if now := k.cfg.now(); now.Before(cert.NotBefore) || now.After(cert.NotAfter) {
		return KeyBoundPeer{}, fmt.Errorf("%w: valid from %s to %s by its own dates, it is %s", ErrLeaf, stamp(cert.NotBefore), stamp(cert.NotAfter), stamp(now))
	}
	return k.judge(ctx, key, cert)
}

func stamp(t time.Time) string { return t.UTC().Format(time.RFC3339) }

// judge turns the evidence in cert into a KeyBoundPeer: nothing unverified comes out of it.
func (k *keyBound) judge(ctx context.Context, key [32]byte, cert *x509.Certificate) (KeyBoundPeer, error) {
	peer := KeyBoundPeer{Key: key}
	if k.cfg.Verify == nil {
		return peer, nil
	}
	report, err := reportIn(cert)
	if err != nil {
		return KeyBoundPeer{}, err
	}
	if report == nil {
		if k.role == RoleServer && k.cfg.PeerOptional {
			return peer, nil
		}
		return KeyBoundPeer{}, fmt.Errorf("%w: the certificate has no extension %s", ErrNoEvidence, oidOEReport)
	}
	quote, format, err := quoteIn(report, cert.PublicKey)
	if err != nil {
		return KeyBoundPeer{}, err
	}
	hello := KeyBoundHello{Role: RoleServer, PeerKey: key, Format: format, ReportData: quote.ReportData()}
	if k.role == RoleServer {
		hello.Role = RoleClient
	}
	verified, err := k.cfg.Verify(ctx, hello, quote.Raw())
	if err != nil {
		return KeyBoundPeer{}, fmt.Errorf("%w: %w", ErrEvidence, err)
	}
	if verified == nil {
		return KeyBoundPeer{}, fmt.Errorf("%w: no proof", ErrEvidence)
	}
	// The claims decide: what was read above came from a quote that nobody had verified yet.
	if err := checkBound(verified.Claims().ReportData, hello.ReportData); err != nil {
		return KeyBoundPeer{}, err
	}
	peer.Format, peer.Quote, peer.ReportData, peer.Verified = hello.Format, quote.Raw(), hello.ReportData, verified
	return peer, nil
}

// quoteIn parses a report's quote and refuses early, without any signature check, what cannot be about pub.
func quoteIn(report []byte, pub any) (*attest.Quote, KeyFormat, error) {
	raw, err := ParseOEReport(report)
	if err != nil {
		return nil, "", err
	}
	quote, err := attest.Parse(raw)
	if err != nil {
		return nil, "", fmt.Errorf("%w: %w", ErrOEReport, err)
	}
	if quote.TEE() != attest.SGX {
		return nil, "", fmt.Errorf("%w: a quote of %s under a header for SGX", ErrOEReport, quote.TEE())
	}
	format, err := formatOf(quote.ReportData(), pub)
	if err != nil {
		return nil, "", err
	}
	return quote, format, nil
}

// KeyBoundServerTLS returns a configuration for crypto/tls and for http.Server's ServeTLS: a certificate that holds this
// enclave's evidence, as EGo's CreateAttestationServerTLSConfig makes it, and with cfg.Verify the check of clients' ones. ctx
// bounds Attest. Every connection that completes has passed cfg.Verify, but who the peer is cannot be asked afterwards; where
// that matters, use NewKeyBoundListener. Fields may be added to the result, not changed.
func KeyBoundServerTLS(ctx context.Context, cfg *KeyBoundConfig) (*tls.Config, error) {
	return keyBoundTLS(ctx, cfg, RoleServer)
}

// KeyBoundClientTLS returns a configuration for crypto/tls and for http.Transport's TLSClientConfig that verifies the
// server's evidence in its certificate, as EGo's CreateAttestationClientTLSConfig does, and with cfg.Attest presents this
// enclave's own. ctx bounds Attest. Fields may be added to the result, not changed.
func KeyBoundClientTLS(ctx context.Context, cfg *KeyBoundConfig) (*tls.Config, error) {
	return keyBoundTLS(ctx, cfg, RoleClient)
}

func keyBoundTLS(ctx context.Context, cfg *KeyBoundConfig, role Role) (*tls.Config, error) {
	k, err := newKeyBound(ctx, cfg, role)
	if err != nil {
		return nil, err
	}
	// The configuration outlives ctx, and crypto/tls passes none to VerifyConnection: the timeout alone bounds Verify.
	return k.tlsConfig(context.Background(), func(KeyBoundPeer) {}), nil
}

// keyBoundNet lies below a *tls.Conn and knows who is at its other end. The *tls.Conn stays what it is, because net/http
// serves HTTP/2 by ALPN on that type alone.
type keyBoundNet struct {
	net.Conn
	peer KeyBoundPeer
	done bool // set before the connection is handed out, never after
}

// hurry gives a client little time for what it sends before its certificate, if it needs one, is judged, and as much again
// for what it sends after that. What Verify takes does not count. stop is false if the time is over.
func (k *keyBound) hurry(cfg *tls.Config, conn net.Conn) (stop func() bool) {
	limit := orDefault(k.cfg.TLSTimeout, DefaultTLSTimeout)
	slow := time.AfterFunc(limit, func() { conn.SetDeadline(aLongTimeAgo) })
	verify := cfg.VerifyConnection
	cfg.VerifyConnection = func(cs tls.ConnectionState) error {
		if !slow.Stop() {
			return os.ErrDeadlineExceeded // it sits on conn already
		}
		defer slow.Reset(limit)
		return verify(cs)
	}
	return slow.Stop
}

// handshake bounds the handshake in time, runs it, and leaves conn without deadlines. It closes conn on error.
func (k *keyBound) handshake(ctx context.Context, conn net.Conn) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, k.cfg.timeout())
	defer cancel()
	below := &keyBoundNet{Conn: conn}
	cfg := k.tlsConfig(ctx, func(p KeyBoundPeer) { below.peer, below.done = p, true })
	c, quick := tls.Client(below, cfg), func() bool { return true }
	if k.role == RoleServer {
		c, quick = tls.Server(below, cfg), k.hurry(cfg, conn)
	}
	err := c.HandshakeContext(ctx)
	if !quick() && err == nil {
		err = os.ErrDeadlineExceeded
	}
	if err == nil && !below.done {
		err = fmt.Errorf("%w: the connection was not verified", ErrTLS) // does not depend on crypto/tls calling us
	}
	if err != nil {
		conn.Close()
		return nil, timely(ctx, fmt.Errorf("%w: %w", ErrTLS, err))
	}
	return c, nil
}

// KeyBoundPeerOf says who is at the other end of a connection that a KeyBoundListener accepted or a KeyBoundDialer dialled;
// false for any other. The byte slices are shared: do not change them.
func KeyBoundPeerOf(c net.Conn) (KeyBoundPeer, bool) {
	t, ok := c.(*tls.Conn)
	if !ok {
		return KeyBoundPeer{}, false
	}
	below, ok := t.NetConn().(*keyBoundNet)
	if !ok || !below.done {
		return KeyBoundPeer{}, false
	}
	return below.peer, true
}

type keyBoundContextKey struct{}

// KeyBoundConnContext is for http.Server's field ConnContext: it makes the peer of a key-bound connection available to
// handlers through KeyBoundFromContext, never through FromContext.
func KeyBoundConnContext(ctx context.Context, c net.Conn) context.Context {
	if peer, ok := KeyBoundPeerOf(c); ok {
		return context.WithValue(ctx, keyBoundContextKey{}, peer)
	}
	return ctx
}

// KeyBoundFromContext returns the peer of the key-bound connection that a request came in on; false where there was none.
func KeyBoundFromContext(ctx context.Context) (KeyBoundPeer, bool) {
	p, ok := ctx.Value(keyBoundContextKey{}).(KeyBoundPeer)
	return p, ok
}

// KeyBoundListener accepts key-bound connections as Listener does channels: handshakes bounded in number and time, Accept
// returning finished connections only. They are of type *tls.Conn, for KeyBoundPeerOf.
type KeyBoundListener struct{ acceptor }

// NewKeyBoundListener attests this side's key within ctx and starts accepting on inner, which it owns from then on; on error
// inner is as it was.
func NewKeyBoundListener(ctx context.Context, inner net.Listener, cfg *KeyBoundConfig) (*KeyBoundListener, error) {
	k, err := newKeyBound(ctx, cfg, RoleServer)
	if err != nil {
		return nil, err
	}
	l := &KeyBoundListener{}
	l.init(inner)
	l.start(newLimits(cfg.MaxHandshakes, cfg.MaxPerAddress, cfg.timeout()), cfg.OnRefused, k.handshake)
	return l, nil
}

// KeyBoundDialer opens key-bound connections. Like any TLS 1.3 client it learns only from its first Read that the server
// refused its certificate.
type KeyBoundDialer struct {
	// Net opens the connection below; nil means a plain net.Dialer. It must not change while in use.
	Net func(ctx context.Context, network, addr string) (net.Conn, error)

	side *keyBound
}

// NewKeyBoundDialer attests this side's key within ctx, where cfg.Attest is set: one key and one quote serve the life of the
// KeyBoundDialer.
func NewKeyBoundDialer(ctx context.Context, cfg *KeyBoundConfig) (*KeyBoundDialer, error) {
	k, err := newKeyBound(ctx, cfg, RoleClient)
	if err != nil {
		return nil, err
	}
	return &KeyBoundDialer{side: k}, nil
}

// DialContext connects to addr and verifies the server. The returned connection is a *tls.Conn, for KeyBoundPeerOf.
func (d *KeyBoundDialer) DialContext(ctx context.Context, network, addr string) (net.Conn, error) {
	if d.side == nil {
		return nil, fmt.Errorf("%w: zero KeyBoundDialer; use NewKeyBoundDialer", ErrConfig)
	}
	conn, err := dialNet(ctx, d.Net, network, addr)
	if err != nil {
		return nil, err
	}
	return d.side.handshake(ctx, conn)
}
