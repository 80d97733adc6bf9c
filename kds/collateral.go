package kds

import (
	"context"
	"crypto/sha256"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/kds/state"
)

// How the collateral source is used. Intel issues TCB info and revocation
// lists daily.
const (
	refreshAfter = 24 * time.Hour   // age of what is known at which the source is asked, too
	answerAge    = time.Minute      // of an answer that does for members without another question
	retryAfter   = 15 * time.Second // between two questions for one kind of platform, after an answer or a failure
	fetchLimit   = 10 * time.Second // of one question
	maxAnswers   = 1024             // kinds of platforms remembered; the kinds in quotes are unverified
	maxRevoked   = 4096             // provisioning keys that a list named
)

// sets is what a node remembers of collateral beside the replicated state.
type sets struct {
	group   singleflight.Group
	mu      sync.Mutex
	answers map[state.CollateralKey]answer // what the source said last; guarded by mu
	kept    map[state.CollateralKey]kept   // the newest set verified, while it is not replicated; guarded by mu
	revoked map[[32]byte]bool              // SHA-256 of provisioning keys; guarded by mu
}

// answer is unverified: each request verifies it with its own evidence, so
// that nobody's forged evidence spoils the answer for others.
type answer struct {
	candidate // zero after nothing but failures
	at        time.Time
}

type kept struct {
	candidate
	put *state.PutCollateral
}

// own returns what the source of this node has said, newest last: what is kept
// of earlier answers, and what it says now if it is due to be asked. A source
// that is being asked already is waited for, by everybody whose decision hangs
// on it. Its failure is not the request's: whatever made us ask decides.
func (s *Assessor) own(ctx context.Context, a *Assessment, quote []byte, known state.Collateral, d Demand) []candidate {
	list := s.sets.remembered(a.key, known.Meta)
	if s.Source == nil {
		return list
	}
	said := s.sets.answer(a.key)
	if s.due(a, said, known, d) {
		c, err := s.sets.ask(ctx, s.Source, a.key, quote, a.now)
		if err != nil {
			if s.Logger != nil {
				s.Logger.WarnContext(ctx, "collateral source failed", "tee", a.key.TEE, "fmspc", fmt.Sprintf("%x", a.key.FMSPC), "error", err)
			}
		} else {
			said.candidate = c
		}
	}
	return append(list, said.candidate)
}

// due decides whether to ask the source. Where nothing is known it is asked by
// everybody, also right after a failure: the failure may have been of somebody's
// made-up evidence. A source that is down remembers that for itself.
func (s *Assessor) due(a *Assessment, said answer, known state.Collateral, d Demand) bool {
	if known.Version == 0 && said.Collateral == nil {
		return true
	}
	since := a.now.Sub(said.at).Abs()
	if !said.at.IsZero() && (since < retryAfter || d != ForChannel && said.Collateral != nil && since < answerAge) {
		return false
	}
	if d != ForChannel {
		return true
	}
	newest := known.Meta.Oldest()
	if put := s.sets.keptSet(a.key); put != nil {
		newest = max(newest, put.Meta.Oldest())
	}
	return a.now.Sub(time.Unix(newest, 0)) >= refreshAfter
}

func (f *sets) answer(key state.CollateralKey) answer {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.answers[key]
}

// ask puts the question once for all who wait. It outlives the request that
// made it; each request waits as long as its own context allows, and no longer
// than the question may take: a source may ignore its context.
func (f *sets) ask(ctx context.Context, source CollateralSource, key state.CollateralKey, quote []byte, now time.Time) (candidate, error) {
	done := f.group.DoChan(fmt.Sprintf("%s %x %s", key.TEE, key.FMSPC, key.CA), func() (any, error) {
		limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchLimit)
		defer cancel()
		c, err := source.Collateral(limited, quote)
		if err == nil && c == nil {
			err = ErrNoCollateral
		}
		if err != nil {
			f.answered(key, candidate{}, now)
			return candidate{}, err
		}
		said := candidateOf(c)
		f.answered(key, said, now)
		return said, nil
	})
	patient, cancel := context.WithTimeout(ctx, fetchLimit)
	defer cancel()
	select {
	case r := <-done:
		c, _ := r.Val.(candidate)
		return c, r.Err
	case <-patient.Done():
		return candidate{}, patient.Err()
	}
}

