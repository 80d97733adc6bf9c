package node

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// shortArchive fails after some records; those before it are on disk.
type shortArchive struct {
	raftstore.Archive
	left int
}

func (a *shortArchive) Append(record []byte) error {
	if a.left--; a.left < 0 {
		return errors.New("the disk is gone")
	}
	return a.Archive.Append(record)
}

// The host ends a recovery at each record of its log, before and after the state is whole and its new root committed to. What is
// on disk stands in nobody's way: the next recovery is shown it, too, and the old keys are there. Of a whole state it goes on;
// where less is left, the operators must say that they leave that epoch behind.
func TestRecoveryThatEndsAtAnyRecord(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.found("a", "b", "c")
	want, _ := l.keyOf(l.client(l.endpoints()...), 1)
	l.settled()
	dead := l.crash()
	whole, uncommitted := 0, 0
	for records, opened := 1, false; !opened; records++ {
		epoch := uint64(2 * records)
		r := l.recovery(dead)
		r.Approve = l.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Epoch = epoch })
		cfg := l.recoverConfig("a", r)
		cfg.Archive = func(dir string, id raftstore.ServerID) (raftstore.Archive, error) {
			a, err := file.Create(dir, id)
			return &shortArchive{a, records}, err
		}
		begun := l.run(cfg)
		select {
		case <-begun.done:
		case <-begun.Ready():
			opened = true
		}
		begun.Close()

		wrapped, err := filepath.Glob(filepath.Join(cfg.DataDir, WrappedPattern))
		if err != nil || len(wrapped) != 1 {
			t.Fatalf("%d records: %v, %v", records, wrapped, err)
		}
		r = l.recovery(dead)
		r.Archives, r.Wrapped = append(r.Archives, archiveDir(begun)), append(r.Wrapped, wrapped...)
		r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
			s, a := l.statement(report), report.Archive(report.Newest)
			s.Epoch, s.Accept = epoch+1, api.Accept(false, a.Leaves != "")
			if a.Epoch == epoch {
				whole++
			}
			if a.Epoch == epoch && len(a.IDs) < 2 {
				uncommitted++
			}
			if refused != nil || (a.Epoch == epoch) != (a.Leaves == "") || a.Generation != 2 {
				t.Errorf("%d records: refused with %v, the newest is of epoch %d, generation %d, and leaves %q", records, refused, a.Epoch, a.Generation, a.Leaves)
				return nil, errors.Join(errOperator, refused)
			}
			return l.sign(s, l.keys[:2]...)
		}
		n := l.recoverOn("b", r)
		l.awaitReady(n)
		v := n.machine.View()
		if k, _ := l.keyOf(l.client(n.APIAddr()), 1); !bytes.Equal(k, want) || v.Epoch != epoch+1 || v.Generation != 3 || len(v.GenerationIDs) != 3 {
			t.Errorf("%d records: epoch %d, generation %d with %d ids, the same key: %t", records, v.Epoch, v.Generation, len(v.GenerationIDs), bytes.Equal(k, want))
		}
		l.crash()
	}
	if whole == 0 || uncommitted == 0 {
		t.Errorf("%d epochs ended with a whole state, %d of them before their root was committed to", whole, uncommitted)
	}
}
