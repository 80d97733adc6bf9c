package node

import (
	"errors"
	"flag"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

// The measuring form: go test -run 'TestRollingUpgrade|TestSurgeUpgrade' -v ./kds/node -upgrade.clients=16 -upgrade.hold=5s -upgrade.defaults
var (
	upgradeClients  = flag.Int("upgrade.clients", 3, "apps that ask for keys during an upgrade")
	upgradeHold     = flag.Duration("upgrade.hold", 100*time.Millisecond, "time between two steps of an upgrade")
	upgradeDefaults = flag.Bool("upgrade.defaults", false, "run upgrades with the store's default timeouts, on an idle machine")
)

// requestPatience is how long an app waits for one key during an upgrade.
const requestPatience = 30 * time.Second

func newImage() sim.Image {
	v2 := nodeImage
	v2.Version = "2"
	return v2
}

func upgradeSite(t *testing.T) *site {
	s := newSite(t)
	s.tune = func(n *Node) {
		if *upgradeDefaults {
			n.cfg.Timeouts = raftstore.Timeouts{}
		}
	}
	return s
}

// report says what an upgrade cost, and fails the test if a request failed.
func (l *load) report(t *testing.T, what string, took time.Duration) {
	t.Helper()
	l.stop()
	t.Logf("%s: %v, %d clients, %d requests sent, %d failed, longest gap between two answers %v, longest request %v", what, took.Round(time.Millisecond),
		*upgradeClients, l.sent.Load(), l.failed.Load(), time.Duration(l.longest.Load()).Round(time.Millisecond), time.Duration(l.longestRequest.Load()).Round(time.Millisecond))
	if l.failed.Load() > 0 {
		t.Errorf("%d of %d requests failed, the first with: %v", l.failed.Load(), l.sent.Load(), *l.firstFailure.Load())
	}
	if l.sent.Load() == 0 {
		t.Error("nothing was asked for")
	}
}

// Three nodes of one measurement become three of the next, under load: the
// policy takes the new one in, each slot restarts with it, the policy lets the
// old one go, and nobody boots it again.
func TestRollingUpgrade(t *testing.T) {
	t.Parallel()
	s := upgradeSite(t)
	v2 := newImage()
	s.start("a", "b", "c")
	admin := s.client(s.endpoints()...)
	first := s.key(admin)

	l := newLoad(t, s, *upgradeClients, requestPatience)
	start := time.Now()
	hold := func() { time.Sleep(*upgradeHold) }
	hold()
	s.operate(admin, policyChange(1, nodeImage, v2))
	leader := s.leader()
	order := append(s.others(leader), leader) // the leader last: one election less
	for _, old := range order {
		hold()
		old.stop()
		if err := <-old.done; err != nil {
			t.Fatalf("a graceful stop of %s: %v", old.slot, err)
		}
		s.restart(old, v2)
	}
	hold()
	s.operate(admin, policyChange(2, v2))
	hold()
	l.report(t, "rolling upgrade of three nodes", time.Since(start))

	if again := s.key(admin); string(again) != string(first) {
		t.Error("another key after the upgrade")
	}
	checkMembers(t, s, 3)
	err := s.refused(s.config("a", s.launch("machine-a", nodeImage)))
	if err == nil || !strings.Contains(err.Error(), "node policy") {
		t.Errorf("a boot of the old measurement: %v", err)
	}
	// A new machine that pins the manifest alone, whose policy names the old code only, gets in.
	s.awaitReady(s.run(s.config("d", s.launch("machine-d", v2))))
}

// others are the nodes but one.
func (s *site) others(not *running) (list []*running) {
	for _, n := range s.nodes {
		if n != not {
			list = append(list, n)
		}
	}
	return list
}

// A surge: D comes in with a ticket, then A is removed, under load.
func TestSurgeUpgrade(t *testing.T) {
	t.Parallel()
	s := upgradeSite(t)
	s.openSlots = 2 // for b and c
	nodes := s.start("a", "b", "c")
	a := nodes[0]
	admin := s.client(nodes[1].APIAddr(), nodes[2].APIAddr())
	l := newLoad(t, s, *upgradeClients, requestPatience)
	start := time.Now()
	hold := func() { time.Sleep(*upgradeHold) }
	hold()

	tee := s.launch("machine-d", nodeImage)
	d := s.run(s.config("d", tee))
	s.operate(admin, &api.Ticket{Slot: "d", ServerID: api.ID(d.ServerID()), PlatformID: s.platformOf(tee)})
	s.awaitReady(d)
	hold()
	s.operate(admin, &api.RemoveSlot{Slot: "a"})
	select {
	case err := <-a.done:
		if !errors.Is(err, ErrRemoved) {
			t.Errorf("the removed node ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the removed node goes on")
	}
	hold()
	l.report(t, "surge: d in, a out", time.Since(start))
	s.nodes = s.others(a)
	poll(t, "three voters without a", func() bool {
		members, _ := s.leader().store.Load().Members()
		return len(members) == 3 && !contains(members, a.ServerID())
	})
	checkMembers(t, s, 3)
}

// platformOf is what a node's host, or its refusal, tells the operators.
func (s *site) platformOf(tee *sim.Enclave) api.ID {
	s.t.Helper()
	q, err := attest.Parse(mustQuote(s.t, tee))
	if err != nil {
		s.t.Fatal(err)
	}
	platform, err := attest.PlatformOf(q)
	if err != nil {
		s.t.Fatal(err)
	}
	return api.ID(platform.ID())
}
