package node

import (
	"context"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// Epoch 2 expels the code of all nodes and is lost; epoch 3 goes on from before it, and operators let that code run on. Its last
// server lives. Whoever shows the archive of epoch 2 beside it finds that server expelled: it is told by which epoch, and that
// it may leave that one away. Then the new epoch continues what lives.
func TestPolicyOfAnEpochThatWasLeftBehind(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	l.settled()
	dead := l.crash()
	open := func(slot string, epoch uint64) *running {
		r := l.recovery(dead)
		r.Approve = l.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Epoch = epoch })
		n := l.recoverOn(slot, r)
		l.awaitReady(n)
		return n
	}
	lost := open("a", 2)
	l.changePolicy(newImage())
	lost.Close()
	l.nodes = nil
	alive := open("b", 3)
	other := l.run(l.config("c", l.launch("machine-c", nodeImage)))
	l.awaitReady(other)
	l.settled()
	l.lose(alive)

	both := l.fromSurvivors([]*running{lost, other}, []*running{alive}, nil)
	approve, calls := both.Approve, 0
	both.Approve = func(ctx context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if calls++; calls == 2 && !words("expelled its code", "version 2", "of epoch 2", "do not name its archives")(refused) {
			t.Errorf("a survivor that a policy of before expels: %v", refused)
		}
		return approve(ctx, report, refused)
	}
	if err := l.refusedRecovery("a", both); err == nil || calls != 2 {
		t.Errorf("%d statements, %v", calls, err)
	}
	without := l.fromSurvivors([]*running{other}, []*running{alive}, func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Epoch = 5 })
	n := l.recoverOn("a", without)
	l.awaitReady(n)
	if v := n.machine.View(); v.Epoch != 5 || v.NodePolicy != 1 {
		t.Errorf("epoch %d, node policy %d", v.Epoch, v.NodePolicy)
	}
}
