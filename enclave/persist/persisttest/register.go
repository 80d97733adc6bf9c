package persisttest

import (
	"context"
	"errors"
	"sync"

	"github.com/claviger/claviger/enclave/persist"
)

// Register is a freshness register in memory. The zero value is a register never
// used.
type Register struct {
	mu      sync.Mutex
	version uint64
	digest  [32]byte

	// LoseAnswer makes the next Swaps take effect and then report an error, as
	// when the network fails between the two.
	LoseAnswer int
	// Refuse makes the next Swaps fail without effect.
	Refuse int
}

// ErrLost is the error of a Swap whose answer was lost or that was refused.
var ErrLost = errors.New("persisttest: no answer from the register")

// Read implements persist.Register.
func (r *Register) Read(ctx context.Context) (uint64, [32]byte, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version, r.digest, ctx.Err()
}

// Swap implements persist.Register.
func (r *Register) Swap(ctx context.Context, version uint64, digest [32]byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.Refuse > 0 {
		r.Refuse--
		return ErrLost
	}
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case r.version == version && r.digest == digest:
	case r.version+1 == version:
		r.version, r.digest = version, digest
	default:
		return persist.ErrConflict
	}
	if r.LoseAnswer > 0 {
		r.LoseAnswer--
		return ErrLost
	}
	return nil
}
