package history

import (
	"errors"
	"fmt"

	"github.com/claviger/claviger/raftstore"
)

// The types of log entries, as hashicorp/raft numbers them. Only commands reach
// a machine.
const (
	Command       = 0
	Noop          = 1
	Barrier       = 4
	Configuration = 5
)

// Bounds of one history.
const (
	MaxLog     = 1 << 30 // bytes of entries
	MaxEntries = 1 << 21
)

var (
	// ErrEmpty says that not one record of an archive opened: it is empty, of
	// another server, epoch or cluster, or sealed with another key.
	ErrEmpty = errors.New("history: no record of the archive opens")
	// ErrRecords ends a history at records that no store writes in this order.
	ErrRecords = errors.New("history: the records make no sense")
	// ErrIncomplete says that the beginning is missing: a log that begins behind
	// the snapshot, or without one. The archive was trimmed, and then cut before
	// the snapshot that made the trimming right.
	ErrIncomplete = errors.New("history: the archive ends before it holds a whole state")
	// ErrHalted says that the machine does not understand an entry, or panicked.
	ErrHalted = errors.New("history: the machine halted at an entry; recover with the build that wrote it, or a newer one")
)

// Entry is one entry of the log.
type Entry struct {
	Index uint64
	Term  uint64
	Type  uint8
	Data  []byte
}

// Snapshot is the newest complete one.
type Snapshot struct {
	Index, Term   uint64
	Configuration []byte // see raftstore.ParseConfiguration
	Data          []byte // the header, see raftstore.ParseSnapshotHeader, and the machine's state

	applied uint64
	chain   [32]byte
}

// State is the machine's state, without the header.
func (s *Snapshot) State() []byte { return s.Data[raftstore.SnapshotHeaderSize:] }

// History is what one archive tells.
type History struct {
	Chain           raftstore.Chain
	Begin, Sequence uint64   // numbers of the first and the last record that opened; Begin is above 1 where the archive was trimmed
	Head            [32]byte // hash of the last
	Term            uint64   // the highest term that the server was in
	VoteTerm        uint64   // the term of its last vote, 0 if it gave none
	Vote            string   // the address it went to, with the server id
	Snapshot        *Snapshot
	Entries         []Entry // dense, oldest first; the first may lie behind the snapshot's index or before it
	Torn            error   // why reading ended before the archive did; nil at its end
}

// Last is the position of the log's end: what an election compares.
func (h *History) Last() (index, term uint64) {
	if n := len(h.Entries); n > 0 {
		index, term = h.Entries[n-1].Index, h.Entries[n-1].Term
	}
	if s := h.Snapshot; s != nil && s.Index >= index {
		index, term = s.Index, max(term, s.Term)
	}
	return index, term
}

// Complete reports whether a machine can be brought to the end: nil, or
// ErrIncomplete.
func (h *History) Complete() error {
	after := uint64(0)
	if h.Snapshot != nil {
		after = h.Snapshot.Index
	}
	switch {
	case h.Snapshot == nil && len(h.Entries) == 0:
		return fmt.Errorf("%w: there is neither a snapshot nor an entry", ErrIncomplete)
	case len(h.Entries) > 0 && h.Entries[0].Index > after+1:
		return fmt.Errorf("%w: the log begins at %d, and the snapshot ends at %d", ErrIncomplete, h.Entries[0].Index, after)
	}
	return nil
}

// Servers is the last configuration in the history, committed or not, and its
// index in the log; 0 if it is the snapshot's.
func (h *History) Servers() (list []raftstore.Member, index uint64, err error) {
	for i := len(h.Entries) - 1; i >= 0; i-- {
		e := &h.Entries[i]
		if h.Snapshot != nil && e.Index <= h.Snapshot.Index {
			break
		}
		if e.Type == Configuration {
			list, err = raftstore.ParseConfiguration(e.Data)
			return list, e.Index, err
		}
	}
	if h.Snapshot == nil {
		return nil, 0, fmt.Errorf("%w: there is no configuration in it", ErrIncomplete)
	}
	list, err = raftstore.ParseConfiguration(h.Snapshot.Configuration)
	return list, 0, err
}
