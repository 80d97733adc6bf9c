package node

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// An old copy is chosen beside newer archives. That a lost server may go on is accepted, in words, and does not stand for
// what the newer ones hold; the words for that do, and then the epoch opens, without it.
func TestWordsAreForOneLoss(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	old, err := api.ParseID(filepath.Base(c.old))
	if err != nil {
		t.Fatal(err)
	}
	r := c.withOld()
	calls := 0
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		calls++
		a := report.Archive(old)
		if a == nil || a.Refused != "" || !strings.Contains(a.Leaves, "is not the newest") || report.Archive(report.Newest).Leaves != "" {
			t.Errorf("the old copy in the report: %+v", a)
		}
		s := c.statement(report)
		s.Source = a.Source()
		switch calls {
		case 1:
			at := slices.IndexFunc(s.Old, func(o api.OldServer) bool { return o.ServerID != old })
			s.Old[at].Fate, s.Accept = api.FateLost, api.Accept(true, false)
		case 2:
			if !errors.Is(refused, ErrRecovery) || !strings.Contains(refused.Error(), "is not the newest") {
				t.Errorf("words about something else: %v", refused)
			}
			s.Accept = api.Accept(false, true)
		default:
			return nil, errors.Join(errOperator, refused)
		}
		return c.sign(s, c.keys[:2]...)
	}
	first := c.recoverOn("a", r)
	c.awaitReady(first)
	if v := first.machine.View(); v.Epoch != 2 || v.Log.Size >= c.receipt.TreeSize+1 || calls != 2 {
		t.Errorf("epoch %d with %d releases after %d statements; the receipt is of %d", v.Epoch, v.Log.Size, calls, c.receipt.TreeSize)
	}
}
