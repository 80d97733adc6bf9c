package node

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

// Epoch 2 is lost with its root, and its archive is shown: it opens with the first root, and cannot be the source. The operators
// go back to epoch 1, in words. The report names every server that they must account for then, also those of epoch 1 whose
// slot a boot of epoch 2 has taken: whoever signs can name no others.
func TestReportNamesTheServersOfOlderEpochs(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.found("a", "b", "c")
	l.settled()
	dead := l.crash()
	first := l.recoverOn("a", l.recovery(dead))
	l.awaitReady(first)
	first.Close()
	l.nodes = nil

	r := l.recovery(dead)
	r.Archives = append(r.Archives, archiveDir(first))
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if refused != nil {
			return nil, errors.Join(errOperator, refused)
		}
		if a := report.Archive(report.Newest); a == nil || a.Epoch != 2 || !strings.Contains(a.Refused, "do not belong to this history") {
			t.Errorf("the newest: %+v", a)
		}
		s := l.statement(report)
		a := report.Archive(api.ID(dead[0].ServerID()))
		s.Epoch, s.Source, s.Generation, s.Accept = 3, a.Source(), a.Generation+1, api.Accept(false, true)
		return l.sign(s, l.keys[:2]...)
	}
	n := l.recoverOn("b", r)
	l.awaitReady(n)
	if v := n.machine.View(); v.Epoch != 3 || v.Generation != 2 {
		t.Errorf("epoch %d, generation %d", v.Epoch, v.Generation)
	}
}

// The newest history has a server in its configuration whose slot was removed; an older one, which may be the source, knows its
// slot. The statement must name that slot: the state that the source brings has it there, and refuses an epoch opened without.
func TestSlotThatOneHistoryKnows(t *testing.T) {
	t.Parallel()
	x := raftstore.ServerID{9}
	removed := &inspected{report: ArchiveReport{ServerID: api.ID{1}, Slot: "a", Epoch: 1}, servers: []raftstore.Member{{ID: x}}}
	before := &inspected{report: ArchiveReport{ServerID: api.ID{2}, Slot: "b", Epoch: 1}, members: []state.Member{{Slot: "c", ServerID: x}}}
	for _, list := range [][]*inspected{{removed, before}, {before, removed}} {
		r := &recovery{Recovery: &Recovery{}, archives: list, seen: &witnesses{}}
		servers := r.servers()
		if at := slices.IndexFunc(servers, func(s ReportedServer) bool { return s.ServerID == api.ID(x) }); at < 0 || servers[at].Slot != "c" || len(servers) != 3 {
			t.Errorf("%+v", servers)
		}
	}
}
