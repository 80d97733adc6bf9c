package node

import (
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"
)

// TestNobodyWaitsForABootThatIsNoMember: until it serves, a boot's addresses send everybody away, instead of letting them wait
// in the kernel's queue. A leader that came back at once used to be redirected to itself and waited there for ten seconds.
func TestNobodyWaitsForABootThatIsNoMember(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config("a", s.launch("kds-a", nodeImage))
	s.genesis(&cfg)
	n, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	for _, addr := range []string{n.PeerAddr(), n.APIAddr()} {
		conn, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		if _, err := conn.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, want the end of the connection", addr, err)
		}
		conn.Close()
	}
}

// TestPorchOpens: from then on connections are served, and the listener closes as before.
func TestPorchOpens(t *testing.T) {
	t.Parallel()
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := newPorch(inner).open()
	go func() {
		if conn, err := l.Accept(); err == nil {
			_, _ = io.WriteString(conn, "hello")
			conn.Close()
		}
	}()
	conn, err := net.Dial("tcp", inner.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	if got, err := io.ReadAll(conn); string(got) != "hello" {
		t.Errorf("got %q, %v", got, err)
	}
	closed := newPorch(inner)
	inner.Close()
	if _, err := closed.open().Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("a closed listener: %v", err)
	}
}
