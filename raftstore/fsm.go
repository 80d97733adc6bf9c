package raftstore

import (
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// Machine is the replicated state. Apply must be deterministic and must not
// keep or change entry; it is never called concurrently with itself, Snapshot
// or Restore. Snapshot returns a view that later Apply calls do not change.
// Restore replaces all state.
type Machine interface {
	Apply(index uint64, entry []byte) any
	Snapshot() (io.WriterTo, error)
	Restore(io.Reader) error
}

var snapshotMagic = [8]byte{'c', 'l', 'v', 's', 'n', 'a', 'p', '1'}

// fsm adapts a Machine to raft. A panicking entry halts it: nothing more is
// applied or served, but the process, and the secrets it holds, live on.
type fsm struct {
	machine Machine
	members *members
	log     *slog.Logger
	applied atomic.Uint64
	halted  atomic.Bool
}

var (
	_ raft.FSM                = (*fsm)(nil)
	_ raft.ConfigurationStore = (*fsm)(nil)
)

// Apply hands a command to the machine.
func (f *fsm) Apply(l *raft.Log) (result any) {
	if f.halted.Load() {
		return ErrHalted
	}
	defer func() {
		if r := recover(); r != nil {
			f.halted.Store(true)
			// The value is not logged: it may hold a piece of the entry.
			f.log.Error("the machine panicked on an entry and is halted", "index", l.Index, "panic_type", fmt.Sprintf("%T", r))
			result = ErrHalted
		}
	}()
	result = f.machine.Apply(l.Index, l.Data)
	f.applied.Store(l.Index)
	return result
}

// StoreConfiguration follows committed configurations.
func (f *fsm) StoreConfiguration(index uint64, c raft.Configuration) {
	f.members.update(index, c)
	if !f.halted.Load() {
		f.applied.Store(index)
	}
}

// Snapshot captures the machine; what is written carries the applied index.
func (f *fsm) Snapshot() (raft.FSMSnapshot, error) {
	if f.halted.Load() {
		return nil, ErrHalted
	}
	w, err := f.machine.Snapshot()
	if err != nil {
		return nil, err
	}
	return &fsmSnapshot{applied: f.applied.Load(), state: w}, nil
}

// Restore replaces the machine's state.
func (f *fsm) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	var head [16]byte
	if _, err := io.ReadFull(rc, head[:]); err != nil {
		return fmt.Errorf("raftstore: snapshot header: %w", err)
	}
	if [8]byte(head[:8]) != snapshotMagic {
		return fmt.Errorf("%w: the snapshot is of another format", ErrPeer)
	}
	if err := f.machine.Restore(rc); err != nil {
		return fmt.Errorf("raftstore: restoring the machine: %w", err)
	}
	f.applied.Store(binary.BigEndian.Uint64(head[8:]))
	return nil
}

type fsmSnapshot struct {
	applied uint64
	state   io.WriterTo
}

// Persist writes the state to the sink and closes it, or cancels it.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	head := binary.BigEndian.AppendUint64(snapshotMagic[:8:8], s.applied)
	_, err := sink.Write(head)
	if err == nil {
		_, err = s.state.WriteTo(sink)
	}
	if err != nil {
		sink.Cancel()
		return err
	}
	return sink.Close()
}

// Release has nothing to give back: the view is ordinary memory.
func (*fsmSnapshot) Release() {}
