package node

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/kds/state"
)

// knock asks a member for admission once, as a boot that is nobody yet.
func (s *site) knock(n *Node, at *running) error {
	s.t.Helper()
	_, err := n.joinAt(s.t.Context(), at.PeerAddr())
	return err
}

func (s *site) boot(slot string, cfg Config) *Node {
	s.t.Helper()
	cfg.Slot = slot
	n, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { n.Close() })
	return n
}

// A stranger with genuine measured code takes no slot and writes nothing; a
// ticket is for one boot on one platform, once, in one slot; whoever was
// removed does not come back, and neither does its machine without a ticket.
func TestTicketsAreForOneBootOnce(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.openSlots = 0
	a := s.start("a")[0]
	admin := s.client(a.APIAddr())
	tee := s.launch("machine-b", nodeImage)
	platform := s.platformOf(tee)
	b, twin := s.boot("b", s.config("b", tee)), s.boot("b", s.config("b", tee))
	waits := func(what string, n *Node) {
		t.Helper()
		before := a.machine.View()
		err := s.knock(n, a)
		r, ok := errors.AsType[*RefusedError](err)
		if !ok || !r.Retry || !strings.Contains(r.Text, "claviger cluster join --slot "+n.cfg.Slot+" --server "+api.ID(n.boot.id).String()) {
			t.Errorf("%s: %v", what, err)
		}
		if after := a.machine.View(); after.Applied != before.Applied || len(after.Members) != len(before.Members) || n.secrets != nil {
			t.Errorf("%s: the stranger wrote %d entries, %d slots are taken", what, after.Applied-before.Applied, len(after.Members))
		}
	}
	waits("no ticket", b)
	s.operate(admin, &api.Ticket{Slot: "b", ServerID: api.ID(b.boot.id), PlatformID: api.ID{7}})
	waits("a ticket for another platform", b)
	s.operate(admin, &api.Ticket{Slot: "c", ServerID: api.ID(b.boot.id), PlatformID: platform})
	waits("a ticket for another slot", b)
	ticket := s.sign(admin, &api.Ticket{Slot: "b", ServerID: api.ID(b.boot.id), PlatformID: platform})
	if _, err := admin.Operate(t.Context(), ticket); err != nil {
		t.Fatal(err)
	}
	waits("another boot's ticket", twin)
	joined := s.runNode(b)
	s.awaitReady(joined)
	if tickets := a.machine.View().Tickets; len(tickets) != 0 {
		t.Errorf("%d tickets are left: they are used once", len(tickets))
	}

	// The ticket again: word for word it is what has been done; later it is refused.
	before := a.machine.View().Applied
	if _, err := admin.Operate(t.Context(), ticket); err != nil || a.machine.View().Applied != before {
		t.Errorf("the last statement once more: %v", err)
	}
	s.operate(admin, &api.RemoveSlot{Slot: "b"})
	if err := <-joined.done; !errors.Is(err, ErrRemoved) {
		t.Errorf("the removed node ended with %v", err)
	}
	if _, err := admin.Operate(t.Context(), ticket); !errors.Is(err, &api.Problem{Code: api.CodeStatement}) || !strings.Contains(err.Error(), "sequence") {
		t.Errorf("a ticket from before the removal: %v", err)
	}
	returned := s.boot("b", s.config("b", tee))
	returned.boot = b.boot // a host that kept the boot's process alive
	if err := s.knock(returned, a); !errors.Is(err, ErrSuperseded) {
		t.Errorf("the removed boot asks again: %v", err)
	}
	waits("another boot on the removed machine", s.boot("b", s.config("b", tee)))
	if members, _ := a.store.Load().Members(); len(members) != 1 {
		t.Errorf("the configuration: %v", members)
	}
}

