package node

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// offset is a clock that a test moves.
type offset struct{ by atomic.Int64 }

func (o *offset) now() time.Time          { return time.Now().Add(time.Duration(o.by.Load())) }
func (o *offset) advance(d time.Duration) { o.by.Add(int64(d)) }
func (o *offset) days(n int)              { o.advance(time.Duration(n) * 24 * time.Hour) }

// movedSite is a site whose world and nodes share a clock that moves.
func movedSite(t *testing.T) (*site, *offset) {
	o := &offset{}
	s := newSite(t)
	seed := [32]byte{2}
	copy(seed[1:], t.Name())
	s.world = sim.NewWorld(seed, o.now)
	s.clock = o.now
	return s, o
}

// switched is a collateral source that a test breaks or makes lie.
type switched struct {
	s     *site
	asked atomic.Int64
	down  atomic.Bool
	only  atomic.Pointer[attest.Collateral] // what it says, if not the truth
}

func (w *switched) get(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	w.asked.Add(1)
	if w.down.Load() {
		return nil, errors.New("unreachable")
	}
	if c := w.only.Load(); c != nil {
		return c, nil
	}
	return w.s.world.Collateral(ctx, quote)
}

func collateralOf(t *testing.T, s *site, e *sim.Enclave) *attest.Collateral {
	t.Helper()
	q, err := e.Quote(t.Context(), [64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	c, err := s.world.Collateral(t.Context(), q)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// A platform was revoked nine days ago. Its host sends the bundle of ten days
// ago along, which is genuine and in force for three weeks more. The leader
// asks its own source and hands over nothing.
func TestRevokedPlatformWithAnOldBundleGetsNoRoots(t *testing.T) {
	t.Parallel()
	s, clock := movedSite(t)
	src := &switched{s: s}
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	cfg.Collateral = src.get
	s.genesis(&cfg)
	a := s.run(cfg)
	s.awaitReady(a)
	bad := s.launch("machine-bad", nodeImage)
	old := collateralOf(t, s, bad)
	clock.days(1)
	bad.Machine().Revoke()
	clock.days(9)
	before := src.asked.Load()
	tryWith(t, s, a, bad, old)
	if src.asked.Load() == before {
		t.Error("the leader did not ask its source")
	}
	// What it learnt it knows for good: the source fails, and the host tries again.
	src.down.Store(true)
	tryWith(t, s, a, bad, old)
	if slots := a.machine.View().Members; len(slots) != 1 {
		t.Errorf("%d slots are taken", len(slots))
	}
	// An honest machine still joins.
	src.down.Store(false)
	clock.advance(time.Hour)
	s.awaitReady(s.run(s.config("c", s.launch("machine-c", nodeImage))))
}

// tryWith joins as the revoked machine with an old bundle, and must be refused
// for good.
func tryWith(t *testing.T, s *site, leader *running, bad *sim.Enclave, old *attest.Collateral) {
	t.Helper()
	n, err := New(s.config("b", bad))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	n.prover.bundle, n.prover.raw, n.prover.fetched = old, marshal(t, old), time.Now()
	if _, err := n.joinAt(t.Context(), leader.PeerAddr()); err == nil || !final(err) || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("refused with %v", err)
	}
	if n.secrets != nil {
		t.Error("it holds the secrets")
	}
}

// The leader's source is down, and whatever there is of collateral is ten days
// old: nobody gets roots by it, and the joiner keeps trying until it is up.
func TestRootsNeedARecentAnswer(t *testing.T) {
	t.Parallel()
	s, clock := movedSite(t)
	src := &switched{s: s}
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	cfg.Collateral = src.get
	s.genesis(&cfg)
	a := s.run(cfg)
	s.awaitReady(a)
	b := s.launch("machine-b", nodeImage)
	old := collateralOf(t, s, b)
	clock.days(10)
	src.down.Store(true)
	theirs := &switched{s: s}
	theirs.only.Store(old)
	join := s.config("b", b)
	join.Collateral = theirs.get
	n, err := New(join)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	// The joiner asks the same of the member.
	if _, err := n.joinAt(t.Context(), a.PeerAddr()); !errors.Is(err, kds.ErrStale) || final(err) {
		t.Errorf("the joiner takes roots by old collateral: %v", err)
	}
	theirs.only.Store(nil) // now it sees today's, and sends yesterday's
	clock.advance(2 * time.Minute)
	n.prover.bundle, n.prover.raw, n.prover.fetched = old, marshal(t, old), time.Now()
	_, err = n.joinAt(t.Context(), a.PeerAddr())
	if err == nil || final(err) || !strings.Contains(err.Error(), "too old") {
		t.Errorf("with the leader's source down: %v", err)
	}
	if n.secrets != nil || len(a.machine.View().Members) != 1 {
		t.Error("it was admitted")
	}
	src.down.Store(false)
	clock.advance(2 * time.Minute)
	if _, err := n.joinAt(t.Context(), a.PeerAddr()); err != nil {
		t.Errorf("with the leader's source up: %v", err)
	}
}

func marshal(t *testing.T, c *attest.Collateral) []byte {
	t.Helper()
	raw, err := c.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// An admission is decided, and before its entry commits a newer set is: the
// entry is rejected, and the joiner gets nothing by the old decision.
func TestAdmissionIsBoundToItsCollateral(t *testing.T) {
	t.Parallel()
	s, clock := movedSite(t)
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	s.genesis(&cfg)
	a := s.run(cfg)
	s.awaitReady(a)
	b := s.launch("machine-b", nodeImage)
	q, err := b.Quote(t.Context(), [64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	decided, err := a.judge.Assess(t.Context(), q, nil, kds.ForRoots)
	if err != nil {
		t.Fatal(err)
	}
	if err := decided.Replicate(t.Context(), replica{a.store.Load()}, 1); err != nil {
		t.Fatal(err)
	}
	clock.days(1)
	b.Machine().Revoke()
	newer, err := a.judge.Assess(t.Context(), mustQuote(t, a.cfg.TEE.(*sim.Enclave)), nil, kds.ForMembers)
	if err != nil {
		t.Fatal(err)
	}
	if err := newer.Replicate(t.Context(), replica{a.store.Load()}, 1); err != nil {
		t.Fatal(err)
	}
	_, err = a.commitAdmission(t.Context(), [32]byte{5}, 1, decided, joinRequest{Version: 1, Slot: "b", RaftAddr: "b:1", APIAddr: "b:2", Level: state.Level})
	if !errors.Is(err, state.ErrCollateral) || !refusalOf(err).Retry {
		t.Errorf("the entry of an old decision: %v", err)
	}
	if slots := a.machine.View().Members; len(slots) != 1 {
		t.Errorf("%d slots are taken", len(slots))
	}
}

func mustQuote(t testing.TB, e *sim.Enclave) []byte {
	t.Helper()
	q, err := e.Quote(t.Context(), [64]byte{})
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// A boot was admitted and interrupted; then its platform is revoked. Asking
// again it is judged again, and the grant is not repeated.
func TestResumedAdmissionIsJudgedAgain(t *testing.T) {
	t.Parallel()
	s, clock := movedSite(t)
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	s.genesis(&cfg)
	a := s.run(cfg)
	s.awaitReady(a)
	b := s.launch("machine-b", nodeImage)
	n, err := New(s.config("b", b))
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if err := interrupted(t, n, a, "b"); err != nil {
		t.Fatal(err)
	}
	old := collateralOf(t, s, b)
	clock.days(1)
	b.Machine().Revoke()
	clock.advance(time.Hour)
	n.prover.bundle, n.prover.raw, n.prover.fetched = old, marshal(t, old), time.Now()
	if _, err := n.joinAt(t.Context(), a.PeerAddr()); err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("asked again: %v", err)
	}
	if n.secrets != nil {
		t.Error("it holds the secrets")
	}
}

// interrupted asks for admission and breaks off after the grant.
func interrupted(t *testing.T, n *Node, member *running, slot string) error {
	t.Helper()
	var err error
	poll(t, "the admission before is over", func() bool {
		c := dialJoin(t, n, member)
		defer c.Close()
		if err = send(c, kindRequest, joinRequest{Version: 1, Slot: slot, RaftAddr: n.peerAddr, APIAddr: n.apiAddr, Level: state.Level}); err != nil {
			return true
		}
		var g joinGrant
		err = expect(c, kindGrant, &g)
		r, ok := errors.AsType[*RefusedError](err)
		return !ok || !r.Retry
	})
	poll(t, "the member has noticed", func() bool { return len(member.admitSem) == 0 })
	return err
}

// Another machine under the slot's name, or the machine under another name: a
// machine has one slot and counts once.
func TestOneSlotPerPlatform(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	err := s.refused(s.config("b", s.launch("machine-a", nodeImage)))
	if err == nil || !strings.Contains(err.Error(), "another slot") {
		t.Errorf("a second slot for one machine: %v", err)
	}
	if slots := a.machine.View().Members; len(slots) != 1 {
		t.Errorf("%d slots are taken", len(slots))
	}
}

// A member's platform is revoked. The others close its channels, refuse new
// ones, raise an alarm, and go on without it; it stays in the configuration.
func TestRevokedMemberIsCutOff(t *testing.T) {
	t.Parallel()
	s, clock := movedSite(t)
	s.start("a", "b", "c")
	leader := s.leader()
	var bad, good *running
	for _, n := range s.nodes {
		switch {
		case n == leader:
		case bad == nil:
			bad = n
		default:
			good = n
		}
	}
	poll(t, "the leader has judged both", func() bool { return len(leader.peersToSweep(leader.store.Load())) == 2 })
	clock.days(1)
	bad.cfg.TEE.(*sim.Enclave).Machine().Revoke()
	clock.advance(time.Hour)
	leader.sweep(t.Context())
	if got := counterValue(t, leader, "claviger_node_unfit_member_alarms_total"); got != 1 {
		t.Errorf("%v alarms", got)
	}
	if n := leader.channels.drop(bad.boot.id); n != 0 {
		t.Errorf("%d channels were still open", n)
	}
	if c, err := leader.dialPeer(t.Context(), bad.boot.id, bad.peerAddr); !errors.Is(err, pck.ErrRevoked) {
		t.Errorf("the leader dials it again: %v", err)
		if err == nil {
			c.Close()
		}
	}
	err := dialRaft(t.Context(), s, leader, bad.prover.prove, bad.boot)
	if err == nil || !strings.Contains(err.Error(), "revoked") {
		t.Errorf("it dials the leader: %v", err)
	}
	// The leader has replicated the list: the other follower judges alike.
	poll(t, "the other follower has cut it off", func() bool {
		return counterValue(t, good, "claviger_node_unfit_member_alarms_total") == 1
	})
	if members, _ := leader.store.Load().Members(); !contains(members, bad.boot.id) {
		t.Error("it was taken out of the configuration without anybody's decision")
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if _, _, err := s.client(leader.APIAddr(), good.APIAddr()).Key(ctx, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"}); err != nil {
		t.Errorf("the cluster does not go on: %v", err)
	}
}
