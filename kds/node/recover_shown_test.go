package node

import (
	"context"
	"errors"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// A host cuts the archive of a later epoch so short that no state is in it, and
// hides that epoch's roots: the epoch has been all the same, and its server is one
// that the operators must account for.
func TestACutArchiveStillSaysThatItsEpochWas(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	first := c.recoverOn("a", c.recovery(c.dead))
	c.awaitReady(first)
	first.Close()
	cut := filepath.Join(t.TempDir(), first.ServerID().String())
	copyDir(t, archiveDir(first), cut)
	segments, err := filepath.Glob(filepath.Join(cut, "*.records"))
	if err != nil || len(segments) != 1 {
		t.Fatalf("%v %v", segments, err)
	}
	if err := os.Truncate(segments[0], 1024); err != nil {
		t.Fatal(err)
	}
	for name, attack := range map[string]struct {
		change func(*api.RecoveryStatement)
		say    string
	}{
		"the epoch again": {func(s *api.RecoveryStatement) { s.Epoch = 2 }, "epoch 2 has been"},
		"without accepting that it is lost": {func(s *api.RecoveryStatement) { s.Epoch, s.Accept = 3, api.Accept(true, false) },
			"epoch 2 has been opened after that of server"},
		"without a word on its server": {func(s *api.RecoveryStatement) {
			s.Epoch = 3
			s.Old = slices.DeleteFunc(s.Old, func(o api.OldServer) bool { return o.ServerID == api.ID(first.ServerID()) })
		}, "do not say what became of server " + first.ServerID().String()[:16]},
	} {
		r := c.recovery(c.dead)
		r.Archives = append(r.Archives, cut)
		r.Approve = c.approve(func(report *RecoveryReport, s *api.RecoveryStatement) {
			last := report.Archives[len(report.Archives)-1]
			if last.Problem == "" || last.Epoch != 2 || report.Archive(api.ID(first.ServerID())) != nil {
				t.Errorf("%s: the cut archive is reported as %+v", name, last)
			}
			s.Accept = api.Accept(false, true)
			attack.change(s)
		})
		if err := c.refusedRecovery("a", r); !errors.Is(err, ErrRecovery) || !strings.Contains(err.Error(), attack.say) {
			t.Errorf("%s: refused with %v", name, err)
		}
	}
}

// A host names an old copy of a server's archive before the newer one: the newer
// one is what the server wrote.
func TestTheLongerOfTwoCopiesCounts(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	id, err := api.ParseID(filepath.Base(c.old))
	if err != nil {
		t.Fatal(err)
	}
	var seen []api.ID
	for _, oldFirst := range []bool{true, false} {
		r := c.recovery(c.dead)
		if oldFirst {
			r.Archives = append([]string{c.old}, r.Archives...)
		} else {
			r.Archives = append(r.Archives, c.old)
		}
		r.Approve = func(_ context.Context, report *RecoveryReport, _ error) (*RecoveryApprovals, error) {
			a := report.Archive(id)
			if a == nil || a.Verdict == "" || a.Path == c.old {
				t.Errorf("old copy first %t: %+v", oldFirst, a)
				return nil, errOperator
			}
			seen = append(seen, a.Head)
			return nil, errOperator
		}
		if err := c.refusedRecovery("a", r); !errors.Is(err, errOperator) {
			t.Error(err)
		}
	}
	if len(seen) != 2 || seen[0] != seen[1] {
		t.Errorf("the order of the copies decides: %v", seen)
	}
}

// The disk takes no final checkpoint when the epoch ends; people mend it, and the
// server can be named as stopped with proof all the same.
func TestTheFinalCheckpointIsWrittenOnceTheDiskTakesIt(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	a := l.found("a")[0]
	name := filepath.Join(a.cfg.DataDir, FinalFile(api.ID(a.ServerID())))
	if err := os.Mkdir(name+".new", 0o700); err != nil {
		t.Fatal(err)
	}
	l.stop()
	poll(t, "the end has been applied", func() bool { return errors.Is(a.readiness(t.Context()), ErrEnded) })
	time.Sleep(300 * time.Millisecond)
	if _, err := os.Stat(name); err == nil {
		t.Fatal("it was written all the same")
	}
	if err := os.Remove(name + ".new"); err != nil {
		t.Fatal(err)
	}
	l.awaitFinals()
}

// The first record of an archive is of a host's making, as long as a record can
// be: the search for its epoch ends, and ends with the context.
func TestTheSearchForAnEpochEnds(t *testing.T) {
	t.Parallel()
	secrets, err := kds.GenerateSecrets()
	if err != nil {
		t.Fatal(err)
	}
	key, err := secrets.ArchiveKey([32]byte{2})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	i := &inspector{clusterID: api.ID{1}, held: []*kds.Secrets{secrets}, records: func(string) iter.Seq2[[]byte, error] {
		return func(yield func([]byte, error) bool) {
			cancel()
			yield(make([]byte, file.MaxRecord), nil)
		}
	}}
	if _, err := i.epochOf(ctx, "", key, [32]byte{2}); !errors.Is(err, context.Canceled) {
		t.Errorf("a search that nobody waits for: %v", err)
	}
	if epoch, err := i.epochOf(t.Context(), "", key, [32]byte{2}); err == nil || epoch != 0 {
		t.Errorf("garbage is of epoch %d", epoch)
	}
}