// Statements count here, in this epoch, at this place in their order, with the
// operators' signatures, or not at all; nothing of them reaches the log.
func TestStatementsCountOnceAndHere(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	admin := s.client(a.APIAddr())
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))
	make := func(id api.ID, epoch, sequence uint64, body api.AdminBody, key ed25519.PrivateKey) api.AdminRequest {
		raw, err := api.NewAdmin(id, epoch, sequence, body)
		if err != nil {
			t.Fatal(err)
		}
		return api.AdminRequest{Statement: raw, Approvals: api.Approve(raw, key)}
	}
	id, stop := s.pins.ClusterID, &api.Stop{}
	tampered := make(id, 1, 1, &api.RemoveSlot{Slot: "z"}, s.operator)
	tampered.Statement = make(id, 1, 1, stop, s.operator).Statement
	unsigned := make(id, 1, 1, stop, s.operator)
	unsigned.Approvals = nil
	debug := policyChange(1, nodeImage)
	debug.Constraints = []string{strings.Replace(nodeImage.Constraint(), "SEC:STALE", "SEC:INSECURE", 1)}
	before := a.machine.View().Applied
	for name, c := range map[string]struct {
		request api.AdminRequest
		stage   string
	}{
		"another cluster's":        {make(api.ID{1}, 1, 1, stop, s.operator), "cluster"},
		"another epoch's":          {make(id, 2, 1, stop, s.operator), "epoch"},
		"a later one":              {make(id, 1, 2, stop, s.operator), "sequence"},
		"a stranger's":             {make(id, 1, 1, stop, stranger), "signatures"},
		"nobody's":                 {unsigned, "signatures"},
		"signatures of another":    {tampered, "signatures"},
		"a policy for debug nodes": {make(id, 1, 1, debug, s.operator), "content"},
	} {
		_, err := admin.Operate(t.Context(), c.request)
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Code != api.CodeStatement || p.Stage != c.stage || p.Detail == "" {
			t.Errorf("%s: %v, want stage %s", name, err, c.stage)
		}
	}
	if got := a.machine.View(); got.Applied != before || got.Ended {
		t.Errorf("refused statements wrote %d entries", got.Applied-before)
	}
	// What only Apply can judge is refused there, and uses no number up.
	for name, body := range map[string]api.AdminBody{"a slot that is none": &api.RemoveSlot{Slot: "z"}, "the last slot": &api.RemoveSlot{Slot: "a"},
		"a policy over another version": policyChange(7, nodeImage)} {
		if _, err := admin.Operate(t.Context(), s.sign(admin, body)); !errors.Is(err, &api.Problem{Code: api.CodeStatement}) || !strings.Contains(err.Error(), "content") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := a.machine.View().Sequence; got != 0 {
		t.Errorf("refused statements used %d numbers up", got)
	}
}

