package node

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Two of three die. The third hands over to the enclave that the operators have
// named, without a single share; it is stopped for good and says so; old keys are
// what they were; and it comes back as a new boot in the new epoch.
func TestSurvivorComesFirst(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	c := l.client(l.endpoints()...)
	before, _ := l.keyOf(c, 0)
	l.settled()
	alive := l.follower()
	want := alive.machine.View()
	dead := l.lose(alive)

	var report *RecoveryReport
	r := l.fromSurvivors(dead, []*running{alive}, func(got *RecoveryReport, _ *api.RecoveryStatement) { report = got })
	first := l.recoverOn(dead[0].slot, r)
	l.awaitReady(first)
	showReport(t, report)
	if a := report.Archive(api.ID(alive.ServerID())); a == nil || a.Kind != KindAlive || a.Verdict != "newest" || report.Roots {
		t.Errorf("the survivor in the report: %+v", a)
	}
	for _, a := range report.Archives[1:] {
		if a.Kind != KindArchive || !strings.Contains(a.Problem, "not opened yet") {
			t.Errorf("an archive without the roots: %+v", a)
		}
	}
	got := first.machine.View()
	if got.Epoch != 2 || got.Generation != 2 || got.Log.Size != want.Log.Size+1 || len(got.Members) != 3 {
		t.Errorf("epoch %d, generation %d, log %d after %d, %d members", got.Epoch, got.Generation, got.Log.Size, want.Log.Size, len(got.Members))
	}
	if k, reply := l.keyOf(l.client(first.APIAddr()), 1); !bytes.Equal(k, before) || reply.Epoch != 2 {
		t.Errorf("generation 1 in epoch %d: the same bytes %t", reply.Epoch, bytes.Equal(k, before))
	}
	l.isFenced(alive)

	// A statement of the earlier recovery is of no use against the new epoch.
	x := l.claimant("b")
	old := x.statement(alive, nil)
	old.Source.ServerID, old.Old[0].ServerID = api.ID(first.ServerID()), api.ID(first.ServerID())
	old.Old = old.Old[:1]
	x.wantRefusal("an old statement", x.ask(first, old, l.keys[:2]...), "is of epoch 2 already")

	alive.stop()
	if err := <-alive.done; err != nil {
		t.Errorf("the stopped node ends with %v", err)
	}
	cfg := l.config(alive.slot, l.launch("machine-"+alive.slot, nodeImage))
	cfg.MinEpoch = 2
	l.awaitReady(l.run(cfg))
}

