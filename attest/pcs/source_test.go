package pcs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// TestSourceOfNodes uses the method by the type that nodes and attesters take.
func TestSourceOfNodes(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	var source func(ctx context.Context, quote []byte) (*attest.Collateral, error) = b.source(t, b.client(t, nil), nil).Collateral
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		raw := b.quote(t, tee, "")
		q, err := attest.Parse(raw)
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			c, err := source(t.Context(), raw)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := b.verifier.Verify(q, c, b.now()); err != nil {
				t.Fatal(err)
			}
			clear(c.TCBInfo) // the caller's own copy
		}
	}
	if n := len(b.server.Requests()); n != 8 {
		t.Errorf("%d requests for two sets", n)
	}
	c, err := source(t.Context(), []byte("quote"))
	wants(t, "no quote", c, err, pcs.ErrRequest)
}

// TestSingleFlight lets many callers ask for the same, and some for something else, while the service is slow. One of
// them gives up, which must not disturb the others.
func TestSingleFlight(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBedAt(t, time.Now, nil)
		source := b.source(t, b.client(t, nil), nil)
		defer source.Close()
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Slow(time.Second))
		var wg sync.WaitGroup
		for i := range 50 {
			r := request()
			if i%2 == 1 {
				r.Update = pcs.Early
			}
			wg.Go(func() {
				if set, err := source.Get(t.Context(), r); err != nil || set.Request != r {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
			defer cancel()
			set, err := source.Get(ctx, request())
			wants(t, "impatient", set, err, pcs.ErrTimeout)
		})
		wg.Wait()
		if n := b.count(pcsserver.TCBInfo); n != 2 {
			t.Errorf("%d fetches for two requests", n)
		}
	})
}

// TestTooManyFlights asks for more platforms at once than a source will fetch for. Unverified quotes can do that.
func TestTooManyFlights(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBedAt(t, time.Now, nil)
		source := b.source(t, b.client(t, nil), nil)
		defer source.Close()
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Slow(time.Second))
		var wg sync.WaitGroup
		var mu sync.Mutex
		busy := 0
		for i := range 100 {
			r := request()
			r.FMSPC[5] = byte(i)
			wg.Go(func() {
				_, err := source.Get(t.Context(), r)
				mu.Lock()
				defer mu.Unlock()
				if errors.Is(err, pcs.ErrBusy) {
					busy++
				} else if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if n := b.count(pcsserver.TCBInfo); n != 32 || busy != 68 {
			t.Errorf("%d fetches, %d refused", n, busy)
		}
	})
}

// TestRenewal follows a set through a month: renewed in the background each day, served while the service is away, and
// refused once it has expired.
func TestRenewal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBedAt(t, time.Now, nil)
		var log bytes.Buffer
		source := b.source(t, b.client(t, nil), func(c *pcs.SourceConfig) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		defer source.Close()
		get := func() time.Time {
			t.Helper()
			set, err := source.Get(t.Context(), request())
			if err != nil {
				t.Fatal(err)
			}
			synctest.Wait() // for what goes on in the background
			return set.Report.Set.TCBInfoIssueDate
		}
		first := get()
		time.Sleep(17 * time.Hour)
		if get(); b.count(pcsserver.TCBInfo) != 1 {
			t.Fatal("renewed long before MaxAge")
		}
		time.Sleep(8 * time.Hour)
		if stale := get(); !stale.Equal(first) || b.count(pcsserver.TCBInfo) != 2 {
			t.Fatalf("at MaxAge: issued %v, %d fetches", stale, b.count(pcsserver.TCBInfo))
		}
		if fresh := get(); !fresh.Equal(first.Add(day)) {
			t.Fatalf("after the renewal: issued %v", fresh)
		}
		// The service goes away. The old set serves; attempts are some minutes apart, not one for each call.
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Status(503))
		time.Sleep(25 * time.Hour)
		before := b.count(pcsserver.TCBInfo)
		for range 600 {
			get()
			time.Sleep(time.Second)
		}
		if n := b.count(pcsserver.TCBInfo) - before; n < 4 || n > 12 || n%4 != 0 {
			t.Errorf("%d requests in ten minutes", n)
		}
		if !strings.Contains(log.String(), "the old set serves until it expires") {
			t.Error("nothing in the log")
		}
		time.Sleep(27 * day)
		get()
		time.Sleep(3 * day)
		set, err := source.Get(t.Context(), request())
		wants(t, "expired and away", set, err, pcs.ErrServer)
		// Back again: what was the failure is forgotten after some seconds.
		b.server.Inject(pcsserver.TCBInfo, 0, pcsserver.Fault{})
		set, err = source.Get(t.Context(), request())
		wants(t, "at once", set, err, pcs.ErrServer)
		time.Sleep(11 * time.Second)
		get()
	})
}