// Code that the policy no longer names leaves, the leader too, which hands over
// first; it does not come back, and its slot takes the new code.
func TestExpelledCodeLeavesAndStaysOut(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	v2 := newImage()
	s.start("a", "b", "c")
	admin := s.client(s.endpoints()...)
	s.operate(admin, policyChange(1, nodeImage, v2))
	for _, slot := range []string{"a", "b"} {
		old := s.slot(slot)
		old.stop()
		<-old.done
		s.restart(old, v2)
	}
	c := s.slot("c")
	poll(t, "the old code leads", func() bool {
		l := s.leader()
		return l == c || l.store.Load().TransferLeadershipTo(t.Context(), c.boot.id) != nil && false
	})
	s.operate(s.client(s.endpoints()...), policyChange(2, v2))
	select {
	case err := <-c.done:
		if !errors.Is(err, ErrExpelled) {
			t.Errorf("the node of the old code ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("the node of the old code goes on")
	}
	s.nodes = s.others(c)
	l := s.leader()
	if members, _ := l.store.Load().Members(); len(members) != 2 || contains(members, c.boot.id) {
		t.Errorf("the configuration: %v", members)
	}
	if got := counterValue(t, s.nodes[0], "claviger_node_expulsions_total") + counterValue(t, s.nodes[1], "claviger_node_expulsions_total"); got != 1 {
		t.Errorf("%v expulsions", got)
	}
	if err := s.refused(s.config("c", s.launch("machine-c", nodeImage))); err == nil || !strings.Contains(err.Error(), "node policy") {
		t.Errorf("the old code boots again: %v", err)
	}
	s.awaitReady(s.run(s.config("c", s.launch("machine-c", v2))))
}

func (s *site) slot(name string) *running {
	s.t.Helper()
	i := slices.IndexFunc(s.nodes, func(n *running) bool { return n.slot == name })
	if i < 0 {
		s.t.Fatalf("no node runs in slot %s", name)
	}
	return s.nodes[i]
}

// anyMember is a client of the operators.
func (s *site) anyMember() *client.Client {
	s.t.Helper()
	c, err := client.New(client.Config{ClusterID: s.pins.ClusterID, Endpoints: s.endpoints(), Root: s.world.Root(), Clock: s.clock, AnyMember: true})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// A policy that none of the members satisfies takes no roots from the cluster:
// it says so, goes on, and can be corrected.
func TestPolicyThatNobodySatisfiesDestroysNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) { n.tune.expelGrace, n.tune.reconcileEvery = 300*time.Millisecond, 100*time.Millisecond }
	s.start("a", "b", "c")
	admin := s.client(s.endpoints()...)
	first := s.key(admin)
	s.operate(admin, policyChange(1, newImage()))
	poll(t, "everybody knows that it is not accepted", func() bool {
		return !slices.ContainsFunc(s.nodes, func(n *running) bool { return !errors.Is(n.readiness(t.Context()), ErrExpelled) })
	})
	if err := s.leader().reconcile(t.Context()); !errors.Is(err, errMinority) {
		t.Errorf("the leader of a cluster that nobody may stay in: %v", err)
	}
	time.Sleep(2 * time.Second) // past the grace, with several looks at the configuration
	if members, _ := s.leader().store.Load().Members(); len(members) != 3 {
		t.Errorf("the configuration: %v", members)
	}
	// Nobody new believes them: an app that has seen the policy takes no keys from them. The operators reach them all the same.
	app := s.client(s.endpoints()...)
	app.Cluster(t.Context())
	if _, err := app.Cluster(t.Context()); !strings.Contains(fmt.Sprint(err), "node policy") {
		t.Errorf("an app is served by code that the operators do not accept: %v", err)
	}
	s.operate(s.anyMember(), policyChange(2, nodeImage))
	poll(t, "everybody is ready again", func() bool {
		return !slices.ContainsFunc(s.nodes, func(n *running) bool { return n.readiness(t.Context()) != nil })
	})
	if again := s.key(s.client(s.endpoints()...)); !bytes.Equal(first, again) {
		t.Error("another key")
	}
}

// A policy that nobody satisfies keeps everybody, and keeps nobody whom the operators have removed: neither a follower
// nor the leader waits for those who cannot leave.
func TestRemovalDoesNotWaitForAnExpulsion(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) { n.tune.expelGrace, n.tune.reconcileEvery = 300*time.Millisecond, 100*time.Millisecond }
	s.start("a", "b", "c")
	s.operate(s.client(s.endpoints()...), policyChange(1, newImage()))
	l := s.leader()
	poll(t, "the leader knows that it may accept nobody", func() bool {
		return !slices.ContainsFunc(s.nodes, func(n *running) bool { return !l.foreign(n.ServerID()) })
	})
	var last *running // the follower that the configuration lists behind the other one
	members, _ := l.store.Load().Members()
	for _, m := range members {
		for _, n := range s.others(l) {
			if m.ID == n.ServerID() {
				last = n
			}
		}
	}
	for _, n := range []*running{last, l} {
		s.operate(s.anyMember(), &api.RemoveSlot{Slot: n.slot})
		select {
		case err := <-n.done:
			if !errors.Is(err, ErrRemoved) {
				t.Errorf("the removed node %s ended with %v", n.slot, err)
			}
		case <-time.After(patience):
			t.Fatalf("node %s, which the operators have removed, stays", n.slot)
		}
	}
}

// Two machines that take a slot from each other in turn are slowed down, and
// each take-over raises the alarm; nobody is locked out.
func TestFlappingSlotIsSlowedAndAlarmed(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) { n.tune.paceBurst, n.tune.paceRefill = 2, slow*time.Second }
	nodes := s.start("a", "b", "c")
	leader := s.leader()
	victim := s.others(leader)[0]
	start := time.Now()
	for range 4 {
		s.awaitReady(s.run(s.config(victim.slot, s.launch("machine-"+victim.slot, nodeImage))))
	}
	if took := time.Since(start); took < slow*time.Second {
		t.Errorf("four boots of one slot within %v", took)
	}
	var slowed, alarms float64
	for _, n := range nodes {
		slowed += counterValue(t, n, "claviger_node_admissions_slowed_total")
		alarms += counterValue(t, n, "claviger_node_clone_alarms_total")
	}
	if slowed == 0 || alarms < 4 {
		t.Errorf("%v admissions slowed, %v clone alarms", slowed, alarms)
	}
}

