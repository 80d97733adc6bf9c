package node

import (
	"net"
	"time"
)

// porch is a bound listener that nobody serves yet. Whoever connects is sent
// away at once: left in the kernel's queue they would wait for a handshake until
// their patience ends. Clients would find a slow node where there is none, and
// the restarted boot of a leader would wait for itself, since members that have
// not missed the leader yet redirect it to its own address.
type porch struct {
	net.Listener
	idle chan struct{} // closed when nobody is sent away any more
}

// newPorch starts sending away, until l is closed or opened.
func newPorch(l net.Listener) *porch {
	p := &porch{Listener: l, idle: make(chan struct{})}
	go func() {
		defer close(p.idle)
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			conn.Close()
		}
	}()
	return p
}

// open returns the listener for whoever serves it from now on.
func (p *porch) open() net.Listener {
	t, ok := p.Listener.(interface{ SetDeadline(time.Time) error })
	if !ok {
		return p.Listener // cannot be: net.Listen made it
	}
	_ = t.SetDeadline(time.Unix(1, 0)) // fails on a closed listener only, and then Accept has failed
	<-p.idle
	_ = t.SetDeadline(time.Time{})
	return p.Listener
}
