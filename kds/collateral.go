package kds

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/state"
)

// How the collateral source is used. Intel issues TCB info and revocation
// lists daily.
const (
	refreshAfter = 24 * time.Hour   // age of a replicated set at which the source is asked, too
	retryAfter   = 15 * time.Second // between two such questions for one kind of platform
	fetchLimit   = 10 * time.Second // of one question
	maxAsked     = 1024             // kinds of platforms remembered; the kinds in quotes are unverified
)

// fetcher asks a CollateralSource, once for all requests that wait for the
// same kind of platform.
type fetcher struct {
	group singleflight.Group
	mu    sync.Mutex
	asked map[state.CollateralKey]time.Time // when the source was last asked for a refresh; guarded by mu

	// kept holds what a refresh brought until it is replicated. A revoked
	// platform cannot bring the list that revokes it into the replicated set,
	// because its evidence fails by that list; so this node remembers it.
	kept map[state.CollateralKey]*attest.Collateral // guarded by mu
}

// keep remembers the result of a refresh.
func (f *fetcher) keep(key state.CollateralKey, c *attest.Collateral) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept == nil || len(f.kept) >= state.MaxCollateralSets {
		f.kept = map[state.CollateralKey]*attest.Collateral{}
	}
	f.kept[key] = c
}

// remembered returns what keep stored, nil once the set with the hash known
// has caught up.
func (f *fetcher) remembered(key state.CollateralKey, known [32]byte) *attest.Collateral {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.kept[key]
	if c != nil && c.Hash() == known {
		delete(f.kept, key)
		return nil
	}
	return c
}

// forget drops a remembered set that turned out not to be newer.
func (f *fetcher) forget(key state.CollateralKey, c *attest.Collateral) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept[key] == c {
		delete(f.kept, key)
	}
}

// due reports whether a replicated set with the latest signed time issued is
// old enough to look for a newer one, and notes that somebody does.
func (f *fetcher) due(key state.CollateralKey, issued, now time.Time) bool {
	if now.Sub(issued) < refreshAfter {
		return false
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if last, ok := f.asked[key]; ok && now.Sub(last).Abs() < retryAfter {
		return false
	}
	if f.asked == nil || len(f.asked) >= maxAsked {
		f.asked = map[state.CollateralKey]time.Time{}
	}
	f.asked[key] = now
	return true
}

// fetch asks source. The question outlives the one request that made it,
// because others wait for the same answer.
func (f *fetcher) fetch(ctx context.Context, source CollateralSource, key state.CollateralKey, quote []byte) (*attest.Collateral, error) {
	got, err, _ := f.group.Do(fmt.Sprintf("%s %x %s", key.TEE, key.FMSPC, key.CA), func() (any, error) {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchLimit)
		defer cancel()
		return source.Collateral(limited, quote)
	})
	if err != nil {
		return nil, err
	}
	c, ok := got.(*attest.Collateral)
	if !ok || c == nil {
		return nil, ErrNoCollateral
	}
	return c, nil
}

// offers returns the sets to consider beside the replicated one: what came
// with the evidence, and what the node's own source serves where the
// replicated set does not do or is a day old. The second is for the host that
// keeps sending yesterday's bundle, from before its platform was revoked.
func (s *Service) offers(ctx context.Context, a *assessment, quote, bundle []byte, known state.CollateralMeta) ([]*attest.Collateral, error) {
	var list []*attest.Collateral
	if len(bundle) > 0 {
		c, err := attest.ParseCollateral(bundle)
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	if s.Collateral == nil {
		return list, nil
	}
	if a.version == 0 {
		if len(bundle) > 0 {
			return list, nil
		}
		return s.ask(ctx, a, quote, list), nil
	}
	if s.fetcher.due(a.key, time.Unix(known.LatestIssue, 0), a.now) {
		if fresh := s.ask(ctx, a, quote, nil); len(fresh) > 0 {
			s.fetcher.keep(a.key, fresh[0])
		}
	}
	if c := s.fetcher.remembered(a.key, known.CollateralSHA256); c != nil {
		list = append(list, c)
	}
	return list, nil
}

// ask appends what the source serves. Its failure is not the request's:
// whatever made us ask is the better answer.
func (s *Service) ask(ctx context.Context, a *assessment, quote []byte, list []*attest.Collateral) []*attest.Collateral {
	c, err := s.fetcher.fetch(ctx, s.Collateral, a.key, quote)
	if err != nil {
		s.Logger.WarnContext(ctx, "collateral source failed", "error", err)
		return list
	}
	return append(list, c)
}
