package engine

import (
	"fmt"
	"time"
)

// Limits bound one call (and one load). A zero field takes the default named beside it.
type Limits struct {
	Memory       int           // bytes of linear memory, a multiple of 64 KiB; 64 MiB
	Snapshot     int           // bytes of memory that are not zero once the bundle is evaluated; 8 MiB or Memory, if less
	Deadline     time.Duration // wall time of one call; 5 s
	LoadDeadline time.Duration // wall time of evaluating a bundle; 5 s
	Code         int           // bytes of a bundle; 1 MiB
	Request      int           // bytes of the arguments' JSON; 1 MiB
	Response     int           // bytes of the result's JSON; 1 MiB
	LogLines     int           // lines kept of one call; 256
	LogBytes     int           // bytes kept of one call's log; 64 KiB
	HostCalls    int           // kv and crypto calls; 10,000
	HostBytes    int           // bytes that kv and crypto calls move, in and out; 64 MiB
}

// Hard bounds that no configuration exceeds.
const (
	pageSize     = 64 << 10
	minMemory    = 4 << 20
	maxMemory    = 1 << 30
	maxText      = 16 << 20 // any of Code, Request, Response
	maxKey       = 1 << 10  // bytes of a kv key
	maxValue     = 1 << 20  // bytes of a kv value
	maxList      = 1000     // keys of one kv.list
	maxExports   = 256
	maxName      = 128
	maxLogLine   = 4 << 10
	maxCodec     = 16 << 20 // bytes of one TextEncoder or TextDecoder operation
	maxRandom    = 64 << 10 // bytes of one getRandomValues, as the Web Crypto API has it
	maxInstances = 1024
)

// The stack of the JavaScript engine in linear memory. QuickJS checks its own limit first and throws a RangeError; what
// it does not check is stopped by the guard that package meter puts on the stack pointer.
const (
	stackSize   = 1 << 20
	jsStackSize = 768 << 10
	redZone     = 256
)

func (l Limits) withDefaults() (Limits, error) {
	def := func(v *int, d, min, max int, name string) error {
		if *v == 0 {
			*v = d
		}
		if *v < min || *v > max {
			return fmt.Errorf("%w: limit %s is %d, want %d to %d", ErrConfig, name, *v, min, max)
		}
		return nil
	}
	for _, f := range []struct {
		v         *int
		d, lo, hi int
		name      string
	}{
		{&l.Memory, 64 << 20, minMemory, maxMemory, "Memory"},
		{&l.Snapshot, min(8<<20, orValue(l.Memory, 64<<20)), 1 << 20, maxMemory, "Snapshot"},
		{&l.Code, 1 << 20, 1, maxText, "Code"},
		{&l.Request, 1 << 20, 2, maxText, "Request"},
		{&l.Response, 1 << 20, 4, maxText, "Response"},
		{&l.LogLines, 256, 1, 1 << 16, "LogLines"},
		{&l.LogBytes, 64 << 10, 1, 16 << 20, "LogBytes"},
		{&l.HostCalls, 10_000, 1, 1 << 24, "HostCalls"},
		{&l.HostBytes, 64 << 20, 1, 1 << 30, "HostBytes"},
	} {
		if err := def(f.v, f.d, f.lo, f.hi, f.name); err != nil {
			return l, err
		}
	}
	for _, d := range []*time.Duration{&l.Deadline, &l.LoadDeadline} {
		if *d == 0 {
			*d = 5 * time.Second
		}
		if *d < time.Millisecond || *d > time.Hour {
			return l, fmt.Errorf("%w: a deadline of %v, want 1ms to 1h", ErrConfig, *d)
		}
	}
	if l.Memory%pageSize != 0 {
		return l, fmt.Errorf("%w: limit Memory is not a multiple of %d", ErrConfig, pageSize)
	}
	return l, nil
}

func orValue(v, d int) int {
	if v == 0 {
		return d
	}
	return v
}

// within fills zero fields from max and refuses what exceeds it.
func (l Limits) within(max Limits) (Limits, error) {
	for _, f := range []struct{ v, max *int }{
		{&l.Memory, &max.Memory}, {&l.Snapshot, &max.Snapshot}, {&l.Code, &max.Code}, {&l.Request, &max.Request}, {&l.Response, &max.Response},
		{&l.LogLines, &max.LogLines}, {&l.LogBytes, &max.LogBytes}, {&l.HostCalls, &max.HostCalls}, {&l.HostBytes, &max.HostBytes},
	} {
		if *f.v == 0 {
			*f.v = *f.max
		}
		if *f.v > *f.max {
			return l, fmt.Errorf("%w: a limit of %d, the engine allows %d", ErrConfig, *f.v, *f.max)
		}
	}
	for _, f := range []struct{ v, max *time.Duration }{{&l.Deadline, &max.Deadline}, {&l.LoadDeadline, &max.LoadDeadline}} {
		if *f.v == 0 {
			*f.v = *f.max
		}
		if *f.v > *f.max {
			return l, fmt.Errorf("%w: a deadline of %v, the engine allows %v", ErrConfig, *f.v, *f.max)
		}
	}
	return l.withDefaults()
}
