package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// acks counts which servers have answered AppendEntries requests, heartbeats
// included, that were sent after the present round of reads began. It sits
// in the transport because raft's own count (VerifyLeader) takes answers to
// requests sent before the read, and those of nonvoters.
type acks struct {
	mu    sync.Mutex
	stamp uint64 // of the newest round; every request carries the stamp of when it was sent
	term  uint64 // of the leader the round proves; 0 between rounds
	from  map[raft.ServerID]bool
	news  chan struct{} // holds one token when from has grown
}

func newAcks() *acks { return &acks{news: make(chan struct{}, 1)} }

// sent stamps a request that is about to be sent.
func (a *acks) sent() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stamp
}

// begin starts a round: only requests of term stamped from here on count.
func (a *acks) begin(term uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stamp++
	a.term, a.from = term, map[raft.ServerID]bool{}
	select {
	case <-a.news: // of an earlier round
	default:
	}
}

// end stops counting.
func (a *acks) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.term, a.from = 0, nil
}

// note takes a successful answer of peer, in term, to a request stamped stamp.
func (a *acks) note(peer raft.ServerID, term, stamp uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.term == 0 || term != a.term || stamp < a.stamp {
		return
	}
	a.from[peer] = true
	select {
	case a.news <- struct{}{}:
	default:
	}
}

// majority reports whether self and those who answered are most of the voters
// of c. Self counts if it is a voter there, and only then: a leader that is
// being removed needs a majority of the others.
func (a *acks) majority(c raft.Configuration, self raft.ServerID) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	voters, have := 0, 0
	for _, s := range c.Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == self || a.from[s.ID] {
			have++
		}
	}
	return have > voters/2
}