// What a host, or a mistake, brings to a survivor. None of it costs the survivor its place.
func TestSurvivorRefuses(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	l.keyOf(l.client(l.endpoints()...), 0)
	l.settled()
	alive := l.leader()
	other := l.lose(alive)[0]
	x, y := l.claimant(other.slot), l.claimant(other.slot)
	stranger := ed25519.NewKeyFromSeed(make([]byte, 32))
	two := l.keys[:2]
	for name, a := range map[string]struct {
		change func(*api.RecoveryStatement)
		keys   []ed25519.PrivateKey
		say    string
	}{
		"another enclave":                       {func(s *api.RecoveryStatement) { s.Enclave[0] ^= 1 }, two, "have signed for enclave"},
		"one signature of two":                  {nil, l.keys[:1], "1 operators have signed"},
		"no signature":                          {nil, nil, "operators have signed"},
		"a stranger's signature":                {nil, []ed25519.PrivateKey{l.keys[0], stranger}, "is not an operator's"},
		"another cluster":                       {func(s *api.RecoveryStatement) { s.ClusterID[0] ^= 1 }, two, "it is of cluster"},
		"the epoch that is":                     {func(s *api.RecoveryStatement) { s.Epoch = 1 }, two, "does not follow"},
		"another state":                         {func(s *api.RecoveryStatement) { s.Source.StateSHA256[0] ^= 1 }, two, "another state of this server"},
		"an older state":                        {func(s *api.RecoveryStatement) { s.Source.Applied--; s.Source.LogSize-- }, two, "another state of this server"},
		"a server that is said to be destroyed": {func(s *api.RecoveryStatement) { setFate(s, api.ID(alive.ServerID()), api.FateDestroyed) }, two, "is to be stopped"},
		"a server that nobody speaks of": {func(s *api.RecoveryStatement) {
			s.Old = slices.DeleteFunc(s.Old, func(o api.OldServer) bool { return o.ServerID == api.ID(alive.ServerID()) })
		}, two, "is to be stopped"},
	} {
		x.wantRefusal(name, x.ask(alive, x.statement(alive, a.change), a.keys...), a.say)
	}
	good := x.statement(alive, nil)
	y.wantRefusal("a statement that another enclave relays", y.ask(alive, good, two...), "have signed for enclave")
	app := l.recoverConfig(other.slot, l.fromSurvivors(nil, []*running{alive}, nil))
	app.TEE = l.launch("machine-"+other.slot, appImage)
	n, err := New(app)
	if err != nil {
		t.Fatal(err)
	}
	defer n.Close()
	if _, err := (&claimant{l, n, &recovery{Recovery: app.Recovery, n: n}}).look(alive); err == nil || !strings.Contains(err.Error(), "node policy") {
		t.Errorf("other code looks at a survivor: %v", err)
	}
	if alive.fenced.up() || alive.store.Load().Err() != nil {
		t.Fatal("a refused statement stopped the survivor")
	}

	// The right one stops it; the same again is answered again, as after a lost
	// connection; and no other, unless its epoch is higher.
	for range 2 {
		if err := x.ask(alive, good, two...); err != nil {
			t.Fatal(err)
		}
	}
	l.isFenced(alive)
	y.wantRefusal("the same statement in another enclave", y.ask(alive, good, two...), "have signed for enclave")
	y.wantRefusal("another statement of the same epoch", y.ask(alive, y.statement(alive, nil), two...), "was stopped for epoch 2 by another statement")
	if err := y.ask(alive, y.statement(alive, func(s *api.RecoveryStatement) { s.Epoch = 3 }), two...); err != nil {
		t.Errorf("a higher epoch, after the first enclave was lost: %v", err)
	}
	x.wantRefusal("back to the first", x.ask(alive, good, two...), "was stopped for epoch 3 by another statement")
	s, err := y.look(alive)
	if err != nil || !s.stopped || s.a.report.Kind != KindStopped {
		t.Fatalf("a look at a stopped survivor: %+v, %v", s, err)
	}

	// Who is not the source gives no secrets; and one that holds something else
	// than the report says is stopped, and looked at again.
	aside := y.statement(alive, func(s *api.RecoveryStatement) {
		s.Epoch, s.Source.ServerID = 4, api.ID(other.ServerID())
	})
	raw, err := aside.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	y.r.held = nil
	brought := &RecoveryApprovals{Statement: raw, Approvals: api.Approve(raw, two...)}
	if err := y.r.stopOne(t.Context(), s, brought); err != nil || len(y.r.held) > 0 {
		t.Errorf("one that is not the source: %v, secrets %t", err, len(y.r.held) > 0)
	}
	s.stopped, s.a.report.Applied = false, s.a.report.Applied-1
	if err := y.r.stopOne(t.Context(), s, brought); !errors.Is(err, errMoved) || !s.stopped || s.known() {
		t.Errorf("one that went on: %v, %+v", err, s)
	}
}

// Two of three live: there is nothing to recover, whoever has signed. Nor from one
// that has no place any more, or does not understand its log.
func TestNothingToRecover(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	l.settled()
	nodes := l.nodes
	leader, follower := l.leader(), l.follower()
	dead := nodes[slices.IndexFunc(nodes, func(n *running) bool { return n != leader && n != follower })]
	dead.Close()
	x := l.claimant(dead.slot)
	for _, n := range []*running{leader, follower} {
		_, err := x.look(n)
		x.wantRefusal("a look at a cluster that lives", err, "the cluster is alive")
		x.wantRefusal("a cluster that lives", x.ask(n, x.statement(n, nil), l.keys[:2]...), "the cluster is alive")
		if n.fenced.up() {
			t.Fatal("a live majority was stopped")
		}
	}
	follower.Close()
	s := x.statement(leader, nil)
	leader.loseSlot(ErrRemoved)
	x.wantRefusal("a server whose slot was removed", x.ask(leader, s, l.keys[:2]...), "no place any more")
	unknown := []byte{0xff}
	leader.machine.Apply(leader.machine.Applied()+1, unknown)
	if leader.machine.Halted() == nil {
		t.Fatal("not halted")
	}
	x.wantRefusal("a server that has halted", x.ask(leader, s, l.keys[:2]...), "has halted")
}

