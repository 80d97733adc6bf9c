package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"

	"github.com/hashicorp/raft"
)

var errSnapshotGone = errors.New("raftstore: a newer snapshot has replaced this one")

// snapshotStore keeps the newest snapshot made or received in this boot, in
// memory, and writes it through. Unlike the library's own memory store it shows
// a snapshot only once it is complete, and never an older one after a newer.
type snapshotStore struct {
	journal *journal
	members *members
	logs    *logStore
	stable  *stableStore
	warn    func(msg string, attrs ...any)

	publishing diskLock // one snapshot goes to the archive at a time
	mu         sync.Mutex
	meta       *raft.SnapshotMeta
	data       pieces
}

var _ raft.SnapshotStore = (*snapshotStore)(nil)

// Create begins a snapshot; it becomes visible when the sink is closed.
func (s *snapshotStore) Create(version raft.SnapshotVersion, index, term uint64,
	configuration raft.Configuration, configurationIndex uint64, _ raft.Transport) (raft.SnapshotSink, error) {
	if version != 1 {
		return nil, fmt.Errorf("raftstore: unsupported snapshot version %d", version)
	}
	if s.logs.campaigning() {
		return nil, errCampaigning
	}
	return &snapshotSink{store: s, meta: raft.SnapshotMeta{
		Version: version, ID: fmt.Sprintf("%d-%d", term, index), Index: index, Term: term,
		Configuration: configuration, ConfigurationIndex: configurationIndex,
	}}, nil
}

// List returns the newest snapshot, if there is one.
func (s *snapshotStore) List() ([]*raft.SnapshotMeta, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil {
		return nil, nil
	}
	meta := *s.meta
	return []*raft.SnapshotMeta{&meta}, nil
}

// Open reads the newest snapshot.
func (s *snapshotStore) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil || s.meta.ID != id {
		return nil, nil, errSnapshotGone
	}
	meta := *s.meta
	return &meta, io.NopCloser(s.data.reader()), nil
}

// publish archives a complete snapshot and then shows it. The archive begins a
// new part for it, which holds all that a recovery needs; once that is durable,
// everything before it is let go, so that the archive is bounded as the log is.
func (s *snapshotStore) publish(meta raft.SnapshotMeta, data pieces) error {
	s.publishing.Lock()
	defer s.publishing.Unlock()
	if s.newest() > meta.Index {
		// One that was received meanwhile has replaced it. Raft must not take this
		// one for the last: as a leader it would look in its log for what lies
		// between the two, find nothing, and send its snapshot for ever.
		return errSnapshotGone
	}
	if err := s.checkpoint(meta.Index, meta.Term); err != nil {
		return err
	}
	if err := s.archive(meta, data); err != nil {
		return err
	}
	kept, err := s.journal.drop()
	if err != nil {
		return err
	}
	if kept != nil {
		s.warn("the archive was not trimmed and goes on growing", "reason", kept)
	}
	s.mu.Lock()
	s.meta, s.data = &meta, data
	s.mu.Unlock()
	s.members.update(meta.ConfigurationIndex, meta.Configuration)
	return nil
}

func (s *snapshotStore) newest() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil {
		return 0
	}
	return s.meta.Index
}

// checkpoint begins the new part of the archive with the term, the vote and the
// log behind the snapshot as they are now: neither store may change in between.
func (s *snapshotStore) checkpoint(index, term uint64) error {
	s.stable.mu.Lock()
	defer s.stable.mu.Unlock()
	s.logs.writing.Lock()
	defer s.logs.writing.Unlock()
	s.logs.cover(index)
	return s.journal.checkpoint(append(s.stable.records(), s.logs.recordsAfter(index, term)...)...)
}

// archive writes the snapshot piece by piece, so that a large one does not keep
// the log waiting; other records may fall between the chunks.
func (s *snapshotStore) archive(meta raft.SnapshotMeta, data pieces) error {
	const chunksAtOnce = 4 // a commit waits for one such write at most
	for part := range slices.Chunk(snapshotRecords(&meta, data), chunksAtOnce) {
		if err := s.journal.write(part...); err != nil {
			return err
		}
	}
	return nil
}

func snapshotRecords(meta *raft.SnapshotMeta, data pieces) []Record {
	recs := []Record{{Kind: RecordSnapshot, Index: meta.Index, Term: meta.Term, End: uint64(meta.Size),
		Data: raft.EncodeConfiguration(meta.Configuration)}}
	for _, piece := range data {
		recs = append(recs, Record{Kind: RecordChunk, Data: piece})
	}
	return recs
}

// pieces is a snapshot in memory, in chunks of chunkSize of which the last may be
// shorter: a slice that grows would be copied again and again, and be there twice
// each time.
type pieces [][]byte

func (p *pieces) write(b []byte) {
	for len(b) > 0 {
		last := len(*p) - 1
		if last < 0 || len((*p)[last]) == chunkSize {
			*p = append(*p, make([]byte, 0, chunkSize))
			last++
		}
		n := min(len(b), chunkSize-len((*p)[last]))
		(*p)[last] = append((*p)[last], b[:n]...)
		b = b[n:]
	}
}

func (p pieces) reader() io.Reader {
	readers := make([]io.Reader, len(p))
	for i, piece := range p {
		readers[i] = bytes.NewReader(piece)
	}
	return io.MultiReader(readers...)
}

type snapshotSink struct {
	store  *snapshotStore
	meta   raft.SnapshotMeta
	data   pieces
	closed bool
}

func (s *snapshotSink) Write(p []byte) (int, error) {
	if s.closed {
		return 0, io.ErrClosedPipe
	}
	if s.meta.Size+int64(len(p)) > MaxSnapshot {
		return 0, fmt.Errorf("raftstore: the snapshot is larger than %d bytes", MaxSnapshot)
	}
	s.data.write(p)
	s.meta.Size += int64(len(p))
	return len(p), nil
}

func (s *snapshotSink) ID() string { return s.meta.ID }

// Close archives and publishes the snapshot.
func (s *snapshotSink) Close() error {
	if s.closed {
		return nil
	}
	s.closed = true
	return s.store.publish(s.meta, s.data)
}

// Cancel forgets it.
func (s *snapshotSink) Cancel() error {
	s.closed, s.data = true, nil
	return nil
}
