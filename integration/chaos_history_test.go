//go:build linux

package integration

import (
	"cmp"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// The transparency log is a counter: a release takes the next leaf and says which, a read says how many there are. A
// chaosOp is one call as its client saw it; instants are ticks of one clock.
type chaosOp struct {
	client       int
	release      bool
	call, ret    int64
	value        uint64 // index of the leaf, or size of the log
	unknown      bool   // a release that nobody knows the outcome of: it may happen at any time from call on
	size         uint64
	root, record string
}

// counterModel is what the log must look like to everybody.
func counterModel(start uint64) porcupine.Model {
	return porcupine.Model{
		Init: func() any { return start },
		Step: func(state, input, output any) (bool, any) {
			at, value := state.(uint64), output.(uint64)
			if input.(bool) {
				return at == value, at + 1
			}
			return at == value, at
		},
		DescribeOperation: func(input, output any) string {
			if input.(bool) {
				return fmt.Sprintf("release -> leaf %d", output)
			}
			return fmt.Sprintf("read -> %d leaves", output)
		},
	}
}

// A ledger is the history of all clients since the last window was checked, and what must be true of all of it.
type ledger struct {
	ticks atomic.Int64

	mu      sync.Mutex
	start   uint64            // size of the log when the window began
	began   int64             // tick at which it did
	done    []chaosOp         // with an outcome
	open    []int64           // calls of attempts without one, in this window or the one before
	roots   map[uint64]string // by size
	records map[uint64]string // by index, of this window
	keys    map[string]string // by request
	faults  []string

	releases, reads, unknown, ghosts, refused, failed, windows int
}

func newLedger(start uint64) *ledger {
	return &ledger{start: start, roots: map[uint64]string{}, records: map[uint64]string{}, keys: map[string]string{}}
}

func (l *ledger) tick() int64 { return l.ticks.Add(1) }

// attempts takes note of requests that were sent and not answered.
func (l *ledger) attempts(sent []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open = append(l.open, sent...)
	l.unknown += len(sent)
}

// add takes note of a call that has an outcome.
func (l *ledger) add(o chaosOp) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done = append(l.done, o)
	if o.release {
		l.releases++
		if o.size <= o.value {
			l.faults = append(l.faults, fmt.Sprintf("a receipt for leaf %d of a tree of %d", o.value, o.size))
		}
		l.same(l.records, o.value, o.record, "two receipts for leaf %d differ")
	} else {
		l.reads++
	}
	l.same(l.roots, o.size, o.root, "two roots for a log of %d leaves")
}

func (l *ledger) same(known map[uint64]string, at uint64, value, complaint string) {
	if old, ok := known[at]; ok && old != value {
		l.faults = append(l.faults, fmt.Sprintf(complaint, at))
	}
	known[at] = value
}

// key takes note of the bytes that a request got.
func (l *ledger) key(request, hash string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if old, ok := l.keys[request]; ok && old != hash {
		l.faults = append(l.faults, fmt.Sprintf("%s: two keys for one request", request))
	}
	l.keys[request] = hash
}

// window checks everything since the last one. Nobody may be calling, and size is what a read has just returned: what is
// above it belongs to the next window, so that windows are checked one by one and together are the whole history.
func (l *ledger) window(size uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.faults) > 0 {
		return fmt.Errorf("%q", l.faults)
	}
	ops, rest, err := complete(l.start, size, l.done, l.open)
	if err != nil {
		return err
	}
	l.ghosts += len(l.open) - len(rest)
	l.windows++
	if err := checkCounter(l.start, ops); err != nil {
		return err
	}
	// What was sent before this window has had a whole window, at the end of which everything was whole and at rest: it will
	// not happen any more. To keep it would be to explain with it what has no explanation, such as an entry that counts twice.
	rest = slices.DeleteFunc(rest, func(call int64) bool { return call < l.began })
	l.start, l.began, l.done, l.open = size, l.tick(), nil, rest
	clear(l.records)
	return nil
}

// complete adds the releases that nobody knows the outcome of but that have happened, since there are leaves without an
// owner: each such leaf was taken by one of the calls without an outcome, at any time since. To the lowest leaf goes the
// earliest call: if any way to share them out agrees with the rest of the history, this one does, because a lower leaf must
// have been taken earlier.
func complete(start, size uint64, done []chaosOp, open []int64) (ops []chaosOp, rest []int64, err error) {
	owned := map[uint64]bool{}
	for _, o := range done {
		switch {
		case o.release && (o.value < start || o.value >= size), !o.release && (o.value < start || o.value > size):
			return nil, nil, fmt.Errorf("%+v is outside of the window from %d to %d", o, start, size)
		case o.release:
			owned[o.value] = true
		}
	}
	rest = slices.Sorted(slices.Values(open))
	ops = slices.Clone(done)
	for at := start; at < size; at++ {
		if owned[at] {
			continue
		}
		if len(rest) == 0 {
			return nil, nil, fmt.Errorf("leaf %d was taken, and no call without an outcome is left that might have", at)
		}
		ops = append(ops, chaosOp{release: true, unknown: true, call: rest[0], value: at})
		rest = rest[1:]
	}
	return ops, rest, nil
}

