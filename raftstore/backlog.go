package raftstore

import (
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// backlog bounds what a leader holds that is not committed. The host decides
// when acknowledgements arrive, if it lets heartbeats pass it decides without
// costing the leader its leadership, and who proposes may give up and propose
// again: entries that are in the log stay there. What is counted is the log
// itself, that of earlier terms too, and what waits for raft to take it.
type backlog struct {
	mu             sync.Mutex
	entries, bytes int // with raft.Apply, and not in the log yet
}

// apply gives entry to raft, or refuses it: with ErrBusy, or as raft would itself
// where leadership is being handed over. Raft gathers up to maxAppendEntries
// entries before it stores them: so many may be too many.
func (s *Store) apply(entry []byte, timeout time.Duration) (raft.ApplyFuture, error) {
	if s.handing.Load() {
		return nil, raft.ErrLeadershipTransferInProgress
	}
	b := &s.backlog
	b.mu.Lock()
	entries, bytes := s.logs.behind(s.raft.CommitIndex())
	if b.entries+entries >= maxUncommitted || b.bytes+bytes+len(entry) > maxUncommittedBytes {
		b.mu.Unlock()
		return nil, ErrBusy
	}
	b.entries++
	b.bytes += len(entry)
	b.mu.Unlock()
	f := s.raft.Apply(entry, timeout)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries--
	b.bytes -= len(entry)
	return f, nil
}
