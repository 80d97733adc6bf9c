package node

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// otherRoots are secrets with the identity key of a node and another newest root, as somebody makes them who has held that key.
func otherRoots(t *testing.T, n *running) *kds.Secrets {
	t.Helper()
	raw, err := n.secrets.Reveal()
	if err != nil {
		t.Fatal(err)
	}
	raw[len(raw)-1] ^= 1 // the last byte of the last root
	s, err := kds.ParseSecrets(raw, n.secrets.Identity().Public())
	if err != nil || slices.Equal(s.GenerationIDs(), n.secrets.GenerationIDs()) {
		t.Fatalf("other roots: %v", err)
	}
	return s
}

// A member hands other roots to a joiner. The joiner holds them against the state, serves nothing, gets no vote, and ends: its
// keys would be nobody's, and what was sealed with them would be lost when it is gone.
func TestJoinerRefusesOtherRoots(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	good := a.secrets
	a.secrets = otherRoots(t, a)
	b := s.run(s.config("b", s.launch("machine-b", nodeImage)))
	select {
	case err := <-b.done:
		if !errors.Is(err, kds.ErrRoots) || !errors.Is(err, ErrJoin) {
			t.Errorf("a joiner with other roots ends with %v", err)
		}
	case <-b.Ready():
		t.Fatal("a joiner with other roots is ready")
	case <-time.After(patience):
		t.Fatal("a joiner with other roots goes on")
	}
	members, _ := a.store.Load().Members()
	for _, m := range members {
		if m.ID == b.boot.id && m.Voter {
			t.Error("it has a vote")
		}
	}
	a.secrets = good
	s.start("c")
}

// A survivor hands over other roots than those of its own history.
func TestSurvivorWithOtherRoots(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	alive := l.follower()
	l.lose(alive)
	x := l.claimant("d")
	v, err := x.look(alive)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x.statement(alive, nil).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	brought := &RecoveryApprovals{Statement: raw, Approvals: api.Approve(raw, l.keys[:2]...)}
	good := alive.secrets
	alive.secrets = otherRoots(t, alive)
	if err := x.r.stopOne(t.Context(), v, brought); !errors.Is(err, kds.ErrRoots) || len(x.r.held) > 0 {
		t.Errorf("other roots: %v, %d held", err, len(x.r.held))
	}
	alive.secrets = good
	if err := x.r.stopOne(t.Context(), v, brought); err != nil || x.r.rootsOf(v.a) == nil {
		t.Errorf("its own: %v", err)
	}
}

// A recovered epoch is lost with its root, and the next recovery goes on from before it: generation 2 is made twice. Clients
// tell the two apart, and are never given a key of one for the other; and whoever recovers the second epoch with the roots of
// the first is refused, unless the right ones are there, too.
func TestOneGenerationMadeTwice(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.found("a", "b", "c")
	old, _ := l.keyOf(l.client(l.endpoints()...), 0)
	l.settled()
	dead := l.crash()
	open := func(slot string, epoch uint64) (*running, []byte, api.Version) {
		r := l.recovery(dead)
		r.Approve = l.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Epoch = epoch })
		n := l.recoverOn(slot, r)
		l.awaitReady(n)
		k, reply := l.keyOf(l.client(n.APIAddr()), 2)
		return n, k, reply.Version
	}
	first, key, version := open("a", 2)
	first.Close()
	l.nodes = nil
	second, again, versionAgain := open("b", 3) // epoch 2 is lost: its disk is not shown
	if bytes.Equal(key, again) || version.Generation != 2 || versionAgain.Generation != 2 || version.GenerationID == versionAgain.GenerationID || version.GenerationID.IsZero() {
		t.Fatalf("generation 2, made twice: %+v and %+v, the same key: %t", version, versionAgain, bytes.Equal(key, again))
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for _, v := range []api.Version{version, {GenerationID: version.GenerationID}} {
		_, _, err := l.client(second.APIAddr()).Key(ctx, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256", Version: v})
		if !errors.Is(err, &api.Problem{Code: api.CodeNotFound}) {
			t.Errorf("a key of the lost root: %v", err)
		}
	}
	second.Close()
	l.nodes = nil

	lost, held := wrappedOf(first), wrappedOf(second)
	third := func(wrapped ...string) *Recovery {
		r := l.recovery(dead)
		r.Archives, r.Wrapped = append(r.Archives, archiveDir(second)), wrapped
		return r
	}
	r := third(lost)
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if a := report.Archive(report.Newest); a == nil || a.Epoch != 3 || a.Generation != 0 || !strings.Contains(a.Refused, "do not belong to this history") {
			t.Errorf("the newest, with the roots of another epoch: %+v", a)
		}
		s := l.statement(report)
		s.Generation = 3
		if refused != nil {
			return nil, errors.Join(errOperator, refused)
		}
		return l.sign(s, l.keys[:2]...)
	}
	if err := l.refusedRecovery("c", r); !errors.Is(err, kds.ErrRoots) {
		t.Errorf("the roots of another epoch: %v", err)
	}
	last := l.recoverOn("c", third(lost, held))
	l.awaitReady(last)
	c := l.client(last.APIAddr())
	if k, reply := l.keyOf(c, 2); !bytes.Equal(k, again) || reply.Version != versionAgain {
		t.Errorf("generation 2 of epoch 3 in epoch 4: %+v, the same key: %t", reply.Version, bytes.Equal(k, again))
	}
	if k, _ := l.keyOf(c, 1); !bytes.Equal(k, old) {
		t.Error("generation 1 is another")
	}
	if v := last.machine.View(); v.Generation != 3 || len(v.GenerationIDs) != 3 {
		t.Errorf("generation %d, ids %x", v.Generation, v.GenerationIDs)
	}
	last.Close()
	l.nodes = nil

	l.carriesOnOne(dead, map[string][]byte{lost: key, held: again})
}

