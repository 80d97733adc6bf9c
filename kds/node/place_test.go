package node

import (
	"slices"
	"sync/atomic"
	"testing"

	"github.com/claviger/claviger/kds/state"
)

// A member judges a boot that it has not heard of yet, and its host keeps it from going on until the boot has become a voter and
// a newer one was admitted to its slot. The answer that it is superseded would be final, and the boot is a voter, whose roots may
// be the last: it is not given.
func TestWhoVotesIsNotSuperseded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	var between atomic.Pointer[func(peer [32]byte)]
	s.tune = func(n *Node) {
		n.atPlace = func(peer [32]byte) {
			if f := between.Load(); f != nil {
				(*f)(peer)
			}
		}
	}
	s.start("a", "b")
	l := s.leader()
	judge := s.others(l)[0]
	x := s.halfway("c", l)
	once := func(peer [32]byte) {
		if peer != x.boot.id || between.Swap(nil) == nil {
			return
		}
		s.awaitReady(s.runNode(x))
		s.halfway("c", l)
		poll(t, "the newer boot is known", func() bool {
			return slices.ContainsFunc(judge.machine.View().Members, func(m state.Member) bool { return slices.Contains(m.Former, [32]byte(x.boot.id)) })
		})
	}
	between.Store(&once)
	_, err := judge.checkRaftPeer(judge.membership(), x.boot.id, x.membership().statement)
	if err != nil {
		t.Errorf("a voter hears: %v", err)
	}
	if members, _ := judge.store.Load().Members(); !contains(members, x.boot.id) || between.Load() != nil {
		t.Error("the boot is no voter, or nothing happened in between")
	}
}
