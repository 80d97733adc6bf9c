package persist

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Register is the freshness of one store: a cell outside the host's reach that
// holds the newest version number and the digest of the state at it. A register
// never used holds version 0 and a zero digest.
type Register interface {
	// Read returns the cell.
	Read(ctx context.Context) (version uint64, digest [32]byte, err error)
	// Swap sets the cell to (version, digest) if it holds version-1 now, and
	// succeeds again when it already holds exactly (version, digest). When the
	// cell holds anything else it returns an error that is ErrConflict and the
	// cell is unchanged. After any other error the outcome is unknown.
	Swap(ctx context.Context, version uint64, digest [32]byte) error
}

// registerTimeout bounds the calls that decide a written transaction. The
// caller's cancellation does not: giving up there would only leave the outcome
// unknown.
const registerTimeout = 30 * time.Second

// checkFresh compares the head found in the files with the register. The one
// permitted difference is a last record that was written and never confirmed:
// nobody was told that it happened, so it is confirmed now.
func checkFresh(ctx context.Context, r Register, s *slotState) error {
	if r == nil {
		return nil
	}
	version, digest, err := r.Read(ctx)
	if err != nil {
		return fmt.Errorf("persist: reading the freshness register: %w", err)
	}
	switch {
	case version == s.seq && digest == s.hash:
		return nil
	case version == s.seq-1 && digest == s.prev:
		err := r.Swap(ctx, s.seq, s.hash)
		if errors.Is(err, ErrConflict) {
			return fmt.Errorf("%w: another writer took version %d", ErrRolledBack, s.seq)
		}
		return err
	case version == s.seq:
		return fmt.Errorf("%w: a fork of version %d", ErrRolledBack, version)
	}
	return fmt.Errorf("%w: the files hold version %d, the register %d", ErrRolledBack, s.seq, version)
}

// confirm advances the register to a record that is already durable. A lost
// answer is settled by asking again: Swap is idempotent.
func confirm(ctx context.Context, r Register, version uint64, digest [32]byte) error {
	if r == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), registerTimeout)
	defer cancel()
	err := r.Swap(ctx, version, digest)
	if err == nil || errors.Is(err, ErrConflict) {
		return err
	}
	return r.Swap(ctx, version, digest)
}
