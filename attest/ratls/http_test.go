package ratls

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// whoAsks answers with the HTTP version and with what is known of the client.
func whoAsks(w http.ResponseWriter, r *http.Request) {
	fmt.Fprint(w, r.Proto, " ")
	if p, ok := FromContext(r.Context()); ok && p.Verified != nil {
		fmt.Fprintf(w, "channel-bound for %s", p.Protocol)
	}
	if p, ok := KeyBoundFromContext(r.Context()); ok {
		fmt.Fprint(w, "key-bound ")
		if p.Verified == nil {
			fmt.Fprint(w, "without proof")
		} else {
			fmt.Fprint(w, "as ", p.Format)
		}
	}
}

// serveHTTP serves whoAsks on l, and bigger things below /.
func serveHTTP(t *testing.T, l net.Listener) *http.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/", whoAsks)
	mux.Handle("/required", RequireChannelBound(http.HandlerFunc(whoAsks)))
	mux.HandleFunc("/big", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Big", strings.Repeat("x", 2*MaxHTTPHeader))
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) { io.Copy(w, r.Body) })
	mux.HandleFunc("/stream", func(w http.ResponseWriter, r *http.Request) {
		c := http.NewResponseController(w)
		c.EnableFullDuplex()
		c.Flush()
		io.Copy(w, r.Body)
	})
	s := &http.Server{Handler: mux}
	ConfigureServer(s)
	go s.Serve(l)
	t.Cleanup(func() { s.Close(); l.Close() })
	return s
}

// counted counts the connections that d opens.
func counted(d *Dialer) *atomic.Int32 {
	n := new(atomic.Int32)
	d.Net = func(ctx context.Context, network, addr string) (net.Conn, error) {
		n.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}
	return n
}

// Both HTTP versions over channels of one server; HTTP/2 needs one connection for many requests at a time.
func TestHTTPVersions(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l := NewListener(loopback(t), serverConfig(b, "node"))
	serveHTTP(t, l)
	url := "https://" + l.Addr().String()
	d1, d2 := &Dialer{Config: clientConfig(b, "app")}, &Dialer{Config: clientConfig(b, "app")}
	if got := get(t, d1.HTTP1Transport(), url); got != "HTTP/1.1 channel-bound for app/1" {
		t.Error(got)
	}
	conns, transport := counted(d2), d2.HTTP2Transport()
	if got := get(t, transport, url+"/required"); got != "HTTP/2.0 channel-bound for app/1" {
		t.Error(got)
	}
	payload := bytes.Repeat([]byte("claviger"), 32<<10) // four stream windows
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			res, err := (&http.Client{Transport: transport}).Post(url+"/echo", "application/octet-stream", bytes.NewReader(payload))
			if err != nil {
				t.Error(err)
				return
			}
			defer res.Body.Close()
			if got, err := io.ReadAll(res.Body); err != nil || !bytes.Equal(got, payload) {
				t.Errorf("%d bytes of %d came back: %v", len(got), len(payload), err)
			}
		})
	}
	wg.Wait()
	if conns.Load() != 1 {
		t.Errorf("%d connections for 17 requests", conns.Load())
	}
}

// After Renew every request goes over a connection that was proved since, even while the old one is busy; and what is under
// way finishes.
func TestRenew(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l := NewListener(loopback(t), serverConfig(b, "node"))
	serveHTTP(t, l)
	url := "https://" + l.Addr().String()
	for name, of := range map[string]func(*Dialer) *Transport{"HTTP/1.1": (*Dialer).HTTP1Transport, "HTTP/2": (*Dialer).HTTP2Transport} {
		d := &Dialer{Config: clientConfig(b, "app")}
		conns, transport := counted(d), of(d)
		body, feed := io.Pipe()
		res, err := transport.RoundTrip(must(http.NewRequestWithContext(t.Context(), http.MethodPost, url+"/stream", body)))
		if err != nil {
			t.Fatal(err)
		}
		transport.Renew()
		if get(t, transport, url); conns.Load() != 2 {
			t.Errorf("%s: %d connections after Renew, want a second", name, conns.Load())
		}
		go func() { feed.Write([]byte("late")); feed.Close() }()
		if got, err := io.ReadAll(res.Body); err != nil || string(got) != "late" {
			t.Errorf("%s: the request under way got %q, %v", name, got, err)
		}
		res.Body.Close()
	}
}

// A URL without https names no attested connection, whatever the version.
func TestPlainURLs(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	d := &Dialer{Config: clientConfig(b, "app")}
	k := must(NewKeyBoundDialer(t.Context(), keyConfig(b, "app")))
	plain := loopback(t)
	for name, transport := range map[string]*Transport{"HTTP/1.1": d.HTTP1Transport(), "HTTP/2": d.HTTP2Transport(), "key-bound": k.HTTPTransport()} {
		if _, err := (&http.Client{Transport: transport}).Get("http://" + plain.Addr().String()); !errors.Is(err, ErrPlainHTTP) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Headers are bounded on both sides, in both versions.
func TestHTTPHeaderBounds(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l := NewListener(loopback(t), serverConfig(b, "node"))
	serveHTTP(t, l)
	url := "https://" + l.Addr().String()
	d := &Dialer{Config: clientConfig(b, "app")}
	for name, transport := range map[string]*Transport{"HTTP/1.1": d.HTTP1Transport(), "HTTP/2": d.HTTP2Transport()} {
		t.Cleanup(transport.CloseIdleConnections)
		client := &http.Client{Transport: transport}
		if res, err := client.Get(url + "/big"); err == nil {
			res.Body.Close()
			t.Errorf("%s: a response header of %d bytes was taken", name, 2*MaxHTTPHeader)
		}
		req := must(http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil))
		req.Header.Set("X-Big", strings.Repeat("x", 3*MaxHTTPHeader))
		res, err := client.Do(req)
		if err == nil {
			res.Body.Close()
			if res.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Errorf("%s: a request header of %d bytes: %s", name, 3*MaxHTTPHeader, res.Status)
			}
		}
	}
}

