package node

import (
	"slices"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/state"
)

// The newer boot of the last old slot was admitted, and the admission broke off. The older boot is still a voter, its build does
// not know the next level, and its roots may be the last: the level waits for the boot that takes its place.
func TestLevelWaitsForTheOlderBootOfASlot(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	older := uint64(state.Level - 1)
	s.tune = func(n *Node) { n.level, n.tune.reconcileEvery = older, 50*time.Millisecond }
	s.start("a", "b", "c")
	s.tune = func(n *Node) { n.tune.reconcileEvery = 50 * time.Millisecond }
	for _, slot := range []string{"a", "b"} {
		n := s.slot(slot)
		n.stop()
		<-n.done
		s.restart(n, nodeImage)
	}
	old, l := s.slot("c"), s.leader()
	for l == old {
		old.handOver()
		l = s.leader()
	}
	s.halfway("c", l)
	if slices.ContainsFunc(l.machine.View().Members, func(m state.Member) bool { return m.Level < state.Level }) {
		t.Fatal("a slot is still of the old build")
	}
	for range 3 {
		if err := l.reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if level := l.machine.View().Level; level != older {
		t.Errorf("the level rose to %d while a voter of a build that knows %d was there", level, older)
	}
	s.awaitReady(s.run(s.config("c", s.launch("machine-c", nodeImage))))
	poll(t, "the level rises", func() bool { return s.leader().machine.View().Level == state.Level })
}
