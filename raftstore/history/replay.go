package history

import (
	"bytes"
	"fmt"

	"github.com/claviger/claviger/raftstore"
)

// Replayed is where a machine stands after Replay.
type Replayed struct {
	Applied uint64   // index of the last command or configuration, as in raftstore.Store.Chain
	Term    uint64   // of the end of the log
	Chain   [32]byte // running hash over all commands, as in raftstore.Store.Chain
}

// Replay brings a fresh machine to the end of the history: it restores the
// snapshot and applies every command behind it. Commands that were in the log
// and not yet acknowledged to anybody are among them: whoever asked for one does
// not know, and must bear either. After an error the machine is of no use.
func (h *History) Replay(m raftstore.Machine) (r Replayed, err error) {
	if err := h.Complete(); err != nil {
		return Replayed{}, err
	}
	defer func() {
		if p := recover(); p != nil {
			r, err = Replayed{}, fmt.Errorf("%w: it panicked (%T) behind index %d", ErrHalted, p, r.Applied)
		}
	}()
	after := uint64(0)
	if s := h.Snapshot; s != nil {
		if err := m.Restore(bytes.NewReader(s.State())); err != nil {
			return Replayed{}, fmt.Errorf("history: the snapshot up to %d: %w", s.Index, err)
		}
		if halted(m) {
			return Replayed{}, fmt.Errorf("%w: in the snapshot up to %d", ErrHalted, s.Index)
		}
		after, r.Applied, r.Chain = s.Index, s.applied, s.chain
	}
	for i := range h.Entries {
		e := &h.Entries[i]
		if e.Index <= after {
			continue
		}
		switch e.Type {
		case Command:
			m.Apply(e.Index, e.Data)
			if halted(m) {
				return Replayed{}, fmt.Errorf("%w: index %d", ErrHalted, e.Index)
			}
			r.Chain = raftstore.ExtendChain(r.Chain, e.Index, e.Term, e.Data)
			r.Applied = e.Index
		case Configuration:
			r.Applied = e.Index
		}
	}
	_, r.Term = h.Last()
	return r, nil
}

// halted asks a machine that can stop by itself, in either of the forms that
// machines have.
func halted(m raftstore.Machine) bool {
	switch m := m.(type) {
	case raftstore.Halter:
		return m.Halted()
	case interface{ Halted() error }:
		return m.Halted() != nil
	}
	return false
}
