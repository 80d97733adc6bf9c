package ratls

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest"
)

// fromAddress is a connection that says where it comes from.
type fromAddress struct {
	net.Conn
	remote string
}

type textAddr string

func (a textAddr) Network() string { return "tcp" }
func (a textAddr) String() string  { return string(a) }

func (c fromAddress) RemoteAddr() net.Addr { return textAddr(c.remote) }

func (p *pipes) connectFrom(remote string) net.Conn {
	near, far := net.Pipe()
	p.conns <- fromAddress{near, remote}
	return far
}

// refusals collects what a listener reports.
type refusals struct {
	mu   sync.Mutex
	list []error
}

func (r *refusals) add(_ net.Addr, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, err)
}

func (r *refusals) count(target error) (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, err := range r.list {
		if errors.Is(err, target) {
			n++
		}
	}
	return n
}

// inTime lets certificates be valid in a bubble, whose clock begins in the year 2000.
func inTime(c *KeyBoundConfig) *KeyBoundConfig {
	c.Time = func() time.Time { return time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC) }
	return c
}

// accepting accepts and closes until the listener ends.
func accepting(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go c.Close()
	}
}

// The attack: one address opens as many silent connections as it can, and again as soon as they are closed. Others must not
// notice, in either mode.
func TestOneAddressCannotTakeAllHandshakes(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	for mode, start := range map[string]func(net.Listener, *refusals) net.Listener{
		"channel-bound": func(inner net.Listener, r *refusals) net.Listener {
			cfg := serverConfig(b, "node")
			cfg.MaxHandshakes, cfg.OnRefused = 8, r.add
			return NewListener(inner, cfg)
		},
		"key-bound": func(inner net.Listener, r *refusals) net.Listener {
			cfg := inTime(keyConfig(b, "node"))
			cfg.MaxHandshakes, cfg.OnRefused = 8, r.add
			return must(NewKeyBoundListener(context.Background(), inner, cfg))
		},
	} {
		synctest.Test(t, func(t *testing.T) {
			inner, r := newPipes(), &refusals{}
			l := start(inner, r)
			go accepting(l)
			const flood = 50
			for range flood {
				go io.Copy(io.Discard, inner.connectFrom("203.0.113.7:4000"))
			}
			synctest.Wait()
			if got, want := r.count(ErrCrowded), flood-4*8; got != want {
				t.Errorf("%s: %d of %d connections were turned away at once, want %d", mode, got, flood, want)
			}
			begin := time.Now()
			far := inner.connectFrom("198.51.100.1:4000")
			var err error
			if mode == "channel-bound" {
				_, err = Client(context.Background(), far, clientConfig(b, "app"))
			} else {
				_, err = must(newKeyBound(context.Background(), inTime(keyConfig(b, "app")), RoleClient)).handshake(context.Background(), far)
			}
			if err != nil || time.Since(begin) != 0 {
				t.Errorf("%s: an honest peer at another address, after %v: %v", mode, time.Since(begin), err)
			}
			// Two at a time are let go after the time for TLS, the rest when their patience is over.
			time.Sleep(DefaultTLSTimeout)
			synctest.Wait()
			if got := r.count(ErrTimeout); got != 2 {
				t.Errorf("%s: %d silent connections were let go after %v, want the 2 of one address", mode, got, DefaultTLSTimeout)
			}
			time.Sleep(DefaultHandshakeTimeout + DefaultTLSTimeout)
			synctest.Wait()
			if got := r.count(ErrTimeout); got != 4*8 {
				t.Errorf("%s: %d silent connections were let go in the end, want %d", mode, got, 4*8)
			}
			l.Close()
		})
	}
}

