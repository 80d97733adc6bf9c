package persist

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"math"

	"github.com/google/btree"

	"github.com/claviger/claviger/enclave/secret"
)

// entry is one key with its value, in the tree's order.
type entry struct {
	key   string
	value []byte
}

type tree = btree.BTreeG[entry]

const treeDegree = 32

func newTree() *tree {
	return btree.NewG(treeDegree, func(a, b entry) bool { return a.key < b.key })
}

// slotState is what one slot file was found to hold.
type slotState struct {
	seal       *sealer
	generation uint64
	tree       *tree
	live       int64 // accounted bytes
	seq        uint64
	hash, prev [32]byte
	end        int64 // where the next record goes
	checkpoint int64 // bytes of the checkpoint, header included
	torn       bool  // bytes after end are a record cut short by a crash
}

// errIncomplete marks damage before the end of the checkpoint: in a slot beside
// a complete one it is a compaction that a crash interrupted.
var errIncomplete = fmt.Errorf("%w: no complete checkpoint", ErrCorrupt)

// scanner reads one slot once, front to back.
type scanner struct {
	slotState
	r    *bufio.Reader
	size int64
	file File
}

// readSlot authenticates a whole slot and rebuilds its map. An error that is
// errIncomplete means the checkpoint itself does not hold; any later damage but a
// torn last record is plain ErrCorrupt.
func readSlot(f File, key secret.Key, name string) (*slotState, error) {
	size, err := f.Size()
	if err != nil {
		return nil, fmt.Errorf("persist: size of the slot: %w", err)
	}
	s := &scanner{size: size, file: f, r: bufio.NewReaderSize(io.NewSectionReader(f, 0, size), 1<<16)}
	head, err := s.readHeader(key, name)
	if err != nil {
		return nil, err
	}
	if err := s.readCheckpoint(head); err != nil {
		if errors.Is(err, ErrCorrupt) {
			err = fmt.Errorf("%w (%w)", errIncomplete, err)
		}
		return nil, err
	}
	if err := s.readCommits(); err != nil {
		return nil, err
	}
	return &s.slotState, nil
}

func (s *scanner) readHeader(key secret.Key, name string) (*header, error) {
	var raw [sector]byte
	if s.size < sector {
		return nil, errIncomplete
	}
	if _, err := io.ReadFull(s.r, raw[:]); err != nil {
		return nil, fmt.Errorf("persist: reading the header: %w", err)
	}
	h, err := parseHeader(raw[:])
	if err != nil {
		return nil, fmt.Errorf("%w (%w)", errIncomplete, err)
	}
	if s.seal, err = newSealer(key, name, h.storeID); err != nil {
		return nil, err
	}
	if err := s.seal.check(&h); err != nil {
		if errors.Is(err, ErrWrongKey) {
			return nil, err
		}
		return nil, fmt.Errorf("%w (%w)", errIncomplete, err)
	}
	s.generation, s.end = h.generation, sector
	return &h, nil
}

// readRecord reads the record at s.end. It returns io.EOF at the end of the file
// and errTorn for a record cut short.
func (s *scanner) readRecord(p place) (record []byte, changes []change, err error) {
	left := s.size - s.end
	if left == 0 {
		return nil, nil, io.EOF
	}
	if left < frameSize {
		return nil, nil, errTorn
	}
	frame := make([]byte, frameSize, sector)
	if _, err := io.ReadFull(s.r, frame); err != nil {
		return nil, nil, fmt.Errorf("persist: reading: %w", err)
	}
	n, err := s.seal.parseFrame(p, frame)
	if err != nil {
		return nil, nil, s.badFrame(p, left)
	}
	if int64(n) > left-frameSize {
		return nil, nil, errTorn
	}
	record = append(frame, make([]byte, n)...)
	if _, err := io.ReadFull(s.r, record[frameSize:]); err != nil {
		return nil, nil, fmt.Errorf("persist: reading: %w", err)
	}
	changes, err = s.seal.open(p, record[frameSize:])
	if err != nil {
		if left == int64(len(record)) && holed(record) {
			return nil, nil, errTorn
		}
		return nil, nil, err
	}
	s.end += int64(len(record))
	return record, changes, nil
}

// errTorn is a last record that a crash cut short.
var errTorn = fmt.Errorf("%w: torn record", ErrCorrupt)

