package state

import (
	"errors"
	"fmt"
	"io"
)

// Errors of Heads.Check.
var (
	// ErrBelow says that the history ends before the head that was shown.
	ErrBelow = errors.New("state: the history ends below what was shown; somebody holds newer")
	// ErrOtherLog says that the history had another log at that size: it is a fork
	// of the one that was shown.
	ErrOtherLog = errors.New("state: the history has another log than what was shown")
	// ErrUnseen says that the head lies before the snapshot that the history begins
	// with: it can be neither confirmed nor refused.
	ErrUnseen = errors.New("state: what was shown is older than the history reaches back")
)

// Heads is a machine that remembers the heads of the release log that it comes
// by, so that a recovery can be held to the receipts and checkpoints that
// people bring: 32 bytes for each release since the snapshot. Replay a history
// into it, then Check. It is for one goroutine.
type Heads struct {
	*Machine
	base  frontier   // of the snapshot, or empty
	roots [][32]byte // by size, from base.size
}

// NewHeads returns an empty machine with an empty memory.
func NewHeads() *Heads { return &Heads{Machine: New(), roots: [][32]byte{{}}} }

// Apply applies the entry and remembers the head after it.
func (h *Heads) Apply(index uint64, entry []byte) any {
	result := h.Machine.Apply(index, entry)
	log := h.log()
	switch {
	case log.size == h.base.size+uint64(len(h.roots)):
		h.roots = append(h.roots, log.root())
	case log.size >= h.base.size+uint64(len(h.roots)): // a recovery brought a whole log
		h.base, h.roots = log, [][32]byte{log.root()}
	}
	return result
}

// Restore replaces state and memory.
func (h *Heads) Restore(r io.Reader) error {
	if err := h.Machine.Restore(r); err != nil {
		return err
	}
	h.base = h.log()
	h.roots = [][32]byte{h.base.root()}
	return nil
}

func (m *Machine) log() frontier {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.d.log
}

// Check reports whether the history contains the log of size leaves that root
// is the head of: nil, ErrBelow, ErrOtherLog or ErrUnseen. The caller has
// verified who signed that head.
func (h *Heads) Check(size uint64, root [32]byte) error {
	if size == 0 || size > maxLeaves {
		return fmt.Errorf("%w: a log of %d leaves is signed by nobody", ErrOtherLog, size)
	}
	if end := h.base.size + uint64(len(h.roots)) - 1; size > end {
		return fmt.Errorf("%w: %d leaves, the history has %d", ErrBelow, size, end)
	}
	have, seen := h.base.prefix(size)
	if size >= h.base.size {
		have, seen = h.roots[size-h.base.size], true
	}
	switch {
	case !seen:
		return fmt.Errorf("%w: %d leaves, the snapshot has %d", ErrUnseen, size, h.base.size)
	case have != root:
		return fmt.Errorf("%w: at %d leaves", ErrOtherLog, size)
	}
	return nil
}
