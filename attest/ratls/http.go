package ratls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
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

// HTTP1Transport returns an http.RoundTripper that sends HTTP/1.1 over attested channels, one request at a time on each, for
// https URLs. The server is proved by d.Config alone: the URL's host name is where to connect, and proves nothing. A
// connection is proved once, when it is opened; CloseIdleConnections makes the next request prove the server anew.
func (d *Dialer) HTTP1Transport() *http.Transport {
	t := transport(d.DialContext)
	t.Protocols.SetHTTP1(true)
	return t
}

// HTTP2Transport is HTTP1Transport with HTTP/2: all requests to one address share a connection. The server must be prepared
// as ConfigureServer does it; there is no fallback to HTTP/1.1.
func (d *Dialer) HTTP2Transport() *http.Transport {
	t := transport(d.DialContext)
	t.Protocols.SetUnencryptedHTTP2(true) // unencrypted to net/http, which does not know that there is TLS below
	return t
}

// HTTPTransport returns an http.RoundTripper that sends HTTP over key-bound connections, for https URLs: HTTP/2 where the
// server and the configuration's NextProtos agree on it, HTTP/1.1 else.
func (d *KeyBoundDialer) HTTPTransport() *http.Transport {
	t := transport(d.DialContext)
	t.Protocols.SetHTTP1(true)
	t.Protocols.SetHTTP2(true)
	return t
}

func transport(dial func(ctx context.Context, network, addr string) (net.Conn, error)) *http.Transport {
	return &http.Transport{
		// No Proxy: the host's environment must not choose one.
		DialTLSContext: dial,
		DialContext: func(_ context.Context, _, addr string) (net.Conn, error) {
			return nil, fmt.Errorf("%w: %s", ErrPlainHTTP, addr)
		},
		Protocols:              new(http.Protocols),
		HTTP2:                  http2Config(),
		DisableCompression:     true, // sizes of compressed secrets speak
		MaxIdleConns:           64,
		MaxIdleConnsPerHost:    16,
		IdleConnTimeout:        time.Minute,
		MaxResponseHeaderBytes: MaxHTTPHeader,
	}
}
