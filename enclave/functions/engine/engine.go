package engine

import (
	"context"
	_ "embed"
	"fmt"
	"runtime"
	"sync"

	quickjs "github.com/aperturerobotics/go-quickjs-wasi-reactor"
	"github.com/claviger/claviger/enclave/functions/engine/meter"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// Mode says how the JavaScript engine's WebAssembly runs. There is no automatic choice: inside EGo the compiler ends the
// process unless the enclave was signed with executable heap.
type Mode int

// The modes. The zero Mode is refused.
const (
	Compiler    Mode = 1 // machine code made at start-up; for TDs and the simulator
	Interpreter Mode = 2 // no executable memory, roughly 30 times slower; recursion is limited to some hundred frames
)

// Config configures an Engine.
type Config struct {
	Mode   Mode
	Limits Limits // the most that a program may be given, and what it is given by default
	// Concurrency is the number of instances that may exist at once, hence of calls that run at once; others wait.
	// Default: twice the processors.
	Concurrency int
	// Idle is the number of clean instances kept for later calls, over all programs; the longest unused is given up
	// first. Default: Concurrency.
	Idle int
	// Budget is where the bytes of idle instances come from, about 4 MiB each; what is not there is not kept. Default:
	// a budget of the Engine's own with Idle × 8 MiB.
	//
	// Memory is bounded by Concurrency × Limits.Memory, the budget, and Limits.Snapshot for each program, which the
	// loader of the program accounts for.
	Budget *Budget
}

// Engine compiles the JavaScript engine once and serves any number of programs from it. It is safe for concurrent use.
type Engine struct {
	runtime   wazero.Runtime
	compiled  wazero.CompiledModule
	limits    Limits
	maxDepth  int
	callSlot  uint32
	base      *snapshot // a context with the prelude evaluated, from which every bundle starts
	slots     chan struct{}
	pool      pool
	done      chan struct{} // closed by Close
	closeOnce sync.Once
}

//go:embed prelude.js
var prelude []byte

// New compiles and boots the JavaScript engine: about 0.7 s in Compiler mode. The context bounds that work only.
func New(ctx context.Context, cfg Config) (*Engine, error) {
	limits, err := cfg.Limits.withDefaults()
	if err != nil {
		return nil, err
	}
	if cfg.Concurrency == 0 {
		cfg.Concurrency = 2 * runtime.GOMAXPROCS(0)
	}
	if cfg.Concurrency < 1 || cfg.Concurrency > maxInstances {
		return nil, fmt.Errorf("%w: Concurrency is %d, want 1 to %d", ErrConfig, cfg.Concurrency, maxInstances)
	}
	if cfg.Idle == 0 {
		cfg.Idle = cfg.Concurrency
	}
	if cfg.Idle < 0 || cfg.Idle > maxInstances {
		return nil, fmt.Errorf("%w: Idle is %d, want 1 to %d", ErrConfig, cfg.Idle, maxInstances)
	}
	if cfg.Budget == nil {
		cfg.Budget = NewBudget(int64(cfg.Idle) * 8 << 20)
	}
	e := &Engine{pool: pool{max: cfg.Idle, budget: cfg.Budget}, limits: limits, slots: make(chan struct{}, cfg.Concurrency), done: make(chan struct{})}
	var rc wazero.RuntimeConfig
	switch cfg.Mode {
	case Compiler:
		// Depth is counted in WebAssembly frames; a frame takes up to some kilobytes of wazero's native stack, which
		// ends at 50 MB. The interpreter's own ceiling is 2000 frames.
		rc, e.maxDepth = wazero.NewRuntimeConfigCompiler(), 20_000
	case Interpreter:
		rc, e.maxDepth = wazero.NewRuntimeConfigInterpreter(), 1900
	default:
		return nil, fmt.Errorf("%w: Mode is %d, want Compiler or Interpreter", ErrConfig, cfg.Mode)
	}
	e.runtime = wazero.NewRuntimeWithConfig(ctx, rc.WithDebugInfoEnabled(false).WithMemoryLimitPages(uint32(limits.Memory/pageSize)))
	if err := e.boot(ctx); err != nil {
		_ = e.runtime.Close(ctx)
		return nil, err
	}
	return e, nil
}

// Concurrency returns how many calls run at once.
func (e *Engine) Concurrency() int { return cap(e.slots) }

// Limits returns the limits in force, with defaults filled in.
func (e *Engine) Limits() Limits { return e.limits }

// Trim ends the longest unused idle instance, for those who need its bytes of the budget, and reports whether there was one.
func (e *Engine) Trim(ctx context.Context) bool { return e.pool.trim(ctx) }

// Ended returns how many idle instances were given up so far to make room.
func (e *Engine) Ended() int64 {
	e.pool.mu.Lock()
	defer e.pool.mu.Unlock()
	return e.pool.ended
}

// Close stops running calls, waits for them (a call inside a host function ends when that returns) and frees the compiled
// code. Programs are useless afterwards.
func (e *Engine) Close(ctx context.Context) error {
	var err error
	e.closeOnce.Do(func() {
		close(e.done)
		for range cap(e.slots) { // compiled code must not be unmapped under a call
			e.slots <- struct{}{}
		}
		err = e.runtime.Close(ctx)
	})
	return err
}

func (e *Engine) acquire(ctx context.Context) error {
	select {
	case e.slots <- struct{}{}:
	case <-e.done:
		return ErrClosed
	case <-ctx.Done():
		return fmt.Errorf("%w: no instance became free: %w", ErrDeadline, ctx.Err())
	}
	if e.closing() { // both were possible
		e.release()
		return ErrClosed
	}
	return nil
}

// closing reports whether Close was called.
func (e *Engine) closing() bool {
	select {
	case <-e.done:
		return true
	default:
		return false
	}
}

func (e *Engine) release() { <-e.slots }

// boot rewrites and compiles the module, provides its imports, and takes the base snapshot.
func (e *Engine) boot(ctx context.Context) error {
	rewritten, err := meter.Rewrite(quickjs.QuickJSWASM)
	if err != nil {
		return fmt.Errorf("engine: instrument the JavaScript engine: %w", err)
	}
	e.callSlot = rewritten.CallSlot
	if err := instantiateWASI(ctx, e.runtime); err != nil {
		return fmt.Errorf("engine: host module: %w", err)
	}
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	b := e.runtime.NewHostModuleBuilder(meter.ModuleName)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(refuel), nil, nil).Export(meter.ImportRefuel)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(trap), []api.ValueType{i32}, nil).Export(meter.ImportTrap)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(dispatchHost), []api.ValueType{i32, i64, i32, i32},
		[]api.ValueType{i64}).Export(meter.ImportCall)
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("engine: host module: %w", err)
	}
	if e.compiled, err = e.runtime.CompileModule(ctx, rewritten.Wasm); err != nil {
		return fmt.Errorf("engine: compile the JavaScript engine: %w", err)
	}
	in, err := e.newInstance(ctx)
	if err != nil {
		return err
	}
	defer in.close(ctx)
	st, ctx, cancel := newState(ctx, in, nil, &e.limits, e.limits.LoadDeadline)
	defer cancel()
	if e.base, err = e.bootstrap(ctx, in); err != nil {
		return fmt.Errorf("engine: start the JavaScript engine: %w", st.failure(err))
	}
	return nil
}

