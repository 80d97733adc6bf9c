package pcs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/claviger/claviger/attest"
)

// Fetcher gets collateral from a service. Client is one.
type Fetcher interface {
	// Fetch returns the verified set for a request.
	Fetch(ctx context.Context, r Request) (*Set, error)
}

// SourceConfig configures a Source. Fetcher and Verifier are required.
type SourceConfig struct {
	Fetcher  Fetcher
	Verifier *attest.Verifier
	// Dir is an existing directory for a cache that survives restarts; empty means memory only. See Directory.
	Dir string
	// Update and Evaluation choose for quotes, as in a Request.
	Update     Update
	Evaluation int
	// MaxAge is when a set is renewed although it is valid, so that revocations and TCB recoveries are learnt; a set that
	// does not live that long is renewed halfway through its life. 0 means DefaultMaxAge.
	MaxAge time.Duration
	// Clock tells the time; nil means time.Now.
	Clock func() time.Time
	// Logger gets what went wrong and did not stop a caller: failed renewals, bad files; nil means none.
	Logger *slog.Logger
}

// Source hands out collateral from a cache that it fills and renews. Its method Collateral is what nodes and
// attesters take as their source. It is safe for concurrent use; Close ends its goroutines.
type Source struct {
	config SourceConfig
	disk   *Directory // nil for memory only

	// Fetches run under ctx, not under a caller's context: others may wait for the same one.
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup // the running fetches

	mu      sync.Mutex // guards the fields below; never held during I/O
	closed  bool
	entries map[Request]*entry // at most maxEntries
	flights map[Request]*flight
}

// entry is what is known about a request.
type entry struct {
	set     *Set      // nil after failures only; never changed, only replaced
	renew   time.Time // not before
	used    time.Time // the least recently used entry makes room
	failure error     // of the last fetch
	quiet   time.Time // until then a failure is repeated without asking the service
}

// flight is a fetch under way.
type flight struct {
	done chan struct{} // closed when set and err are there
	set  *Set
	err  error
}

// NewSource returns a source. It fails with ErrConfig or ErrDisk.
func NewSource(config SourceConfig) (*Source, error) {
	if config.Fetcher == nil || config.Verifier == nil {
		return nil, fail(fmt.Errorf("%w: no fetcher or no verifier", ErrConfig), "set SourceConfig.Fetcher and Verifier")
	}
	if config.MaxAge < 0 {
		return nil, fail(fmt.Errorf("%w: negative MaxAge", ErrConfig), "leave it out for the default")
	}
	probe := Request{TEE: attest.SGX, CA: PlatformCA, Update: config.Update, Evaluation: config.Evaluation}
	if err := probe.check(); err != nil {
		return nil, fail(fmt.Errorf("%w: %w", ErrConfig, err), "choose an update or an evaluation number")
	}
	setDefault(&config.MaxAge, DefaultMaxAge)
	if config.Clock == nil {
		config.Clock = time.Now
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Source{config: config, entries: map[Request]*entry{}, flights: map[Request]*flight{}}
	if config.Dir != "" {
		var err error
		if s.disk, err = OpenDirectory(DirectoryConfig{Path: config.Dir, Verifier: config.Verifier, Clock: config.Clock}); err != nil {
			return nil, err
		}
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s, nil
}

// Close cancels the fetches under way and waits for them. Callers that wait get ErrClosed.
func (s *Source) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	return nil
}

// Collateral returns the collateral for a quote, from the cache or the service. The quote is parsed and not verified. See
// Get.
func (s *Source) Collateral(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	r, err := RequestFor(quote)
	if err != nil {
		return nil, err
	}
	r.Update, r.Evaluation = s.config.Update, s.config.Evaluation
	set, err := s.Get(ctx, r)
	if err != nil {
		return nil, err
	}
	return set.Collateral, nil
}

// Get returns the set for a request. What is in the cache and valid comes at once, if need be with a renewal in the
// background; otherwise Get waits for the service. A service that cannot be reached does not matter while the old set is
// valid. The set is the caller's own.
func (s *Source) Get(ctx context.Context, r Request) (*Set, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	s.recall(r)
	now := s.config.Clock()
	s.mu.Lock()
	e := s.entries[r]
	if e != nil {
		e.used = now
	}
	var f *flight
	switch {
	case s.closed:
		s.mu.Unlock()
		return nil, fail(ErrClosed, "the program is stopping")
	case e != nil && e.valid(now):
		if !now.Before(e.renew) {
			s.start(r)
		}
		set := e.set
		s.mu.Unlock()
		return set.clone(), nil
	case e != nil && e.failure != nil && now.Before(e.quiet):
		err := e.failure
		s.mu.Unlock()
		return nil, err
	default:
		f = s.start(r)
	}
	s.mu.Unlock()
	return f.wait(ctx)
}

// Refresh asks the service now, whatever the cache holds. On failure, also with ErrRollback, the cache keeps what it has.
func (s *Source) Refresh(ctx context.Context, r Request) (*Set, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	s.recall(r)
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return nil, fail(ErrClosed, "the program is stopping")
	}
	f := s.start(r)
	s.mu.Unlock()
	return f.wait(ctx)
}

