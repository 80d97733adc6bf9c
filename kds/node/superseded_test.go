package node

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

// halfway is a boot that was granted a place, holds the secrets, and whose
// admission then broke off.
func (s *site) halfway(slot string, member *running) *Node {
	s.t.Helper()
	n, err := New(s.config(slot, s.launch("machine-"+slot, nodeImage)))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { n.Close() })
	poll(s.t, "the admission before is over", func() bool {
		c := dialJoin(s.t, n, member)
		defer c.Close()
		if err := send(c, kindRequest, joinRequest{Version: 1, Slot: slot, RaftAddr: n.peerAddr, APIAddr: n.apiAddr, Level: state.Level}); err != nil {
			s.t.Fatal(err)
		}
		var g joinGrant
		if err := expect(c, kindGrant, &g); err != nil {
			return false
		}
		m, err := parseMembership(g.Statement, n.cfg.ClusterID, 1, n.boot.id)
		if err != nil {
			s.t.Fatal(err)
		}
		secrets, err := kds.ParseSecrets(g.Secrets, m.identity)
		if err != nil {
			s.t.Fatal(err)
		}
		if err := n.become(secrets, m); err != nil {
			s.t.Fatal(err)
		}
		return true
	})
	poll(s.t, "the member has noticed", func() bool { return len(member.admitSem) == 0 })
	return n
}

// X is admitted and interrupted, Y supersedes it, X asks again. It never gets
// the slot back, ends, and Y goes on: no duel.
func TestSupersededBootGivesUp(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "c")
	a := s.leader()
	x := s.halfway("b", a)
	y := s.run(s.config("b", s.launch("machine-b", nodeImage)))
	s.awaitReady(y)
	xr := s.runNode(x)
	select {
	case <-x.Ready():
		t.Fatal("the superseded boot got the slot back")
	case err := <-xr.done:
		if !errors.Is(err, ErrSuperseded) {
			t.Errorf("it ended with %v", err)
		}
	case <-time.After(patience):
		t.Fatal("it goes on asking")
	}
	for _, m := range a.machine.View().Members {
		if m.Slot == "b" && (m.ServerID != y.ServerID() || m.Incarnation != 2) {
			t.Errorf("the slot is at incarnation %d", m.Incarnation)
		}
	}
	members, _ := a.store.Load().Members()
	if contains(members, x.ServerID()) || !contains(members, y.ServerID()) || len(members) != 3 {
		t.Errorf("members: %v", members)
	}
	poll(t, "the newer boot serves", func() bool { return y.readiness(t.Context()) == nil })
}

// A grant that is repeated with another place is refused; with the same place
// it changes nothing.
func TestRepeatedGrant(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	x := s.halfway("b", a)
	had := x.membership()
	if err := x.become(x.secrets, had); err != nil {
		t.Errorf("the same grant: %v", err)
	}
	other := *had
	other.Incarnation++
	if err := x.become(x.secrets, &other); !errors.Is(err, ErrJoin) {
		t.Errorf("another incarnation: %v", err)
	}
	if x.membership() != had {
		t.Error("the membership changed")
	}
}

// A restart of a follower got no further than the grant; then nobody leads.
// The follower is superseded and still a voter, its roots may be the last: no
// length of silence makes it give them up.
func TestSilenceDestroysNoRoots(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) { n.tune.supersedeGrace = 30 * time.Millisecond }
	s.start("a", "b", "c")
	l := s.leader()
	var f []*running
	for _, n := range s.nodes {
		if n != l {
			f = append(f, n)
		}
	}
	s.halfway(f[0].slot, l)
	poll(t, "the follower knows", func() bool { return errors.Is(f[0].readiness(t.Context()), ErrSuperseded) })
	l.Close()
	f[1].Close()
	poll(t, "it has asked in vain, three times", func() bool {
		return counterValue(t, f[0], "claviger_node_superseded_waits_total") >= 3
	})
	select {
	case err := <-f[0].done:
		t.Fatalf("the last holder of the roots ended: %v", err)
	default:
	}
	if _, err := f[0].secrets.Reveal(); err != nil {
		t.Error(err)
	}
}