// The leader is cut off and goes on writing; then it is all that is left, and a
// newer boot of its slot was about to take its place. What it took is in its log
// and may have been acknowledged, so it is in the new epoch.
func TestSurvivorWithUncommittedEntries(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	l.settled()
	alive := l.leader()
	l.net.partition(alive)
	raw, err := state.Encode(&state.RaiseLevel{Epoch: 1, Level: state.Level}) // rejected, wherever it is applied
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), slow*5*time.Second)
	defer cancel()
	if _, _, err := alive.store.Load().Propose(ctx, raw); err == nil {
		t.Fatal("a leader alone committed")
	}
	applied := alive.machine.Applied()
	dead := l.lose(alive)
	alive.loseSlot(ErrSuperseded)
	var report *RecoveryReport
	r := l.fromSurvivors(nil, []*running{alive}, func(got *RecoveryReport, _ *api.RecoveryStatement) { report = got })
	first := l.recoverOn(dead[0].slot, r)
	l.awaitReady(first)
	if a := report.Archive(api.ID(alive.ServerID())); a == nil || a.Applied <= applied {
		t.Errorf("%d was applied, and the survivor's log ends at %+v", applied, a)
	}
	l.isFenced(alive)
}

// The survivor lagged, and the dead have on their disks what was acknowledged
// without it. The roots that it hands over open those, the statement is refused,
// and a second one goes on from the archive, with the survivor's stop as proof.
func TestSurvivorBehindAnArchive(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	c := l.client(l.endpoints()...)
	alive := l.lagging()
	_, reply := l.keyOf(l.client(l.endpoints()...), 0)
	c.Close()
	l.settled()
	dead := l.lose()

	calls := 0
	r := l.fromSurvivors(dead, []*running{alive}, nil)
	r.Receipts = []string{l.write("receipt.json", reply.Receipt)}
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		calls++
		showReport(t, report)
		s := l.statement(report)
		stopAlive(report, s)
		a := report.Archive(api.ID(alive.ServerID()))
		switch calls {
		case 1: // below the receipt: refused before the survivor gives up anything
			if a.Refused == "" || alive.fenced.up() {
				t.Errorf("the survivor is below a receipt: %+v", a)
			}
		case 2: // a host that hides the receipt from the start; an operator who believes it
			if !errors.Is(refused, ErrBelow) || alive.fenced.up() {
				t.Errorf("below a receipt: %v", refused)
			}
			return nil, errOperator
		}
		return l.sign(s, l.keys[:2]...)
	}
	if err := l.refusedRecovery(dead[0].slot, r); !errors.Is(err, errOperator) {
		t.Fatal(err)
	}

	calls = 0
	r.Receipts = nil
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		calls++
		showReport(t, report)
		s := l.statement(report)
		stopAlive(report, s)
		if calls == 2 {
			newest := report.Archive(report.Newest)
			if !errors.Is(refused, ErrRecovery) || !strings.Contains(refused.Error(), "is not the newest") || !report.Roots || newest.Kind != KindArchive {
				t.Errorf("refused with %v; the newest is %+v", refused, newest)
			}
			if a := report.Archive(api.ID(alive.ServerID())); a.Kind != KindStopped || !strings.HasPrefix(a.Verdict, "behind") {
				t.Errorf("the stopped survivor: %+v", a)
			}
			s.Epoch = 3
		}
		if calls > 2 {
			return nil, errOperator
		}
		return l.sign(s, l.keys[:2]...)
	}
	first := l.recoverOn(dead[0].slot, r)
	l.awaitReady(first)
	if v := first.machine.View(); v.Epoch != 3 || v.Log.Size < reply.Receipt.TreeSize {
		t.Errorf("epoch %d, log %d, the receipt says %d", v.Epoch, v.Log.Size, reply.Receipt.TreeSize)
	}
	l.isFenced(alive)
}