// The feature level rises once every member's build knows the next, one step
// at a time, and not before.
func TestLevelRisesWithTheLastMember(t *testing.T) {
	t.Parallel()
	with := func(level uint64, members ...uint64) state.View {
		v := state.View{Level: level}
		for _, m := range members {
			v.Members = append(v.Members, state.Member{Level: m})
		}
		return v
	}
	ended := with(2, 3, 3)
	ended.Ended = true
	for name, c := range map[string]struct {
		view        state.View
		known, want uint64
	}{
		"one old build":           {with(2, 3, 3, 2), 3, 0},
		"all are new":             {with(2, 3, 3, 3), 3, 3},
		"all are newer still":     {with(2, 5, 4, 4), 5, 3},
		"this build is old":       {with(2, 3, 3, 3), 2, 0},
		"nobody":                  {with(2), 3, 0},
		"before genesis":          {with(0, 3), 3, 0},
		"a level without a raise": {with(1, 3), 3, 0},
		"the epoch has ended":     {ended, 3, 0},
	} {
		if got := nextLevel(c.view, c.known); got != c.want {
			t.Errorf("%s: level %d, want %d", name, got, c.want)
		}
	}
}

// The policy that a node shows is the operators' word or nothing, and nobody
// goes back behind one.
func TestShownPoliciesAreProvenAndNeverOlder(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	m := a.membership()
	sign := func(key ed25519.PrivateKey, epoch, sequence uint64, c api.AdminBody) []byte {
		raw, err := api.NewAdmin(s.pins.ClusterID, epoch, sequence, c)
		if err != nil {
			t.Fatal(err)
		}
		signed, err := (&api.SignedAdmin{Statement: raw, Approvals: api.Approve(raw, key)}).Marshal()
		if err != nil {
			t.Fatal(err)
		}
		return signed
	}
	st, err := api.ParseNodeStatement(m.statement)
	if err != nil {
		t.Fatal(err)
	}
	stranger := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{9}, 32))
	for name, raw := range map[string][]byte{
		"a stranger's":     sign(stranger, 1, 1, policyChange(1, appImage)),
		"another kind":     sign(s.operator, 1, 1, &api.Stop{}),
		"of a later epoch": sign(s.operator, 2, 1, policyChange(1, appImage)),
		"garbage":          []byte("garbage"),
		"cut":              sign(s.operator, 1, 1, policyChange(1, appImage))[:40],
	} {
		st.Policy = raw
		if p, err := a.shownPolicy(m.manifest, st); err == nil {
			t.Errorf("%s: believed, version %d", name, p.Version)
		}
	}
	newer := sign(s.operator, 1, 2, policyChange(2, nodeImage))
	st.Policy = newer
	p, err := a.shownPolicy(m.manifest, st)
	if err != nil || p.Version != 3 {
		t.Fatalf("the operators' own: version %d, %v", p.Version, err)
	}
	a.learnPolicy(p, newer)
	st.Policy = sign(s.operator, 1, 1, policyChange(1, appImage))
	if p, err := a.shownPolicy(m.manifest, st); err != nil || p.Version != 3 {
		t.Errorf("shown an older policy, it judges by version %d, %v", p.Version, err)
	}
	if mine, err := api.ParseNodeStatement(a.prover.attachment); err != nil || !bytes.Equal(mine.Policy, newer) {
		t.Errorf("it shows another policy than it has learnt: %v", err)
	}
	a.cfg.MinNodePolicy = 4
	if _, err := a.shownPolicy(m.manifest, st); !errors.Is(err, ErrNotMember) || final(err) {
		t.Errorf("a member behind the version that was asked for: %v, final for a joiner: %t", err, final(err))
	}
}