// carriesOnOne recovers once more from before two epochs that made one generation, with the roots of both: one is carried
// on, and the log names the other.
func (l *lostSite) carriesOnOne(dead []*running, keys map[string][]byte) {
	l.t.Helper()
	r := l.recovery(dead)
	r.Wrapped = slices.Collect(maps.Keys(keys))
	r.Approve = l.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Epoch = 5 })
	cfg := l.recoverConfig("a", r)
	var said logged
	cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
	n := l.run(cfg)
	l.awaitReady(n)
	got, _ := l.keyOf(l.client(n.APIAddr()), 2)
	text, carried := said.String(), 0
	for file, key := range keys {
		named := strings.Contains(text, "ROOTS ARE LEFT BEHIND") && strings.Contains(text, filepath.Base(file))
		if bytes.Equal(got, key) {
			carried++
		}
		if named == bytes.Equal(got, key) {
			l.t.Errorf("%s is carried on %t, and named as left behind %t: %s", file, bytes.Equal(got, key), named, text)
		}
	}
	if carried != 1 {
		l.t.Errorf("%d of the two roots are carried on", carried)
	}
}

// logged is what a node has logged.
type logged struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logged) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// A cluster of builds that know no ids is updated node by node. With the last one its level rises, and its roots are committed
// to, without anybody's help; keys stay what they were.
func TestUpdatedClusterCommitsItsRoots(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) { n.level = state.LevelRoots - 1 }
	nodes := slices.Clone(s.start("a", "b", "c"))
	want := s.key(s.client(s.endpoints()...))
	if v := s.leader().machine.View(); v.Level != state.LevelRoots-1 || len(v.GenerationIDs) != 0 {
		t.Fatalf("level %d, ids %x", v.Level, v.GenerationIDs)
	}
	s.tune = nil
	for _, old := range nodes {
		old.stop()
		<-old.done
		s.restart(old, nodeImage)
	}
	poll(t, "the level has risen and the roots are committed to", func() bool {
		v := s.leader().machine.View()
		return v.Level == state.Level && slices.Equal(v.GenerationIDs, s.nodes[0].secrets.GenerationIDs())
	})
	if got := s.key(s.client(s.endpoints()...)); !bytes.Equal(got, want) {
		t.Error("another key")
	}
}

// The leader that raised the level died before it committed to the roots, and the next one has a removal to do that waits for a
// node that is down. The roots are committed to all the same: until then nobody is given a key, and nobody admitted, so that the
// node which the removal waits for could not come back either.
func TestRootsAreCommittedWhileARemovalWaits(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) {
		if n.cfg.Slot == "a" { // it keeps the others from raising the level
			n.level = state.LevelRoots - 1
		}
	}
	nodes := slices.Clone(s.start("a", "b", "c"))
	b, c := nodes[1], nodes[2]
	admin := s.client(nodes[0].APIAddr(), c.APIAddr())
	want := s.key(admin)
	b.Close()
	<-b.done
	s.nodes = slices.DeleteFunc(s.nodes, func(n *running) bool { return n == b })
	s.operate(admin, &api.RemoveSlot{Slot: "a"})
	poll(t, "the level is raised", func() bool {
		leader := s.leader()
		_, err := leader.propose(t.Context(), &state.RaiseLevel{Epoch: 1, Level: state.LevelRoots})
		return err == nil
	})
	poll(t, "the roots are committed to", func() bool { return slices.Equal(c.machine.View().GenerationIDs, c.secrets.GenerationIDs()) })
	if got := s.key(s.client(c.APIAddr())); !bytes.Equal(got, want) {
		t.Error("another key")
	}
	told, err := s.client(c.APIAddr()).Cluster(t.Context())
	if err != nil || len(told.Members) != 2 || len(told.Voters) != 3 || !slices.Contains(told.Voters, api.ID(nodes[0].ServerID())) {
		t.Errorf("the removal does not wait, or the cluster does not say so: %d slots, %d voters, %v", len(told.Members), len(told.Voters), err)
	}
}

// What is missing is asked for by its name, where the history knows that: not where the epoch ended before it committed to its root.
func TestMissingRootsAreNamed(t *testing.T) {
	t.Parallel()
	first, err := kds.GenerateSecrets()
	if err != nil {
		t.Fatal(err)
	}
	second, err := first.NextGeneration()
	if err != nil {
		t.Fatal(err)
	}
	ids := second.GenerationIDs()
	for _, c := range []struct {
		committed [][32]byte
		bring     string
	}{{ids, WrappedFile(2, ids[1])}, {ids[:1], WrappedPattern}, {nil, WrappedPattern}} {
		view := state.View{Generation: 2, GenerationIDs: c.committed}
		if err := fitting(first, view); !errors.Is(err, ErrRecovery) || !strings.Contains(err.Error(), "bring "+c.bring) {
			t.Errorf("generation 1 where 2 is needed, %d ids: %v", len(c.committed), err)
		}
		if err := fitting(second, view); err != nil {
			t.Errorf("what is needed: %v", err)
		}
	}
}