// A peer that sends a byte now and then is no better than a silent one.
func TestSlowClientHello(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		near, far := net.Pipe()
		go io.Copy(io.Discard, far)
		var peer sync.WaitGroup
		peer.Go(func() {
			for _, c := range []byte{22, 3, 1, 2, 0, 1, 0, 1, 252, 3, 3} {
				time.Sleep(400 * time.Millisecond)
				if _, err := far.Write([]byte{c}); err != nil {
					return
				}
			}
		})
		cfg := serverConfig(b, "node")
		cfg.TLSTimeout = 3 * time.Second
		start := time.Now()
		if _, err := Server(context.Background(), near, cfg); !errors.Is(err, ErrTimeout) || time.Since(start) != cfg.TLSTimeout {
			t.Errorf("after %v: %v", time.Since(start), err)
		}
		far.Close()
		peer.Wait()
	})
}

// What takes long on our side, fetching collateral for example, is not the peer's to answer for.
func TestVerifyMayTakeLongerThanTLS(t *testing.T) {
	t.Parallel()
	b := newBed(t)
	synctest.Test(t, func(t *testing.T) {
		inner, r := newPipes(), &refusals{}
		cfg := serverConfig(b, "node")
		cfg.OnRefused = r.add
		cfg.Verify = func(ctx context.Context, h Hello, ev Evidence) (*attest.Verified, error) {
			time.Sleep(5 * time.Second)
			return b.verify(ctx, h, ev)
		}
		l := NewListener(inner, cfg)
		go accepting(l)
		if _, err := Client(context.Background(), inner.connect(), clientConfig(b, "app")); err != nil {
			t.Error("channel-bound:", err)
		}
		l.Close()

		inner = newPipes()
		key := inTime(keyConfig(b, "node"))
		key.OnRefused = r.add
		key.Verify = func(ctx context.Context, h KeyBoundHello, quote []byte) (*attest.Verified, error) {
			time.Sleep(5 * time.Second)
			return b.keyVerify(ctx, h, quote)
		}
		k := must(NewKeyBoundListener(context.Background(), inner, key))
		accepted := make(chan error, 1)
		go func() {
			c, err := k.Accept()
			if err == nil {
				c.Close()
			}
			accepted <- err
		}()
		c, err := must(newKeyBound(context.Background(), inTime(keyConfig(b, "app")), RoleClient)).handshake(context.Background(), inner.connect())
		if err != nil {
			t.Error("key-bound:", err)
		} else {
			go io.Copy(io.Discard, c)
			if err := <-accepted; err != nil {
				t.Error("key-bound:", err)
			}
		}
		k.Close()
		if len(r.list) != 0 {
			t.Errorf("refused: %v", r.list)
		}
	})
}

func TestOrigin(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"203.0.113.7:1":               "203.0.113.7",
		"203.0.113.7:65535":           "203.0.113.7",
		"[::ffff:203.0.113.7]:1":      "203.0.113.7",
		"[2001:db8:1:2:3:4:5:6]:1":    "2001:db8:1:2::/64",
		"[2001:db8:1:2:ffff::1]:9":    "2001:db8:1:2::/64",
		"[2001:db8:1:3::1]:1":         "2001:db8:1:3::/64",
		"[fe80::1%eth0]:1":            "fe80::/64",
		"pipe":                        "pipe",
		"":                            "",
		"host.example:443":            "host.example:443",
		"[2001:db8:1:2:3:4:5:6%x]:77": "2001:db8:1:2::/64",
	} {
		if got := origin(textAddr(in)); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := origin(nil); got != "" {
		t.Errorf("no address: %q", got)
	}
}

func TestCrowdForgets(t *testing.T) {
	t.Parallel()
	c := newCrowd(newLimits(1, 0, time.Second))
	for range 4 {
		if _, ok := c.enter("a"); !ok {
			t.Fatal("turned away too early")
		}
	}
	if _, ok := c.enter("a"); ok {
		t.Fatal("one address has all places")
	}
	if _, ok := c.enter("b"); !ok {
		t.Fatal("another address is turned away")
	}
	for range 4 {
		c.leave("a")
	}
	c.leave("b")
	if len(c.from) != 0 {
		t.Fatalf("%d addresses are remembered", len(c.from))
	}
}
