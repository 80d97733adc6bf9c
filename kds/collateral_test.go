package kds

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// source serves the simulated Intel's collateral of the present, and counts.
type source struct {
	w     *world
	err   error
	asked int
}

func (s *source) Collateral(context.Context, []byte) (*attest.Collateral, error) {
	s.asked++
	if s.err != nil {
		return nil, s.err
	}
	return s.w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, s.w.clock)
}

func TestSourceFillsIn(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	src := &source{w: w}
	w.service.Assessor.Source = src
	ev := w.evidence(w.platform("one", ""), app())
	ev.Collateral = nil
	w.release(ev, request())
	w.release(ev, request())
	if src.asked != 1 {
		t.Errorf("the source was asked %d times; a fresh replicated set needs no second", src.asked)
	}
	src.err = errors.New("unreachable")
	w.clock = w.clock.AddDate(0, 0, 3)
	w.release(ev, request())
	w.release(ev, request())
	if src.asked != 2 {
		t.Errorf("asked %d times: an unreachable source must not be asked on every release", src.asked)
	}
	w.clock = w.clock.AddDate(0, 0, 40)
	if p := w.refused("everything expired", ev, request(), api.CodeEvidenceRefused); p.Stage == "" {
		t.Error("no stage")
	}
}

// The host of a revoked platform keeps sending the bundle from before the
// revocation. The node's own source ends that within a day.
func TestOldBundleCannotHideRevocation(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.service.Assessor.Source = &source{w: w}
	p := w.platform("one", "")
	ev := w.evidence(p, app())
	w.release(ev, request())
	w.clock = w.clock.AddDate(0, 0, 2)
	w.pki.Revoke(p, w.clock.AddDate(0, 0, -1))
	for range 3 { // not only at the moment when the source is asked
		if got := w.refused("revoked", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
			t.Errorf("stage %q", got.Stage)
		}
	}
	honest := w.evidence(w.platform("two", ""), app())
	honest.Collateral = nil
	w.release(honest, request()) // replicates the list that revokes the other
	w.service.Assessor.Source = nil
	if got := w.refused("revoked, on the replicated list", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
		t.Errorf("stage %q", got.Stage)
	}
}

// The first request of a kind of platform that the cluster has never seen
// brings a bundle from before the platform's revocation.
func TestFirstSightAsksTheSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	src := &source{w: w}
	w.service.Assessor.Source = src
	p := w.platform("one", "")
	ev := w.evidence(p, app())
	w.clock = w.clock.AddDate(0, 0, 10)
	w.pki.Revoke(p, w.clock.AddDate(0, 0, -9))
	for range 2 {
		if got := w.refused("revoked, first sight", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
			t.Errorf("stage %q", got.Stage)
		}
	}
	if src.asked != 1 {
		t.Errorf("the source was asked %d times", src.asked)
	}
	src.err = errors.New("unreachable") // what was learnt stays
	w.clock = w.clock.Add(time.Hour)
	w.refused("revoked, remembered", ev, request(), api.CodeEvidenceRefused)
}

// gated answers only when it is told to.
type gated struct {
	source
	mu   sync.Mutex
	open chan struct{}
}

func (s *gated) Collateral(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	s.mu.Lock()
	s.asked++
	s.mu.Unlock()
	<-s.open
	return s.w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, s.w.clock)
}

// While a refresh is under way nobody is judged by the old set: all who come
// meanwhile wait for the one question.
func TestParallelRequestsWaitForTheRefresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		p := w.platform("one", "")
		ev := w.evidence(p, app())
		w.release(ev, request())
		w.clock = w.clock.AddDate(0, 0, 10)
		w.pki.Revoke(p, w.clock.AddDate(0, 0, -9))
		s := &gated{source: source{w: w}, open: make(chan struct{})}
		w.service.Assessor.Source = s
		outcomes := make(chan error, 8)
		for range cap(outcomes) {
			go func() {
				reply, err := w.service.Release(context.Background(), ev, request())
				if err == nil {
					t.Errorf("a key of %d bytes by the old set", len(reply.Key))
				}
				outcomes <- err
			}()
		}
		synctest.Wait() // everybody waits for the source
		if len(outcomes) != 0 || s.asked != 1 {
			t.Errorf("%d answered before the source did; it was asked %d times", len(outcomes), s.asked)
		}
		close(s.open)
		for range cap(outcomes) {
			if p, ok := errors.AsType[*api.Problem](<-outcomes); !ok || p.Stage != "revocation" {
				t.Errorf("refused with %v", p)
			}
		}
	})
}

