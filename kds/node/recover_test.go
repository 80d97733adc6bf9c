package node

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// The whole of it: five nodes die; one archive is an old copy, one is of a leader
// that was cut off and went on writing. The enclave says which is which, operators
// sign, and epoch 2 goes on where epoch 1 was.
func TestRecovery(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.found("a", "b", "c", "d", "e")
	c := l.client(l.endpoints()...)
	before, _ := l.keyOf(c, 0)
	l.settled()

	rolled := l.follower()
	old := t.TempDir()
	copyDir(t, archiveDir(rolled), old+"/copy")
	l.keyOf(c, 0)
	forked := l.forkLeader()
	_, last := l.keyOf(l.client(l.endpointsBut(forked)...), 0)
	l.settledBut(forked)
	want := l.leader().machine.View()

	dead := l.crash()
	copyDir(t, old+"/copy", archiveDir(rolled))
	r := l.recovery(dead)
	r.Receipts = []string{l.write("receipt.json", last.Receipt)}
	var report *RecoveryReport
	approve := r.Approve
	r.Approve = func(ctx context.Context, got *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		report = got
		return approve(ctx, got, refused)
	}
	home := dead[slices.IndexFunc(dead, func(n *running) bool { return n != rolled && n != forked })]
	start := time.Now()
	first := l.recoverOn(home.slot, r)
	l.awaitReady(first)
	t.Logf("five archives inspected, the epoch open and served after %v", time.Since(start).Round(time.Millisecond))

	showReport(t, report)
	if a := report.Archive(api.ID(rolled.ServerID())); a == nil || !strings.HasPrefix(a.Verdict, "behind") {
		t.Errorf("the archive that was rolled back: %+v", a)
	}
	if a := report.Archive(api.ID(forked.ServerID())); a == nil || !strings.HasPrefix(a.Verdict, "diverged") {
		t.Errorf("the archive of the leader that was cut off: %+v", a)
	}
	got := first.machine.View()
	if got.Epoch != 2 || got.Generation != 2 || got.NodePolicy != want.NodePolicy || got.Log.Size != want.Log.Size+1 || len(got.Members) != 5 {
		t.Errorf("epoch %d, generation %d, policy %d, log %d after %d, %d members", got.Epoch, got.Generation, got.NodePolicy, got.Log.Size, want.Log.Size, len(got.Members))
	}
	sameCollateral(t, l.launch("machine-a", nodeImage).Machine().Platform().FMSPC(), dead[0].machine, first.machine)

	// Others join the new epoch, on machines of the old one and with its floor.
	for _, n := range dead {
		if n == home || n == rolled {
			continue
		}
		cfg := l.config(n.slot, l.launch("machine-"+n.slot, nodeImage))
		cfg.MinEpoch = 2
		l.awaitReady(l.run(cfg))
	}
	again := l.client(l.endpoints()...)
	if k, reply := l.keyOf(again, 1); !bytes.Equal(k, before) || reply.Epoch != 2 {
		t.Errorf("generation 1 in epoch %d: the same bytes %t", reply.Epoch, bytes.Equal(k, before))
	}
	if k, reply := l.keyOf(again, 0); bytes.Equal(k, before) || reply.Version.Generation != 2 {
		t.Errorf("a new release: generation %d", reply.Version.Generation)
	}
	l.restartsInTheNewEpoch(t)
}

// restartsInTheNewEpoch: one node dies and comes back, as in any epoch.
func (l *lostSite) restartsInTheNewEpoch(t *testing.T) {
	t.Helper()
	leader := l.leader()
	n := l.nodes[slices.IndexFunc(l.nodes, func(n *running) bool { return n != leader })]
	n.Close()
	l.nodes = slices.DeleteFunc(l.nodes, func(m *running) bool { return m == n })
	cfg := l.config(n.slot, l.launch("machine-"+n.slot, nodeImage))
	cfg.MinEpoch = 2
	back := l.run(cfg)
	l.awaitReady(back)
	if back.membership().Epoch != 2 || back.secrets.Generation() != 2 {
		t.Errorf("back in epoch %d with generation %d", back.membership().Epoch, back.secrets.Generation())
	}
}

func sameCollateral(t *testing.T, fmspc [6]byte, old, now *state.Machine) {
	t.Helper()
	n := 0
	for _, tee := range []string{"sgx", "tdx"} {
		for _, ca := range []string{"platform", "processor"} {
			key := state.CollateralKey{TEE: tee, FMSPC: fmspc, CA: ca}
			if set, ok := old.Collateral(key); ok {
				n++
				if again, ok := now.Collateral(key); !ok || again.Version < set.Version || again.Meta.Oldest() < set.Meta.Oldest() {
					t.Errorf("collateral %v: version %d, was %d", key, again.Version, set.Version)
				}
			}
		}
	}
	if n == 0 {
		t.Error("the old epoch had no collateral")
	}
}

func (l *lostSite) follower() *running {
	leader := l.leader()
	return l.nodes[slices.IndexFunc(l.nodes, func(n *running) bool { return n != leader })]
}

