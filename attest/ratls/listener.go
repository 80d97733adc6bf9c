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

// Listener accepts attested channels. A bounded number of handshakes runs at once, and of those a smaller number with one
// remote address, so that an address full of silent peers delays itself and not the others. Connections beyond the bounds
// wait for their turn, beyond a further bound in the kernel.
//
// Accept returns finished *Conn values only. Close stops everything and waits for it.
type Listener struct{ acceptor }

// NewListener starts accepting on inner, which it owns from now on. A Config that cannot be used shows in the first Accept.
func NewListener(inner net.Listener, cfg *Config) *Listener {
	l := &Listener{}
	l.init(inner)
	if err := cfg.check(RoleServer); err != nil {
		l.fail(err)
		return l
	}
	own, err := newLeaf(cfg.Key)
	if err != nil {
		l.fail(err)
		return l
	}
	l.start(newLimits(cfg.MaxHandshakes, cfg.MaxPerAddress, cfg.timeout()), cfg.OnRefused, func(ctx context.Context, conn net.Conn) (net.Conn, error) {
		c, err := run(ctx, conn, cfg, RoleServer, own)
		if err != nil {
			return nil, err // not c: a nil *Conn in the interface would look like a connection
		}
		return c, nil
	})
	return l
}

// acceptor is what listeners of both modes have in common: a bounded number of handshakes in goroutines that it owns.
type acceptor struct {
	inner     net.Listener
	handshake func(ctx context.Context, conn net.Conn) (net.Conn, error) // closes conn on error
	refused   func(remote net.Addr, err error)                           // may be nil
	ctx       context.Context
	cancel    context.CancelFunc
	places    chan struct{} // one token per connection that is accepted and not finished
	slots     chan struct{} // one token per handshake that runs
	crowd     *crowd
	done      chan net.Conn  // finished handshakes, unbuffered: a channel nobody accepts keeps its slot
	failed    chan struct{}  // closed when accepting ended by itself
	cause     error          // why; read after failed is closed
	wg        sync.WaitGroup // the accepting goroutine and all handshakes
}

func (l *acceptor) init(inner net.Listener) {
	l.inner = inner
	l.ctx, l.cancel = context.WithCancel(context.Background())
	l.done, l.failed = make(chan net.Conn), make(chan struct{})
}

// fail makes every Accept return err.
func (l *acceptor) fail(err error) {
	l.cause = err
	close(l.failed)
}

func (l *acceptor) start(lim limits, refused func(net.Addr, error), handshake func(context.Context, net.Conn) (net.Conn, error)) {
	l.places, l.slots = make(chan struct{}, lim.places()), make(chan struct{}, lim.handshakes)
	l.crowd, l.refused, l.handshake = newCrowd(lim), refused, handshake
	l.wg.Go(l.accept)
}

// accept owns the loop; the place is taken before the connection, so that the backlog stays bounded by the kernel.
func (l *acceptor) accept() {
	backoff := time.Duration(0)
	for {
		select {
		case l.places <- struct{}{}:
		case <-l.ctx.Done():
			return
		}
		conn, err := l.inner.Accept()
		if err == nil {
			backoff = 0
			l.wg.Go(func() { l.attend(conn) })
			continue
		}
		<-l.places
		if !transient(err) {
			l.fail(err)
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

// attend owns conn until it is delivered or closed, and its place to the end.
func (l *acceptor) attend(conn net.Conn) {
	defer func() { <-l.places }()
	key := origin(conn.RemoteAddr())
	from, ok := l.crowd.enter(key)
	if !ok {
		l.turnAway(conn, fmt.Errorf("%w: %s", ErrCrowded, key))
		return
	}
	defer l.crowd.leave(key)
	release, err := l.turn(from)
	if err != nil {
		l.turnAway(conn, err)
		return
	}
	defer release()
	c, err := l.serve(conn)
	if err != nil {
		l.turnAway(conn, err)
		return
	}
	select {
	case l.done <- c:
	case <-l.ctx.Done():
		c.Close()
	}
}

// turn waits until a handshake may run: first for the address's own turn, so that what waits for that holds no slot.
func (l *acceptor) turn(from *visitors) (release func(), err error) {
	patience := time.NewTimer(l.crowd.limits.patience)
	defer patience.Stop()
	for i, gate := range []chan struct{}{from.turn, l.slots} {
		select {
		case gate <- struct{}{}:
			continue
		case <-patience.C:
			err = fmt.Errorf("%w: %w", ErrTimeout, ErrCrowded)
		case <-l.ctx.Done():
			err = net.ErrClosed
		}
		if i > 0 {
			<-from.turn
		}
		return nil, err
	}
	return func() { <-l.slots; <-from.turn }, nil
}

// turnAway closes conn and reports why, unless the listener is closing.
func (l *acceptor) turnAway(conn net.Conn, err error) {
	conn.Close()
	if l.refused != nil && l.ctx.Err() == nil {
		l.refused(conn.RemoteAddr(), err)
	}
}

// serve runs the handshake. A panic over a peer's bytes must cost that peer its connection, not the enclave its roots.
func (l *acceptor) serve(conn net.Conn) (c net.Conn, err error) {
	defer func() {
		if r := recover(); r != nil {
			conn.Close()
			c, err = nil, fmt.Errorf("ratls: handshake panicked: %v\n%s", r, debug.Stack())
		}
	}()
	return l.handshake(l.ctx, conn)
}

// Accept returns the next finished channel. After Close it returns net.ErrClosed.
func (l *acceptor) Accept() (net.Conn, error) {
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
func (l *acceptor) Close() error {
	l.cancel()
	err := l.inner.Close()
	l.wg.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Addr is the address of the listener below.
func (l *acceptor) Addr() net.Addr { return l.inner.Addr() }