// wait returns the outcome of a fetch, or gives up with ctx; the fetch goes on for others and for the cache.
func (f *flight) wait(ctx context.Context) (*Set, error) {
	if f == nil {
		return nil, fail(fmt.Errorf("%w: %d are under way", ErrBusy, maxFlights), "ask again in a moment; fetch what is needed often ahead of time")
	}
	select {
	case <-f.done:
		if f.err != nil {
			return nil, f.err
		}
		return f.set.clone(), nil
	case <-ctx.Done():
		return nil, fail(fmt.Errorf("%w: %w", ErrTimeout, ctx.Err()), "allow more time, or check that the service is reachable")
	}
}

// start joins the fetch for r that is under way, or starts one. It returns nil if too many are: quotes are not verified before
// their collateral is there, so anyone can ask for anything. The caller holds s.mu.
func (s *Source) start(r Request) *flight {
	if f := s.flights[r]; f != nil {
		return f
	}
	if len(s.flights) >= maxFlights {
		return nil
	}
	f := &flight{done: make(chan struct{})}
	s.flights[r] = f
	s.wg.Go(func() {
		f.set, f.err = s.fetch(r)
		s.mu.Lock()
		delete(s.flights, r)
		s.mu.Unlock()
		close(f.done)
	})
	return f
}

// fetch asks the service and keeps the answer, unless it is older than what is known.
func (s *Source) fetch(r Request) (*Set, error) {
	set, err := s.config.Fetcher.Fetch(s.ctx, r)
	if err == nil && (set == nil || set.Request != r || set.Collateral == nil) {
		err = fail(fmt.Errorf("%w: fetcher returned another set", ErrMismatch), "this is a fault in the program")
	}
	if err == nil {
		set = set.clone()
		// Another Fetcher than ours is not trusted to have verified.
		set.Report, err = verify(s.config.Verifier, set.Collateral, set.PCKIssuer, r, s.config.Clock())
	}
	if err != nil && s.ctx.Err() != nil {
		err = fail(ErrClosed, "the program is stopping")
	}
	now := s.config.Clock()
	s.mu.Lock()
	e := s.entries[r]
	if err == nil && e != nil && e.set != nil {
		err = notOlder(&e.set.Report.Set, &set.Report.Set)
	}
	if err != nil {
		s.failed(r, err, now)
		s.mu.Unlock()
		return nil, err
	}
	s.put(r, &entry{set: set, renew: s.renewal(set), used: now})
	s.mu.Unlock()
	if s.disk != nil {
		if err := s.disk.Save(set); err != nil {
			// The caller has its collateral; the cache on disk is for the next start.
			s.config.Logger.Warn("collateral: not kept on disk", "request", r, "error", err)
		}
	}
	return set, nil
}