func (l *lostSite) endpointsBut(out *running) (list []string) {
	for _, n := range l.nodes {
		if n != out {
			list = append(list, n.APIAddr())
		}
	}
	return list
}

// forkLeader cuts the leader off while it goes on writing, and returns it once
// the others have another.
func (l *lostSite) forkLeader() *running {
	l.t.Helper()
	leader := l.leader()
	l.net.partition(leader)
	ctx, cancel := context.WithTimeout(l.t.Context(), 5*time.Second)
	defer cancel()
	at := leader.store.Load().AppliedIndex()
	raw, err := state.Encode(&state.RaiseLevel{Epoch: 1, Level: state.Level}) // rejected, wherever it is applied
	if err != nil {
		l.t.Fatal(err)
	}
	if _, _, err := leader.store.Load().Propose(ctx, raw); err == nil {
		l.t.Fatal("a leader alone committed")
	}
	if leader.store.Load().AppliedIndex() != at {
		l.t.Fatal("a leader alone applied")
	}
	poll(l.t, "another leader", func() bool {
		for _, n := range l.nodes {
			if n != leader && n.IsLeader() && n.store.Load().SafeRead(l.t.Context()) == nil {
				return true
			}
		}
		return false
	})
	return leader
}

func (l *lostSite) settledBut(out *running) {
	l.t.Helper()
	all := l.nodes
	l.nodes = slices.DeleteFunc(slices.Clone(all), func(n *running) bool { return n == out })
	l.settled()
	l.nodes = all
}

// A planned stop: every node signs a final checkpoint, operators name all servers
// as stopped with that proof, and nothing is accepted in words.
func TestPlannedStop(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.found("a", "b", "c")
	c := l.client(l.endpoints()...)
	before, _ := l.keyOf(c, 0)
	l.stop()
	finals := l.awaitFinals()
	ctx, cancel := context.WithTimeout(t.Context(), slow*3*time.Second)
	defer cancel()
	if _, _, err := c.Key(ctx, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"}); err == nil {
		t.Error("a key after the end of the epoch")
	}
	dead := l.crash()

	// Said to be stopped, and its checkpoint is not there: refused.
	stopped := func(_ *RecoveryReport, s *api.RecoveryStatement) {
		for i := range s.Old {
			s.Old[i].Fate = api.FateStopped
		}
	}
	r := l.recovery(dead)
	r.Finals, r.Approve = finals[1:], l.approve(stopped)
	if err := l.refusedRecovery("a", r); !errors.Is(err, ErrRecovery) || !strings.Contains(err.Error(), "final checkpoint has not been shown") {
		t.Errorf("stopped without proof: %v", err)
	}
	// An archive that misses an entry which a stopped server had applied, or has another.
	for say, change := range map[string]func(*api.FinalCheckpoint){
		"had applied entry":                 func(f *api.FinalCheckpoint) { f.Applied++ },
		"others than those of this history": func(f *api.FinalCheckpoint) { f.Chain[0] ^= 1 },
		"another log":                       func(f *api.FinalCheckpoint) { f.LogRoot[0] ^= 1 },
	} {
		r = l.recovery(dead)
		r.Finals, r.Approve = []string{l.finalOf(dead[0], change)}, l.approve(nil)
		if err := l.refusedRecovery("a", r); !errors.Is(err, ErrBelow) || !strings.Contains(err.Error(), say) {
			t.Errorf("%s: %v", say, err)
		}
	}
	r = l.recovery(dead)
	r.Finals, r.Approve = finals, l.approve(stopped)
	first := l.recoverOn("a", r)
	l.awaitReady(first)
	if v := first.machine.View(); v.Epoch != 2 || v.Ended {
		t.Errorf("epoch %d, ended %t", v.Epoch, v.Ended)
	}
	if k, _ := l.keyOf(l.client(first.APIAddr()), 1); !bytes.Equal(k, before) {
		t.Error("another key after the stop")
	}
}

// stop has the operators end the epoch.
func (l *lostSite) stop() {
	l.t.Helper()
	leader := l.leader()
	v := leader.machine.View()
	raw, err := api.NewAdmin(v.ClusterID, v.Epoch, v.Sequence+1, &api.Stop{})
	if err != nil {
		l.t.Fatal(err)
	}
	if _, err := leader.propose(l.t.Context(), &state.Operate{Statement: raw, Approvals: api.Approve(raw, l.keys[:2]...)}); err != nil {
		l.t.Fatal(err)
	}
}

// awaitFinals waits until every node has written its final checkpoint.
func (l *lostSite) awaitFinals() (files []string) {
	l.t.Helper()
	for _, n := range l.nodes {
		name := filepath.Join(n.cfg.DataDir, FinalFile(api.ID(n.ServerID())))
		poll(l.t, "the final checkpoint of "+n.slot, func() bool {
			_, err := os.Stat(name)
			return err == nil
		})
		files = append(files, name)
	}
	return files
}