// bootstrap makes the JavaScript context: C library, guarded stack, runtime with its limits, prelude. No module loader
// and none of QuickJS's std, os and bjson modules exist: an import statement of a bundle fails.
func (e *Engine) bootstrap(ctx context.Context, in *instance) (*snapshot, error) {
	if _, err := in.call(ctx, fnInitialize); err != nil {
		return nil, err
	}
	// The module's own stack is 64 KiB, right above its constants. Ours is a block of its heap, with a guard.
	block, err := in.call(ctx, fnMalloc, stackSize)
	if err != nil || uint32(block) == 0 {
		return nil, errorOr(err, ErrMemory)
	}
	low := uint32(block)
	in.sp.Set(uint64((low + stackSize) &^ 15))
	in.stackLow.Set(uint64(low + redZone))
	in.stackSize.Set(stackSize - redZone)
	rt, err := in.call(ctx, fnNewRuntime)
	if err != nil || uint32(rt) == 0 {
		return nil, errorOr(err, ErrMemory)
	}
	if _, err := in.call(ctx, fnSetMemoryLimit, rt, uint64(e.limits.Memory)); err != nil {
		return nil, err
	}
	if err := setStackLimit(ctx, in, uint32(rt), low); err != nil {
		return nil, err
	}
	js, err := in.call(ctx, fnNewContext, rt)
	if err != nil || uint32(js) == 0 {
		return nil, errorOr(err, ErrMemory)
	}
	env := environment{runtime: uint32(rt), context: uint32(js)}
	if err := e.installPrelude(ctx, in, &env); err != nil {
		return nil, err
	}
	if _, err := in.call(ctx, fnRunGC, rt); err != nil {
		return nil, err
	}
	return in.takeSnapshot(env, maxMemory)
}

