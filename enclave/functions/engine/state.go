package engine

import (
	"context"
	"fmt"
	"time"

	"github.com/claviger/claviger/enclave/functions/engine/meter"
	"github.com/tetratelabs/wazero/api"
)

// fuelSlice is how much fuel is handed out at a time: about a millisecond of work, so deadlines are kept to that, and
// Go's scheduler and collector get a turn as often.
const fuelSlice = 500_000

// state is what one load or one call owns on the Go side. Host functions find it through their context, never through
// the instance: an instance at rest has none.
type state struct {
	ctx      context.Context
	in       *instance
	host     Host // nil while a bundle loads: host calls are off
	limits   *Limits
	deadline time.Time
	logs     logBuffer
	now      time.Time     // as the host last said; the epoch while a bundle loads
	ahead    time.Duration // how far timers moved the script's clock
	calls    int
	moved    int // bytes moved by host calls
	inHost   bool
	stop     error // why the instance was halted
	hostErr  error // the first error of the host
	slices   int64
}

type stateKey struct{}

// stateOf returns the state of the running call. Every entry into an instance carries one.
func stateOf(ctx context.Context) *state { return ctx.Value(stateKey{}).(*state) }

// newState starts a load (host nil) or a call. The returned context carries it into the host functions and ends at the
// deadline; cancel must be called.
func newState(ctx context.Context, in *instance, host Host, l *Limits, limit time.Duration) (*state, context.Context, context.CancelFunc) {
	st := &state{in: in, host: host, limits: l, deadline: time.Now().Add(limit), now: time.Unix(0, 0)}
	st.logs.maxLines, st.logs.bytesLeft = l.LogLines, l.LogBytes
	hostCtx, cancel := context.WithDeadline(ctx, st.deadline)
	st.ctx = hostCtx
	st.tick()
	in.fuel.Set(fuelSlice)
	st.slices = 1
	return st, context.WithValue(hostCtx, stateKey{}, st), cancel
}

func (st *state) clock() time.Time { return st.now.Add(st.ahead) }

func (st *state) tick() {
	if st.host != nil {
		st.now = st.host.Now()
	}
}

// halt stops the instance from inside a host function: wazero recovers the panic at the outermost call and returns it.
func (st *state) halt(err error) {
	if st.stop == nil {
		st.stop = err
	}
	panic(st.stop)
}

// check halts the instance when its time is over or the caller went away.
func (st *state) check() {
	if err := st.overdue(); err != nil {
		st.halt(err)
	}
}

func (st *state) overdue() error {
	if st.in.engine.closing() {
		return ErrClosed
	}
	if !time.Now().Before(st.deadline) {
		return ErrDeadline
	}
	if err := st.ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrDeadline, err)
	}
	return nil
}

// refuel is called by the instrumented code whenever its fuel is used up.
func refuel(ctx context.Context, _ api.Module, _ []uint64) {
	st := stateOf(ctx)
	st.check()
	st.slices++
	st.in.fuel.Set(fuelSlice)
}

// trap is called by the instrumented code when a stack limit is exceeded.
func trap(ctx context.Context, _ api.Module, stack []uint64) {
	switch meter.Trap(stack[0]) {
	case meter.TrapStack, meter.TrapDepth:
		stateOf(ctx).halt(ErrStack)
	}
	stateOf(ctx).halt(ErrTrap)
}

// charge accounts for one host call that moves n bytes; false means that the call is over its limits.
func (st *state) charge(n int) bool {
	if st.calls >= st.limits.HostCalls || n > st.limits.HostBytes-st.moved {
		return false
	}
	st.calls++
	st.moved += n
	return true
}

// fuelUsed is the exact fuel that the call has used. It must be read before the instance is reset.
func (st *state) fuelUsed() int64 { return st.slices*fuelSlice - int64(st.in.fuel.Get()) }

func (st *state) usage(start time.Time) Usage {
	return Usage{
		Fuel:      st.slices * fuelSlice,
		Memory:    int(st.in.pages.Get()) * pageSize,
		HostCalls: st.calls,
		Duration:  time.Since(start),
	}
}
