package raftstore

import (
	"bytes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/fxamacker/cbor/v2"
	"golang.org/x/crypto/chacha20poly1305"

	"github.com/claviger/claviger/enclave/secret"
)

// ArchiveKeySize is the length of an archive key in bytes.
const ArchiveKeySize = chacha20poly1305.KeySize

// Archive takes the sealed records of one boot, in order. It is never read
// while the store runs. Append may buffer; Sync returns once every record
// appended before it is durable. A failed call stops the store. The record is
// valid only during the call. Calls come from one goroutine at a time.
//
// An archive is trimmed from the front: Cut is called between two records, and
// Drop, later, removes all that was appended before the last Cut. The store
// drops only when what it has appended and synced since is enough to recover
// from. A failed Drop leaves too much behind and stops nothing, unless the next
// call fails, too.
type Archive interface {
	Append(record []byte) error
	Sync() error
	Cut() error
	Drop() error
	Close() error
}

// Chain names the boot a journal belongs to; it is bound into every record.
type Chain struct {
	ClusterID [32]byte
	Epoch     uint64
	Server    ServerID
}

const (
	journalLabel    = "claviger/archive/v1"
	checkpointLabel = "claviger/archive-checkpoint/v1"
	sealOverhead    = chacha20poly1305.NonceSizeX + chacha20poly1305.Overhead
)

// sealer is the position in a hash chain of sealed records: each record's
// associated data is (label, cluster, epoch, server, sequence, hash of the
// sealed record before it), so that a record opens at its own place only.
// A checkpoint is the exception: its associated data leaves out sequence and
// hash, which are its content instead, so that it opens with nothing before it
// and tells where in the chain it stands.
type sealer struct {
	aead  cipher.AEAD
	chain Chain
	seq   uint64 // of the next record, from 1
	prev  [32]byte
}

func newSealer(key secret.Key, chain Chain) (*sealer, error) {
	if key.IsZero() || key.Len() != ArchiveKeySize {
		return nil, fmt.Errorf("%w: the archive key must have %d bytes", ErrConfig, ArchiveKeySize)
	}
	raw := key.Reveal()
	defer clear(raw)
	aead, err := chacha20poly1305.NewX(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: archive key: %w", ErrConfig, err)
	}
	s := &sealer{aead: aead, chain: chain, seq: 1}
	s.prev = sha256.Sum256(s.associated())
	return s, nil
}

// associated is fixed-width after the label, so no two positions share it.
func (s *sealer) associated() []byte {
	b := s.whose(journalLabel)
	b = binary.BigEndian.AppendUint64(b, s.seq)
	return append(b, s.prev[:]...)
}

// whose says what belongs to this chain, wherever in it.
func (s *sealer) whose(label string) []byte {
	b := make([]byte, 0, len(label)+1+32+8+32+8+32)
	b = append(b, label...)
	b = append(b, 0)
	b = append(b, s.chain.ClusterID[:]...)
	b = binary.BigEndian.AppendUint64(b, s.chain.Epoch)
	return append(b, s.chain.Server[:]...)
}

func (s *sealer) advance(sealed []byte) {
	s.prev = sha256.Sum256(sealed)
	s.seq++
}

func (s *sealer) seal(plain []byte) []byte { return s.sealFor(plain, s.associated()) }

// checkpoint is where the chain stands now.
func (s *sealer) checkpoint() Record {
	return Record{Kind: RecordCheckpoint, Index: s.seq, Data: bytes.Clone(s.prev[:])}
}

func (s *sealer) sealFor(plain, associated []byte) []byte {
	out := make([]byte, chacha20poly1305.NonceSizeX, sealOverhead+len(plain))
	rand.Read(out) // never fails: crypto/rand ends the process instead
	out = s.aead.Seal(out, out, plain, associated)
	s.advance(out)
	return out
}

// RecordKind says what a journal record is.
type RecordKind uint8