// badFrame tells a frame whose sector never reached the disk from a damaged one.
// Only a last record can be torn, because each was durable before the next was
// written: a genuine frame of the next commit behind the gap proves damage.
func (s *scanner) badFrame(p place, left int64) error {
	damaged := fmt.Errorf("%w: a record's frame does not authenticate at offset %d", ErrCorrupt, s.end)
	if left > maxSealed {
		return damaged
	}
	tail := make([]byte, left)
	if _, err := s.file.ReadAt(tail, s.end); err != nil && err != io.EOF {
		return fmt.Errorf("persist: reading: %w", err)
	}
	if !allZero(tail[:min(left, sector)]) {
		return damaged
	}
	p.seq++
	for at := sector; at+frameSize <= len(tail); at += sector {
		if _, err := s.seal.parseFrame(p, tail[at:at+frameSize]); err == nil {
			return damaged
		}
	}
	return errTorn
}

// holed reports whether a sector of the record is all zero, as after a crash
// that grew the file before it wrote all of the data. Records start on sectors.
func holed(record []byte) bool {
	for len(record) > 0 {
		n := min(len(record), sector)
		if allZero(record[:n]) {
			return true
		}
		record = record[n:]
	}
	return false
}

func (s *scanner) readCheckpoint(head *header) error {
	s.tree = newTree()
	chain, last := checkpointHash(head), ""
	for index := uint64(0); ; index++ {
		p := place{generation: s.generation, kind: kindChunk, seq: index, prev: chain}
		end, err := s.atEnd(&p)
		if err != nil {
			return err
		}
		record, changes, err := s.readRecord(p)
		if err == io.EOF {
			return errTorn
		}
		if err != nil {
			return err
		}
		if end {
			return s.finish(changes)
		}
		for _, c := range changes {
			if c.value == nil || c.key <= last {
				return fmt.Errorf("%w: checkpoint order", ErrCorrupt)
			}
			last = c.key
			s.apply(c)
		}
		chain = nextHash(chain, record)
	}
}

// atEnd peeks at the kind of the next record; the frame's tag confirms it.
func (s *scanner) atEnd(p *place) (bool, error) {
	b, err := s.r.Peek(5)
	if err == io.EOF {
		return false, nil // readRecord says what is missing
	}
	if err != nil {
		return false, fmt.Errorf("persist: reading: %w", err)
	}
	if kind(b[4]) == kindEnd {
		p.kind = kindEnd
		return true, nil
	}
	return false, nil
}

func (s *scanner) finish(changes []change) error {
	e, err := parseCheckpointEnd(changes)
	if err != nil || e.count != uint64(s.tree.Len()) {
		return fmt.Errorf("%w: checkpoint end", ErrCorrupt)
	}
	s.seq, s.hash, s.checkpoint = e.seq, e.hash, s.end
	if e.seq > 1 {
		s.prev = e.hash // no register can stand before a confirmed checkpoint
	}
	return nil
}

func (s *scanner) readCommits() error {
	for s.seq < math.MaxUint64 {
		p := place{generation: s.generation, kind: kindCommit, seq: s.seq + 1, prev: s.hash}
		record, changes, err := s.readRecord(p)
		switch {
		case err == io.EOF:
			return nil
		case err == errTorn:
			s.torn = true
			return nil
		case err != nil:
			return err
		}
		for _, c := range changes {
			s.apply(c)
		}
		s.seq, s.prev, s.hash = s.seq+1, s.hash, nextHash(s.hash, record)
	}
	return fmt.Errorf("%w: sequence exhausted", ErrCorrupt)
}

// apply copies the value, so that one small entry does not hold on to the buffer
// of its whole record.
func (s *slotState) apply(c change) {
	if c.value != nil {
		c.value = append(make([]byte, 0, len(c.value)), c.value...)
	}
	s.live += applyTo(s.tree, c)
}

// applyTo makes one change and returns by how much the accounted size grew.
func applyTo(t *tree, c change) int64 {
	if c.value == nil {
		old, found := t.Delete(entry{key: c.key})
		if !found {
			return 0
		}
		return -cost(old)
	}
	e := entry(c)
	old, found := t.ReplaceOrInsert(e)
	if !found {
		return cost(e)
	}
	return cost(e) - cost(old)
}

func cost(e entry) int64 { return int64(len(e.key)) + int64(len(e.value)) + entryCost }