// h2Frame is a frame of RFC 9113 section 4.1.
func h2Frame(kind, flags byte, stream uint32, payload []byte) []byte {
	n := len(payload)
	out := []byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}
	return append(binary.BigEndian.AppendUint32(out, stream), payload...)
}

// A client that ignores the server's bound on streams has those beyond it refused: 100 requests at once, to a handler that
// answers none, speaking HTTP/2 by hand.
func TestHTTP2StreamBound(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l := NewListener(loopback(t), serverConfig(b, "node"))
	var running atomic.Int32
	release := make(chan struct{})
	s := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) { running.Add(1); <-release })}
	ConfigureServer(s)
	go s.Serve(l)
	t.Cleanup(func() { close(release); s.Close(); l.Close() })
	conn, err := Client(t.Context(), dial(t, l.Addr().String()), clientConfig(b, "app"))
	if err != nil {
		t.Fatal(err)
	}
	const streams = 100
	out := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), h2Frame(4, 0, 0, nil)...)
	get := append([]byte{0x82, 0x84, 0x87, 0x41, 4}, "node"...) // RFC 7541: GET, /, https, :authority
	for i := range uint32(streams) {
		out = append(out, h2Frame(1, 5, 2*i+1, get)...)
	}
	go conn.Write(out)
	announced, refused := uint32(0), 0
	head := make([]byte, 9)
	for refused < streams-MaxHTTPStreams {
		if _, err := io.ReadFull(conn, head); err != nil {
			t.Fatalf("%d streams refused, then: %v", refused, err)
		}
		payload := make([]byte, binary.BigEndian.Uint32(append([]byte{0}, head[:3]...)))
		if _, err := io.ReadFull(conn, payload); err != nil {
			t.Fatal(err)
		}
		switch head[3] {
		case 3: // RST_STREAM, REFUSED_STREAM or PROTOCOL_ERROR
			if code := binary.BigEndian.Uint32(payload); code != 7 && code != 1 {
				t.Errorf("stream reset with code %d", code)
			}
			refused++
		case 4: // SETTINGS, of which 3 is MAX_CONCURRENT_STREAMS
			for ; len(payload) >= 6; payload = payload[6:] {
				if binary.BigEndian.Uint16(payload) == 3 {
					announced = binary.BigEndian.Uint32(payload[2:])
				}
			}
		}
	}
	if announced != MaxHTTPStreams || running.Load() > MaxHTTPStreams {
		t.Errorf("announced %d streams, ran %d, want %d", announced, running.Load(), MaxHTTPStreams)
	}
	conn.Close()
}

// The server keeps what its owner set, and calls the owner's ConnContext too.
func TestConfigureServerKeeps(t *testing.T) {
	t.Parallel()
	type key struct{}
	s := &http.Server{MaxHeaderBytes: 4096, HTTP2: &http.HTTP2Config{MaxConcurrentStreams: 3}, Protocols: new(http.Protocols),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context { return context.WithValue(ctx, key{}, true) }}
	ConfigureServer(s)
	near, _ := net.Pipe()
	ctx := s.ConnContext(context.Background(), near)
	if ctx.Value(key{}) != true || s.MaxHeaderBytes != 4096 || s.HTTP2.MaxConcurrentStreams != 3 || s.Protocols.HTTP1() {
		t.Error("ConfigureServer overrides its caller")
	}
	zero := new(http.Server)
	ConfigureServer(zero)
	if zero.HTTP2.MaxConcurrentStreams != MaxHTTPStreams || zero.MaxHeaderBytes != MaxHTTPHeader || zero.ReadHeaderTimeout == 0 || zero.IdleTimeout == 0 {
		t.Error("a server without bounds")
	}
}

// A caller finds out who answered it, in both versions, as the standard library lets it.
func TestHTTPTrace(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l := NewListener(loopback(t), serverConfig(b, "node"))
	serveHTTP(t, l)
	d := &Dialer{Config: clientConfig(b, "app")}
	for name, transport := range map[string]*Transport{"HTTP/1.1": d.HTTP1Transport(), "HTTP/2": d.HTTP2Transport()} {
		t.Cleanup(transport.CloseIdleConnections)
		for range 2 { // a new connection and a pooled one
			var peer Peer
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
				if conn, ok := info.Conn.(*Conn); ok {
					peer = conn.Peer()
				}
			}})
			res, err := transport.RoundTrip(must(http.NewRequestWithContext(ctx, http.MethodGet, "https://"+l.Addr().String(), nil)))
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			if peer.Verified == nil {
				t.Errorf("%s: the trace does not lead to the peer", name)
			}
		}
	}
}
