package kds

import (
	"context"
	"errors"
	"fmt"
	"math/big"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Errors of evidence that is not attest's to judge.
var (
	ErrBinding      = errors.New("kds: the evidence is not of this channel")
	ErrNoCollateral = errors.New("kds: no collateral for this platform")
)

// century is the grace that makes every expiry irrelevant.
const century = 100 * 365 * 24 * time.Hour

// assessment is verified evidence and what it was verified with.
type assessment struct {
	verified *attest.Verified
	now      time.Time
	key      state.CollateralKey
	version  uint64               // of the replicated set that was used; 0 if offer was
	offer    *state.PutCollateral // a newer set, which the cluster does not hold yet
	refused  error                // while verified is nil: why
}

// Verify checks that evidence is genuine and of the channel that ev.Binding
// belongs to, with the replicated collateral or a newer one that comes with
// it. It changes nothing and needs no quorum: it is for the handshake of a
// channel. Release decides again by itself.
func (s *Service) Verify(ctx context.Context, ev api.Evidence) (*attest.Verified, error) {
	v, err := s.verify(ctx, ev)
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

// assess verifies a quote. The replicated collateral decides; a bundle that
// comes with the evidence replaces it only if it is genuine and newer, so an
// old set cannot be replayed. now is the decision's instant.
func (s *Service) assess(ctx context.Context, rawQuote, bundle []byte, now time.Time) (*assessment, error) {
	switch {
	case len(rawQuote) > api.MaxQuote:
		return nil, fmt.Errorf("%w: quote of %d bytes, limit %d", api.ErrTooLarge, len(rawQuote), api.MaxQuote)
	case len(bundle) > api.MaxCollateral:
		return nil, fmt.Errorf("%w: collateral of %d bytes, limit %d", api.ErrTooLarge, len(bundle), api.MaxCollateral)
	}
	q, err := attest.Parse(rawQuote)
	if err != nil {
		return nil, err
	}
	platform, err := attest.PlatformOf(q) // unverified: it chooses the collateral, and Verify compares
	if err != nil {
		return nil, err
	}
	a := &assessment{now: now, key: state.CollateralKey{TEE: string(q.TEE()), FMSPC: platform.FMSPC, CA: platform.CA}}
	known, have := s.Machine.Collateral(a.key)
	if have {
		a.version = known.Version
		a.verified, a.refused = s.verifyWith(q, known.Bundle, now)
	} else {
		a.refused = &attest.Error{Stage: attest.StageCollateral, Err: ErrNoCollateral, Hint: "send a collateral bundle with the evidence"}
	}
	offers, err := s.offers(ctx, a, rawQuote, bundle, known.Meta)
	if err != nil {
		return nil, err
	}
	for _, offered := range offers {
		if have && offered.Hash() == known.Meta.CollateralSHA256 {
			continue
		}
		if err := s.consider(a, q, offered, known.Meta); err != nil {
			return nil, err
		}
	}
	if a.verified == nil {
		return nil, a.refused
	}
	return a, nil
}

func (s *Service) verifyWith(q *attest.Quote, bundle []byte, now time.Time) (*attest.Verified, error) {
	c, err := attest.ParseCollateral(bundle)
	if err != nil {
		return nil, err
	}
	return s.Verifier.Verify(q, c, now)
}

// consider verifies with an offered set and adopts it if it is newer than the
// one in use: an earlier offer or known, the replicated one. An offer that
// fails is ignored where another set does, unless it proves a revocation.
func (s *Service) consider(a *assessment, q *attest.Quote, offered *attest.Collateral, known state.CollateralMeta) error {
	v, err := s.Verifier.Verify(q, offered, a.now)
	if err != nil {
		if a.verified == nil {
			a.refused = err
			return nil
		}
		if _, late := s.Verifier.Verify(q, offered, a.now, attest.WithGrace(century)); stageOf(late) == attest.StageRevocation {
			return err // not merely expired: the list names this platform, or is forged
		}
		return nil
	}
	put, err := s.putOf(a.key, v, offered)
	if err != nil {
		return err
	}
	if a.offer != nil {
		known = a.offer.Meta
	}
	if a.version == 0 && a.offer == nil || put.Meta.Newer(known) {
		a.verified, a.version, a.offer = v, 0, put
		return nil
	}
	s.fetcher.forget(a.key, offered)
	return nil
}

func stageOf(err error) attest.Stage {
	if e, ok := errors.AsType[*attest.Error](err); ok {
		return e.Stage
	}
	return ""
}

// putOf makes the entry that replicates a verified set.
func (s *Service) putOf(key state.CollateralKey, v *attest.Verified, c *attest.Collateral) (*state.PutCollateral, error) {
	bundle, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	if len(bundle) > api.MaxCollateral {
		return nil, fmt.Errorf("%w: collateral of %d bytes, limit %d", api.ErrTooLarge, len(bundle), api.MaxCollateral)
	}
	meta, err := MetaOf(v.Claims().Collateral)
	if err != nil {
		return nil, err
	}
	return &state.PutCollateral{Key: key, Bundle: bundle, Meta: meta}, nil
}

// MetaOf returns what decides whether one verified collateral set is newer
// than another. Numbers that are missing or negative are refused: they could
// not be compared.
func MetaOf(claims attest.CollateralClaims) (state.CollateralMeta, error) {
	root, okRoot := new(big.Int).SetString(claims.RootCRLNumber, 10)
	pck, okPCK := new(big.Int).SetString(claims.PCKCRLNumber, 10)
	if !okRoot || !okPCK || root.Sign() < 0 || pck.Sign() < 0 || claims.TCBEvaluation < 0 || claims.QEEvaluation < 0 {
		return state.CollateralMeta{}, &attest.Error{Stage: attest.StageCollateral, Err: ErrNoCollateral, Hint: "its numbers are negative or missing; fetch it again"}
	}
	return state.CollateralMeta{
		TCBEvaluation: uint64(claims.TCBEvaluation), QEEvaluation: uint64(claims.QEEvaluation),
		TCBInfoIssue: claims.TCBInfoIssueDate.Unix(), QEIdentityIssue: claims.QEIdentityIssueDate.Unix(),
		RootCRLNumber: root.Bytes(), PCKCRLNumber: pck.Bytes(),
		LatestIssue: claims.LatestIssue.Unix(), CollateralSHA256: claims.Hash,
	}, nil
}

// replicate makes an offered set the cluster's, so that the release which
// names its version can be recorded.
func (s *Service) replicate(ctx context.Context, a *assessment, epoch uint64) error {
	if a.offer == nil {
		return nil
	}
	a.offer.Epoch = epoch
	put, err := propose[state.Put](ctx, s.Replica, a.offer)
	if err != nil {
		return err
	}
	a.version = put.Version
	return nil
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
