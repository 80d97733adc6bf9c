package ratls

import (
	"context"
	"crypto/ecdsa"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/claviger/claviger/attest"
)

// KeyBoundHello is what is known of a peer when its key-bound evidence is judged.
type KeyBoundHello struct {
	Role       Role      // the peer's role; its evidence does not say it
	PeerKey    [32]byte  // SHA-256 of the peer's SubjectPublicKeyInfo; its possession is proved
	Format     KeyFormat // how the evidence names the key
	ReportData [64]byte  // what the peer's quote must carry
}

// KeyBoundConfig says how to run TLS whose evidence is bound to a key and to nothing else, in the form of EGo and Open
// Enclave. It is for peers that cannot speak the channel-bound protocol of [Config], and for callers whose policy accepts
// evidence from any time since the key was made; see the package comment for what such evidence does not stop. It must not
// change while in use. The zero KeyBoundConfig is refused.
type KeyBoundConfig struct {
	// Key of this side's certificate, P-256. Nil means a fresh one per KeyBoundServerTLS, KeyBoundClientTLS,
	// NewKeyBoundListener and NewKeyBoundDialer.
	Key *ecdsa.PrivateKey
	// Format in which this side's evidence names its key; empty means FormatEGo. Peers' evidence may have either.
	Format KeyFormat
	// PeerKey, where set, is SHA-256 of the SubjectPublicKeyInfo that the peer must present.
	PeerKey *[32]byte

	// Attest produces an SGX quote over exactly reportData; enclave.TEE's Quote fits. It is called once for a key. Nil: this
	// side has no evidence, which a client may lack, and a server only if it asks clients for theirs.
	Attest func(ctx context.Context, reportData [64]byte) (quote []byte, err error)
	// Verify judges the peer's quote and returns the proof; collateral is the verifier's own affair, since none travels in
	// the certificate. Its report data is compared by this package, before and after, on the proof's claims. Nil: no evidence
	// is asked of the peer; a client then must set PeerKey.
	Verify func(ctx context.Context, hello KeyBoundHello, quote []byte) (*attest.Verified, error)
	// PeerOptional lets a server accept a client without a certificate, or with one that holds no evidence:
	// KeyBoundPeer.Verified is nil then. Evidence that is sent must verify all the same. A client ignores it.
	PeerOptional bool

	// NextProtos are the application protocols for ALPN, as in tls.Config; nil negotiates none, as EGo does. HTTP needs "h2",
	// "http/1.1" here to speak HTTP/2. The channel-bound protocol's name is refused.
	NextProtos []string
	// Time is the clock for the dates of the peer's certificate, as in tls.Config; nil means time.Now. The dates are the
	// peer's own word: they can end the use of a key, and prove nothing about its age.
	Time func() time.Time
	// HandshakeTimeout bounds TLS and verification together. Zero means DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration
	// TLSTimeout bounds, on a server, TLS up to the client's certificate, which Verify then judges. Zero means
	// DefaultTLSTimeout.
	TLSTimeout time.Duration
	// MaxHandshakes, MaxPerAddress and OnRefused are for a listener, as in Config.
	MaxHandshakes int
	MaxPerAddress int
	OnRefused     func(remote net.Addr, err error)
}

// KeyBoundPeer is what a key-bound handshake established about the other side. It is a type of its own so that it cannot
// pass for a Peer.
type KeyBoundPeer struct {
	Key        [32]byte         // SHA-256 of the peer's SubjectPublicKeyInfo; zero for a client without a certificate
	Format     KeyFormat        // how the evidence names the key
	Quote      []byte           // as received and verified, without its Open Enclave header
	ReportData [64]byte         // what Quote is bound to; meaningless without Verified
	Verified   *attest.Verified // proof; nil where no evidence was asked for or sent
}

func (c *KeyBoundConfig) timeout() time.Duration {
	if c.HandshakeTimeout > 0 {
		return c.HandshakeTimeout
	}
	return DefaultHandshakeTimeout
}

func (c *KeyBoundConfig) now() time.Time {
	if c.Time != nil {
		return c.Time()
	}
	return time.Now()
}

func (c *KeyBoundConfig) format() KeyFormat {
	if c.Format == "" {
		return FormatEGo
	}
	return c.Format
}

// check refuses a configuration that cannot mean anything, or that would accept anyone by omission.
func (c *KeyBoundConfig) check(role Role) error {
	if c == nil {
		return fmt.Errorf("%w: nil KeyBoundConfig", ErrConfig)
	}
	if slices.Contains(c.NextProtos, alpn) {
		return fmt.Errorf("%w: ALPN %q names the channel-bound protocol, which this is not", ErrConfig, alpn)
	}
	if f := c.format(); f != FormatEGo && f != FormatOpenEnclave {
		return fmt.Errorf("%w: key format %q, want %q or %q", ErrConfig, f, FormatEGo, FormatOpenEnclave)
	}
	if role == RoleClient && c.Verify == nil && c.PeerKey == nil {
		return fmt.Errorf("%w: a client needs Verify or PeerKey, otherwise it would trust any server", ErrConfig)
	}
	if role == RoleServer && c.Verify == nil && c.Attest == nil {
		return fmt.Errorf("%w: a server needs Attest or Verify, otherwise nobody attests", ErrConfig)
	}
	if c.PeerOptional && c.PeerKey != nil && role == RoleServer {
		return fmt.Errorf("%w: PeerOptional with PeerKey: a client without a certificate has no key to compare", ErrConfig)
	}
	return nil
}
