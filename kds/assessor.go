package kds

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/big"
	"slices"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// Errors of evidence that is not attest's to judge.
var (
	ErrBinding      = errors.New("kds: the evidence is not of this channel")
	ErrNoCollateral = errors.New("kds: no collateral for this platform")
	// ErrStale refuses evidence that only old collateral speaks for, where a
	// recent one is demanded. It passes once a source answers.
	ErrStale = errors.New("kds: the newest collateral for this platform is too old to decide who may hold root secrets; " +
		"check that the node reaches its collateral source, and try again")
	errRevoked = fmt.Errorf("kds: %w", pck.ErrRevoked)
)

// century is the grace that makes every expiry irrelevant.
const century = 100 * 365 * 24 * time.Hour

// Demand says how recent the collateral must be that decides.
type Demand int

const (
	// ForChannel is for releases and for channels between members: the source is
	// asked, and waited for, when all that is known is a day old or there is
	// nothing in the replicated state. If the source fails, what is known decides.
	ForChannel Demand = iota
	// ForMembers is for looking at members again: the source is asked every time,
	// but for answers of the last minute.
	ForMembers
	// ForRoots is for whoever is to receive root secrets, or to give them: the
	// source is asked as for members, and what decides must not be older than
	// RootsAge in any of its daily parts.
	ForRoots
)

// RootsAge is the greatest age of collateral that admits a holder of root
// secrets, where a source is configured: three of Intel's daily issues, so
// that a source which is down for a weekend does not keep a crashed node out.
const RootsAge = 72 * time.Hour

// Assessor decides whether evidence is genuine, by the newest collateral that
// it knows of: the replicated set, what came with the evidence, and what the
// node's own source serves. A revocation counts wherever it is found, now or
// earlier: it is signed and never taken back. Everything in a node that judges
// evidence does it through the node's one Assessor. It is safe for concurrent use.
type Assessor struct {
	Machine  *state.Machine
	Verifier *attest.Verifier
	Source   CollateralSource // nil: only evidence and the replicated set supply collateral
	Clock    func() time.Time // local clock; never moves the time floor
	Logger   *slog.Logger     // nil: silent

	sets sets
}

// Assessment is verified evidence and what it was verified with.
type Assessment struct {
	verified *attest.Verified
	now      time.Time
	key      state.CollateralKey
	meta     state.CollateralMeta // of the set that decided
	version  uint64               // of the replicated set that was used; 0 if offer was
	offer    *state.PutCollateral // a newer set, which the cluster does not hold yet
	refused  error                // while verified is nil: why
}

// Verified is the evidence.
func (a *Assessment) Verified() *attest.Verified { return a.verified }

// Now is the instant that the evidence was judged for.
func (a *Assessment) Now() time.Time { return a.now }

// Collateral names the replicated set that decided: the version is 0 until
// Replicate has succeeded, if a newer set decided.
func (a *Assessment) Collateral() (key state.CollateralKey, version uint64) { return a.key, a.version }

// Measurement is all that identifies the code: MRENCLAVE (32 bytes), or MRTD and RTMR0 to RTMR3 (240 bytes).
func (a *Assessment) Measurement() []byte {
	c := a.verified.Claims()
	if c.TDX != nil {
		r := &c.TDX.RTMR
		return slices.Concat(c.TDX.MRTD[:], r[0][:], r[1][:], r[2][:], r[3][:])
	}
	return measurement(c)
}

// TCBStatus is the platform's, as Intel spells it.
func (a *Assessment) TCBStatus() string { return string(a.verified.Claims().TCB.Status) }

// Now is the later of the local clock and the latest signed time that the
// cluster has seen.
func (s *Assessor) Now() time.Time { return s.instant(s.Machine.View()) }

func (s *Assessor) instant(view state.View) time.Time {
	now := s.Clock().UTC()
	if view.TimeFloor.After(now) {
		return view.TimeFloor
	}
	return now
}

// Assess verifies a quote with the bundle of collateral that came with it, if
// any. Errors are those of attest, api.ErrTooLarge and ErrStale.
func (s *Assessor) Assess(ctx context.Context, quote, bundle []byte, d Demand) (*Assessment, error) {
	return s.assess(ctx, quote, bundle, s.Now(), d)
}

