package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// survivorSite is a lostSite whose survivors do not look long for a majority.
func survivorSite(t *testing.T) *lostSite {
	l := newLostSite(t)
	l.tune = func(n *Node) {
		l.net.attach(n)
		n.tune.aliveLook = slow * time.Second
	}
	return l
}

// lose kills all nodes but some, as a loss of power would.
func (l *lostSite) lose(alive ...*running) (dead []*running) {
	l.t.Helper()
	for _, n := range l.nodes {
		if !slices.Contains(alive, n) {
			n.Close()
			dead = append(dead, n)
		}
	}
	l.nodes = nil
	return dead
}

// lagging cuts a follower off, so that what the others do from here on is not in its log.
func (l *lostSite) lagging() *running {
	l.settled()
	alive := l.follower()
	l.net.partition(alive)
	l.nodes = slices.DeleteFunc(slices.Clone(l.nodes), func(n *running) bool { return n == alive })
	return alive
}

// fromSurvivors is a recovery without shares: who lives is stopped, and who is
// dead is destroyed, unless change says something else.
func (l *lostSite) fromSurvivors(dead, alive []*running, change func(*RecoveryReport, *api.RecoveryStatement)) *Recovery {
	r := &Recovery{Manifest: l.pins.Manifest, IdentityKey: l.pins.IdentityKey}
	for _, n := range dead {
		r.Archives = append(r.Archives, archiveDir(n))
	}
	for _, n := range alive {
		r.Survivors = append(r.Survivors, n.PeerAddr())
	}
	r.Approve = l.approve(func(report *RecoveryReport, s *api.RecoveryStatement) {
		stopAlive(report, s)
		if change != nil {
			change(report, s)
		}
	})
	return r
}

func stopAlive(report *RecoveryReport, s *api.RecoveryStatement) {
	for _, o := range report.Servers {
		if o.Alive {
			setFate(s, o.ServerID, api.FateStopped)
		}
	}
}

func setFate(s *api.RecoveryStatement, id api.ID, fate string) {
	for i := range s.Old {
		if s.Old[i].ServerID == id {
			s.Old[i].Fate = fate
		}
	}
}

// isFenced: no vote, no acknowledgement, no read, no release, not ready, and the process lives.
func (l *lostSite) isFenced(n *running) {
	l.t.Helper()
	if err := n.readiness(l.t.Context()); !errors.Is(err, ErrFenced) {
		l.t.Errorf("readiness of a stopped survivor: %v", err)
	}
	s := n.store.Load()
	select {
	case <-s.Done():
	default:
		l.t.Error("its store runs")
	}
	if s.Read(l.t.Context()) == nil || s.SafeRead(l.t.Context()) == nil {
		l.t.Error("it reads")
	}
	select {
	case err := <-n.done:
		l.t.Errorf("its process has ended: %v", err)
	default:
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), slow*5*time.Second)
	defer cancel()
	_, _, err := l.client(n.APIAddr()).Key(ctx, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"})
	if !errors.Is(err, &api.Problem{Code: api.CodeEnded}) || !n.machine.View().Ended && !strings.Contains(err.Error(), "stopped this node for a recovery") {
		l.t.Errorf("a client of a stopped survivor: %v", err)
	}
}

// claimant is a recovering boot that a test speaks for.
type claimant struct {
	l *lostSite
	n *Node
	r *recovery
}

func (l *lostSite) claimant(slot string) *claimant {
	l.t.Helper()
	n, err := New(l.recoverConfig(slot, &Recovery{Manifest: l.pins.Manifest, IdentityKey: l.pins.IdentityKey,
		Survivors: []string{"127.0.0.1:1"}, Approve: l.approve(nil)}))
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { n.Close() })
	return &claimant{l, n, &recovery{Recovery: n.cfg.Recovery, n: n}}
}

// look asks a survivor what it holds.
func (e *claimant) look(alive *running) (*survivor, error) {
	s := &survivor{addr: alive.PeerAddr(), a: &inspected{}}
	who, err := e.r.visit(e.l.t.Context(), s.addr, s.a)
	s.verified, s.stopped = who.verified, who.stopped
	return s, err
}

