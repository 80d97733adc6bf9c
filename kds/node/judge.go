package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/policy"
)

// ErrNodePolicy says that genuine evidence is not of a node of this cluster.
var ErrNodePolicy = errors.New("node: the evidence does not satisfy the cluster's node policy")

// checkNodePolicy reports nil if one constraint of the manifest accepts the
// evidence. Debug enclaves never pass, whatever a constraint says.
func checkNodePolicy(m *api.Manifest, v *attest.Verified, now time.Time) error {
	if v.Claims().Debug {
		return fmt.Errorf("%w: it is a debug enclave, whose host reads its memory", ErrNodePolicy)
	}
	var denials []error
	for _, text := range m.NodePolicy {
		c, err := policy.ParseConstraint(text)
		if err != nil || c.Insecure() || c.String() != text {
			denials = append(denials, fmt.Errorf("constraint %.80q cannot govern nodes", text))
			continue
		}
		if err := c.CheckNode(v, now); err != nil {
			denials = append(denials, err)
			continue
		}
		return nil
	}
	return fmt.Errorf("%w: %w", ErrNodePolicy, errors.Join(denials...))
}

func verifyWith(v *attest.Verifier, quote, bundle []byte, now time.Time) (*attest.Verified, error) {
	q, err := attest.Parse(quote)
	if err != nil {
		return nil, err
	}
	c, err := attest.ParseCollateral(bundle)
	if err != nil {
		return nil, err
	}
	return v.Verify(q, c, now)
}

// judge verifies evidence with the newest collateral known: the bundle that
// came with it and the replicated set or, for a joiner that has no state yet,
// what its own source serves. Otherwise a revoked platform would bring the
// collateral of a better day.
type judge struct {
	verifier *attest.Verifier
	machine  *state.Machine
	clock    func() time.Time
	own      func(ctx context.Context, quote []byte) (*attest.Collateral, error)
}

// now is the later of the replicated time floor and the clock.
func (j *judge) now() time.Time {
	now := j.clock()
	if floor := j.machine.View().TimeFloor; floor.After(now) {
		return floor
	}
	return now
}

type judgement struct {
	verified *attest.Verified
	bundle   []byte
	meta     state.CollateralMeta
	key      state.CollateralKey
	local    bool // the bundle is not the replicated one
}

// judge returns the judgement by the newest set that can judge. A set that
// cannot, such as an expired one, is passed over, except that a revocation
// counts wherever it is found: it is signed and never taken back.
func (j *judge) judge(ctx context.Context, ev ratls.Evidence) (*judgement, error) {
	q, err := attest.Parse(ev.Quote)
	if err != nil {
		return nil, err
	}
	p, err := attest.PlatformOf(q)
	if err != nil {
		return nil, err
	}
	key := state.CollateralKey{TEE: string(q.TEE()), FMSPC: p.FMSPC, CA: p.CA}
	now := j.now()
	var best *judgement
	var firstErr error
	for _, c := range j.candidates(ctx, key, ev) {
		got, err := j.try(q, key, c, now)
		switch {
		case errors.Is(err, pck.ErrRevoked):
			return nil, err
		case err != nil:
			firstErr = errors.Join(firstErr, err)
		case best == nil || got.meta.Newer(best.meta):
			best = got
		}
	}
	if best == nil && firstErr == nil {
		firstErr = errors.New("node: no collateral for the platform of the evidence; fetch it and send it along")
	}
	if best == nil {
		return nil, firstErr
	}
	return best, nil
}

type candidate struct {
	bundle []byte
	local  bool
}

// candidates puts the replicated set first: a set must be newer to win.
func (j *judge) candidates(ctx context.Context, key state.CollateralKey, ev ratls.Evidence) (list []candidate) {
	if c, ok := j.machine.Collateral(key); ok {
		list = append(list, candidate{bundle: c.Bundle})
	} else if c, err := j.own(ctx, ev.Quote); err == nil {
		if raw, err := c.Marshal(); err == nil {
			list = append(list, candidate{raw, true})
		}
	}
	if len(ev.Collateral) > 0 && len(ev.Collateral) <= api.MaxCollateral {
		list = append(list, candidate{ev.Collateral, true})
	}
	return list
}

func (j *judge) try(q *attest.Quote, key state.CollateralKey, c candidate, now time.Time) (*judgement, error) {
	parsed, err := attest.ParseCollateral(c.bundle)
	if err != nil {
		return nil, err
	}
	v, err := j.verifier.Verify(q, parsed, now)
	if err != nil {
		return nil, err
	}
	meta, err := kds.MetaOf(v.Claims().Collateral)
	if err != nil {
		return nil, err
	}
	return &judgement{verified: v, bundle: c.bundle, meta: meta, key: key, local: c.local}, nil
}