// assess judges for the instant now. The newest set decides, which must be
// genuine and newer than the replicated one if it is another, so an old set
// cannot be replayed.
func (s *Assessor) assess(ctx context.Context, rawQuote, bundle []byte, now time.Time, d Demand) (*Assessment, error) {
	q, offered, err := parseEvidence(rawQuote, bundle)
	if err != nil {
		return nil, err
	}
	platform, err := attest.PlatformOf(q) // unverified: it chooses the collateral, and Verify compares
	if err != nil {
		return nil, err
	}
	if s.sets.isRevoked(q) {
		return nil, &attest.Error{Stage: attest.StageRevocation, Err: errRevoked, Hint: "this node has seen the list that revokes the platform; use another machine"}
	}
	if err := s.Verifier.VerifyChain(q, now); err != nil {
		return nil, err // a platform that was made up must not make our source ask for its collateral
	}
	a := &Assessment{now: now, key: state.CollateralKey{TEE: string(q.TEE()), FMSPC: platform.FMSPC, CA: platform.CA}}
	known, have := s.Machine.Collateral(a.key)
	if have {
		if err := s.tryKnown(a, q, known); err != nil {
			return nil, err
		}
	} else {
		a.refused = &attest.Error{Stage: attest.StageCollateral, Err: ErrNoCollateral, Hint: "send a collateral bundle with the evidence"}
	}
	for _, c := range s.own(ctx, a, rawQuote, known, d) {
		if err := s.try(a, q, c, known); err != nil {
			return nil, err
		}
		if a.offer != nil && a.offer.Meta.CollateralSHA256 == c.hash { // of our own source
			s.sets.keep(a.offer, c.Collateral, known.Meta)
		}
	}
	if err := s.tryOffered(a, q, offered, known); err != nil {
		return nil, err
	}
	if a.verified == nil {
		return nil, a.refused
	}
	if d == ForRoots && s.Source != nil && now.Sub(time.Unix(a.meta.Oldest(), 0)) > RootsAge {
		return nil, ErrStale
	}
	return a, nil
}

// parseEvidence bounds first; a malformed bundle is refused and an absent one nil.
func parseEvidence(rawQuote, bundle []byte) (*attest.Quote, candidate, error) {
	switch {
	case len(rawQuote) > api.MaxQuote:
		return nil, candidate{}, fmt.Errorf("%w: quote of %d bytes, limit %d", api.ErrTooLarge, len(rawQuote), api.MaxQuote)
	case len(bundle) > api.MaxCollateral:
		return nil, candidate{}, fmt.Errorf("%w: collateral of %d bytes, limit %d", api.ErrTooLarge, len(bundle), api.MaxCollateral)
	}
	q, err := attest.Parse(rawQuote)
	if err != nil || len(bundle) == 0 {
		return q, candidate{}, err
	}
	c, err := attest.ParseCollateral(bundle)
	if err != nil {
		return nil, candidate{}, err
	}
	return q, candidateOf(c), nil
}

// candidate is a set to try, with its hash; the zero one is none.
type candidate struct {
	*attest.Collateral
	hash [32]byte
}

func candidateOf(c *attest.Collateral) candidate { return candidate{c, c.Hash()} }

// tryKnown begins with the replicated set.
func (s *Assessor) tryKnown(a *Assessment, q *attest.Quote, known state.Collateral) error {
	a.version, a.meta = known.Version, known.Meta
	c, err := attest.ParseCollateral(known.Bundle)
	if err != nil {
		return err
	}
	a.verified, err = s.verify(a, q, c)
	return err
}

// try verifies with another set and adopts it if it is newer than what was
// tried before. A set that fails, such as an expired one, is passed over where
// another does.
func (s *Assessor) try(a *Assessment, q *attest.Quote, c candidate, known state.Collateral) error {
	if c.Collateral == nil || c.hash == known.Meta.CollateralSHA256 || a.offer != nil && c.hash == a.offer.Meta.CollateralSHA256 {
		return nil
	}
	v, err := s.verify(a, q, c.Collateral)
	if err != nil || v == nil {
		return err
	}
	put, err := putOf(a.key, v.Claims().Collateral, c.Collateral)
	if err != nil {
		return err
	}
	if (a.version != 0 || a.offer != nil) && !put.Meta.Newer(a.meta) {
		return nil
	}
	a.verified, a.version, a.offer, a.meta = v, 0, put, put.Meta
	return nil
}

// tryOffered tries the set that came with the evidence. Where this node has a
// source, that alone raises evaluation numbers: they never fall, so one app
// that brought an early TCB recovery would keep the source's own sets out for
// months, and with them everybody's keys. A revocation counts all the same.
func (s *Assessor) tryOffered(a *Assessment, q *attest.Quote, c candidate, known state.Collateral) error {
	before := *a
	if err := s.try(a, q, c, known); err != nil {
		return err
	}
	raised := a.meta.TCBEvaluation > before.meta.TCBEvaluation || a.meta.QEEvaluation > before.meta.QEEvaluation
	if s.Source != nil && before.verified != nil && raised {
		*a = before
	}
	return nil
}

