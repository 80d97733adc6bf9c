package daemon

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// Bounds of the plain HTTP servers. A handler that reads a large body or writes a large answer sets deadlines of its own
// through http.ResponseController, below the server's.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 45 * time.Second
	writeTimeout  = 2 * time.Minute // from the header on: body, handler and answer
	idleTimeout   = 30 * time.Second
	stopTimeout   = 10 * time.Second // a function may run for five
	maxHeader     = 16 << 10

	maxConns   = 1024 // at once
	maxPerPeer = 256  // at once from one address: a crowd behind one proxy, or a quarter for one attacker
)

// Serve runs a plain HTTP server on a listener until ctx ends, then lets requests in progress finish for a moment. It closes
// the listener. Connections are bounded in number, over all and by address; more are closed at once. It is the one place
// where servers of plain HTTP are made.
func Serve(ctx context.Context, l net.Listener, h http.Handler, log *slog.Logger) error {
	server := &http.Server{
		Handler: h, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	stopped := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTimeout)
		defer cancel()
		stopped <- server.Shutdown(grace)
	})
	err := server.Serve(newLimiter(l, maxConns, maxPerPeer))
	if stop() || !errors.Is(err, http.ErrServerClosed) {
		return err // it failed by itself
	}
	if err := <-stopped; err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return errors.Join(ctx.Err(), server.Close())
}

// limiter is a listener that keeps to a number of open connections. What is over it is closed at once and not left to wait:
// whoever holds all places would otherwise keep out even those that are allowed in.
type limiter struct {
	net.Listener
	max, perPeer int

	mu    sync.Mutex
	open  int
	peers map[netip.Addr]int
}

func newLimiter(l net.Listener, most, perPeer int) *limiter {
	return &limiter{Listener: l, max: most, perPeer: perPeer, peers: map[netip.Addr]int{}}
}

// Accept implements net.Listener.
func (l *limiter) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		peer := addressOf(conn)
		if l.enter(peer) {
			return &limitedConn{Conn: conn, leave: sync.OnceFunc(func() { l.leave(peer) })}, nil
		}
		_ = conn.Close()
	}
}

// addressOf returns the peer's address; an IPv6 peer is its /64, which is what one machine gets.
func addressOf(conn net.Conn) netip.Addr {
	at, err := netip.ParseAddrPort(conn.RemoteAddr().String())
	if err != nil {
		return netip.Addr{} // not TCP: all count as one
	}
	addr := at.Addr().Unmap().WithZone("")
	if addr.Is6() && !addr.IsLoopback() {
		prefix, err := addr.Prefix(64)
		if err == nil {
			addr = prefix.Addr()
		}
	}
	return addr
}

func (l *limiter) enter(peer netip.Addr) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.max || l.peers[peer] >= l.perPeer {
		return false
	}
	l.open++
	l.peers[peer]++
	return true
}

func (l *limiter) leave(peer netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if l.peers[peer]--; l.peers[peer] == 0 {
		delete(l.peers, peer)
	}
}

// limitedConn gives its place back when it is closed.
type limitedConn struct {
	net.Conn
	leave func()
}

func (c *limitedConn) Close() error {
	defer c.leave()
	return c.Conn.Close()
}
