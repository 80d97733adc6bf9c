package raftstore

import (
	"errors"
	"fmt"
)

var (
	// ErrNoQuorum says that no leader with a majority can be reached; nothing was
	// decided, or it is wrapped by ErrOutcomeUnknown. Retry, on another node if there is one.
	ErrNoQuorum = errors.New("raftstore: no leader with a majority is known; retry when a majority of the voters is up")
	// ErrOutcomeUnknown says that an entry was on its way when leadership, or the
	// connection to the leader, was lost, when the store stopped or the machine
	// halted: it may or may not commit later, or it did and what came of it is not
	// known here. It is also an ErrNoQuorum, and an ErrStopped or an ErrHalted
	// where that is the reason.
	ErrOutcomeUnknown = fmt.Errorf("raftstore: what came of the entry is not known; see whether it is there before you repeat it: %w", ErrNoQuorum)
	// ErrBusy refuses a proposal because as many as this server or the leader
	// takes at once are under way, or because raft was too busy to take it; nothing
	// was appended. Retry later.
	ErrBusy = errors.New("raftstore: too many proposals are under way; retry in a moment")
	// ErrStopped says that the store has been shut down.
	ErrStopped = errors.New("raftstore: the store has stopped")
	// ErrEntryTooLarge refuses an entry above MaxEntry.
	ErrEntryTooLarge = fmt.Errorf("raftstore: the entry is larger than %d bytes", MaxEntry)
	// ErrEmptyEntry refuses an entry without content.
	ErrEmptyEntry = errors.New("raftstore: the entry is empty")
	// ErrNotFresh refuses a Genesis on a store that already has a log or a configuration.
	ErrNotFresh = errors.New("raftstore: genesis is done once, on a store without any history")
	// ErrConfig wraps every fault of a Config.
	ErrConfig = errors.New("raftstore: configuration")
	// ErrHalted says that the machine panicked on an entry, or halted by itself
	// (Halter): the store neither applies nor serves any more and hands over
	// leadership, while it goes on voting and the process and its memory live on.
	ErrHalted = errors.New("raftstore: the machine has halted and applies no more entries")

	// ErrTermFell and ErrSecondVote are broken rules of the stable store; a store that meets one stops.
	ErrTermFell   = errors.New("raftstore: a term must never fall")
	ErrSecondVote = errors.New("raftstore: a second vote in one term is refused")

	// ErrPeer wraps every fault of a peer: a header that is not the channel's
	// identity, a malformed or oversized frame, a removed server.
	ErrPeer = errors.New("raftstore: refused peer")
	// ErrRefusedByPeer says that the peer answered a request with a refusal.
	ErrRefusedByPeer = errors.New("raftstore: the peer refused the request")

	errPeerFailed = errors.New("raftstore: the peer could not process the request")
	errNotFound   = errors.New("not found") // the text hashicorp/raft expects of a stable store
)

// NotLeaderError refuses what only the leader may do and names the leader known here.
type NotLeaderError struct {
	Leader  ServerID
	Address string
}

func (e *NotLeaderError) Error() string {
	return fmt.Sprintf("raftstore: this server is not the leader; ask %s (server %s)", e.Address, e.Leader.short())
}

// ArchiveError says that the archive could not be written and the store stopped because of it.
type ArchiveError struct {
	Op  string // "append", "sync" or "cut"
	Err error
}

func (e *ArchiveError) Error() string {
	return fmt.Sprintf("raftstore: archive %s failed, the store stops: %v", e.Op, e.Err)
}

// Unwrap gives the archive's own error.
func (e *ArchiveError) Unwrap() error { return e.Err }

// MembershipError says which change of the configuration failed and why.
// Nothing is known about the outcome when Err is an ErrOutcomeUnknown, an
// ErrStopped or the end of the context.
type MembershipError struct {
	Op     string // "add nonvoter", "add voter" or "remove"
	Server ServerID
	Err    error
}

func (e *MembershipError) Error() string {
	return fmt.Sprintf("raftstore: %s %s: %v", e.Op, e.Server.short(), e.Err)
}

// Unwrap gives the reason.
func (e *MembershipError) Unwrap() error { return e.Err }
