package raftstore

import (
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"sync"

	"github.com/hashicorp/raft"
)

// Machine is the replicated state. Apply must be deterministic and must not
// keep or change entry; it is never called concurrently with itself, Snapshot
// or Restore. Snapshot returns a view that later Apply calls do not change.
// Restore replaces all state, or on an error changes nothing. A machine that
// panics in Apply or Restore is halted: see ErrHalted.
type Machine interface {
	Apply(index uint64, entry []byte) any
	Snapshot() (io.WriterTo, error)
	Restore(io.Reader) error
}

// fsm adapts a Machine to raft. A panicking entry halts it: nothing more is
// applied or served, but the process, and the secrets it holds, live on.
type fsm struct {
	machine Machine
	members *members
	log     *slog.Logger

	results  results
	progress progress
	halt     sync.Once
	haltedCh chan struct{} // closed when the machine has halted
	settling diskLock      // held from the storing of a snapshot of ours until raft knows of it: see Persist
}

// progress is the index of the last entry or configuration applied, and the
// running hash of the commands up to it.
type progress struct {
	mu      sync.Mutex
	applied uint64
	chain   [32]byte
	changed chan struct{} // closed at the next change; nil while nobody looks
}

func (p *progress) set(index uint64, chain [32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied, p.chain = index, chain
	if p.changed != nil {
		close(p.changed)
		p.changed = nil
	}
}

func (p *progress) get() (index uint64, chain [32]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.applied, p.chain
}

// look returns the index and a channel that is closed when it changes.
func (p *progress) look() (uint64, <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.changed == nil {
		p.changed = make(chan struct{})
	}
	return p.applied, p.changed
}

// Halter is a Machine that may stop by itself at an entry it does not
// understand. It is asked after every Apply and Restore; once it says true the
// store is halted: see ErrHalted.
type Halter interface{ Halted() bool }

func newFSM(m Machine, members *members, log *slog.Logger) *fsm {
	return &fsm{machine: m, members: members, log: log, haltedCh: make(chan struct{})}
}

func (f *fsm) isHalted() bool {
	select {
	case <-f.haltedCh:
		return true
	default:
		return false
	}
}

func (f *fsm) stop(why string, attrs ...any) {
	f.halt.Do(func() {
		f.log.Error("the machine is halted: this server applies and serves nothing any more; "+why, attrs...)
		close(f.haltedCh)
	})
}

// stopped asks a Halter.
func (f *fsm) stopped(index uint64) bool {
	h, ok := f.machine.(Halter)
	if !ok || !h.Halted() {
		return false
	}
	f.stop("it does not understand an entry", "index", index)
	return true
}

var (
	_ raft.FSM                = (*fsm)(nil)
	_ raft.ConfigurationStore = (*fsm)(nil)
)

// applied is what an entry came to: the term it has in the log, and what the
// machine returned for it.
type applied struct {
	term   uint64
	result any
	halted bool // the machine has halted, at this entry or before
}

// Apply hands a command to the machine and returns an applied.
func (f *fsm) Apply(l *raft.Log) (out any) {
	if f.isHalted() {
		return applied{term: l.Term, halted: true}
	}
	defer func() {
		if r := recover(); r != nil {
			// The value is not logged: it may hold a piece of the entry.
			f.stop("it panicked on an entry", "index", l.Index, "panic_type", fmt.Sprintf("%T", r))
			out = applied{term: l.Term, halted: true}
		}
	}()
	result := f.machine.Apply(l.Index, l.Data)
	if f.stopped(l.Index) {
		return applied{term: l.Term, halted: true}
	}
	_, chain := f.progress.get() // nobody else sets it
	sum := sha256.Sum256(l.Data)
	f.results.applied(sum, l.Index, l.Term, result)
	f.progress.set(l.Index, extendChain(chain, l.Index, l.Term, sum))
	return applied{term: l.Term, result: result}
}

// StoreConfiguration follows committed configurations.
func (f *fsm) StoreConfiguration(index uint64, c raft.Configuration) {
	f.members.update(index, c)
	if !f.isHalted() {
		_, chain := f.progress.get()
		f.progress.set(index, chain)
	}
}

// survive makes an error of a panic of the machine, which would end the process
// and with it the secrets it holds.
func survive(doing string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("raftstore: the machine panicked while %s (%T)", doing, r)
	}
}

// Snapshot captures the machine; what is written carries the applied
// index and the running hash.
func (f *fsm) Snapshot() (out raft.FSMSnapshot, err error) {
	if f.isHalted() {
		return nil, ErrHalted
	}
	defer survive("capturing its state", &err)
	w, err := f.machine.Snapshot()
	if err != nil {
		return nil, err
	}
	applied, chain := f.progress.get()
	return &fsmSnapshot{applied: applied, chain: chain, state: w, settling: &f.settling}, nil
}

// Restore replaces the machine's state. A halted machine keeps the one it has,
// and raft the snapshot, so that this server goes on storing entries and voting.
func (f *fsm) Restore(rc io.ReadCloser) error {
	defer rc.Close()
	if f.isHalted() {
		return nil
	}
	var head [SnapshotHeaderSize]byte
	if _, err := io.ReadFull(rc, head[:]); err != nil {
		return fmt.Errorf("raftstore: snapshot header: %w", err)
	}
	applied, chain, err := ParseSnapshotHeader(head[:])
	if err != nil {
		return err
	}
	if now, _ := f.progress.get(); applied < now { // see installSnapshot, which does not let it come to this
		return fmt.Errorf("%w: a snapshot of %d where %d is applied", ErrPeer, applied, now)
	}
	if err := f.restore(rc, applied); err != nil {
		return err
	}
	f.progress.set(applied, chain)
	return nil
}

// restore hands the state to the machine, which a panic leaves in no state at all.
func (f *fsm) restore(state io.Reader, applied uint64) (err error) {
	defer func() {
		if r := recover(); r != nil {
			f.stop("it panicked on a snapshot", "index", applied, "panic_type", fmt.Sprintf("%T", r))
			err = ErrHalted
		}
	}()
	if err := f.machine.Restore(state); err != nil {
		return fmt.Errorf("raftstore: restoring the machine: %w", err)
	}
	if f.stopped(applied) {
		return ErrHalted
	}
	return nil
}

type fsmSnapshot struct {
	applied  uint64
	chain    [32]byte
	state    io.WriterTo
	settling *diskLock
	held     bool // settling is, by this snapshot
}

// Persist writes the state to the sink and closes it, or cancels it. From then
// until Release no snapshot of a leader is installed. Raft says in between, in a
// goroutine that the host may stop there, which snapshot is its last: if a newer
// one were installed meanwhile, raft would take the older one for the last. As a
// leader it would find nothing in its log that lies between the two, and send its
// snapshot for ever to whoever needs that.
func (s *fsmSnapshot) Persist(sink raft.SnapshotSink) error {
	if err := s.write(sink); err != nil {
		sink.Cancel()
		return err
	}
	s.settling.Lock()
	s.held = true
	return sink.Close()
}

func (s *fsmSnapshot) write(w io.Writer) (err error) {
	defer survive("writing its state", &err)
	if _, err := w.Write(snapshotHeader(s.applied, s.chain)); err != nil {
		return err
	}
	_, err = s.state.WriteTo(w)
	return err
}

// Release is the last that raft does with a snapshot. The view is ordinary memory.
func (s *fsmSnapshot) Release() {
	if s.held {
		s.held = false
		s.settling.Unlock()
	}
}