// A request does not wait longer than it wants to; the question goes on for
// the others.
func TestWaitersKeepTheirOwnTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		ev := w.evidence(w.platform("one", ""), app())
		s := &gated{source: source{w: w}, open: make(chan struct{})}
		w.service.Assessor.Source = s
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := w.service.Assessor.Assess(ctx, ev.Quote, ev.Collateral, ForChannel); err != nil {
			t.Errorf("the bundle must do where the source is silent: %v", err)
		}
		begun := time.Now()
		if _, err := w.service.Assessor.Assess(context.Background(), ev.Quote, ev.Collateral, ForChannel); err != nil || time.Since(begun) > fetchLimit {
			t.Errorf("a source that ignores its context, after %v: %v", time.Since(begun), err)
		}
		close(s.open)
		synctest.Wait()
		if said := w.service.Assessor.sets.answer(platformKey); said.Collateral == nil {
			t.Error("the answer was lost with the one who asked")
		}
	})
}

// A list that revokes came with somebody's evidence once. The evidence comes
// back without it.
func TestRevocationIsRemembered(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	old := w.evidence(p, app())
	w.release(old, request())
	w.clock = w.clock.AddDate(0, 0, 1)
	w.pki.Revoke(p, w.clock)
	w.refused("with the list", w.evidence(p, app()), request(), api.CodeEvidenceRefused)
	old.Collateral = nil
	if got := w.refused("without the list", old, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
		t.Errorf("stage %q", got.Stage)
	}
	if pending := w.service.Assessor.Pending(); len(pending) != 1 || pending[0].Key != platformKey {
		t.Errorf("%d sets to replicate", len(pending))
	}
	// Another node, which never saw the evidence, learns it from the log.
	for _, put := range w.service.Assessor.Pending() {
		put.Epoch = 1
		must[state.Put](t)(propose[state.Put](t.Context(), w.replica, put))
	}
	w.service = must[*Service](t)(New(w.config()))
	if got := w.refused("another node", old, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
		t.Errorf("stage %q", got.Stage)
	}
	if pending := w.service.Assessor.Pending(); len(pending) != 0 {
		t.Errorf("%d sets to replicate again", len(pending))
	}
}

// A host sends TCB info of today beside the list from before a revocation.
// The set is as old as its list, so the source is asked, and nobody gets root
// secrets by it.
func TestMixedSetIsOld(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	before := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, w.clock))
	w.clock = w.clock.AddDate(0, 0, 10)
	today := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, w.clock))
	today.PCKCRL = before.PCKCRL
	ev := w.evidence(p, app())
	ev.Collateral = must[[]byte](t)(today.Marshal())
	src := &source{w: w, err: errors.New("unreachable")}
	w.service.Assessor.Source = src
	w.release(ev, request()) // an app's constraint may demand more; the default is to go on
	w.clock = w.clock.Add(time.Minute)
	w.release(ev, request())
	if src.asked != 2 {
		t.Errorf("the source was asked %d times: the list is ten days old", src.asked)
	}
	if _, err := w.service.Assessor.Assess(t.Context(), ev.Quote, ev.Collateral, ForRoots); !errors.Is(err, ErrStale) {
		t.Errorf("for roots: %v", err)
	}
}

