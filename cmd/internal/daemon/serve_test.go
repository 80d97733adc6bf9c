package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// start serves a handler on a pipe listener inside a synctest bubble.
func start(t *testing.T, h http.Handler) (*pipes, func()) {
	t.Helper()
	l := newPipes()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- Serve(ctx, l, h, slog.New(slog.DiscardHandler)) }()
	return l, func() {
		cancel()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("Serve ended with %v", err)
		}
	}
}

// pipes is a listener of connections in memory, all from one address.
type pipes struct {
	conns chan net.Conn
	done  chan struct{}
}

func newPipes() *pipes { return &pipes{make(chan net.Conn), make(chan struct{})} }

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.done:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes", Net: "unix"} }

func (p *pipes) dial() net.Conn {
	ours, theirs := net.Pipe()
	p.conns <- theirs
	return ours
}

// TestSilentPeersAreCutOff: a connection that says nothing, one that stops within the header, one that stops within the body
// and one that never reads its answer all end, within the server's own bounds.
func TestSilentPeersAreCutOff(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		say  string
		read bool
		most time.Duration
	}{
		"silence":        {"", true, headerTimeout},
		"half a header":  {"GET / HTTP/1.1\r\nHo", true, headerTimeout},
		"half a body":    {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{", true, readTimeout},
		"a deaf reader":  {"GET / HTTP/1.1\r\nHost: a\r\n\r\n", false, writeTimeout},
		"idle afterward": {"GET /short HTTP/1.1\r\nHost: a\r\n\r\n", true, idleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				handled := make(chan struct{}, 1)
				l, stop := start(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					_, _ = io.Copy(io.Discard, r.Body)
					if r.URL.Path != "/short" {
						_, _ = w.Write(make([]byte, 1<<20))
					}
					handled <- struct{}{}
				}))
				defer stop()
				began := time.Now()
				c := l.dial()
				defer c.Close()
				go fmt.Fprint(c, tc.say)
				if tc.read {
					_, _ = io.Copy(io.Discard, c) // until the server hangs up
				} else {
					<-handled
				}
				if took := time.Since(began); took > tc.most+time.Second {
					t.Errorf("it lasted %v, want at most %v", took, tc.most)
				}
			})
		})
	}
}

// TestConnectionsAreBounded opens connections that say nothing, from one address and from many.
func TestConnectionsAreBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		l, stop := start(t, http.NotFoundHandler())
		defer stop()
		closed := func(c net.Conn) bool {
			_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
			_, err := c.Read(make([]byte, 1))
			return errors.Is(err, io.EOF)
		}
		var conns []net.Conn
		for range maxPerPeer {
			conns = append(conns, l.dial())
		}
		over := l.dial()
		if !closed(over) {
			t.Error("one address gets more connections than its share")
		}
		if closed(conns[0]) {
			t.Error("a connection within the share was closed")
		}
		conns[1].Close() // gives its place back
		synctest.Wait()
		c := l.dial()
		go fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != http.StatusNotFound {
			t.Fatalf("after one left: %v", err)
		}
		resp.Body.Close()
		for _, c := range append(conns, c, over) {
			c.Close()
		}
	})
}

func TestLimiter(t *testing.T) {
	t.Parallel()
	l := newLimiter(newPipes(), 3, 2)
	a, b := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("192.0.2.2")
	for i, tc := range []struct {
		peer netip.Addr
		want bool
	}{{a, true}, {a, true}, {a, false}, {b, true}, {b, false}} {
		if l.enter(tc.peer) != tc.want {
			t.Errorf("connection %d: want %v", i, tc.want)
		}
	}
	l.leave(a)
	if !l.enter(b) {
		t.Error("a place that was given back is not free")
	}
	for _, p := range []netip.Addr{a, b, b} {
		l.leave(p)
	}
	if l.open != 0 || len(l.peers) != 0 {
		t.Errorf("%d connections of %d peers are counted that are gone", l.open, len(l.peers))
	}
	for text, want := range map[string]string{
		"192.0.2.7:1": "192.0.2.7", "[::ffff:192.0.2.7]:1": "192.0.2.7", "[2001:db8:1:2:3::4]:9": "2001:db8:1:2::", "[::1]:3": "::1",
	} {
		at := net.TCPAddrFromAddrPort(netip.MustParseAddrPort(text))
		if got := addressOf(remote{addr: at}); got.String() != want {
			t.Errorf("%s counts as %s, want %s", text, got, want)
		}
	}
}

type remote struct {
	net.Conn
	addr net.Addr
}

func (r remote) RemoteAddr() net.Addr { return r.addr }
