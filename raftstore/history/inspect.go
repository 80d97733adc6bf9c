package history

import (
	"bytes"
	"fmt"
	"iter"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
)

// Inspect opens the records of an archive in order, as archive/file.Records and
// its like yield them: input of a hostile host. It ends at the first record that
// does not open or makes no sense, and says so in Torn; what came before
// stands. It fails with ErrEmpty if that is nothing.
func Inspect(records iter.Seq2[[]byte, error], key secret.Key, chain raftstore.Chain) (*History, error) {
	o, err := raftstore.NewOpener(key, chain)
	if err != nil {
		return nil, err
	}
	b := &builder{h: History{Chain: chain}}
	for sealed, err := range records {
		if err == nil {
			err = b.next(o, sealed)
		}
		if err != nil {
			b.h.Torn = err
			break
		}
	}
	if b.opened == 0 {
		if b.h.Torn == nil {
			return nil, ErrEmpty
		}
		return nil, fmt.Errorf("%w: %w", ErrEmpty, b.h.Torn)
	}
	return b.finish(o), nil
}

// Collect rebuilds what a running or stopped server holds, from the records of
// raftstore.Store.Export. They come over an authenticated channel and not from a
// host, so nothing may be wrong with them: it fails where Inspect would end.
func Collect(records iter.Seq2[raftstore.Record, error], chain raftstore.Chain) (*History, error) {
	b := &builder{h: History{Chain: chain}}
	for r, err := range records {
		if err == nil {
			err = b.add(&r)
		}
		if err != nil {
			return nil, err
		}
	}
	if b.making != nil {
		return nil, fmt.Errorf("%w: a snapshot of %d bytes ends after %d", ErrRecords, b.want, len(b.making.Data))
	}
	b.join()
	return &b.h, b.h.Complete()
}

// builder follows the meanings said at raftstore.RecordKind.
type builder struct {
	h      History
	opened int
	size   int // bytes of the entries
	making *Snapshot
	want   uint64 // bytes of making
}

func (b *builder) next(o *raftstore.Opener, sealed []byte) error {
	r, err := o.Open(sealed)
	if err != nil {
		return err
	}
	b.opened++
	return b.add(&r)
}

func (b *builder) add(r *raftstore.Record) error {
	switch r.Kind {
	case raftstore.RecordLog:
		return b.entry(r)
	case raftstore.RecordDelete:
		return b.remove(r.Index, r.End)
	case raftstore.RecordTerm:
		if r.Term < b.h.Term {
			return fmt.Errorf("%w: the term falls from %d to %d", ErrRecords, b.h.Term, r.Term)
		}
		b.h.Term = r.Term
		return nil
	case raftstore.RecordVote:
		if r.Term < b.h.VoteTerm {
			return fmt.Errorf("%w: a vote in term %d after one in %d", ErrRecords, r.Term, b.h.VoteTerm)
		}
		b.h.VoteTerm, b.h.Vote = r.Term, string(r.Data)
		return nil
	case raftstore.RecordSnapshot:
		return b.begin(r)
	case raftstore.RecordChunk:
		return b.chunk(r.Data)
	case raftstore.RecordCheckpoint:
		return nil // what it begins is told again, record by record
	}
	return fmt.Errorf("%w: a record of the unknown kind %d", ErrRecords, r.Kind)
}

// entry appends, or replaces the entry of that index and all behind it. One of
// the same term is the same entry, told again by a checkpoint: what lies behind it
// stays, since the archive may end before the checkpoint has told that, too.
func (b *builder) entry(r *raftstore.Record) error {
	list, keep, size := b.h.Entries, uint64(0), b.size
	if n := uint64(len(list)); n > 0 {
		first := list[0].Index
		if r.Index < first || r.Index-first > n {
			return fmt.Errorf("%w: entry %d, where the log has %d to %d", ErrRecords, r.Index, first, first+n-1)
		}
		keep = r.Index - first
		if keep < n && list[keep].Term == r.Term {
			if e := &list[keep]; e.Type != r.Type || !bytes.Equal(e.Data, r.Data) {
				return fmt.Errorf("%w: entry %d of term %d is told again as another one", ErrRecords, r.Index, r.Term)
			}
			return nil
		}
		for _, e := range list[keep:] {
			size -= len(e.Data)
		}
	}
	switch {
	case r.Index == 0 || r.Index == 1<<64-1 || r.Term == 0:
		return fmt.Errorf("%w: entry %d of term %d", ErrRecords, r.Index, r.Term)
	case keep > 0 && list[keep-1].Term > r.Term:
		return fmt.Errorf("%w: entry %d of term %d follows one of term %d", ErrRecords, r.Index, r.Term, list[keep-1].Term)
	case keep >= MaxEntries || size+len(r.Data) > MaxLog:
		return fmt.Errorf("%w: the log is longer than %d entries or %d bytes", ErrRecords, MaxEntries, MaxLog)
	}
	clear(list[keep:])
	b.h.Entries = append(list[:keep], Entry{Index: r.Index, Term: r.Term, Type: r.Type, Data: r.Data})
	b.size = size + len(r.Data)
	return nil
}

