package node

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// The host leads the address of a survivor that has stopped to another one, which has not (raftstore/model, "a stop is
// remembered by address"): that one would count as stopped, and go on to acknowledge what the new epoch does not have.
func TestStopIsOfAServerAndNotOfAnAddress(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c", "d", "e")
	l.settled()
	first, second := l.nodes[1], l.nodes[3]
	dead := l.lose(first, second)
	e := l.claimant(dead[0].slot)
	v := &survivor{addr: first.PeerAddr()}
	e.r.alive = []*survivor{v}
	if err := e.ask(first, e.statement(first, nil), l.keys[:2]...); err != nil {
		t.Fatal(err)
	}
	e.r.visitAll(t.Context())
	if !v.known() || !v.stopped || v.a.report.Kind != KindStopped {
		t.Fatalf("the one that has stopped: %+v", v)
	}
	v.a.unusable(errMoved) // so that it is asked again
	v.addr = second.PeerAddr()
	e.r.visitAll(t.Context())
	if !v.known() || v.a.report.ServerID != api.ID(second.ServerID()) {
		t.Fatalf("the address does not lead to the other one: %+v", v)
	}
	if v.stopped || v.a.report.Kind != KindAlive {
		t.Errorf("server %.16s counts as stopped, and it is not", v.a.report.ServerID)
	}
}

// A fence is the will to stop. Between it and the end of the store, which the host can make long, entries are taken.
func TestFenceAloneIsNoStop(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	l.settled()
	alive := l.follower()
	e := l.claimant(l.lose(alive)[0].slot)
	alive.fenced.raise([]byte("a statement"), 2)
	if v, err := e.look(alive); err != nil || v.stopped {
		t.Errorf("a survivor whose store still runs: stopped %v, %v", v.stopped, err)
	}
	alive.store.Load().Shutdown()
	if v, err := e.look(alive); err != nil || !v.stopped {
		t.Errorf("a survivor whose store has ended: stopped %v, %v", v.stopped, err)
	}
}

// The operators accept that entries are lost while the archives are closed. The roots of the survivor open these, and one
// has more: what they accepted is not about that, and nothing opens before they have seen it.
func TestWordsOfALossAreAboutWhatWasShown(t *testing.T) {
	t.Parallel()
	l := survivorSite(t)
	l.found("a", "b", "c")
	alive := l.lagging()
	l.keyOf(l.client(l.endpoints()...), 0)
	l.settled()
	dead := l.lose()
	calls := 0
	r := l.fromSurvivors(dead, []*running{alive}, nil)
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if calls++; calls > 2 {
			return nil, errOperator
		}
		s := l.statement(report)
		s.Source, s.Accept = report.Archive(api.ID(alive.ServerID())).Source(), api.AcceptEntriesSentence
		stopAlive(report, s)
		if calls == 2 {
			if !errors.Is(refused, ErrRecovery) || !strings.Contains(refused.Error(), "more is lost than was to be seen") || !report.Roots {
				t.Errorf("refused with %v, roots: %v", refused, report.Roots)
			}
			s.Epoch = 3 // they have seen it, and mean it
		}
		return l.sign(s, l.keys[:2]...)
	}
	first := l.recoverOn(dead[0].slot, r)
	l.awaitReady(first)
	if epoch := first.machine.View().Epoch; calls != 2 || epoch != 3 {
		t.Errorf("%d statements, epoch %d", calls, epoch)
	}
}