// statement continues what a survivor holds now, or what it held when it could last say so.
func (e *claimant) statement(alive *running, change func(*api.RecoveryStatement)) *api.RecoveryStatement {
	e.l.t.Helper()
	head, err := alive.head()
	if err != nil {
		e.l.t.Fatal(err)
	}
	s := &api.RecoveryStatement{Label: api.RecoveryLabel, ClusterID: e.l.pins.ClusterID, Epoch: head.Epoch + 1, Generation: 2, Source: head, Enclave: api.ID(e.n.boot.id)}
	for _, m := range alive.machine.View().Members {
		s.Old = append(s.Old, api.OldServer{Slot: m.Slot, ServerID: api.ID(m.ServerID), Fate: api.FateDestroyed})
	}
	slices.SortFunc(s.Old, func(a, b api.OldServer) int { return slices.Compare(a.ServerID[:], b.ServerID[:]) })
	setFate(s, api.ID(alive.ServerID()), api.FateStopped)
	if change != nil {
		change(s)
	}
	return s
}

// ask presents a statement, with these signatures, to a survivor.
func (e *claimant) ask(alive *running, s *api.RecoveryStatement, keys ...ed25519.PrivateKey) error {
	e.l.t.Helper()
	raw, err := api.MarshalCanonical(s)
	if err != nil {
		e.l.t.Fatal(err)
	}
	v := &survivor{addr: alive.PeerAddr(), a: &inspected{machine: state.NewHeads()}}
	v.a.report = ArchiveReport{Epoch: s.Source.Epoch, ServerID: api.ID(alive.ServerID()), Applied: s.Source.Applied, AppliedTerm: s.Source.Term,
		Chain: s.Source.Chain, State: s.Source.StateSHA256, LogSize: s.Source.LogSize, LogRoot: s.Source.LogRoot, NodePolicy: s.Source.NodePolicy}
	e.r.held = nil
	err = e.r.askToStop(e.l.t.Context(), v, &RecoveryApprovals{Statement: raw, Approvals: api.Approve(raw, keys...)})
	if err != nil && len(e.r.held) > 0 || err == nil && s.Source.ServerID == api.ID(alive.ServerID()) && (len(e.r.held) == 0 || !v.stopped) {
		e.l.t.Errorf("answered with %v, and secrets came: %t", err, len(e.r.held) > 0)
	}
	return err
}

func (e *claimant) wantRefusal(what string, err error, say string) {
	e.l.t.Helper()
	if _, ok := errors.AsType[*RefusedError](err); !ok || !strings.Contains(err.Error(), say) {
		e.l.t.Errorf("%s: %v, want a refusal with %q in it", what, err, say)
	}
}

// heal lets everybody reach everybody again.
func (f *fabric) heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	clear(f.cut)
}

// door stands before a survivor and cuts connections.
type door struct {
	addr  string
	cut   func(conn, told int) bool
	conns chan struct{}
}

func newDoor(t *testing.T, to string, cut func(conn, told int) bool) *door {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	d := &door{addr: l.Addr().String(), cut: cut, conns: make(chan struct{}, 64)}
	go func() {
		for i := 0; ; i++ {
			in, err := l.Accept()
			if err != nil {
				return
			}
			d.conns <- struct{}{}
			go d.pass(i, in, to)
		}
	}()
	return d
}

func (d *door) count() int { return len(d.conns) }

func (d *door) pass(i int, in net.Conn, to string) {
	defer in.Close()
	out, err := net.Dial("tcp", to)
	if err != nil || d.cut(i, 0) {
		return
	}
	defer out.Close()
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := in.Read(buf)
			if err != nil {
				return
			}
			if _, err := out.Write(buf[:n]); err != nil {
				return
			}
		}
	}()
	buf := make([]byte, 4096)
	for told := 0; ; {
		n, err := out.Read(buf)
		if told += n; err != nil || d.cut(i, told) {
			return
		}
		if _, err := in.Write(buf[:n]); err != nil {
			return
		}
	}
}