// The kinds of journal records.
const (
	RecordLog      RecordKind = 1 // a log entry was stored: Index, Term, Type, Data
	RecordDelete   RecordKind = 2 // log entries Index to End were deleted
	RecordTerm     RecordKind = 3 // the current term became Term
	RecordVote     RecordKind = 4 // in Term the vote went to the server address in Data
	RecordSnapshot RecordKind = 5 // a snapshot up to Index and Term begins, End bytes long; Data is its configuration
	RecordChunk    RecordKind = 6 // the next bytes of the snapshot that began last; other records may lie in between
	// RecordCheckpoint is the record of sequence number Index after one with the
	// hash Data. What an archive needs to be recovered from follows it: term, vote,
	// the log behind the snapshot, the snapshot. The first record of a trimmed
	// archive is one. It proves that this server wrote it and nothing more.
	RecordCheckpoint RecordKind = 7
)

// RecordLog may tell of an index again. With the same term it is the same entry,
// which a checkpoint repeats, and changes nothing: the archive may end before all
// behind it has been repeated. With another term it replaces that entry and all behind it.

// Record is one opened journal record; which fields count is said at the kinds.
type Record struct {
	_     struct{} `cbor:",toarray"`
	Kind  RecordKind
	Index uint64
	End   uint64
	Term  uint64
	Type  uint8
	Data  []byte
}

// journal writes records through to the archive. The first failure is final:
// it trips the fence and every later call fails.
type journal struct {
	mu      diskLock // guards all below; held across archive calls to keep the chain's order
	seal    *sealer
	archive Archive
	fence   *fence
	relaxed bool
	took    func(time.Duration) // is told how long each write took; may be nil

	records, bytes atomic.Uint64 // written; read without mu, behind which the disk may be
}

func (j *journal) fail(op string, err error) error {
	e := &ArchiveError{Op: op, Err: err}
	j.fence.trip(e)
	return e
}

// write appends recs in order and makes them durable before it returns.
func (j *journal) write(recs ...Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.fence.check(); err != nil {
		return err
	}
	start := time.Now()
	for i := range recs {
		if err := j.appendRecord(&recs[i], j.seal.associated()); err != nil {
			return err
		}
	}
	err := j.sync(j.relaxed)
	if j.took != nil {
		j.took(time.Since(start))
	}
	return err
}

// appendRecord needs mu.
func (j *journal) appendRecord(r *Record, associated []byte) error {
	plain, err := encMode.Marshal(r)
	if err != nil {
		return j.fail("append", err)
	}
	sealed := j.seal.sealFor(plain, associated)
	clear(plain)
	if err := j.archive.Append(sealed); err != nil {
		return j.fail("append", err)
	}
	j.records.Add(1)
	j.bytes.Add(uint64(len(sealed)))
	return nil
}

// sync needs mu.
func (j *journal) sync(skip bool) error {
	if skip {
		return nil
	}
	if err := j.archive.Sync(); err != nil {
		return j.fail("sync", err)
	}
	return nil
}

// checkpoint cuts the archive and begins the new part with a checkpoint and recs.
func (j *journal) checkpoint(recs ...Record) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.fence.check(); err != nil {
		return err
	}
	if err := j.archive.Cut(); err != nil {
		return j.fail("cut", err)
	}
	mark := j.seal.checkpoint()
	if err := j.appendRecord(&mark, j.seal.whose(checkpointLabel)); err != nil {
		return err
	}
	for i := range recs {
		if err := j.appendRecord(&recs[i], j.seal.associated()); err != nil {
			return err
		}
	}
	return j.sync(j.relaxed)
}

// drop makes everything durable, in the relaxed mode too, and then lets go of
// what lies before the last checkpoint. Only the first can fail the store.
func (j *journal) drop() (kept, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if err := j.fence.check(); err != nil {
		return nil, err
	}
	if err := j.sync(false); err != nil {
		return nil, err
	}
	return j.archive.Drop(), nil
}

