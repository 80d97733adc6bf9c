package raftstore

import (
	"bytes"
	"slices"

	"github.com/hashicorp/raft"
)

// A snapshot may arrive long after it was sent: the network kept it, and its sender gave up and sent another. Raft
// installs whatever comes in the present term. The machine would go back, the log would be emptied with entries in it
// that this server has acknowledged, and the configuration would be that of the snapshot's time again, in which fewer
// voters may have been a majority. So a snapshot is installed only if it tells something new, as in the Raft paper
// (§7, step 6: a log that has the last entry is retained).

// installSnapshot gives raft a heartbeat of the same leader, and then the snapshot. Where its last entry is here already
// the answer to the heartbeat is as good: this server has everything up to that entry. No entries come in between the
// look and the installation. The heartbeat ends the campaign of a candidate, which a snapshot does not: one that becomes
// a candidate again before the snapshot refuses it (errCampaigning), and its sender tries again.
func (t *transport) installSnapshot(req *raft.InstallSnapshotRequest, data []byte) (wireReply, error) {
	t.settling.Lock() // before growing: entries do not wait while a snapshot of ours is archived
	defer t.settling.Unlock()
	t.growing.Lock()
	defer t.growing.Unlock()
	held := t.host.holds(req.LastLogIndex, req.LastLogTerm)
	beat, err := t.dispatch(&raft.AppendEntriesRequest{RPCHeader: req.RPCHeader, Term: req.Term, Leader: req.Leader}, nil)
	if held || err != nil || !beat.OK {
		return beat, err
	}
	rep, err := t.dispatch(req, bytes.NewReader(data))
	if err == nil && rep.OK {
		t.snapshotsIn.Add(1)
	}
	return rep, err
}

// appendEntries gives raft entries or a heartbeat; only the first can make the log grow.
func (t *transport) appendEntries(a *raft.AppendEntriesRequest) (wireReply, error) {
	if len(a.Entries) != 0 {
		t.growing.Lock()
		defer t.growing.Unlock()
	}
	if applied, gone := t.host.compacted(a.PrevLogEntry); gone {
		// Raft refuses a request that goes on from an entry which it has
		// compacted, or which a snapshot has brought; a leader whose own log begins
		// no earlier would send its snapshot, which is held, and the same request
		// again, for ever and without a pause. What is applied here is committed:
		// the leader has the same up to there. Raft skips the question for 0.
		a.PrevLogEntry, a.PrevLogTerm = 0, 0
		a.Entries = slices.DeleteFunc(a.Entries, func(l *raft.Log) bool { return l.Index <= applied })
	}
	return t.dispatch(a, nil)
}

// holds reports whether this server has everything that is committed up to the entry at index, which has that term:
// it has applied it, or has the entry in its log.
func (s *Store) holds(index, term uint64) bool {
	return index <= s.raft.AppliedIndex() || s.logs.has(index, term)
}