// verify returns nil and notes why in a if the set does not do. Only a
// revocation is an error: it refuses the evidence, and is remembered.
func (s *Assessor) verify(a *Assessment, q *attest.Quote, c *attest.Collateral) (*attest.Verified, error) {
	v, err := s.Verifier.Verify(q, c, a.now)
	if err == nil {
		return v, nil
	}
	// An expired list still names who was revoked.
	if _, late := s.Verifier.Verify(q, c, a.now, attest.WithGrace(century)); revokes(late) {
		s.sets.revoke(q)
		s.keepGenuine(a, q, c)
		return nil, late
	}
	if a.verified == nil {
		a.refused = err
	}
	return nil, nil
}

// revokes tells the revocation of the platform from that of the certificate
// that signed the collateral: anybody can bring a set of an earlier signer,
// beside anybody's quote, and it says nothing of the platform.
func revokes(err error) bool {
	e, ok := errors.AsType[*attest.Error](err)
	return ok && e.Stage == attest.StageRevocation && errors.Is(err, pck.ErrRevoked)
}

// keepGenuine remembers a set that refuses the evidence it came with: a
// revoked platform cannot bring the list that revokes it into the replicated
// state, because its evidence fails by that list.
func (s *Assessor) keepGenuine(a *Assessment, q *attest.Quote, c *attest.Collateral) {
	issuer, err := attest.PCKIssuer(q)
	if err != nil {
		return
	}
	r, err := s.Verifier.VerifyCollateral(c, issuer, a.now)
	if err != nil || string(r.TEE) != a.key.TEE || r.FMSPC != a.key.FMSPC || r.CA != a.key.CA {
		return
	}
	if put, err := putOf(a.key, r.Set, c); err == nil {
		known, _ := s.Machine.Collateral(a.key)
		s.sets.keep(put, c, known.Meta)
	}
}

// Pending returns the newer sets that this node remembers and the replicated
// state does not hold yet, for a leader to propose.
func (s *Assessor) Pending() []*state.PutCollateral {
	return s.sets.pending(func(key state.CollateralKey) state.CollateralMeta {
		known, _ := s.Machine.Collateral(key)
		return known.Meta
	})
}

// putOf makes the entry that replicates a verified set.
func putOf(key state.CollateralKey, claims attest.CollateralClaims, c *attest.Collateral) (*state.PutCollateral, error) {
	bundle, err := c.Marshal()
	if err != nil {
		return nil, err
	}
	if len(bundle) > api.MaxCollateral {
		return nil, fmt.Errorf("%w: collateral of %d bytes, limit %d", api.ErrTooLarge, len(bundle), api.MaxCollateral)
	}
	meta, err := metaOf(claims)
	if err != nil {
		return nil, err
	}
	return &state.PutCollateral{Key: key, Bundle: bundle, Meta: meta}, nil
}

// metaOf returns what decides whether one verified collateral set is newer
// than another. Numbers that are missing or negative are refused: they could
// not be compared.
func metaOf(claims attest.CollateralClaims) (state.CollateralMeta, error) {
	root, okRoot := new(big.Int).SetString(claims.RootCRLNumber, 10)
	number, okPCK := new(big.Int).SetString(claims.PCKCRLNumber, 10)
	if !okRoot || !okPCK || root.Sign() < 0 || number.Sign() < 0 || claims.TCBEvaluation < 0 || claims.QEEvaluation < 0 {
		return state.CollateralMeta{}, &attest.Error{Stage: attest.StageCollateral, Err: ErrNoCollateral, Hint: "its numbers are negative or missing; fetch it again"}
	}
	return state.CollateralMeta{
		TCBEvaluation: uint64(claims.TCBEvaluation), QEEvaluation: uint64(claims.QEEvaluation),
		TCBInfoIssue: claims.TCBInfoIssueDate.Unix(), QEIdentityIssue: claims.QEIdentityIssueDate.Unix(),
		PCKCRLIssue: claims.PCKCRLIssueDate.Unix(), RootCRLIssue: claims.RootCRLIssueDate.Unix(),
		RootCRLNumber: root.Bytes(), PCKCRLNumber: number.Bytes(),
		LatestIssue: claims.LatestIssue.Unix(), CollateralSHA256: claims.Hash,
	}, nil
}

// Replicate makes the set that decided the cluster's, if it is not yet, so
// that an entry can name its version.
func (a *Assessment) Replicate(ctx context.Context, r Replica, epoch uint64) error {
	if a.offer == nil {
		return nil
	}
	entry := *a.offer
	entry.Epoch = epoch
	put, err := propose[state.Put](ctx, r, &entry)
	if err != nil {
		return err
	}
	a.version = put.Version
	return nil
}