// TestRetryAfterIsRemembered asks again and again after a 429, and sees that the service is left alone as it asked.
func TestRetryAfterIsRemembered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBedAt(t, time.Now, nil)
		source := b.source(t, b.client(t, nil), nil)
		defer source.Close()
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.RetryAfter(429, "120"))
		for range 119 {
			set, err := source.Get(t.Context(), request())
			wants(t, "limited", set, err, pcs.ErrRateLimited)
			time.Sleep(time.Second)
		}
		if n := b.count(pcsserver.TCBInfo); n != 1 {
			t.Errorf("%d requests in two minutes", n)
		}
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Fault{})
		time.Sleep(2 * time.Second)
		if _, err := source.Get(t.Context(), request()); err != nil {
			t.Error(err)
		}
	})
}

// TestDiskCache restarts a source, and damages its file in every way a disk can.
func TestDiskCache(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	with := func(c *pcs.SourceConfig) { c.Dir = dir }
	fetch := func() int {
		t.Helper()
		before := b.count(pcsserver.TCBInfo)
		if _, err := b.source(t, b.client(t, nil), with).Get(t.Context(), request()); err != nil {
			t.Fatal(err)
		}
		return b.count(pcsserver.TCBInfo) - before
	}
	if fetch() != 1 || fetch() != 0 || fetch() != 0 {
		t.Fatal("the cache does not survive a restart")
	}
	path := filepath.Join(dir, "sgx-518060000000-platform.json")
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	other, err := b.pki.Collateral(attest.SGX, [6]byte{1}, birth)
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := other.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	damaged := 0
	for name, raw := range map[string][]byte{
		"empty": {}, "half": good[:len(good)/2], "bit": flip(good, len(good)/3), "signature": flip(good, len(good)/8),
		"zeros": make([]byte, len(good)), "trailing": append(bytes.Clone(good), 'x'), "another platform's": foreign,
		"huge": bytes.Repeat([]byte{' '}, attest.MaxCollateral+1),
	} {
		if err := os.WriteFile(path, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if n := fetch(); n != 1 {
			t.Errorf("%s: %d fetches", name, n)
		}
		if again, err := os.ReadFile(path); err != nil || !bytes.Equal(again, good) {
			t.Errorf("%s: not repaired (%v)", name, err)
		}
		damaged++
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path, 0o700); err != nil {
		t.Fatal(err)
	}
	if fetch() != 1 {
		t.Error("directory in place of the file")
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if fetch() != 1 || fetch() != 0 {
		t.Error("file gone and back")
	}
	chain := filepath.Join(dir, "pck-platform.pem")
	for name, raw := range map[string][]byte{"no chain": nil, "other chain": other.TCBSigningChain} {
		if err := os.WriteFile(chain, raw, 0o600); err != nil {
			t.Fatal(err)
		}
		if fetch() != 1 || fetch() != 0 {
			t.Errorf("%s: not repaired", name)
		}
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 2 || damaged != 8 {
		t.Errorf("%d files: %v (%v)", len(entries), entries, err)
	}
}

// flip changes one bit.
func flip(raw []byte, at int) []byte {
	raw = bytes.Clone(raw)
	raw[at] ^= 1
	return raw
}

// TestExpiredCache restarts after the cached set has expired.
func TestExpiredCache(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := t.TempDir()
	with := func(c *pcs.SourceConfig) { c.Dir = dir }
	if _, err := b.source(t, b.client(t, nil), with).Get(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	b.skew.Store(int64(31 * day))
	b.server.Inject(pcsserver.TCBInfo, 1, pcsserver.Status(404))
	set, err := b.source(t, b.client(t, nil), with).Get(t.Context(), request())
	wants(t, "expired", set, err, pcs.ErrNotFound)
	if _, err := b.source(t, b.client(t, nil), with).Get(t.Context(), request()); err != nil {
		t.Error(err)
	}
	// A failure is remembered beside the expired set, which does not push it out when it is read again.
	b.skew.Store(int64(70 * day))
	b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Status(404))
	source, before := b.source(t, b.client(t, nil), with), b.count(pcsserver.TCBInfo)
	for range 5 {
		set, err = source.Get(t.Context(), request())
		wants(t, "expired again", set, err, pcs.ErrNotFound)
	}
	if n := b.count(pcsserver.TCBInfo) - before; n != 1 {
		t.Errorf("%d requests", n)
	}
}

// TestDiskFails lets the disk refuse: the caller has its collateral all the same.
func TestDiskFails(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	dir := filepath.Join(t.TempDir(), "cache")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	source := b.source(t, b.client(t, nil), func(c *pcs.SourceConfig) {
		c.Dir, c.Logger = dir, slog.New(slog.NewTextHandler(&log, nil))
	})
	if err := os.Remove(dir); err != nil {
		t.Fatal(err)
	}
	if _, err := source.Get(t.Context(), request()); err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "not kept on disk") {
		t.Errorf("log: %s", &log)
	}
}

// TestFetcherIsNotTrusted has fetchers that return what nobody verified.
func TestFetcherIsNotTrusted(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	good, err := b.client(t, nil).Fetch(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		change func(*pcs.Set)
		is     error
	}{
		"other request":  {func(s *pcs.Set) { s.Request.CA = pcs.ProcessorCA }, pcs.ErrMismatch},
		"no collateral":  {func(s *pcs.Set) { s.Collateral = nil }, pcs.ErrMismatch},
		"forged":         {func(s *pcs.Set) { s.Collateral = &attest.Collateral{TCBInfo: []byte("{}")} }, pcs.ErrVerify},
		"no issuer":      {func(s *pcs.Set) { s.PCKIssuer = nil }, pcs.ErrVerify},
		"forged report":  {func(s *pcs.Set) { s.Report = nil }, nil},
		"nothing at all": {nil, pcs.ErrMismatch},
	} {
		source := b.source(t, fetcherFunc(func(context.Context, pcs.Request) (*pcs.Set, error) {
			if tc.change == nil {
				return nil, nil
			}
			set := *good
			tc.change(&set)
			return &set, nil
		}), nil)
		set, err := source.Get(t.Context(), request())
		if tc.is != nil {
			wants(t, name, set, err, tc.is)
		} else if err != nil || set.Report == nil || set.Report.Set != good.Report.Set {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestClose ends fetches under way and refuses later calls.
func TestClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBedAt(t, time.Now, nil)
		source := b.source(t, b.client(t, nil), nil)
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Slow(time.Hour))
		var wg sync.WaitGroup
		wg.Go(func() {
			set, err := source.Get(t.Context(), request())
			wants(t, "waiting", set, err, pcs.ErrClosed)
		})
		synctest.Wait()
		start := time.Now()
		if err := source.Close(); err != nil {
			t.Error(err)
		}
		wg.Wait()
		if time.Since(start) != 0 {
			t.Errorf("took %v", time.Since(start))
		}
		set, err := source.Get(t.Context(), request())
		wants(t, "after Close", set, err, pcs.ErrClosed)
		set, err = source.Refresh(t.Context(), request())
		wants(t, "refresh after Close", set, err, pcs.ErrClosed)
		if err := source.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestMemoryIsBounded fills a source with more than it keeps, and with failures, which make room first.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	good, err := b.client(t, nil).Fetch(t.Context(), request())
	if err != nil {
		t.Fatal(err)
	}
	fetches := map[pcs.Request]int{}
	source := b.source(t, fetcherFunc(func(_ context.Context, r pcs.Request) (*pcs.Set, error) {
		fetches[r]++
		if r != request() {
			return nil, fmt.Errorf("%w: platform %x", pcs.ErrNotFound, r.FMSPC)
		}
		return good, nil
	}), nil)
	for i := range 1000 {
		r := request()
		if _, err := source.Get(t.Context(), r); err != nil {
			t.Fatal(err)
		}
		r.FMSPC = [6]byte{1, byte(i), byte(i >> 8)}
		if _, err := source.Get(t.Context(), r); !errors.Is(err, pcs.ErrNotFound) {
			t.Fatal(err)
		}
	}
	if n := fetches[request()]; n != 1 {
		t.Errorf("the good set was fetched %d times", n)
	}
	r := request()
	r.FMSPC = [6]byte{1}
	if _, err := source.Get(t.Context(), r); err == nil || fetches[r] != 2 {
		t.Errorf("a thousand failures are remembered: %d fetches, %v", fetches[r], err)
	}
}

func TestSourceConfig(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	client := b.client(t, nil)
	for name, tc := range map[string]struct {
		config pcs.SourceConfig
		is     error
	}{
		"zero":         {pcs.SourceConfig{}, pcs.ErrConfig},
		"no verifier":  {pcs.SourceConfig{Fetcher: client}, pcs.ErrConfig},
		"no fetcher":   {pcs.SourceConfig{Verifier: b.verifier}, pcs.ErrConfig},
		"negative age": {pcs.SourceConfig{Fetcher: client, Verifier: b.verifier, MaxAge: -1}, pcs.ErrConfig},
		"update":       {pcs.SourceConfig{Fetcher: client, Verifier: b.verifier, Update: "late"}, pcs.ErrConfig},
		"no directory": {pcs.SourceConfig{Fetcher: client, Verifier: b.verifier, Dir: filepath.Join(t.TempDir(), "x")}, pcs.ErrDisk},
	} {
		source, err := pcs.NewSource(tc.config)
		wants(t, name, nil, err, tc.is)
		if source != nil {
			t.Errorf("%s: a source beside the error", name)
		}
	}
}

// TestImportWhileRunning imports a bundle into the directory of a source whose service is away.
func TestImportWhileRunning(t *testing.T) {
	t.Parallel()
	for _, expired := range []bool{false, true} {
		b := newBed(t, nil)
		dir := t.TempDir()
		source := b.source(t, b.client(t, func(c *pcs.Config) { c.Attempts = 1 }), func(c *pcs.SourceConfig) { c.Dir = dir })
		if expired {
			if _, err := source.Get(t.Context(), request()); err != nil {
				t.Fatal(err)
			}
			b.skew.Store(int64(31 * day))
		}
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Status(503))
		set, err := source.Get(t.Context(), request())
		wants(t, "away", set, err, pcs.ErrServer)
		b.server.Inject(pcsserver.TCBInfo, 0, pcsserver.Fault{})
		carried, raw := b.bundle(t, request())
		b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Status(503))
		if _, err := b.open(t, dir, nil).Import(raw, carried.PCKIssuer); err != nil {
			t.Fatal(err)
		}
		before := b.count(pcsserver.TCBInfo)
		if set, err = source.Get(t.Context(), request()); err != nil || set.Report.Set != carried.Report.Set {
			t.Errorf("expired %v: %v", expired, err)
		}
		if b.count(pcsserver.TCBInfo) != before {
			t.Error("the service was asked")
		}
	}
}
