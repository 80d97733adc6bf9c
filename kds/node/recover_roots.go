package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/state"
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
		held, err := r.rootsFrom(request, sealed)
		if err == nil {
			for _, s := range held {
				r.hold(s)
			}
			return nil
		}
		if ctx.Err() != nil {
			return err
		}
		refused = err
	}
}

// hold keeps roots that were given back, once.
func (r *recovery) hold(s *kds.Secrets) {
	ids := s.GenerationIDs()
	for _, have := range r.held {
		if slices.Equal(have.GenerationIDs(), ids) {
			return
		}
	}
	r.held = append(r.held, s)
	slices.SortStableFunc(r.held, func(a, b *kds.Secrets) int { return cmp.Compare(b.Generation(), a.Generation()) })
}

// fitting says why roots are not those of a history: it has committed to others,
// or to more. They may be more than it has: those of an epoch that is given up,
// whose numbers are not used again.
func fitting(s *kds.Secrets, v state.View) error {
	file := WrappedPattern
	if n := uint64(len(v.GenerationIDs)); n > 0 && n == v.Generation { // else its newest root has no id yet
		file = WrappedFile(n, v.GenerationIDs[n-1])
	}
	err := s.Check(v.GenerationIDs)
	if held := s.Generation(); err == nil && held < v.Generation { // below the level that has ids
		err = fmt.Errorf("they are of generation %d, the history is of generation %d", held, v.Generation)
	}
	if err != nil {
		return fmt.Errorf("%w: the roots that were given back do not belong to this history: %w; bring %s, of a node of its epoch", ErrRecovery, err, file)
	}
	return nil
}

// rootsOf are the roots of a history among those held, nil if none are. Two sets
// may have the same generations: of epochs that both went on from the same one.
func (r *recovery) rootsOf(a *inspected) *kds.Secrets {
	v := a.machine.View()
	for _, s := range r.held {
		if fitting(s, v) == nil {
			return s
		}
	}
	return nil
}

// tellLeftBehind tells of roots that fit the source too and are not carried on:
// of an epoch that this recovery gives up, beside another one that it gives up.
func (r *recovery) tellLeftBehind(o *accepted) {
	for _, s := range r.held {
		if fitting(s, o.view) == nil && o.secrets.Check(s.GenerationIDs()) != nil {
			ids := s.GenerationIDs()
			r.n.log.Error("ROOTS ARE LEFT BEHIND: of two epochs that this recovery gives up, the new one carries on the roots of one. Keep the wrapped roots of the other",
				"file", WrappedFile(uint64(len(ids)), ids[len(ids)-1]))
		}
	}
}

// checkRoots refuses a history whose roots are not among those held; before any
// are, a survivor has to hand them over, and is held to them then.
func (r *recovery) checkRoots(a *inspected) error {
	if len(r.held) == 0 || r.rootsOf(a) != nil {
		return nil
	}
	var why error
	for _, s := range r.held {
		why = errors.Join(why, fitting(s, a.machine.View()))
	}
	return why
}

// generationFor is the newest root generation that is held for a history, here or
// by the survivor whose it is: a server holds the generations of its state.
func (r *recovery) generationFor(a *inspected) uint64 {
	if s := r.rootsOf(a); s != nil {
		return s.Generation()
	}
	if len(r.held) > 0 {
		return 0
	}
	return a.machine.View().Generation
}

// rootsFrom opens the sealed shares and, with them, every file of wrapped roots
// that they open.
func (r *recovery) rootsFrom(request *RecoveryRequest, sealed []SealedShare) ([]*kds.Secrets, error) {
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
	var held []*kds.Secrets
	var failed error
	for _, name := range r.Wrapped {
		s, err := r.unwrapFile(name, shares)
		if err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
		} else {
			held = append(held, s)
		}
	}
	if len(held) == 0 {
		return nil, fmt.Errorf("%w: %w", ErrShares, failed)
	}
	if failed != nil {
		r.n.log.Warn("some wrapped roots were of no use", "reason", failed)
	}
	return held, nil
}

func (r *recovery) unwrapFile(name string, shares []kds.Share) (*kds.Secrets, error) {
	wrapped, err := readBounded(name, maxWrappedFile)
	if err != nil {
		return nil, err
	}
	return kds.UnwrapSecrets(wrapped, shares, r.IdentityKey)
}