// remove drops entries from one end. A trimmed archive also tells of the
// deletion of entries that were before its beginning.
func (b *builder) remove(lo, hi uint64) error {
	if lo == 0 || lo > hi {
		return fmt.Errorf("%w: entries %d to %d are deleted", ErrRecords, lo, hi)
	}
	list := b.h.Entries
	if len(list) == 0 {
		return nil
	}
	first, last := list[0].Index, list[len(list)-1].Index
	lo, hi = max(lo, first), min(hi, last)
	if lo > hi {
		return nil
	}
	if lo != first && hi != last {
		return fmt.Errorf("%w: entries %d to %d are deleted from %d to %d", ErrRecords, lo, hi, first, last)
	}
	for _, e := range list[lo-first : hi-first+1] {
		b.size -= len(e.Data)
	}
	clear(list[lo-first : hi-first+1])
	if lo == first {
		b.h.Entries = append([]Entry(nil), list[hi-first+1:]...)
		return nil
	}
	b.h.Entries = list[:lo-first]
	return nil
}

// begin starts a snapshot; one that was not complete is forgotten.
func (b *builder) begin(r *raftstore.Record) error {
	if r.Index == 0 || r.Term == 0 || r.End < uint64(raftstore.SnapshotHeaderSize) || r.End > raftstore.MaxSnapshot {
		return fmt.Errorf("%w: a snapshot up to %d of term %d with %d bytes", ErrRecords, r.Index, r.Term, r.End)
	}
	b.making, b.want = &Snapshot{Index: r.Index, Term: r.Term, Configuration: r.Data}, r.End
	return nil
}

func (b *builder) chunk(data []byte) error {
	s := b.making
	if s == nil || len(data) == 0 || uint64(len(data)) > b.want-uint64(len(s.Data)) {
		return fmt.Errorf("%w: %d bytes that belong to no snapshot", ErrRecords, len(data))
	}
	if s.Data = append(s.Data, data...); uint64(len(s.Data)) < b.want {
		return nil
	}
	b.making = nil
	var err error
	if s.applied, s.chain, err = raftstore.ParseSnapshotHeader(s.Data); err != nil || s.applied > s.Index {
		return fmt.Errorf("%w: the header of the snapshot up to %d", ErrRecords, s.Index)
	}
	if old := b.h.Snapshot; old != nil && old.Index > s.Index {
		return fmt.Errorf("%w: a snapshot up to %d after one up to %d", ErrRecords, s.Index, old.Index)
	}
	b.h.Snapshot = s
	return nil
}

func (b *builder) finish(o *raftstore.Opener) *History {
	h := &b.h
	h.Begin = o.Begin()
	h.Sequence, h.Head = o.Head()
	b.join()
	return h
}

// join drops entries that the snapshot has overruled: a follower that got it
// from a leader deletes its log next, and the archive may end in between.
func (b *builder) join() {
	h, s := &b.h, b.h.Snapshot
	if s == nil || len(h.Entries) == 0 {
		return
	}
	first, last := h.Entries[0].Index, h.Entries[len(h.Entries)-1].Index
	follows := first == s.Index+1 && h.Entries[0].Term >= s.Term
	joins := first <= s.Index && last >= s.Index && h.Entries[s.Index-first].Term == s.Term
	if first <= s.Index+1 && !follows && !joins {
		h.Entries = nil
	}
}