// Fields of JSRuntime in the pinned build, in bytes.
const (
	runtimeStackSize  = 120
	runtimeStackTop   = 124
	runtimeStackLimit = 128
)

// setStackLimit makes QuickJS throw a RangeError when the stack is nearly used up. Its checks are compiled in, but on
// WASI JS_SetMaxStackSize sets their limit to zero ("no limit"), so the host writes the field itself. The two fields
// before it show that the build is laid out as expected.
func setStackLimit(ctx context.Context, in *instance, rt, low uint32) error {
	if _, err := in.call(ctx, fnSetMaxStackSize, uint64(rt), jsStackSize); err != nil {
		return err
	}
	size, ok1 := in.mem.ReadUint32Le(rt + runtimeStackSize)
	top, ok2 := in.mem.ReadUint32Le(rt + runtimeStackTop)
	limit, ok3 := in.mem.ReadUint32Le(rt + runtimeStackLimit)
	if !ok1 || !ok2 || !ok3 || size != jsStackSize || top <= low || top > low+stackSize || limit != 0 {
		return fmt.Errorf("%w: the JavaScript engine's runtime is laid out differently", ErrConfig)
	}
	if !in.mem.WriteUint32Le(rt+runtimeStackLimit, low+stackSize-jsStackSize) {
		return ErrTrap
	}
	return nil
}

func (e *Engine) installPrelude(ctx context.Context, in *instance, env *environment) error {
	js := uint64(env.context)
	name, err := in.put(ctx, []byte("host"))
	if err != nil {
		return err
	}
	host, err := in.call(ctx, fnNewCFunction2, js, uint64(e.callSlot), uint64(name), 6, 0, 0)
	if err != nil {
		return err
	}
	f, err := in.eval(ctx, env, prelude, "prelude", evalGlobal)
	if err != nil {
		return err
	}
	api, err := in.callValue(ctx, env, f, host)
	if err != nil {
		return err
	}
	for key, v := range map[string]*value{
		"dispatch": &env.dispatch, "describe": &env.describe, "timers": &env.timers, "collect": &env.collect,
	} {
		p, err := in.put(ctx, []byte(key))
		if err != nil {
			return err
		}
		if *v, err = in.call(ctx, fnGetPropertyStr, js, api, uint64(p)); err != nil {
			return err
		}
		if tagOf(*v) != tagObject {
			return fmt.Errorf("engine: the prelude has no %s", key)
		}
	}
	return nil
}

func errorOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}
