package node

import (
	"errors"
	"testing"

	"github.com/claviger/claviger/attest/ratls"
)

// A host leads the address of one member to another: genuine, admitted, and not the one that was asked for. What it
// answers must not count for the other.
func TestAddressOfAnotherServer(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nodes := s.start("a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	conn, err := a.dialPeer(t.Context(), b.ServerID(), c.PeerAddr())
	if err == nil {
		conn.Close()
		t.Fatal("a channel to b ends at c")
	}
	if !errors.Is(err, ratls.ErrPeerKey) {
		t.Fatalf("refused for another reason: %v", err)
	}
	conn, err = a.dialPeer(t.Context(), b.ServerID(), b.PeerAddr())
	if err != nil {
		t.Fatalf("b at its own address: %v", err)
	}
	conn.Close()
}
