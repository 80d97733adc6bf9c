package raftstore

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"time"

	"github.com/hashicorp/raft"
)

// enqueueTimeout bounds the wait for raft's main loop to take a proposal; with
// it a stalled disk becomes an error instead of a queue without end.
const enqueueTimeout = 5 * time.Second

// Propose commits entry and returns its index and what the machine's Apply
// returned for it here. Only the leader can: others get a *NotLeaderError, or
// ErrNoQuorum when no leader is known. Entries have 1 to MaxEntry bytes; beyond
// what a leader holds at once there is ErrBusy.
//
// After an ErrOutcomeUnknown, be it for ErrStopped, ErrHalted or another reason,
// and after the end of ctx, the entry may have been committed, or may be later.
// After every other error it was not appended and never will be.
func (s *Store) Propose(ctx context.Context, entry []byte) (uint64, any, error) {
	if err := checkEntrySize(entry); err != nil {
		return 0, nil, err
	}
	if err := s.servable(ctx); err != nil {
		return 0, nil, err
	}
	index, result, err := s.commit(ctx, entry)
	if errors.Is(err, errNotTaken) {
		err = s.translate(raft.ErrNotLeader)
	}
	return index, result, err
}

func checkEntrySize(entry []byte) error {
	switch {
	case len(entry) == 0:
		return ErrEmptyEntry
	case len(entry) > MaxEntry:
		return ErrEntryTooLarge
	}
	return nil
}

// commit proposes entry to raft here. Its errors are those of Propose, and
// errNotTaken where this server does not lead or is handing over.
func (s *Store) commit(ctx context.Context, entry []byte) (uint64, any, error) {
	start := time.Now()
	s.metrics.proposing.Inc()
	defer s.metrics.proposing.Dec()
	f, err := s.apply(bytes.Clone(entry), wait(ctx))
	if err == nil {
		err = s.awaitRaft(ctx, f)
	}
	if err != nil {
		if refused := s.notAppended(err); refused != nil {
			return 0, nil, refused
		}
		return 0, nil, s.unknown(ctx, err)
	}
	done, ok := f.Response().(applied)
	if !ok || done.halted {
		return 0, nil, s.unknown(ctx, ErrHalted)
	}
	s.metrics.committed(time.Since(start))
	return f.Index(), done.result, nil
}

// notAppended gives the error for a proposal that raft has not taken, by what
// apply says or by raft's answer as outcome gives it, and nil where that leaves
// it open: an entry that could not be stored may be in the archive, too.
func (s *Store) notAppended(err error) error {
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return errNotTaken
	case errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, ErrBusy):
		return ErrBusy
	case errors.Is(err, raft.ErrRaftShutdown):
		return s.translate(err)
	}
	return nil
}

// unknown is the error for an entry that was on its way when err came: that of
// ctx if it has ended, and an ErrOutcomeUnknown otherwise.
func (s *Store) unknown(ctx context.Context, err error) error {
	if ended := ctx.Err(); ended != nil {
		return ended
	}
	if err = s.translate(err); errors.Is(err, ErrOutcomeUnknown) {
		return err
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}

// servable refuses without touching raft's main loop what cannot succeed.
func (s *Store) servable(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if s.Halted() {
		return ErrHalted
	}
	if s.raft.State() != raft.Leader {
		return s.translate(raft.ErrNotLeader)
	}
	return nil
}

func wait(ctx context.Context) time.Duration {
	if d, ok := ctx.Deadline(); ok {
		return max(min(time.Until(d), enqueueTimeout), time.Millisecond)
	}
	return enqueueTimeout
}

// await waits for a future or for ctx.
func (s *Store) await(ctx context.Context, f raft.Future) error {
	return s.translate(s.awaitRaft(ctx, f))
}

// awaitRaft gives raft's own error. The goroutine it leaves behind ends when
// raft answers, at the latest when the store has stopped.
func (s *Store) awaitRaft(ctx context.Context, f raft.Future) error {
	done := make(chan error, 1)
	go func() { done <- s.outcome(f) }()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped: // raft forgets what its machine had not taken when it stopped
		return raft.ErrLeadershipLost
	}
}

// outcome waits for raft's answer, at the latest until the store has stopped:
// raft never answers for what was in its queues then. Its futures have a field
// for that, which it sets for some of them.
func (s *Store) outcome(f raft.Future) error {
	v := reflect.Indirect(reflect.ValueOf(f))
	if v.Kind() != reflect.Struct {
		return f.Error()
	}
	end := v.FieldByName("ShutdownCh")
	if !end.IsValid() || !end.CanSet() || end.Type() != reflect.TypeFor[chan struct{}]() {
		return f.Error() // one that has its answer already
	}
	if end.IsNil() {
		end.Set(reflect.ValueOf(s.stopped))
	}
	if err := f.Error(); !errors.Is(err, raft.ErrRaftShutdown) {
		return err
	}
	return raft.ErrLeadershipLost // it had been taken
}

// translate turns raft's errors into this package's.
func (s *Store) translate(err error) error {
	if err == nil {
		return nil
	}
	if fenced := s.fence.check(); fenced != nil {
		return errors.Join(ErrStopped, fenced)
	}
	switch {
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		if id, addr, ok := s.Leader(); ok && id != s.cfg.ID {
			return &NotLeaderError{Leader: id, Address: addr}
		}
		if s.isStopped() {
			return ErrStopped
		}
		return ErrNoQuorum
	case errors.Is(err, raft.ErrLeadershipLost):
		return ErrOutcomeUnknown
	case errors.Is(err, raft.ErrEnqueueTimeout):
		return ErrNoQuorum
	case errors.Is(err, raft.ErrRaftShutdown):
		return ErrStopped
	}
	return err
}

func (s *Store) isStopped() bool {
	select {
	case <-s.stopped:
		return true
	default:
		return s.raft.State() == raft.Shutdown
	}
}

// Leader is the leader known here and its address; ok is false when none is.
func (s *Store) Leader() (id ServerID, addr string, ok bool) {
	raftAddr, _ := s.raft.LeaderWithID()
	if raftAddr == "" {
		return ServerID{}, "", false
	}
	id, addr, err := parseRaftAddress(raftAddr)
	return id, addr, err == nil
}

// IsLeader reports whether this server believes to be the leader. It is a hint,
// not a permission: only a committed Propose or a SafeRead proves it.
func (s *Store) IsLeader() bool { return s.raft.State() == raft.Leader }

// LeaderChanges gives true when this server becomes leader and false when it
// stops being it. It holds the newest value only and has one consumer.
func (s *Store) LeaderChanges() <-chan bool { return s.raft.LeaderCh() }

// AppliedIndex is the index of the last entry or configuration the machine has
// applied here. Barriers and raft's own entries do not count, and neither does
// the entry that halted the machine.
func (s *Store) AppliedIndex() uint64 {
	index, _ := s.fsm.progress.get()
	return index
}

// CommitIndex is the highest index known here to be committed.
func (s *Store) CommitIndex() uint64 { return s.raft.CommitIndex() }

// Term is the current term of this server.
func (s *Store) Term() uint64 { return s.raft.CurrentTerm() }

// Compact takes a snapshot and cuts the log in memory, outside the usual interval.
func (s *Store) Compact(ctx context.Context) error {
	err := s.await(ctx, s.raft.Snapshot())
	if errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return nil
	}
	return err
}
