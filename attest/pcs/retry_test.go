package pcs_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// TestRetries lets a part fail a few times and measures the waits on synctest's clock.
func TestRetries(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		name        string
		fault       pcsserver.Fault
		times       int
		is          error // nil: succeeds in the end
		attempts    int
		least, most time.Duration
	}{
		// Waits are between half and all of 500 ms, 1 s, 2 s.
		{"two failures", pcsserver.Status(503), 2, nil, 3, 750 * time.Millisecond, 1500 * time.Millisecond},
		{"for ever", pcsserver.Status(500), -1, pcs.ErrServer, 4, 1750 * time.Millisecond, 3500 * time.Millisecond},
		{"not worth it", pcsserver.Status(404), -1, pcs.ErrNotFound, 1, 0, 0},
		{"nor this", pcsserver.Content("", "hello"), -1, pcs.ErrContent, 1, 0, 0},
		{"slow once", pcsserver.Slow(time.Hour), 1, nil, 2, 15250 * time.Millisecond, 15500 * time.Millisecond},
		{"slow and in time", pcsserver.Slow(14 * time.Second), 1, nil, 1, 14 * time.Second, 14 * time.Second},
		{"slow for ever", pcsserver.Slow(time.Hour), -1, pcs.ErrTimeout, 4, 45 * time.Second, time.Minute},
		{"asked to wait", pcsserver.RetryAfter(429, "20"), 1, nil, 2, 20 * time.Second, 20 * time.Second},
		{"asked twice", pcsserver.RetryAfter(503, "20"), 2, nil, 3, 40 * time.Second, 40 * time.Second},
		{"asked to wait too long", pcsserver.RetryAfter(429, "31"), -1, pcs.ErrRateLimited, 1, 0, 0},
		{"asked to wait beyond the end", pcsserver.RetryAfter(429, "25"), -1, pcs.ErrRateLimited, 3, 50 * time.Second, 50 * time.Second},
		{"asked for nonsense", pcsserver.RetryAfter(429, "soon"), 1, nil, 2, 250 * time.Millisecond, 500 * time.Millisecond},
		{"asked for the past", pcsserver.RetryAfter(429, "Mon, 02 Jan 1995 15:04:05 GMT"), 1, nil, 2, 250 * time.Millisecond, 500 * time.Millisecond},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				b := newBedAt(t, time.Now, nil)
				client := b.client(t, nil)
				b.server.Inject(pcsserver.PCKCRL, tc.times, tc.fault)
				start := time.Now()
				set, err := client.Fetch(t.Context(), request())
				if took := time.Since(start); took < tc.least || took > tc.most {
					t.Errorf("took %v, want %v to %v", took, tc.least, tc.most)
				}
				if n := b.count(pcsserver.PCKCRL); n != tc.attempts {
					t.Errorf("%d attempts, want %d", n, tc.attempts)
				}
				if tc.is == nil {
					if err != nil {
						t.Error(err)
					}
					return
				}
				wants(t, tc.name, set, err, tc.is)
				if e, _ := errors.AsType[*pcs.Error](err); e.Attempts != tc.attempts && tc.is != pcs.ErrContent {
					t.Errorf("%v says %d attempts", err, e.Attempts)
				}
			})
		})
	}
}

// TestCancel ends a fetch during an attempt and during a wait.
func TestCancel(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]pcsserver.Fault{
		"during an attempt": pcsserver.Slow(10 * time.Second), "during a wait": pcsserver.RetryAfter(429, "10"),
	} {
		synctest.Test(t, func(t *testing.T) {
			b := newBedAt(t, time.Now, nil)
			b.server.Inject(pcsserver.TCBInfo, -1, fault)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			start := time.Now()
			set, err := b.client(t, nil).Fetch(ctx, request())
			if set != nil || err == nil || time.Since(start) != time.Second {
				t.Errorf("%s: %v after %v", name, err, time.Since(start))
			}
		})
	}
}

// TestTimeoutOfSet bounds the whole set, not each part.
func TestTimeoutOfSet(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBedAt(t, time.Now, nil)
		for _, d := range []pcsserver.Document{pcsserver.TCBInfo, pcsserver.QEIdentity, pcsserver.PCKCRL, pcsserver.RootCRL} {
			b.server.Inject(d, -1, pcsserver.Slow(4*time.Second))
		}
		client := b.client(t, func(c *pcs.Config) { c.Timeout = 10 * time.Second })
		start := time.Now()
		set, err := client.Fetch(t.Context(), request())
		wants(t, "slow set", set, err, pcs.ErrTimeout)
		if took := time.Since(start); took != 10*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// TestBrokenTransport counts attempts over a connection that never comes about.
func TestBrokenTransport(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := newBedAt(t, time.Now, nil)
		n := 0
		client := b.client(t, func(c *pcs.Config) {
			c.Attempts = 3
			c.HTTPClient = &http.Client{Transport: roundTrip(func(*http.Request) (*http.Response, error) {
				n++
				return nil, errors.New("no route to host")
			})}
		})
		set, err := client.Fetch(t.Context(), request())
		wants(t, "no route", set, err, pcs.ErrUnreachable)
		if n != 3 {
			t.Errorf("%d attempts", n)
		}
	})
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
