package node

import (
	"errors"
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