// Operators have signed a wide policy, another statement came first, and they have
// signed again, a narrower one. The host kept the first. A member of code that is
// not accepted any more shows it: whoever knows that it was never carried out
// does not believe it, and whoever believed it comes back with the log.
func TestSignedPoliciesThatWereOvertakenCountForNothing(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	admin := s.client(a.APIAddr())
	m := a.membership()
	st, err := api.ParseNodeStatement(m.statement)
	if err != nil {
		t.Fatal(err)
	}
	wide := s.sign(admin, policyChange(1, nodeImage, appImage))
	signed, err := (&api.SignedAdmin{Statement: wide.Statement, Approvals: wide.Approvals}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	st.Policy = signed
	p, err := a.shownPolicy(m.manifest, st)
	if err != nil || p.Version != 2 {
		t.Fatalf("what may still be carried out: version %d, %v", p.Version, err)
	}
	a.learnPolicy(p, signed)
	if len(a.policy(m.manifest).Constraints) != 2 {
		t.Fatal("it was not learnt")
	}

	s.operate(admin, &api.Ticket{Slot: "x", ServerID: api.ID{1}, PlatformID: api.ID{2}}) // comes first
	if got := a.policy(m.manifest); got.Version != 1 || len(got.Constraints) != 1 {
		t.Errorf("the log has passed it by, and it is in force: version %d, %q", got.Version, got.Constraints)
	}
	if mine, err := api.ParseNodeStatement(a.prover.attachment); err != nil || len(mine.Policy) != 0 {
		t.Errorf("it is still shown to others: %v", err)
	}
	s.operate(admin, policyChange(1, nodeImage)) // the narrower one, of the same version
	for range 2 {
		p, err = a.shownPolicy(m.manifest, st)
		if err != nil || len(p.Constraints) != 1 || p.Version != 2 {
			t.Errorf("shown again, it is believed: version %d, %q, %v", p.Version, p.Constraints, err)
		}
		a.learnPolicy(p, signed)
	}
	if got := a.policy(m.manifest); len(got.Constraints) != 1 || got.Sequence != 2 {
		t.Errorf("in force: %+v", got)
	}
}

// One voter is down and a second boot of another one asks for its slot: the
// older boot stays, because the cluster could not commit anything without it.
func TestOlderBootStaysWhileItsVoteIsNeeded(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "b", "c")
	leader := s.leader()
	rest := s.others(leader)
	older, down := rest[0], rest[1]
	first := s.key(s.client(s.endpoints()...))
	down.Close()
	newer := s.boot(older.slot, s.config(older.slot, s.launch("machine-"+older.slot, nodeImage)))
	err := s.knock(newer, leader)
	if r, ok := errors.AsType[*RefusedError](err); !ok || !r.Retry || !strings.Contains(r.Text, "needs now") {
		t.Errorf("the newer boot: %v", err)
	}
	members, _ := leader.store.Load().Members()
	if !contains(members, older.boot.id) {
		t.Fatalf("the older boot is out: %v", members)
	}
	if again := s.key(s.client(leader.APIAddr())); !bytes.Equal(first, again) {
		t.Error("another key")
	}
	s.restart(down, nodeImage) // now there is a majority without the older boot
	s.awaitReady(s.runNode(newer))
	members, _ = s.leader().store.Load().Members()
	if contains(members, older.boot.id) || !contains(members, newer.boot.id) || len(members) != 3 {
		t.Errorf("the configuration: %v", members)
	}
}

// The operators remove a slot that has changed hands, and let a new boot take it
// again. Its count begins anew: older boots in the log are none that supersede it,
// neither for itself nor for a member that has not heard of the removal.
func TestASlotThatWasRemovedCanBeTakenAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.start("a", "c", "b")[2]
	for range 2 { // b changes hands
		b.Close()
		b = s.restart(b, nodeImage)
	}
	admin := s.anyMember()
	behind := b.machine.View() // what a member knows that hears of nothing from now on
	s.operate(admin, &api.RemoveSlot{Slot: "b"})
	if err := <-b.done; !errors.Is(err, ErrRemoved) {
		t.Fatal(err)
	}
	tee := s.launch("machine-b", nodeImage)
	again := s.boot("b", s.config("b", tee))
	s.operate(admin, &api.Ticket{Slot: "b", ServerID: api.ID(again.boot.id), PlatformID: s.platformOf(tee)})
	s.awaitReady(s.runNode(again))
	if m := again.membership(); m.Incarnation != 1 {
		t.Fatalf("incarnation %d", m.Incarnation)
	}
	for limit := time.Now().Add(10 * time.Second); again.readiness(t.Context()) != nil && time.Now().Before(limit); {
		time.Sleep(10 * time.Millisecond)
	}
	if err := again.readiness(t.Context()); err != nil || again.leaver() != nil {
		t.Errorf("the new boot of the slot: %v, %v", err, again.leaver())
	}
	st, err := api.ParseNodeStatement(again.prover.attachment)
	if err != nil {
		t.Fatal(err)
	}
	if err := placeRefused(behind, again.boot.id, st.Membership); err != nil {
		t.Errorf("a member that is behind refuses it: %v", err)
	}
	former := behind.Members[1].Former
	if len(former) != 2 {
		t.Fatalf("%d boots held the slot before", len(former))
	}
	older := api.Membership{Slot: "b", Incarnation: 1, ServerID: former[0]}
	if err := placeRefused(behind, former[0], older); err == nil {
		t.Error("a superseded boot is not refused")
	}
}
