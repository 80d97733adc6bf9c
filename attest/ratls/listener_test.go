package ratls

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest"
)

// pipes is a net.Listener over net.Pipe, so that synctest sees every goroutine and owns the clock.
type pipes struct {
	conns  chan net.Conn
	errs   chan error
	closed chan struct{}
	once   sync.Once
}

func newPipes() *pipes {
	return &pipes{conns: make(chan net.Conn), errs: make(chan error), closed: make(chan struct{})}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case err := <-p.errs:
		return nil, err
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipes"} }

// connect returns the far end of a connection that the listener accepted.
func (p *pipes) connect() net.Conn {
	near, far := net.Pipe()
	p.conns <- near
	return far
}

// Silent peers occupy every slot: the listener runs no handshake more, lets them go when their time is over, and then serves
// an honest one that has waited. Close ends everything: synctest fails the test if a goroutine remains.
func TestListenerBoundsHandshakes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		inner := newPipes()
		cfg := serverConfig(b, "node")
		cfg.MaxHandshakes, cfg.MaxPerAddress, cfg.HandshakeTimeout = 2, 2, 5*time.Second
		var refused atomic.Int32
		cfg.OnRefused = func(_ net.Addr, err error) {
			if !errors.Is(err, ErrTimeout) || errors.Is(err, ErrCrowded) {
				t.Errorf("refused with %v", err)
			}
			refused.Add(1)
		}
		l := NewListener(inner, cfg)
		for range 2 {
			far := inner.connect()
			go io.Copy(io.Discard, far)
		}
		synctest.Wait()
		start, far := time.Now(), inner.connect()
		go func() {
			conn, err := l.Accept()
			if err != nil {
				t.Error(err)
				return
			}
			conn.Write([]byte("k"))
			conn.Close()
		}()
		client, err := Client(context.Background(), far, clientConfig(b, "app"))
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != DefaultTLSTimeout {
			t.Errorf("slots were freed after %v", d)
		}
		if _, err := io.ReadFull(client, make([]byte, 1)); err != nil {
			t.Error(err)
		}
		client.Close()
		l.Close()
		if refused.Load() != 2 {
			t.Errorf("%d refusals reported, want 2", refused.Load())
		}
	})
}

// Close with everything in flight: a blocked Accept, a handshake under way, a finished channel that nobody accepted.
func TestListenerClose(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		inner := newPipes()
		l := NewListener(inner, serverConfig(b, "node"))
		silent := inner.connect()
		go io.Copy(io.Discard, silent)
		client, err := Client(context.Background(), inner.connect(), clientConfig(b, "app"))
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		if err := l.Close(); err != nil {
			t.Error("second Close:", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("Accept after Close: %v", err)
		}
		if _, err := client.Read(make([]byte, 1)); err == nil {
			t.Error("a channel that nobody accepted stayed open")
		}
		client.Close()

		waiting := NewListener(newPipes(), serverConfig(b, "node"))
		go func() {
			time.Sleep(time.Second)
			waiting.Close()
		}()
		if _, err := waiting.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("blocked Accept: %v", err)
		}
	})
}

type temporary struct{ error }

func (temporary) Temporary() bool { return true }

// A shortage of descriptors passes; a listener that fails for good says so in Accept.
func TestListenerAcceptErrors(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		inner := newPipes()
		l := NewListener(inner, serverConfig(b, "node"))
		inner.errs <- temporary{errors.New("too many open files")}
		inner.errs <- temporary{errors.New("too many open files")}
		broken := errors.New("broken")
		inner.errs <- broken
		if _, err := l.Accept(); !errors.Is(err, broken) {
			t.Errorf("got %v", err)
		}
		l.Close()
	})
}

// A panic while judging one peer's bytes costs that peer its connection and nobody else anything.
func TestListenerSurvivesPanic(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	cfg := serverConfig(b, "node")
	var first atomic.Bool
	cfg.Verify = func(ctx context.Context, h Hello, ev Evidence) (*attest.Verified, error) {
		if first.CompareAndSwap(false, true) {
			panic("a parser's fault")
		}
		return b.verify(ctx, h, ev)
	}
	reported := make(chan error, 1)
	cfg.OnRefused = func(_ net.Addr, err error) { reported <- err }
	l := NewListener(loopback(t), cfg)
	t.Cleanup(func() { l.Close() })
	if _, err := Client(t.Context(), dial(t, l.Addr().String()), clientConfig(b, "app")); err == nil {
		t.Fatal("a handshake that panicked succeeded")
	}
	if err := <-reported; !strings.Contains(err.Error(), "a parser's fault") {
		t.Errorf("reported: %v", err)
	}
	if _, err := Client(t.Context(), dial(t, l.Addr().String()), clientConfig(b, "app")); err != nil {
		t.Fatal("the listener did not survive:", err)
	}
}

// HTTP over the channel: the handler sees who asks, connections are reused, and each of them attested.
func TestHTTP(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	l := NewListener(loopback(t), serverConfig(b, "node"))
	server := &http.Server{ConnContext: ConnContext, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		peer, ok := FromContext(r.Context())
		if !ok || peer.Verified == nil {
			http.Error(w, "no peer", http.StatusForbidden)
			return
		}
		fmt.Fprintf(w, "%x", peer.ReportData)
	})}
	go server.Serve(l)
	t.Cleanup(func() { server.Close() })

	var dials atomic.Int32
	d := &Dialer{Config: clientConfig(b, "app"), Net: func(ctx context.Context, network, addr string) (net.Conn, error) {
		dials.Add(1)
		return (&net.Dialer{}).DialContext(ctx, network, addr)
	}}
	transport := &http.Transport{DialTLSContext: d.DialContext}
	t.Cleanup(transport.CloseIdleConnections)
	client := &http.Client{Transport: transport}
	var answers []string
	for range 2 {
		res, err := client.Get("https://" + l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK || len(body) != 128 {
			t.Fatalf("%s %q %v", res.Status, body, err)
		}
		answers = append(answers, string(body))
	}
	if dials.Load() != 1 || answers[0] != answers[1] {
		t.Errorf("%d connections for two requests", dials.Load())
	}
	transport.CloseIdleConnections()
	res, err := client.Get("https://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(res.Body)
	res.Body.Close()
	if dials.Load() != 2 || string(body) == answers[0] {
		t.Error("a new connection did not attest anew")
	}
}

func TestContextWithoutChannel(t *testing.T) {
	t.Parallel()
	near, _ := net.Pipe()
	if _, ok := FromContext(ConnContext(context.Background(), near)); ok {
		t.Error("a plain connection has a peer")
	}
	// A refused server must not look like a connection through the interface.
	d := &Dialer{Config: clientConfig(newBed(t), "app"), Net: func(context.Context, string, string) (net.Conn, error) {
		c, far := net.Pipe()
		far.Close()
		return c, nil
	}}
	if c, err := d.DialContext(t.Context(), "tcp", "nowhere"); c != nil || err == nil {
		t.Errorf("got %v, %v", c, err)
	}
}