// checkCounter asks porcupine.
func checkCounter(start uint64, ops []chaosOp) error {
	var end int64
	for _, o := range ops {
		end = max(end, o.ret, o.call)
	}
	history := make([]porcupine.Operation, 0, len(ops))
	for _, o := range ops {
		p := porcupine.Operation{ClientId: o.client, Input: o.release, Call: o.call, Output: o.value, Return: o.ret}
		if o.unknown {
			p.Return = end + 1
		}
		history = append(history, p)
	}
	switch porcupine.CheckOperationsTimeout(counterModel(start), history, time.Minute) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("porcupine has not decided about %d operations within a minute", len(ops))
	}
	return fmt.Errorf("NOT LINEARIZABLE: %s", earliestContradiction(ops))
}

// earliestContradiction looks for the two calls that people should look at first.
func earliestContradiction(ops []chaosOp) string {
	sorted := slices.SortedFunc(slices.Values(ops), func(a, b chaosOp) int { return cmp.Compare(a.call, b.call) })
	position := func(o chaosOp) uint64 { // number of leaves after it
		if o.release {
			return o.value + 1
		}
		return o.value
	}
	for i, later := range sorted {
		for _, earlier := range sorted[:i] {
			if !earlier.unknown && earlier.ret < later.call && (position(earlier) > position(later) || later.release && position(earlier) == position(later)) {
				return fmt.Sprintf("%+v had returned before %+v was called", earlier, later)
			}
		}
	}
	return fmt.Sprintf("%d operations, no two of which contradict each other", len(ops))
}

// TestCounterHistories feeds the checker histories that it must and must not accept: one that cannot fail proves nothing.
func TestCounterHistories(t *testing.T) {
	t.Parallel()
	w := func(call, ret int64, index uint64) chaosOp {
		return chaosOp{release: true, call: call, ret: ret, value: index, size: index + 1}
	}
	r := func(call, ret int64, size uint64) chaosOp {
		return chaosOp{call: call, ret: ret, value: size, size: size}
	}
	for name, tc := range map[string]struct {
		size uint64
		done []chaosOp
		open []int64
		good bool
	}{
		"nothing":                          {10, nil, nil, true},
		"one after the other":              {12, []chaosOp{w(1, 2, 10), r(3, 4, 11), w(5, 6, 11), r(7, 8, 12)}, nil, true},
		"at once, in any order":            {12, []chaosOp{w(1, 4, 11), w(2, 3, 10)}, nil, true},
		"a stale read":                     {11, []chaosOp{w(1, 2, 10), r(3, 4, 10)}, nil, false},
		"reads that go back":               {11, []chaosOp{w(1, 8, 10), r(2, 3, 11), r(4, 5, 10)}, nil, false},
		"a leaf before an older one":       {12, []chaosOp{w(1, 2, 11), w(3, 4, 10)}, nil, false},
		"one leaf twice":                   {11, []chaosOp{w(1, 2, 10), w(3, 4, 10)}, nil, false},
		"a leaf that was lost":             {11, []chaosOp{w(1, 2, 10), w(3, 4, 11)}, nil, false},
		"a leaf below the window":          {11, []chaosOp{w(1, 2, 9), w(3, 4, 10)}, nil, false},
		"an outcome that nobody knows":     {12, []chaosOp{w(5, 6, 11), r(7, 8, 12)}, []int64{1}, true},
		"it happened late":                 {12, []chaosOp{w(5, 6, 10), r(7, 8, 11), r(9, 10, 12)}, []int64{1}, true},
		"it never happened":                {11, []chaosOp{w(5, 6, 10), r(7, 8, 11)}, []int64{1, 2}, true},
		"it was called too late":           {12, []chaosOp{w(1, 2, 11), r(7, 8, 12)}, []int64{5}, false},
		"a leaf that nobody asked for":     {12, []chaosOp{w(1, 2, 10)}, nil, false},
		"two unknown, one late, one early": {13, []chaosOp{w(3, 4, 11), r(8, 9, 13)}, []int64{5, 1}, true},
	} {
		ops, _, err := complete(10, tc.size, tc.done, tc.open)
		if err == nil {
			err = checkCounter(10, ops)
		}
		if (err == nil) != tc.good {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestLedgerForgets: a call without an outcome explains a leaf in its own window and in the next one, and no later one.
func TestLedgerForgets(t *testing.T) {
	t.Parallel()
	for idle, good := range []bool{true, true, false} {
		l := newLedger(5)
		l.attempts([]int64{l.tick()})
		for range idle {
			if err := l.window(5); err != nil {
				t.Fatal(err)
			}
		}
		if err := l.window(6); (err == nil) != good {
			t.Errorf("after %d quiet windows: %v", idle, err)
		}
	}
}

// TestLedgerFaults: two receipts for a leaf, two roots of a size and two keys for a request are found.
func TestLedgerFaults(t *testing.T) {
	t.Parallel()
	for name, f := range map[string]func(*ledger){
		"records": func(l *ledger) {
			l.add(chaosOp{release: true, value: 1, size: 2, record: "x"})
			l.add(chaosOp{release: true, value: 1, size: 2, record: "y"})
		},
		"roots": func(l *ledger) { l.add(chaosOp{size: 2, root: "x"}); l.add(chaosOp{size: 2, root: "y"}) },
		"keys":  func(l *ledger) { l.key("db", "x"); l.key("db", "y") },
		"tree":  func(l *ledger) { l.add(chaosOp{release: true, value: 2, size: 2}) },
	} {
		l := newLedger(0)
		f(l)
		if len(l.faults) != 1 {
			t.Errorf("%s: %q", name, l.faults)
		}
	}
}
