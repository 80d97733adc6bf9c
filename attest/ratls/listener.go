package ratls

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"sync"
	"time"
)

// Listener accepts attested channels. Handshakes run in a bounded number of goroutines, so that a slow or silent peer delays
// nobody until the bound is reached; connections beyond it wait in the kernel.
//
// Accept returns finished *Conn values only. Close stops everything and waits for it.
type Listener struct {
	inner  net.Listener
	cfg    *Config
	leaf   *leaf
	ctx    context.Context
	cancel context.CancelFunc
	slots  chan struct{}
	done   chan *Conn     // finished handshakes, unbuffered: a channel nobody accepts keeps its slot
	failed chan struct{}  // closed when accepting ended by itself
	cause  error          // why; read after failed is closed
	wg     sync.WaitGroup // the accepting goroutine and all handshakes
}

// NewListener starts accepting on inner, which it owns from now on. A Config that cannot be used shows in the first Accept.
func NewListener(inner net.Listener, cfg *Config) *Listener {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Listener{
		inner: inner, cfg: cfg, ctx: ctx, cancel: cancel,
		done: make(chan *Conn), failed: make(chan struct{}),
	}
	if err := l.prepare(); err != nil {
		l.cause = err
		close(l.failed)
		return l
	}
	l.wg.Go(l.accept)
	return l
}

func (l *Listener) prepare() (err error) {
	if err := l.cfg.check(RoleServer); err != nil {
		return err
	}
	n := l.cfg.MaxHandshakes
	if n <= 0 {
		n = DefaultMaxHandshakes
	}
	l.slots = make(chan struct{}, n)
	l.leaf, err = newLeaf(l.cfg.Key)
	return err
}

// accept owns the loop; the slot is taken before the connection, so that the backlog stays bounded by the kernel.
func (l *Listener) accept() {
	backoff := time.Duration(0)
	for {
		select {
		case l.slots <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		conn, err := l.inner.Accept()
		if err == nil {
			backoff = 0
			l.wg.Go(func() { l.handshake(conn) })
			continue
		}
		<-l.slots
		if !transient(err) {
			l.cause = err
			close(l.failed)
			return
		}
		backoff = min(max(2*backoff, 5*time.Millisecond), time.Second)
		select {
		case <-time.After(backoff):
		case <-l.ctx.Done():
			return
		}
	}
}

// transient tells a lack of descriptors, which passes, from a listener that is gone.
func transient(err error) bool {
	// net/http draws the same line; there is no other.
	ne, ok := errors.AsType[interface {
		error
		Temporary() bool
	}](err)
	return ok && ne.Temporary() && !errors.Is(err, net.ErrClosed)
}

// handshake owns conn until it is delivered or closed, and its slot to the end.
func (l *Listener) handshake(conn net.Conn) {
	defer func() { <-l.slots }()
	c, err := l.serve(conn)
	if err != nil {
		if l.cfg.OnRefused != nil && l.ctx.Err() == nil {
			l.cfg.OnRefused(conn.RemoteAddr(), err)
		}
		return
	}
	select {
	case l.done <- c:
	case <-l.ctx.Done():
		c.Close()
	}
}

// serve runs the handshake. A panic over a peer's bytes must cost that peer its connection, not the enclave its roots.
func (l *Listener) serve(conn net.Conn) (c *Conn, err error) {
	defer func() {
		if r := recover(); r != nil {
			conn.Close()
			c, err = nil, fmt.Errorf("ratls: handshake panicked: %v\n%s", r, debug.Stack())
		}
	}()
	return run(l.ctx, conn, l.cfg, RoleServer, l.leaf)
}

// Accept returns the next finished channel, a *Conn. After Close it returns net.ErrClosed.
func (l *Listener) Accept() (net.Conn, error) {
	select {
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.done:
		return c, nil
	case <-l.failed:
		return nil, l.cause
	case <-l.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Close stops accepting, abandons handshakes in progress, closes channels that nobody accepted, and returns when all of
// that is done. Channels that were accepted stay open. Close may be called more than once.
func (l *Listener) Close() error {
	l.cancel()
	err := l.inner.Close()
	l.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Addr is the address of the listener below.
func (l *Listener) Addr() net.Addr { return l.inner.Addr() }
