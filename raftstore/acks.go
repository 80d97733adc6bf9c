package raftstore

import (
	"sync"

	"github.com/hashicorp/raft"
)

// acks counts which servers have answered AppendEntries requests, heartbeats
// included, that were sent after a round began: of reads, or of a change of the
// voters. It sits in the transport because raft's own count (VerifyLeader) takes
// answers to requests sent before the read, and those of nonvoters.
type acks struct {
	mu     sync.Mutex
	stamp  uint64 // of the newest round; every request carries the stamp of when it was sent
	rounds map[*ackRound]bool
}

// ackRound is one count.
type ackRound struct {
	acks  *acks
	stamp uint64
	term  uint64 // of the leader the round proves
	from  map[raft.ServerID]bool
	news  chan struct{} // holds one token when from has grown
}

func newAcks() *acks { return &acks{rounds: map[*ackRound]bool{}} }

// sent stamps a request that is about to be sent.
func (a *acks) sent() uint64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.stamp
}

// begin starts a round: only requests of term stamped from here on count.
func (a *acks) begin(term uint64) *ackRound {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.stamp++
	r := &ackRound{acks: a, stamp: a.stamp, term: term, from: map[raft.ServerID]bool{}, news: make(chan struct{}, 1)}
	a.rounds[r] = true
	return r
}

// end stops counting.
func (r *ackRound) end() {
	r.acks.mu.Lock()
	defer r.acks.mu.Unlock()
	delete(r.acks.rounds, r)
}

// note takes a successful answer of peer, in term, to a request stamped stamp.
func (a *acks) note(peer raft.ServerID, term, stamp uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for r := range a.rounds {
		if term != r.term || stamp < r.stamp {
			continue
		}
		r.from[peer] = true
		select {
		case r.news <- struct{}{}:
		default:
		}
	}
}

// answered reports whether peer has.
func (r *ackRound) answered(peer raft.ServerID) bool {
	r.acks.mu.Lock()
	defer r.acks.mu.Unlock()
	return r.from[peer]
}

// majority reports whether self and those who answered are most of the voters
// of c. Self counts if it is a voter there, and only then: a leader that is
// being removed needs a majority of the others.
func (r *ackRound) majority(c raft.Configuration, self raft.ServerID) bool {
	r.acks.mu.Lock()
	defer r.acks.mu.Unlock()
	voters, have := 0, 0
	for _, s := range c.Servers {
		if s.Suffrage != raft.Voter {
			continue
		}
		voters++
		if s.ID == self || r.from[s.ID] {
			have++
		}
	}
	return have > voters/2
}
