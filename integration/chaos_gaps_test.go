//go:build linux

package integration

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"
)

// gaps measures how long nobody got a key, by the kind of fault that began last.
type gaps struct {
	mu      sync.Mutex
	last    time.Time // of the last release, or when the clients were let go
	kind    string
	current time.Duration // longest since the fault began
	byKind  map[string][]time.Duration
	longest time.Duration
	worst   string
	steady  time.Duration // longest in tolerated rounds
}

// wildly marks faults of rounds that break more than a cluster must stand.
const wildly = " (wild)"

func newGaps() *gaps { return &gaps{byKind: map[string][]time.Duration{}, last: time.Now()} }

// measure takes note of the time since the last release.
func (g *gaps) measure() {
	gap := time.Since(g.last)
	if g.kind == "" {
		return
	}
	g.current = max(g.current, gap)
	if gap > g.longest {
		g.longest, g.worst = gap, g.kind
	}
	if !strings.HasSuffix(g.kind, wildly) {
		g.steady = max(g.steady, gap)
	}
}

func (g *gaps) served() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.measure()
	g.last = time.Now()
}

func (g *gaps) failed() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.measure()
}

// fault closes the account of the fault before.
func (g *gaps) fault(kind string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.kind != "" {
		g.byKind[g.kind] = append(g.byKind[g.kind], g.current)
	}
	g.kind, g.current = kind, 0
}

// pause is for times in which the clients are held.
func (g *gaps) pause() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = time.Now()
}

func (g *gaps) tolerated() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.steady
}

func (g *gaps) since() time.Time {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.last
}

// spread is median and maximum.
func spread(list []time.Duration) string {
	if len(list) == 0 {
		return "none"
	}
	s := slices.Sorted(slices.Values(list))
	return fmt.Sprintf("median %.2f s, max %.2f s (%d)", s[len(s)/2].Seconds(), s[len(s)-1].Seconds(), len(s))
}
