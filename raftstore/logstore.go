package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// logStore keeps the log of this boot in memory and writes it through. Reads
// never touch the archive. Indexes are dense: a gap is refused.
type logStore struct {
	journal *journal
	writing diskLock     // one change at a time, held while the archive is written; readers do not wait for it
	mu      sync.RWMutex // guards all below, which changes under writing and mu only
	first   uint64       // index of entries[0] when there is one
	entries []logEntry
	term    uint64        // of the entry stored last
	begin   uint64        // index of the first entry stored in a row with that term
	grown   chan struct{} // closed when entries are stored; nil while nobody looks

	storing atomic.Pointer[time.Time] // when the StoreLogs under way began; nil while there is none

	covered uint64 // index of the newest snapshot; guarded as all above
	// campaigns says whether this server is a candidate: see errCampaigning. It is
	// asked on raft's main loop, where that cannot change meanwhile; nil: never.
	campaigns func() bool
	stale     bool // the entries are what a snapshot has overtaken: see DeleteRange
}

// logEntry is an entry and how many bytes of data the log has had up to its end; only differences mean something.
type logEntry struct {
	raft.Log
	end uint64
}

var (
	_ raft.LogStore          = (*logStore)(nil)
	_ raft.MonotonicLogStore = (*logStore)(nil)
)

// errCampaigning refuses what would change the configuration of a candidate. Raft
// counts how many votes are needed when a candidate begins to ask for pre-votes,
// and asks the voters of whatever is its configuration when it has got them. A
// snapshot does not end its campaign, and neither do entries where it was told to
// campaign while it did: it could be elected by what was a majority once, beside a
// leader whom a majority follows.
var errCampaigning = errors.New("raftstore: a candidate takes neither entries nor snapshots")

func (s *logStore) campaigning() bool { return s.campaigns != nil && s.campaigns() }

// IsMonotonic makes raft clear the log after a snapshot instead of leaving a gap.
func (s *logStore) IsMonotonic() bool { return true }

// FirstIndex is 0 for an empty log.
func (s *logStore) FirstIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.entries) == 0 {
		return 0, nil
	}
	return s.first, nil
}

// LastIndex is that of the newest snapshot where the log is empty, 0 without one:
// raft subtracts its last snapshot from it to see whether another one is due.
func (s *logStore) LastIndex() (uint64, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.entries) == 0 {
		return s.covered, nil
	}
	return s.last(), nil
}

// cover notes that there is a snapshot up to index; it needs writing.
func (s *logStore) cover(index uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.covered = max(s.covered, index)
}

func (s *logStore) last() uint64 {
	if len(s.entries) == 0 {
		return 0
	}
	return s.first + uint64(len(s.entries)) - 1
}

// GetLog copies the entry at index; its data is shared and must not be changed.
func (s *logStore) GetLog(index uint64, l *raft.Log) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if !s.within(index) {
		return raft.ErrLogNotFound
	}
	*l = s.entries[index-s.first].Log
	return nil
}

// has says whether the entry at index is here and of term.
func (s *logStore) has(index, term uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return !s.stale && s.within(index) && s.entries[index-s.first].Term == term
}

// contains says whether there is an entry at index.
func (s *logStore) contains(index uint64) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.within(index)
}

// within needs mu.
func (s *logStore) within(index uint64) bool {
	return len(s.entries) > 0 && index >= s.first && index <= s.last()
}

// StoreLog stores one entry.
func (s *logStore) StoreLog(l *raft.Log) error { return s.StoreLogs([]*raft.Log{l}) }

// StoreLogs archives the entries and only then shows them to readers.
func (s *logStore) StoreLogs(logs []*raft.Log) error {
	if len(logs) == 0 {
		return nil
	}
	begun := time.Now()
	s.storing.Store(&begun)
	defer s.storing.Store(nil)
	s.writing.Lock()
	defer s.writing.Unlock()
	if s.campaigning() {
		return errCampaigning
	}
	if s.stale {
		return fmt.Errorf("raftstore: log index %d behind entries that a snapshot has overtaken", logs[0].Index)
	}
	next := s.last() + 1
	switch {
	case len(s.entries) == 0 && s.covered > 0:
		next = s.covered + 1
	case len(s.entries) == 0:
		next = logs[0].Index
	}
	recs := make([]Record, len(logs))
	for i, l := range logs {
		if l.Index == 0 || l.Index != next+uint64(i) {
			return fmt.Errorf("raftstore: log index %d where %d is next", l.Index, next+uint64(i))
		}
		recs[i] = logRecord(l)
	}
	if err := s.journal.write(recs...); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.entries) == 0 {
		s.first = logs[0].Index
	}
	for _, l := range logs {
		end := uint64(len(l.Data))
		if n := len(s.entries); n > 0 {
			end += s.entries[n-1].end
		}
		s.entries = append(s.entries, logEntry{*l, end})
		if l.Term != s.term {
			s.term, s.begin = l.Term, l.Index
		}
	}
	if s.grown != nil {
		close(s.grown)
		s.grown = nil
	}
	return nil
}