// Whoever is to hold roots is judged by collateral of the last three days, or
// not at all; without a source nobody can demand that.
func TestRootsNeedRecentCollateral(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	src := &source{w: w}
	judge := w.service.Assessor
	judge.Source = src
	try := func(name string, want error, asked int) {
		t.Helper()
		_, err := judge.Assess(t.Context(), ev.Quote, ev.Collateral, ForRoots)
		if !errors.Is(err, want) || src.asked != asked {
			t.Errorf("%s: %v, want %v; asked %d times, want %d", name, err, want, src.asked, asked)
		}
	}
	try("the source is asked first", nil, 1)
	try("an answer of the last minute", nil, 1)
	w.clock = w.clock.Add(2 * time.Minute)
	try("and asked again after it", nil, 2)
	src.err = errors.New("unreachable")
	w.clock = start.Truncate(24 * time.Hour).Add(RootsAge)
	try("a source that is down over a weekend", nil, 3)
	w.clock = w.clock.Add(time.Second)
	try("down, and asked a moment ago", ErrStale, 3)
	w.clock = w.clock.Add(time.Minute)
	try("down for longer", ErrStale, 4)
	src.err = nil
	w.clock = w.clock.Add(time.Minute)
	try("up again", nil, 5)
	judge.Source, src.err = nil, nil
	w.service = must[*Service](t)(New(w.config()))
	judge = w.service.Assessor
	try("no source", nil, 5)
}

// Evidence with a forged chain asks for a kind of platform first: its failure
// is not the answer for those who come after.
func TestForgedEvidenceDoesNotSpoilTheAnswer(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	foreign := must[*simpki.PKI](t)(simpki.New(simpki.Config{Seed: [32]byte{66}, Now: start.AddDate(0, -6, 0)}))
	forger := must[*simpki.Platform](t)(foreign.Platform(simpki.PlatformConfig{Name: "one"}))
	forged := api.Evidence{Quote: must[[]byte](t)(forger.QuoteSGX(app())), Binding: binding}
	src := &source{w: w}
	w.service.Assessor.Source = src
	w.refused("forged", forged, request(), api.CodeEvidenceRefused)
	p := w.platform("one", "")
	ev := w.evidence(p, app())
	w.clock = w.clock.AddDate(0, 0, 2)
	w.pki.Revoke(p, w.clock.AddDate(0, 0, -1))
	w.clock = w.clock.Add(time.Hour)
	if got := w.refused("revoked", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
		t.Errorf("stage %q", got.Stage)
	}
}

// picky fails for one quote.
type picky struct {
	source
	not []byte
}

func (s *picky) Collateral(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	if string(quote) == string(s.not) {
		s.asked++
		return nil, errors.New("no such platform")
	}
	return s.source.Collateral(ctx, quote)
}

// Made-up evidence makes the source fail for a kind of platform just before a
// revoked one of that kind is seen first: the source is asked all the same.
func TestMadeUpFailureDoesNotSilenceTheSource(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	ev := w.evidence(p, app())
	w.clock = w.clock.AddDate(0, 0, 10)
	w.pki.Revoke(p, w.clock.AddDate(0, 0, -9))
	decoy := w.evidence(w.platform("two", ""), app())
	decoy.Collateral = nil
	src := &picky{source{w: w}, decoy.Quote}
	w.service.Assessor.Source = src
	w.refused("decoy", decoy, request(), api.CodeEvidenceRefused)
	if got := w.refused("revoked", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" || src.asked != 2 {
		t.Errorf("stage %q, asked %d times", got.Stage, src.asked)
	}
}

// Invented kinds of platforms push out neither answers nor each other without
// end.
func TestAnswersAreBounded(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, w.clock))
	var f sets
	f.answered(platformKey, candidateOf(c), start.AddDate(0, 0, -1))
	for i := range maxAnswers * 2 {
		key := platformKey
		key.FMSPC = [6]byte{9, byte(i), byte(i >> 8)}
		f.answered(key, candidate{}, start.Add(time.Duration(i)))
	}
	if len(f.answers) != maxAnswers || f.answer(platformKey).Collateral == nil {
		t.Errorf("%d answers, the good one kept: %v", len(f.answers), f.answer(platformKey).Collateral != nil)
	}
}
