package ratls

import (
	"context"
	"net"

	"github.com/claviger/claviger/attest"
)

// Peer is what a finished handshake established about the other side.
type Peer struct {
	Key        [32]byte         // SHA-256 of the peer's SubjectPublicKeyInfo
	Protocol   string           // what this channel was opened for
	Epoch      uint64           // the server's epoch, which both sides' evidence covers
	Evidence   Evidence         // as received and verified; zero where there was none
	ReportData [64]byte         // what Evidence is bound to; meaningless without Evidence
	Verified   *attest.Verified // proof; nil where no evidence was asked for or sent
}

// Conn is an attested channel. Its reads and writes are those of the TLS connection below. It has no method ConnectionState:
// with one, net/http would not serve HTTP/2 on it; see ConfigureServer.
type Conn struct {
	net.Conn
	peer Peer
}

// Peer says who is at the other end. The byte slices are shared: do not change them.
func (c *Conn) Peer() Peer { return c.peer }

type peerContextKey struct{}

// ConnContext is for http.Server's field of that name: it makes the peer of an attested channel available to handlers
// through FromContext. Connections of another kind add nothing.
func ConnContext(ctx context.Context, c net.Conn) context.Context {
	if conn, ok := c.(*Conn); ok {
		return NewContext(ctx, conn.peer)
	}
	return ctx
}

// NewContext returns a context that carries peer. Only code that terminated the channel may call it: FromContext's
// callers believe it.
func NewContext(ctx context.Context, peer Peer) context.Context {
	return context.WithValue(ctx, peerContextKey{}, peer)
}

// FromContext returns the peer of the attested channel that a request came in on; false where there was none.
func FromContext(ctx context.Context) (Peer, bool) {
	p, ok := ctx.Value(peerContextKey{}).(Peer)
	return p, ok
}