// look returns the last index and a channel that is closed when entries are stored.
func (s *logStore) look() (uint64, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.grown == nil {
		s.grown = make(chan struct{})
	}
	return s.last(), s.grown
}

func logRecord(l *raft.Log) Record {
	return Record{Kind: RecordLog, Index: l.Index, Term: l.Term, Type: uint8(l.Type), Data: l.Data}
}

// recordsAfter is the log behind a snapshot up to index and term as the archive
// writes it; it needs writing. Nothing of a log that the snapshot overrules
// follows it, although raft has not dropped that yet.
func (s *logStore) recordsAfter(index, term uint64) []Record {
	if s.stale || s.within(index) && s.entries[index-s.first].Term != term {
		return nil
	}
	var recs []Record
	for i := range s.entries {
		if l := &s.entries[i].Log; l.Index > index {
			recs = append(recs, logRecord(l))
		}
	}
	return recs
}

// behind counts the entries after index, and the bytes of their data.
func (s *logStore) behind(index uint64) (entries, bytes int) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	last := s.last()
	if last <= index {
		return 0, 0
	}
	from := s.entries[0].end - uint64(len(s.entries[0].Data))
	if index >= s.first {
		from = s.entries[index-s.first].end
	}
	return int(last - max(index, s.first-1)), int(s.entries[len(s.entries)-1].end - from)
}

// firstOf is the index of the first entry of term, for a term this server
// leads: its leader alone makes entries of a term, so the first one of it that
// is stored here is the first there is. It does not depend on what has been
// compacted since.
func (s *logStore) firstOf(term uint64) (uint64, bool) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.begin, s.begin != 0 && s.term == term
}

// lastApplicable is the index of the last entry up to index that reaches the
// machine: a command or a configuration. It is 0 where none is left in the log;
// what has been compacted away has been applied.
func (s *logStore) lastApplicable(index uint64) uint64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	for i := min(index, s.last()); len(s.entries) > 0 && i >= s.first; i-- {
		switch s.entries[i-s.first].Type {
		case raft.LogCommand, raft.LogConfiguration:
			return i
		}
	}
	return 0
}

// DeleteRange drops entries from one end of the log: the front when raft
// compacts it, the back when a new leader overwrites it.
//
// Once it has installed a leader's snapshot raft drops everything, and goes on
// believing in the last entry it had. Where that lies behind the snapshot, the
// entries in between are of another history, since the snapshot would have been
// held otherwise. They stay in memory, and only there, for raft to find that
// they are of another term and to drop them itself: an entry that it believes in
// and does not find makes it refuse the leader for ever. Nothing can be appended
// to them, and their server cannot be elected with them: a majority has an entry
// of a later term, by which what the snapshot holds was committed.
func (s *logStore) DeleteRange(lo, hi uint64) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if len(s.entries) == 0 || lo > hi {
		return nil
	}
	last := s.last()
	lo, hi = max(lo, s.first), min(hi, last)
	if lo > hi {
		return nil
	}
	if lo != s.first && hi != last {
		return fmt.Errorf("raftstore: deleting %d to %d would leave a gap in %d to %d", lo, hi, s.first, last)
	}
	if hi > s.covered && s.campaigning() {
		return errCampaigning // before anything is cut, since what follows would be refused
	}
	if !s.stale { // otherwise the archive does not have them any more
		if err := s.journal.write(Record{Kind: RecordDelete, Index: lo, End: hi}); err != nil {
			return err
		}
	}
	overtaken := lo <= s.covered && hi > s.covered
	if overtaken {
		hi = s.covered
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stale = overtaken || s.stale && lo > s.first
	if lo == s.first {
		// A copy, so that the dropped front can be collected.
		s.entries = append([]logEntry(nil), s.entries[hi-s.first+1:]...)
		s.first = hi + 1
		return nil
	}
	clear(s.entries[lo-s.first:])
	s.entries = s.entries[:lo-s.first]
	return nil
}
