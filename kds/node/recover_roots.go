package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/claviger/claviger/kds"
)

// ErrShares says that shares and wrapped roots do not give back the roots.
var ErrShares = errors.New("node: the shares do not give back the roots")

const (
	maxWrapped     = 256     // root generations
	maxWrappedFile = 1 << 20 // bytes
	maxShares      = 64
)

// unwrap asks for shares until they give back the roots.
func (r *recovery) unwrap(ctx context.Context) error {
	request, err := r.request(ctx)
	if err != nil {
		return err
	}
	// Whether the policy in force names this code is in the archives, which are
	// closed yet: who holds a share looks now, and prepare looks later.
	var refused error
	for {
		sealed, err := r.Shares(ctx, request, refused)
		if err != nil {
			return errors.Join(err, refused)
		}
		if r.secrets, err = r.rootsFrom(request, sealed); err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		refused = err
	}
}

// rootsFrom opens the sealed shares and, with them, the newest wrapped roots.
func (r *recovery) rootsFrom(request *RecoveryRequest, sealed []SealedShare) (*kds.Secrets, error) {
	if len(sealed) > maxShares {
		return nil, fmt.Errorf("%w: %d shares, at most %d", ErrShares, len(sealed), maxShares)
	}
	info, err := request.ShareInfo()
	if err != nil {
		return nil, err
	}
	var shares []kds.Share
	for i, s := range sealed {
		share, err := r.key.Open(s.Sealed, info)
		if err != nil {
			return nil, fmt.Errorf("%w: number %d in the file: %w; each restart is another enclave", ErrShares, i+1, err)
		}
		shares = append(shares, share)
	}
	var best *kds.Secrets
	var failed error
	for _, name := range r.Wrapped {
		s, err := r.unwrapFile(name, shares)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
		} else if best == nil || s.Generation() > best.Generation() {
			best = s
		}
	}
	if best == nil {
		return nil, fmt.Errorf("%w: %w", ErrShares, failed)
	}
	if failed != nil {
		r.n.log.Warn("some wrapped roots were of no use", "reason", failed)
	}
	return best, nil
}

func (r *recovery) unwrapFile(name string, shares []kds.Share) (*kds.Secrets, error) {
	wrapped, err := readBounded(name, maxWrappedFile)
	if err != nil {
		return nil, err
	}
	return kds.UnwrapSecrets(wrapped, shares, r.IdentityKey)
}