// failed notes a failure. The caller holds s.mu.
func (s *Source) failed(r Request, err error, now time.Time) {
	if s.ctx.Err() != nil {
		return
	}
	e := s.entries[r]
	if e == nil {
		e = &entry{used: now}
		s.put(r, e)
	}
	quiet := max(failureMemory, asError(err).RetryAfter)
	e.failure, e.quiet = err, now.Add(min(quiet, refreshRetry))
	if e.set == nil {
		return
	}
	e.renew = now.Add(refreshRetry + rand.N(refreshRetry))
	s.config.Logger.Warn("collateral: not renewed; the old set serves until it expires", "request", r,
		"expiry", e.set.Report.Set.EarliestExpiry, "next", e.renew, "error", err)
}

// renewal chooses when a set is renewed: at a random point between a half and three quarters of the life that was left when
// it was fetched, or of the last quarter before MaxAge, whichever comes first. Randomness keeps the nodes of a cluster
// from asking at once.
func (s *Source) renewal(set *Set) time.Time {
	left := max(set.Report.Set.EarliestExpiry.Sub(set.Fetched), 0)
	life := left/2 + rand.N(left/4+1)
	age := s.config.MaxAge - rand.N(s.config.MaxAge/4+1)
	return set.Fetched.Add(min(life, age))
}

// put keeps an entry and evicts one beyond the limit: the least recently used of those that only remember a failure, if
// there are any, else of all. The caller holds s.mu.
func (s *Source) put(r Request, e *entry) {
	s.entries[r] = e
	if len(s.entries) <= maxEntries {
		return
	}
	var victim Request
	var worst *entry
	for other, candidate := range s.entries {
		if other == r {
			continue
		}
		if worst == nil || (candidate.set == nil && worst.set != nil) ||
			(candidate.set == nil) == (worst.set == nil) && candidate.used.Before(worst.used) {
			victim, worst = other, candidate
		}
	}
	delete(s.entries, victim)
}

// recall loads the set for r from disk, unless memory has a valid one. An expired one is kept for comparison: what the service
// says next must not be older. A running source thus finds what was imported meanwhile, once it needs it.
func (s *Source) recall(r Request) {
	if s.disk == nil {
		return
	}
	now := s.config.Clock()
	s.mu.Lock()
	before := s.entries[r]
	s.mu.Unlock()
	if before != nil && before.valid(now) {
		return
	}
	set, err := s.disk.load(r, nil)
	if before == nil && err != nil && !errors.Is(err, ErrNoBundle) {
		s.config.Logger.Warn("collateral: file not used, fetching again", "request", r, "error", err)
	}
	if set == nil {
		return
	}
	loaded := &entry{set: set, renew: s.renewal(set), used: now}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[r]
	if e == nil || loaded.valid(now) && (e.set == nil || notOlder(&e.set.Report.Set, &set.Report.Set) == nil) {
		s.put(r, loaded)
	}
}

// valid reports whether the entry holds a set that has not expired.
func (e *entry) valid(now time.Time) bool {
	return e.set != nil && !now.After(e.set.Report.Set.EarliestExpiry)
}

// clone copies a set deeply, so that a caller's changes stay its own.
func (s *Set) clone() *Set {
	out := *s
	out.PCKIssuer = bytes.Clone(s.PCKIssuer)
	if s.Report != nil {
		out.Report = new(*s.Report)
	}
	c := s.Collateral
	out.Collateral = &attest.Collateral{
		TCBInfo: bytes.Clone(c.TCBInfo), QEIdentity: bytes.Clone(c.QEIdentity), TCBSigningChain: bytes.Clone(c.TCBSigningChain),
		PCKCRL: bytes.Clone(c.PCKCRL), RootCRL: bytes.Clone(c.RootCRL),
	}
	return &out
}