// A superseded voter that nobody has removed asks a peer that lives: no answer
// makes it end either.
func TestPeerOfAVoterDoesNotSayRemoved(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "b", "c")
	l := s.leader()
	var f *running
	for _, n := range s.nodes {
		if n != l {
			f = n
		}
	}
	s.halfway(f.slot, l)
	poll(t, "the follower knows", func() bool { return errors.Is(f.readiness(t.Context()), ErrSuperseded) })
	if f.peerSaysRemoved() != nil {
		t.Error("a peer says that a voter is out")
	}
}

// A host answers in the peer's place, with the very words that would end a
// superseded boot.
func TestForgedRemovalIsNotBelieved(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nodes := s.start("a", "b")
	host, err := newBoot()
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l := ratls.NewListener(ln, &ratls.Config{Protocols: []string{protocolRaft}, ClusterID: s.pins.ClusterID, Epoch: 1, Key: host.key,
		Attest: nodes[1].prover.prove,
		Verify: func(context.Context, ratls.Hello, ratls.Evidence) (*attest.Verified, error) {
			return nil, &ratls.RefusedError{Code: codeSuperseded, Message: "you are out"}
		}})
	defer l.Close()
	go l.Accept()
	_, err = nodes[0].dialPeer(t.Context(), nodes[1].boot.id, ln.Addr().String())
	if _, believed := errors.AsType[*ratls.RefusedError](err); err == nil || believed {
		t.Errorf("the host's answer: %v", err)
	}
}

// The store cannot be opened at first: nothing is half done, and the next
// attempt takes a directory of its own.
func TestJoinSurvivesAStoreThatDoesNotOpen(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a")
	var dirs []string
	n, err := New(s.config("b", s.launch("machine-b", nodeImage)))
	if err != nil {
		t.Fatal(err)
	}
	open, attempts := n.openStore, 0
	n.openStore = failFirst(t, n, open, &attempts)
	r := s.runNode(n)
	s.awaitReady(r)
	if attempts != 2 {
		t.Errorf("%d attempts", attempts)
	}
	if dirs = archivesBelow(t, n.cfg.DataDir); len(dirs) != 2 {
		t.Errorf("archives: %v", dirs)
	}
}

// The machine meets an entry of a later build: the node serves nothing, keeps
// its process and its roots, and reports no progress that it has not made.
func TestHaltedNode(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	_, _, err := replica{a.store.Load()}.Propose(t.Context(), []byte{0xff})
	if !errors.Is(err, state.ErrHalted) {
		t.Errorf("an entry that nobody understands: %v", err)
	}
	if !(watched{a.machine, a.Node}).Halted() || !a.store.Load().Halted() {
		t.Error("the store does not halt with its machine")
	}
	if err := (replica{a.store.Load()}).SafeRead(t.Context()); !errors.Is(err, state.ErrHalted) {
		t.Errorf("a read: %v", err)
	}
	if err := a.readiness(t.Context()); err == nil {
		t.Error("it is ready")
	}
	if err := a.reportProgress(t.Context(), nil, 1); !errors.Is(err, state.ErrHalted) || !final(err) {
		t.Errorf("progress: %v", err)
	}
	select {
	case err := <-a.done:
		t.Errorf("the process ended: %v", err)
	default:
	}
	if _, err := a.secrets.Reveal(); err != nil {
		t.Error(err)
	}
}

// failFirst is an Open that fails once, after the archive was made.
func failFirst(t *testing.T, n *Node, open func(raftstore.Config) (*raftstore.Store, error), attempts *int) func(raftstore.Config) (*raftstore.Store, error) {
	return func(c raftstore.Config) (*raftstore.Store, error) {
		if n.secrets != nil || n.membership() != nil || n.store.Load() != nil {
			t.Error("something is in place before the store is open")
		}
		if *attempts++; *attempts == 1 {
			return nil, errors.New("no threads left")
		}
		return open(c)
	}
}

func archivesBelow(t *testing.T, dir string) (list []string) {
	t.Helper()
	for _, pattern := range []string{"*/*.records", "*/*/*.records"} {
		found, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range found {
			if d := filepath.Dir(f); !slices.Contains(list, d) {
				list = append(list, d)
			}
		}
	}
	return list
}
