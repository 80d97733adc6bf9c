package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// hint is what the answer of a leader says of its commit index: the entry at
// index, of term, is committed, and leaderTerm is the term it leads. It is what
// the leader's next AppendEntries request, up to two commit intervals later,
// would say, and is given to raft in that very form: raft checks the term, that
// this server has the entry and that its term is the same, and commits up to it.
// So an answer speaks with no more authority than the request that follows it.
type hint struct {
	leader      ServerID
	addr        string
	leaderTerm  uint64
	index, term uint64
}

// hints passes on the newest one once this server has the entry, so that a
// client of a follower waits for the commit and not for the next request.
type hints struct {
	s *Store

	mu      sync.Mutex
	next    hint // zero: none
	running bool
	closed  bool
	work    sync.WaitGroup
}

// give never blocks; an older hint is replaced.
func (h *hints) give(n hint) {
	if n.index == 0 || n.term == 0 || h.s.raft.CommitIndex() >= n.index {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed || h.next.leaderTerm > n.leaderTerm || h.next.leaderTerm == n.leaderTerm && h.next.index >= n.index {
		return
	}
	h.next = n
	if !h.running {
		h.running = true
		h.work.Go(h.run)
	}
}

func (h *hints) close() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.work.Wait()
}

func (h *hints) take() (n hint, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	n, h.next = h.next, hint{}
	if n.index == 0 {
		h.running = false
	}
	return n, n.index != 0
}

func (h *hints) run() {
	for {
		n, ok := h.take()
		if !ok {
			return
		}
		if h.await(n) {
			h.s.trans.commitUpTo(n)
		}
	}
}

// await waits until the entry is in the log here, as long as it is of use.
func (h *hints) await(n hint) bool {
	for {
		last, grown := h.s.logs.look()
		news := h.s.leaders.news()
		if h.s.raft.CommitIndex() >= n.index || h.s.raft.CurrentTerm() != n.leaderTerm {
			return false
		}
		if last >= n.index {
			return true
		}
		select {
		case <-grown:
		case <-news:
		case <-h.s.trans.ctx.Done():
			return false
		}
	}
}

// commitUpTo hands the hint to raft's main loop as the request it stands for.
func (t *transport) commitUpTo(n hint) {
	addr := raftAddress(n.leader, n.addr)
	h := raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.leader.String()), Addr: []byte(addr)}
	// What raft answers goes to nobody: no acknowledgement comes of it.
	_, _ = t.dispatch(&raft.AppendEntriesRequest{RPCHeader: h, Term: n.leaderTerm, Leader: h.Addr,
		PrevLogEntry: n.index, PrevLogTerm: n.term, LeaderCommitIndex: n.index}, nil)
}