// answered notes when the source was asked. A failure keeps the last answer.
func (f *sets) answered(key state.CollateralKey, c candidate, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.answers == nil {
		f.answers = map[state.CollateralKey]answer{}
	}
	if c.Collateral == nil {
		c = f.answers[key].candidate
	}
	f.answers[key] = answer{c, now}
	if len(f.answers) > maxAnswers {
		delete(f.answers, oldestAnswer(f.answers, key))
	}
}

// oldestAnswer prefers to lose a failure: the kinds of platform that a source
// knows are few, those that an attacker can invent are many.
func oldestAnswer(answers map[state.CollateralKey]answer, except state.CollateralKey) state.CollateralKey {
	var worst state.CollateralKey
	var found bool
	for key, a := range answers {
		w := answers[worst]
		if key == except || found && !better(a, w) {
			continue
		}
		worst, found = key, true
	}
	return worst
}

// better reports whether a is the better one of two to lose.
func better(a, than answer) bool {
	if empty := a.Collateral == nil; empty != (than.Collateral == nil) {
		return empty
	}
	return a.at.Before(than.at)
}

// keep remembers a verified set if it is newer than the replicated one and
// than the one kept. What is verified is for a kind of platform that exists,
// so the number is bounded by what Intel publishes; the limit is for the rest.
func (f *sets) keep(put *state.PutCollateral, c *attest.Collateral, known state.CollateralMeta) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.kept == nil {
		f.kept = map[state.CollateralKey]kept{}
	}
	old := f.kept[put.Key].put
	if !put.Meta.Newer(known) || old != nil && !put.Meta.Newer(old.Meta) || old == nil && len(f.kept) >= state.MaxCollateralSets {
		return
	}
	f.kept[put.Key] = kept{candidate{c, put.Meta.CollateralSHA256}, put}
}

func (f *sets) keptSet(key state.CollateralKey) *state.PutCollateral {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.kept[key].put
}

// remembered returns what is kept for a kind of platform, and forgets it once
// the replicated set has caught up.
func (f *sets) remembered(key state.CollateralKey, known state.CollateralMeta) []candidate {
	f.mu.Lock()
	defer f.mu.Unlock()
	k, have := f.kept[key]
	if !have {
		return nil
	}
	if !k.put.Meta.Newer(known) {
		delete(f.kept, key)
		return nil
	}
	return []candidate{k.candidate}
}

// pending returns what is kept and newer than what known says.
func (f *sets) pending(known func(state.CollateralKey) state.CollateralMeta) (list []*state.PutCollateral) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key, k := range f.kept {
		if k.put.Meta.Newer(known(key)) {
			list = append(list, k.put)
		}
	}
	return list
}

// revoke remembers the provisioning key of a quote that a signed list refuses.
func (f *sets) revoke(q *attest.Quote) {
	id, ok := provisioningKey(q)
	if !ok {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.revoked == nil {
		f.revoked = map[[32]byte]bool{}
	}
	if len(f.revoked) < maxRevoked { // the lists that name the others are kept, too
		f.revoked[id] = true
	}
}

func (f *sets) isRevoked(q *attest.Quote) bool {
	f.mu.Lock()
	empty := len(f.revoked) == 0
	f.mu.Unlock()
	if empty {
		return false
	}
	id, ok := provisioningKey(q)
	f.mu.Lock()
	defer f.mu.Unlock()
	return ok && f.revoked[id]
}

// provisioningKey identifies the PCK certificate's key in a quote, unverified:
// a hash that is remembered was verified when a list named it.
func provisioningKey(q *attest.Quote) ([32]byte, bool) {
	var chain []byte
	switch {
	case q.SGX() != nil:
		chain = q.SGX().Auth.CertData
	case q.TDX() != nil:
		chain = q.TDX().Auth.CertData
	}
	c, err := pck.ParseChain(chain)
	if err != nil {
		return [32]byte{}, false
	}
	return sha256.Sum256(c.KeyBytes()), true
}
