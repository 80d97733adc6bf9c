package ratls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync/atomic"
	"time"
)

// HTTP limits that ConfigureServer and the transports set. What a peer can make us hold is bounded here, not by its good
// will: attested peers are enclaves, and enclaves have faults.
const (
	// MaxHTTPHeader bounds the header of a request or response, in bytes.
	MaxHTTPHeader = 16 << 10
	// MaxHTTPStreams bounds the HTTP/2 requests that one connection may have open at a time.
	MaxHTTPStreams = 64

	httpStreamWindow     = 64 << 10  // bytes of one request body that may wait for its handler
	httpConnectionWindow = 512 << 10 // and of all bodies on a connection
	httpFrame            = 16 << 10  // the smallest bound that HTTP/2 allows
	httpHeaderTimeout    = 5 * time.Second
	httpIdleTimeout      = 2 * time.Minute
	httpWriteTimeout     = 10 * time.Second // without a byte taken by the peer
	httpPing             = 30 * time.Second // of silence before a connection's life is checked
)

// ErrPlainHTTP says that a transport was given a URL whose scheme is not https: it would name a connection without evidence.
var ErrPlainHTTP = errors.New("ratls: attested transports take https URLs only")

// ConfigureServer prepares s to serve connections of a Listener, a KeyBoundListener, or both, in HTTP/1.1 and HTTP/2; serve
// with s.Serve, not ServeTLS. Handlers find the peer with FromContext or KeyBoundFromContext: one never answers for the other.
// Fields that are set already stay as they are, but ConnContext, which is called in addition.
//
// ALPN stays claviger/1 on a channel, whatever runs over it: the HTTP version is not negotiated in TLS. A client that speaks
// HTTP/2 begins with its connection preface (RFC 9113 section 3.4), as with prior knowledge, and net/http tells the two apart
// by it. Handlers see Request.TLS nil. On a key-bound connection ALPN decides, as everywhere else.
func ConfigureServer(s *http.Server) {
	if s.Protocols == nil {
		s.Protocols = new(http.Protocols)
		s.Protocols.SetHTTP1(true)
		s.Protocols.SetHTTP2(true)            // by ALPN, on *tls.Conn
		s.Protocols.SetUnencryptedHTTP2(true) // by preface, on *Conn: net/http does not know that there is TLS below
	}
	if s.HTTP2 == nil {
		s.HTTP2 = http2Config()
		s.HTTP2.MaxConcurrentStreams = MaxHTTPStreams
	}
	if s.MaxHeaderBytes == 0 {
		s.MaxHeaderBytes = MaxHTTPHeader
	}
	if s.ReadHeaderTimeout == 0 {
		s.ReadHeaderTimeout = httpHeaderTimeout
	}
	if s.IdleTimeout == 0 {
		s.IdleTimeout = httpIdleTimeout
	}
	next := s.ConnContext
	s.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if next != nil {
			ctx = next(ctx, c)
		}
		return KeyBoundConnContext(ConnContext(ctx, c), c)
	}
}

func http2Config() *http.HTTP2Config {
	return &http.HTTP2Config{
		MaxDecoderHeaderTableSize:     4 << 10,
		MaxReadFrameSize:              httpFrame,
		MaxReceiveBufferPerConnection: httpConnectionWindow,
		MaxReceiveBufferPerStream:     httpStreamWindow,
		SendPingTimeout:               httpPing,
		WriteByteTimeout:              httpWriteTimeout,
	}
}

// RequireChannelBound lets only requests through whose connection is channel-bound and whose peer is proved. Key-bound
// connections, plain ones, and channels of clients without evidence get 403.
func RequireChannelBound(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if peer, ok := FromContext(r.Context()); !ok || peer.Verified == nil {
			http.Error(w, "this needs evidence that is bound to the connection: use channel-bound attested TLS (ALPN claviger/1)", http.StatusForbidden)
			return
		}
		h.ServeHTTP(w, r)
	})
}

// Transport is an http.RoundTripper over attested connections, for https URLs. The server is proved by the dialer's
// configuration alone: the URL's host name is where to connect, and proves nothing. A connection is proved once, when it is
// opened; see Renew. It is safe for concurrent use.
type Transport struct {
	make    func() *http.Transport
	current atomic.Pointer[http.Transport]
}

func newTransport(dial func(ctx context.Context, network, addr string) (net.Conn, error), set func(*http.Protocols)) *Transport {
	t := &Transport{make: func() *http.Transport {
		protocols := new(http.Protocols)
		set(protocols)
		return pool(dial, protocols)
	}}
	t.current.Store(t.make())
	return t
}

// RoundTrip sends a request; see http.RoundTripper.
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	return t.current.Load().RoundTrip(req)
}

// Renew gives up every connection: requests that begin after it returns go over connections that are proved after it was
// called. Requests under way finish. CloseIdleConnections would not do: it leaves busy connections in the pool, and one
// HTTP/2 connection can stay busy for ever.
func (t *Transport) Renew() { t.current.Swap(t.make()).CloseIdleConnections() }

// CloseIdleConnections is for http.Client's method of that name: it frees what is not in use.
func (t *Transport) CloseIdleConnections() { t.current.Load().CloseIdleConnections() }

// DialFunc opens a channel. It is for callers that configure each one anew, as a client does that learns of its servers
// as it goes; a Dialer is for one configuration. That it returns a *Conn keeps other connections out.
type DialFunc func(ctx context.Context, network, addr string) (*Conn, error)

func (f DialFunc) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := f(ctx, network, addr)
	if err != nil {
		return nil, err // not c: a nil *Conn in the interface would look like a connection
	}
	return c, nil
}

// HTTP1Transport sends HTTP/1.1 over channels that f opens, one request at a time on each.
func (f DialFunc) HTTP1Transport() *Transport {
	return newTransport(f.dial, func(p *http.Protocols) { p.SetHTTP1(true) })
}

// HTTP2Transport sends HTTP/2 over channels that f opens: all requests to one address share a connection. The server must be
// prepared as ConfigureServer does it; there is no fallback to HTTP/1.1.
func (f DialFunc) HTTP2Transport() *Transport {
	// Unencrypted to net/http, which does not know that there is TLS below.
	return newTransport(f.dial, func(p *http.Protocols) { p.SetUnencryptedHTTP2(true) })
}

// HTTP1Transport is DialFunc's, over channels of d.Config.
func (d *Dialer) HTTP1Transport() *Transport { return DialFunc(d.dial).HTTP1Transport() }

// HTTP2Transport is DialFunc's, over channels of d.Config.
func (d *Dialer) HTTP2Transport() *Transport { return DialFunc(d.dial).HTTP2Transport() }

// HTTPTransport sends HTTP over key-bound connections: HTTP/2 where the server and the configuration's NextProtos agree on
// it, HTTP/1.1 else.
func (d *KeyBoundDialer) HTTPTransport() *Transport {
	return newTransport(d.DialContext, func(p *http.Protocols) { p.SetHTTP1(true); p.SetHTTP2(true) })
}

// pool is a transport whose connections are attested, whatever the URL says.
func pool(dial func(ctx context.Context, network, addr string) (net.Conn, error), protocols *http.Protocols) *http.Transport {
	return &http.Transport{
		// No Proxy: the host's environment must not choose one.
		DialTLSContext: dial,
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			return nil, fmt.Errorf("%w: %s", ErrPlainHTTP, addr)
		},
		Protocols:              protocols,
		HTTP2:                  http2Config(),
		DisableCompression:     true, // sizes of compressed secrets speak
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: MaxHTTPHeader,
	}
}
