package raftstore

import (
	"bytes"
	"fmt"

	"github.com/hashicorp/raft"
)

// The keys hashicorp/raft uses; any other is refused, so that a new version of
// it cannot keep a promise here that nobody checks.
const (
	keyCurrentTerm  = "CurrentTerm"
	keyLastVoteTerm = "LastVoteTerm"
	keyLastVoteCand = "LastVoteCand"
)

// stableStore keeps term and vote of this boot in memory and writes them
// through. It refuses a falling term and a second vote in one term whatever
// the library above it believes.
type stableStore struct {
	journal *journal
	fence   *fence
	mu      diskLock // held while the archive is written
	term    uint64
	vote    uint64 // the term of the last vote
	cand    []byte // whom it went to; nil while the vote of that term is still free
}

var _ raft.StableStore = (*stableStore)(nil)

// SetUint64 stores the current term, or opens the vote of a term.
func (s *stableStore) SetUint64(key []byte, val uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyCurrentTerm:
		if err := s.setTerm(val); err != nil {
			// raft panics when this call fails, and a panic would take the roots in
			// this process with it. The fence is up: nothing of this term gets out.
			s.fence.trip(err)
		}
		return nil
	case keyLastVoteTerm:
		return s.openVote(val)
	}
	return fmt.Errorf("raftstore: unknown stable key %q", key)
}

func (s *stableStore) setTerm(term uint64) error {
	if term < s.term {
		return fmt.Errorf("%w: from %d to %d", ErrTermFell, s.term, term)
	}
	if term == s.term {
		return nil
	}
	s.term = term
	return s.journal.write(Record{Kind: RecordTerm, Term: term})
}

func (s *stableStore) openVote(term uint64) error {
	if term < s.vote || term < s.term {
		err := fmt.Errorf("%w: a vote in term %d after term %d", ErrTermFell, term, max(s.vote, s.term))
		s.fence.trip(err)
		return err
	}
	if term > s.vote {
		s.vote, s.cand = term, nil
	}
	return nil
}

// Set records whom the vote of the term opened last goes to.
func (s *stableStore) Set(key, val []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(key) != keyLastVoteCand {
		return fmt.Errorf("raftstore: unknown stable key %q", key)
	}
	if len(val) == 0 {
		return fmt.Errorf("raftstore: a vote for nobody")
	}
	if s.cand != nil {
		if bytes.Equal(s.cand, val) {
			return nil
		}
		err := fmt.Errorf("%w: term %d", ErrSecondVote, s.vote)
		s.fence.trip(err)
		return err
	}
	s.cand = bytes.Clone(val)
	return s.journal.write(Record{Kind: RecordVote, Term: s.vote, Data: s.cand})
}

// records is what the archive must know of the present; it needs mu.
func (s *stableStore) records() []Record {
	var recs []Record
	if s.term > 0 {
		recs = append(recs, Record{Kind: RecordTerm, Term: s.term})
	}
	if s.cand != nil {
		recs = append(recs, Record{Kind: RecordVote, Term: s.vote, Data: s.cand})
	}
	return recs
}

// Get returns the candidate of the last vote.
func (s *stableStore) Get(key []byte) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if string(key) != keyLastVoteCand || s.cand == nil {
		return nil, errNotFound
	}
	return bytes.Clone(s.cand), nil
}

// GetUint64 returns the current term or the term of the last vote, 0 before any.
func (s *stableStore) GetUint64(key []byte) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch string(key) {
	case keyCurrentTerm:
		return s.term, nil
	case keyLastVoteTerm:
		return s.vote, nil
	}
	return 0, errNotFound
}
