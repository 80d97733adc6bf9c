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

// Limits. Every number a peer can influence has its bound here.
const (
	// MaxEvidence bounds quote, collateral and attachment of one side together, in bytes.
	MaxEvidence = 256 << 10
	// MaxProtocol bounds the name of a protocol, in bytes.
	MaxProtocol = 64
	// DefaultHandshakeTimeout bounds a whole handshake, TLS and evidence, where Config does not.
	DefaultHandshakeTimeout = 10 * time.Second
	// DefaultTLSTimeout bounds TLS alone on the server's side, from the first byte of the client on, where Config does not.
	// Nothing in it waits for anything but the network and the peer.
	DefaultTLSTimeout = 2 * time.Second
	// DefaultMaxHandshakes bounds the handshakes a Listener runs at once where Config does not.
	DefaultMaxHandshakes = 64
)

// Role names the two ends of a channel; it is part of the report data.
type Role string

// The two roles.
const (
	RoleClient Role = "client"
	RoleServer Role = "server"
)

// Evidence is what one side sends about itself. A Quote of zero length means no evidence; then the rest is empty too.
type Evidence struct {
	Quote      []byte // raw quote, its report data bound to the channel
	Collateral []byte // a bundle as attest.ParseCollateral reads it, or empty where the verifier has its own
	Attachment []byte // opaque to this package; authenticated by the channel, not by the quote
}

func (e Evidence) size() int { return len(e.Quote) + len(e.Collateral) + len(e.Attachment) }

func (e Evidence) clone() Evidence {
	return Evidence{slices.Clone(e.Quote), slices.Clone(e.Collateral), slices.Clone(e.Attachment)}
}

// Hello is what is known of a peer when its evidence is judged.
type Hello struct {
	Role       Role     // the peer's role
	Protocol   string   // what will run over the channel
	ClusterID  [32]byte // as pinned by the client, equal to the server's
	Epoch      uint64   // the server's epoch
	PeerKey    [32]byte // SHA-256 of the peer's SubjectPublicKeyInfo; its possession is proved
	ReportData [64]byte // what the peer's quote must carry
}

// Config says how to run a handshake. It must not change while in use. The zero Config is refused.
type Config struct {
	// Protocols that may run over the channel. A client names exactly one; a server refuses what it does not list.
	Protocols []string
	// ClusterID of the server; the client's must be equal.
	ClusterID [32]byte
	// Epoch is, for a server, the epoch that it serves; for a client, the lowest that it accepts.
	Epoch uint64
	// Key of this side's leaf, P-256. Nil means a fresh one: per Client and Server call, and one for the life of a Listener
	// or Dialer.
	Key *ecdsa.PrivateKey
	// PeerKey, where set, is SHA-256 of the SubjectPublicKeyInfo that the peer must present.
	PeerKey *[32]byte

	// Attest produces this side's evidence, a quote over exactly reportData. Nil: this side has none.
	Attest func(ctx context.Context, reportData [64]byte) (Evidence, error)
	// Verify judges the peer's evidence and returns the proof. It need not compare report data: this package does, on the
	// proof's claims. An error refuses the peer, which is told the error's text; a *RefusedError chooses text and code.
	// Nil: no evidence is asked of the peer; a client then must set PeerKey, since it would trust anyone.
	Verify func(ctx context.Context, hello Hello, ev Evidence) (*attest.Verified, error)
	// PeerOptional lets a server accept a client that sends no evidence: Peer.Verified is nil then. Evidence that is sent must
	// verify all the same. A client ignores it.
	PeerOptional bool

	// HandshakeTimeout bounds TLS, evidence and verification together. Zero means DefaultHandshakeTimeout.
	HandshakeTimeout time.Duration
	// TLSTimeout bounds TLS alone, on a server: a client that connects and is silent is let go after it. Zero means
	// DefaultTLSTimeout. HandshakeTimeout, where it is shorter, comes first.
	TLSTimeout time.Duration
	// MaxHandshakes bounds the handshakes that a Listener runs at once. Zero means DefaultMaxHandshakes.
	MaxHandshakes int
	// MaxPerAddress bounds, of those, the ones with one remote address (for IPv6: one /64). Zero means a quarter of
	// MaxHandshakes, and at least one.
	MaxPerAddress int
	// OnRefused, where set, is told of each inbound connection that a Listener turned away. It must not block.
	OnRefused func(remote net.Addr, err error)
}

func (c *Config) timeout() time.Duration {
	if c.HandshakeTimeout > 0 {
		return c.HandshakeTimeout
	}
	return DefaultHandshakeTimeout
}

func orDefault(d, otherwise time.Duration) time.Duration {
	if d > 0 {
		return d
	}
	return otherwise
}

// check refuses a configuration that cannot mean anything, or that would accept anyone by omission.
func (c *Config) check(role Role) error {
	if c == nil {
		return fmt.Errorf("%w: nil Config", ErrConfig)
	}
	if len(c.Protocols) == 0 {
		return fmt.Errorf("%w: Protocols is empty", ErrConfig)
	}
	for _, p := range c.Protocols {
		if p == "" || len(p) > MaxProtocol {
			return fmt.Errorf("%w: protocol %q must have 1 to %d bytes", ErrConfig, p, MaxProtocol)
		}
	}
	if role == RoleServer {
		return nil
	}
	if len(c.Protocols) != 1 {
		return fmt.Errorf("%w: a client names exactly one protocol, not %d", ErrConfig, len(c.Protocols))
	}
	if c.Verify == nil && c.PeerKey == nil {
		return fmt.Errorf("%w: a client needs Verify or PeerKey, otherwise it would trust any server", ErrConfig)
	}
	return nil
}
