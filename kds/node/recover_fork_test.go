package node

import (
	"encoding/binary"
	"fmt"
	"testing"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/history"
)

// historyOf is a log of commands in one term, whose text a world decides, up to last; its entries begin at first, and what is
// before them is in a snapshot, if snapshot is not 0.
func historyOf(t *testing.T, world string, term, first, last, snapshot uint64) *inspected {
	t.Helper()
	var records []raftstore.Record
	var chain [32]byte
	for i := uint64(1); i <= last; i++ {
		data := fmt.Appendf(nil, "%s %d", world, i)
		if i <= snapshot {
			chain = raftstore.ExtendChain(chain, i, term, data)
		}
		if i >= first {
			records = append(records, raftstore.Record{Kind: raftstore.RecordLog, Index: i, Term: term, Data: data})
		}
	}
	if snapshot > 0 {
		header := append(binary.BigEndian.AppendUint64([]byte("clvsnap2"), snapshot), chain[:]...)
		records = append(records, raftstore.Record{Kind: raftstore.RecordSnapshot, Index: snapshot, End: uint64(len(header)), Term: term},
			raftstore.Record{Kind: raftstore.RecordChunk, Data: header})
	}
	h, err := history.Collect(func(yield func(raftstore.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}, raftstore.Chain{ClusterID: [32]byte{1}, Epoch: 1})
	if err != nil {
		t.Fatal(err)
	}
	return &inspected{history: h, epoch: 1}
}

// The newest history has compacted away where another parted from it, and a third shows that they did: something was committed
// beside it, which the operators must accept in words.
func TestForkThatAnotherHistoryShows(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		forked *inspected
		lost   bool
	}{
		"another world": {historyOf(t, "other", 1, 8, 10, 10), true},
		"an old copy":   {historyOf(t, "one", 1, 8, 10, 10), false},
	} {
		list := []*inspected{historyOf(t, "one", 1, 15, 50, 45), historyOf(t, "one", 1, 1, 20, 0), c.forked}
		for i, a := range list {
			a.server = api.ID{byte(i + 1)}
			a.report = ArchiveReport{ServerID: a.server, Epoch: 1, Index: 50}
		}
		r := &recovery{Recovery: &Recovery{}, archives: list}
		r.compare()
		if r.newest != list[0] || list[1].standing.relation != history.Behind || list[2].standing.relation != history.Unknown {
			t.Fatalf("%s: %v, %v, newest %v", name, list[1].standing, list[2].standing, r.newest.server)
		}
		if leaves := r.leaves(list[0]); (leaves != "") != c.lost {
			t.Errorf("%s: the newest leaves %q", name, leaves)
		}
		if c.lost && r.checkLoss(&api.RecoveryStatement{}, list[0]) == nil {
			t.Errorf("%s: nobody is asked for words", name)
		}
	}
}
