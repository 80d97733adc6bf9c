package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Two archives go on to an entry that only a newer build understands, and the third is an old copy from before a release. A
// recovery by this build can use the old copy alone: that the others go on is told, and what they hold is lost in words only.
func TestNewerHistoryThatThisBuildCannotReplay(t *testing.T) {
	t.Parallel()
	c := copiedCluster(t)
	if _, _, err := (replica{c.leader().store.Load()}).Propose(t.Context(), []byte{0xff}); !errors.Is(err, state.ErrHalted) {
		t.Fatalf("an entry that nobody here understands: %v", err)
	}
	poll(t, "all have the entry, and halt", func() bool {
		return !slices.ContainsFunc(c.nodes, func(n *running) bool { return !n.store.Load().Halted() })
	})
	c.dead = c.crash()
	r := c.withOld()
	calls := 0
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		a := report.Archive(report.Newest)
		if a == nil || a.LogSize >= c.receipt.TreeSize || !strings.Contains(a.Leaves, "cannot be used") {
			t.Errorf("the old copy in the report: %+v", a)
		}
		s := c.statement(report)
		switch calls++; {
		case calls == 1:
		case calls == 2 && errors.Is(refused, ErrRecovery) && strings.Contains(refused.Error(), "the build that wrote it"):
			s.Accept = api.Accept(false, true)
		default:
			return nil, errors.Join(errOperator, refused)
		}
		return c.sign(s, c.keys[:2]...)
	}
	first := c.recoverOn("a", r)
	c.awaitReady(first)
	if calls != 2 {
		t.Errorf("the epoch was opened after %d statements", calls)
	}
}