func (j *journal) close() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return errors.Join(j.archive.Sync(), j.archive.Close())
}

func (j *journal) totals() (records, bytes uint64) { return j.records.Load(), j.bytes.Load() }

// ErrRecord says that a sealed record is not the next one of its chain.
var ErrRecord = errors.New("raftstore: the record is not the next of this chain: changed, reordered, missing or of another server")

// Opener opens the records of one archive in order, for recovery and tests. A
// running store never uses it. It proves integrity and order, never freshness:
// a truncated archive opens up to where it was cut.
type Opener struct {
	seal  *sealer
	begin uint64 // sequence number of the first record opened; 0 before
}

// NewOpener begins at the first record of the chain, or at whatever checkpoint it is given first.
func NewOpener(key secret.Key, chain Chain) (*Opener, error) {
	s, err := newSealer(key, chain)
	if err != nil {
		return nil, err
	}
	return &Opener{seal: s}, nil
}

// Open opens the next record, or fails with ErrRecord and does not advance.
func (o *Opener) Open(sealed []byte) (Record, error) {
	if len(sealed) < sealOverhead {
		return Record{}, ErrRecord
	}
	r, err := o.openAs(sealed, o.seal.associated())
	switch {
	case err != nil:
		if r, err = o.checkpoint(sealed); err != nil {
			return Record{}, err
		}
	case r.Kind == RecordCheckpoint:
		return Record{}, ErrRecord // a checkpoint is sealed as one
	}
	if o.begin == 0 {
		o.begin = o.seal.seq
	}
	o.seal.advance(sealed)
	return r, nil
}

func (o *Opener) openAs(sealed, associated []byte) (Record, error) {
	plain, err := o.seal.aead.Open(nil, sealed[:chacha20poly1305.NonceSizeX], sealed[chacha20poly1305.NonceSizeX:], associated)
	if err != nil {
		return Record{}, ErrRecord
	}
	var r Record
	if err := unmarshal(plain, &r); err != nil {
		return Record{}, fmt.Errorf("%w: %w", ErrRecord, err)
	}
	return r, nil
}

// checkpoint opens a checkpoint: as the very first record it says where the
// chain stands, after others it must stand where they lead.
func (o *Opener) checkpoint(sealed []byte) (Record, error) {
	r, err := o.openAs(sealed, o.seal.whose(checkpointLabel))
	if err != nil {
		return Record{}, err
	}
	if r.Kind != RecordCheckpoint || r.Index == 0 || len(r.Data) != sha256.Size {
		return Record{}, ErrRecord
	}
	if o.begin == 0 {
		o.seal.seq, o.seal.prev = r.Index, [32]byte(r.Data)
	}
	if r.Index != o.seal.seq || [32]byte(r.Data) != o.seal.prev {
		return Record{}, ErrRecord
	}
	return r, nil
}

// Begin is the sequence number of the first record opened: 1, or that of a
// checkpoint where the archive has been trimmed; 0 before any.
func (o *Opener) Begin() uint64 { return o.begin }

// Head is the sequence number of the last opened record and its hash.
func (o *Opener) Head() (sequence uint64, hash [32]byte) { return o.seal.seq - 1, o.seal.prev }

var (
	encMode cbor.EncMode
	decMode cbor.DecMode
)

func init() {
	var err error
	if encMode, err = cbor.CoreDetEncOptions().EncMode(); err != nil {
		panic(err)
	}
	decMode, err = cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		IndefLength: cbor.IndefLengthForbidden, TagsMd: cbor.TagsForbidden,
		MaxNestedLevels: 8, MaxArrayElements: 1024, MaxMapPairs: 16,
	}.DecMode()
	if err != nil {
		panic(err)
	}
}

// unmarshal decodes all of b; trailing bytes are an error of the decoder.
func unmarshal(b []byte, v any) error { return decMode.Unmarshal(b, v) }