// Two of five live. Both are asked to stop, the source last; the connection is cut
// at every step, and once after the source has stopped: the same statement is
// brought again.
func TestSurvivorConnectionsAreCut(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c", "d", "e")
	before, _ := l.keyOf(l.client(l.endpoints()...), 0)
	l.settled()
	source, second := l.nodes[1], l.nodes[3]
	dead := l.lose(source, second)
	door := newDoor(t, source.PeerAddr(), func(conn, told int) bool {
		switch conn {
		case 0: // the first look, in the handshake
			return told > 1000
		case 3, 4: // the statement: at once, and in the handshake
			return conn == 3 || told > 1000
		case 5: // and when the source has stopped
			return source.fenced.up()
		}
		return false
	})
	calls := 0
	r := l.fromSurvivors(nil, []*running{second}, nil)
	r.Survivors = append(r.Survivors, door.addr)
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		calls++
		showReport(t, report)
		a := report.Archive(api.ID(source.ServerID()))
		if calls == 1 {
			if a != nil {
				t.Error("a look that was cut shows something")
			}
			return &RecoveryApprovals{}, nil
		}
		if calls > 3 || a == nil {
			t.Errorf("call %d: %v", calls, refused)
			return nil, errOperator
		}
		s := l.statement(report)
		stopAlive(report, s)
		s.Source = a.Source()
		if calls == 2 { // one of the two is said to be destroyed, and answers
			setFate(s, api.ID(second.ServerID()), api.FateDestroyed)
		} else if !strings.Contains(refused.Error(), "said to be destroyed, and answers") || source.fenced.up() || second.fenced.up() {
			t.Errorf("a live server was called destroyed: %v", refused)
		}
		return l.sign(s, l.keys[:2]...)
	}
	first := l.recoverOn(dead[0].slot, r)
	l.awaitReady(first)
	if k, _ := l.keyOf(l.client(first.APIAddr()), 1); !bytes.Equal(k, before) {
		t.Error("another key")
	}
	if door.count() != 7 {
		t.Errorf("%d connections to the source", door.count())
	}
	l.isFenced(source)
	l.isFenced(second)
}

// A host keeps a live majority away, has the operators sign, and lets it through
// while the survivor stops: what the survivor has acknowledged then is not in the
// statement. Nothing is handed over, it stays stopped, and a new look and a
// statement for a higher epoch bring all of it.
func TestSurvivorThatWentOn(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	l.settled()
	alive := l.follower()
	l.net.partition(alive)
	all := l.nodes
	l.nodes = slices.DeleteFunc(slices.Clone(all), func(n *running) bool { return n == alive })
	l.keyOf(l.client(l.endpoints()...), 0)
	x := l.claimant("d")
	s := x.statement(alive, nil)
	alive.atFence = func() {
		l.net.heal()
		poll(t, "the majority reaches the survivor", func() bool { head, err := alive.head(); return err == nil && head.Applied > s.Source.Applied })
	}
	x.wantRefusal("a head that moved", x.ask(alive, s, l.keys[:2]...), "has acknowledged something since")
	l.isFenced(alive)
	x.wantRefusal("the same again", x.ask(alive, s, l.keys[:2]...), "another state of this server")
	v, err := x.look(alive)
	if err != nil || !v.stopped || v.a.report.Applied <= s.Source.Applied {
		t.Fatalf("a new look: %+v, %v", v, err)
	}
	if err := x.ask(alive, x.statement(alive, func(s *api.RecoveryStatement) { s.Epoch, s.Source = 3, v.a.report.Source() }), l.keys[:2]...); err != nil {
		t.Errorf("a new statement: %v", err)
	}
}
