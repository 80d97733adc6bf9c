package persist

import (
	"context"
	"errors"
	"fmt"
)

// commit writes one record: write → fsync → register → publish. The order is the
// guarantee: nothing is confirmed that could be lost, nothing is visible or
// acknowledged that is not confirmed.
func (m *Map) commit(ctx context.Context, tx *Tx) error {
	p := place{generation: m.generation, kind: kindCommit, seq: m.seq + 1, prev: m.hash}
	record, err := m.seal.seal(p, encodeBody(tx.ordered()))
	if err != nil {
		return err
	}
	if err := m.append(record); err != nil {
		return err
	}
	hash := nextHash(m.hash, record)
	if err := confirm(ctx, m.register, p.seq, hash); err != nil {
		if errors.Is(err, ErrConflict) {
			return m.fail(fmt.Errorf("%w: version %d is taken", ErrConflict, p.seq))
		}
		return m.fail(fmt.Errorf("%w: confirming version %d: %w", ErrFailed, p.seq, err))
	}
	m.seq, m.hash, m.end = p.seq, hash, m.end+int64(len(record))
	m.work, m.live = tx.tree, tx.live
	m.mu.Lock()
	m.snap, m.bytes = m.work.Clone(), m.live
	m.mu.Unlock()
	if m.end >= m.compactAt {
		// The transaction has happened whatever becomes of the compaction; one
		// that failed leaves the slot as it was and is due again later.
		if m.compact() != nil {
			m.compactAt = 2 * m.end
		}
	}
	return nil
}

// append makes a record durable. A write that failed is undone, so that a full
// disk refuses a transaction without ending the Map. A failed fsync is final: the
// kernel may have dropped the data and forgotten that it did.
func (m *Map) append(record []byte) error {
	f := m.slots[m.active]
	if _, err := f.WriteAt(record, m.end); err != nil {
		if undo := errors.Join(f.Truncate(m.end), f.Sync()); undo != nil {
			return m.fail(fmt.Errorf("%w: %w", ErrFailed, errors.Join(err, undo)))
		}
		return fmt.Errorf("persist: the transaction was not written: %w", err)
	}
	if err := f.Sync(); err != nil {
		return m.fail(fmt.Errorf("%w: %w", ErrFailed, err))
	}
	return nil
}

const (
	chunkSize  = 256 << 10 // bytes of entries in a checkpoint's record, about
	compactMin = 1 << 20   // bytes of commits before a compaction is worth while
)

// scheduleCompaction lets the log grow to twice the checkpoint, and by at least
// compactMin: a commit pays a constant share of the compactions, whatever the
// store's size.
func (m *Map) scheduleCompaction() {
	m.compactAt = m.checkpoint + max(compactMin, 2*m.checkpoint)
}

// Compact writes a checkpoint of the newest state to the other slot and empties
// the old one. Commits do so by themselves when the log outgrows the data.
func (m *Map) Compact(ctx context.Context) error {
	tx, err := m.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	return m.compact()
}

func (m *Map) compact() error {
	other := 1 - m.active
	if m.slots[other] == nil {
		o := Options{Name: m.name}
		f, err := m.files.Create(o.slotName(other))
		if err != nil {
			return fmt.Errorf("persist: compaction: %w", err)
		}
		m.slots[other] = f
		if err := m.files.Sync(); err != nil {
			return fmt.Errorf("persist: compaction: %w", err)
		}
	}
	s := &slotState{seal: m.seal, generation: m.generation + 1, tree: m.work, seq: m.seq, hash: m.hash}
	end, err := writeCheckpoint(m.slots[other], s)
	if err != nil {
		// The slot in use goes on; its next commit outranks whatever is left of
		// the attempt, which is emptied to give a full disk its space back.
		return errors.Join(err, truncate(m.slots[other], 0))
	}
	old := m.slots[m.active]
	m.active, m.generation, m.end, m.checkpoint = other, s.generation, end, end
	m.scheduleCompaction()
	// An old slot that stays is older by its sequence or generation, so Open
	// passes it over; emptying it again is part of the next compaction.
	_ = truncate(old, 0)
	return nil
}

// writeCheckpoint fills an empty slot with a state and makes it durable. It
// returns where commits begin.
func writeCheckpoint(f File, s *slotState) (int64, error) {
	w := &checkpointWriter{file: f, state: s}
	h := s.seal.header(s.generation)
	w.chain = checkpointHash(&h)
	w.write(h.append(nil), f.Truncate(0))
	var chunk []change
	size := 0
	s.tree.Ascend(func(e entry) bool {
		chunk = append(chunk, change(e))
		if size += len(e.key) + len(e.value); size >= chunkSize {
			w.record(kindChunk, chunk)
			chunk, size = chunk[:0], 0
		}
		return w.err == nil
	})
	if len(chunk) > 0 {
		w.record(kindChunk, chunk)
	}
	end := checkpointEnd{seq: s.seq, hash: s.hash, count: uint64(s.tree.Len())}
	w.record(kindEnd, end.changes())
	if w.err == nil {
		w.err = f.Sync()
	}
	if w.err != nil {
		return 0, fmt.Errorf("persist: writing a checkpoint: %w", w.err)
	}
	return w.end, nil
}

// checkpointWriter keeps the first error and does nothing after it.
type checkpointWriter struct {
	file  File
	state *slotState
	index uint64
	chain [32]byte
	end   int64
	err   error
}

func (w *checkpointWriter) record(k kind, changes []change) {
	if w.err != nil {
		return
	}
	p := place{generation: w.state.generation, kind: k, seq: w.index, prev: w.chain}
	record, err := w.state.seal.seal(p, encodeBody(changes))
	w.write(record, err)
	w.index, w.chain = w.index+1, nextHash(w.chain, record)
}

func (w *checkpointWriter) write(b []byte, err error) {
	if w.err == nil {
		w.err = err
	}
	if w.err != nil {
		return
	}
	_, w.err = w.file.WriteAt(b, w.end)
	w.end += int64(len(b))
}
