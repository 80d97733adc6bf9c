package node

import (
	"errors"
	"net"
	"sync/atomic"
	"testing"
	"time"
)

// Close may come twice, from a test's or a daemon's cleanup after a failure, on a node that was never run.
func TestCloseTwice(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	s.genesis(&cfg)
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 3)
	for range cap(closed) {
		go func() { closed <- n.Close() }()
	}
	for range cap(closed) {
		select {
		case err := <-closed:
			if err != nil {
				t.Error(err)
			}
		case <-time.After(patience):
			t.Fatal("Close of a node that was never run does not return")
		}
	}
	if err := n.Run(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Run after Close: %v", err)
	}
}

// lingering is a listener that whoever closes it first needs a while for; others who close it learn nothing.
type lingering struct {
	*net.TCPListener
	t      *testing.T
	n      *Node
	closed atomic.Bool
}

func (l *lingering) Close() error {
	if l.closed.Swap(true) {
		return net.ErrClosed
	}
	select {
	case <-l.n.finished:
		l.t.Error("the node has stopped, and still listens")
	case <-time.After(100 * time.Millisecond):
	}
	return l.TCPListener.Close()
}

// Once Close has returned, another boot can listen at the address.
func TestCloseWaitsForTheListener(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) {
		n.peerLn = &lingering{TCPListener: n.peerLn.(*net.TCPListener), t: t, n: n}
		n.peerPorch.Listener = n.peerLn
	}
	a := s.start("a")[0]
	a.Close()
	if !a.peerLn.(*lingering).closed.Load() {
		t.Error("the listener is open")
	}
}
