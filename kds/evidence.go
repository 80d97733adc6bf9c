package kds

import (
	"context"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Verify checks that evidence is genuine and of the channel that ev.Binding
// belongs to, with the replicated collateral or a newer one that comes with
// it. It changes nothing; to accept it needs no quorum, and a refusal counts as
// for a release: clients do not ask another node after it. It is for the
// handshake of a channel. Release decides again by itself.
func (s *Service) Verify(ctx context.Context, ev api.Evidence) (*attest.Verified, error) {
	var v *attest.Verified
	var err error
	for again, round := true, 0; again && round < attempts; round++ {
		applied := s.Machine.Applied()
		v, err = s.verify(ctx, ev)
		again, err = s.reconsider(ctx, applied, err)
	}
	return v, s.finish("verify", err)
}

func (s *Service) verify(ctx context.Context, ev api.Evidence) (*attest.Verified, error) {
	view, _, err := s.cluster()
	if err != nil {
		return nil, err
	}
	a, err := s.assess(ctx, ev.Quote, ev.Collateral, s.now(view))
	if err != nil {
		return nil, err
	}
	if err := checkBinding(a.verified.Claims(), ev.Binding); err != nil {
		return nil, err
	}
	return a.verified, nil
}

// checkBinding refuses evidence made for anything but this channel. A zero
// binding is no channel.
func checkBinding(claims attest.Claims, binding [64]byte) error {
	if binding == [64]byte{} || claims.ReportData != binding {
		return ErrBinding
	}
	return nil
}

// assess verifies a quote for the instant now, which is the decision's.
func (s *Service) assess(ctx context.Context, quote, bundle []byte, now time.Time) (*Assessment, error) {
	return s.Assessor.assess(ctx, quote, bundle, now, ForChannel)
}

// propose commits an entry and returns its result as the type that belongs to
// the entry; a rejection or halt comes back as the error.
func propose[T any](ctx context.Context, r Replica, e state.Entry) (T, error) {
	var none T
	raw, err := state.Encode(e)
	if err != nil {
		return none, err
	}
	_, result, err := r.Propose(ctx, raw)
	if err != nil {
		return none, err
	}
	switch result := result.(type) {
	case T:
		return result, nil
	case error:
		return none, result
	}
	return none, fmt.Errorf("kds: replica returned %T for %T", result, e)
}
