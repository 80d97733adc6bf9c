package raftstore

import (
	"maps"
	"sync"

	"github.com/hashicorp/raft"
)

// matched is how far the log of each peer is known to be this leader's, from
// the answers to its requests in one term.
type matched struct {
	mu   sync.Mutex
	term uint64
	last map[ServerID]uint64
}

// note takes in that peer has this leader's log up to index, in term.
func (m *matched) note(peer ServerID, term, index uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if term < m.term || index == 0 {
		return
	}
	if term > m.term {
		m.term, m.last = term, map[ServerID]uint64{}
	}
	m.last[peer] = max(m.last[peer], index)
}

func (m *matched) forget(peer ServerID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.last, peer)
}

func (m *matched) in(term uint64) map[ServerID]uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if term != m.term || m.last == nil {
		return map[ServerID]uint64{}
	}
	return maps.Clone(m.last)
}

// told takes in an answer to an AppendEntries request that was stamped stamp
// when it was sent: as an acknowledgement for reads, and for what it says of the
// peer's log. Only one that is successful, and in the request's term, says anything.
func (t *transport) told(id raft.ServerID, args *raft.AppendEntriesRequest, rep wireReply, stamp uint64) {
	if !rep.OK || rep.Term != args.Term {
		return
	}
	if peer, err := ParseServerID(string(id)); err == nil {
		t.matched.note(peer, args.Term, args.PrevLogEntry+uint64(len(args.Entries)))
	}
	t.acks.note(id, args.Term, stamp) // last: who waits for it looks at both
}

// Progress is, on the leader, the last log index up to which each of the other
// servers has told in this term to have the leader's log; one that has told
// nothing yet is missing. It is empty elsewhere. It decides nothing: it is for
// showing who lags.
func (s *Store) Progress() map[ServerID]uint64 {
	term, ok := s.leading()
	if !ok {
		return map[ServerID]uint64{}
	}
	list := s.trans.matched.in(term)
	maps.DeleteFunc(list, func(id ServerID, _ uint64) bool { return !s.hasMember(id) })
	return list
}
