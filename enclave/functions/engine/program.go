package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
	"unicode/utf8"
)

// Bundle is the code of one deployment: one source text, an ES module or a script that assigns the global cclexports.
type Bundle struct {
	Code []byte // UTF-8
	// Limits of this program: a zero field takes the engine's, and none may exceed it. Code has no effect.
	Limits Limits
}

// Program is a bundle that was evaluated once: a snapshot from which every call starts. It is safe for concurrent use.
type Program struct {
	engine  *Engine
	snap    *snapshot
	limits  Limits
	exports []string
	logs    []LogLine
}

var exportName = regexp.MustCompile(`^[A-Za-z_$][A-Za-z0-9_$]{0,127}$`)

// moduleSyntax finds text that only a module can have; it chooses between two error messages, nothing else.
var moduleSyntax = regexp.MustCompile(`(?m)^\s*(export|import)\b`)

// Load evaluates a bundle with host calls off: kv, crypto keys, timers and every source of randomness throw, and the
// clock stands at the epoch, so the snapshot holds nothing that a later call must not share. Its errors are those of
// Call and ErrNoExports.
func (e *Engine) Load(ctx context.Context, b Bundle) (*Program, error) {
	if len(b.Code) > e.limits.Code {
		return nil, fmt.Errorf("%w: the bundle has %d bytes, limit %d", ErrTooLarge, len(b.Code), e.limits.Code)
	}
	if !utf8.Valid(b.Code) {
		return nil, &ScriptError{Name: "SyntaxError", Message: "the bundle is not valid UTF-8"}
	}
	limits, err := b.Limits.within(e.limits)
	if err != nil {
		return nil, err
	}
	if err := e.acquire(ctx); err != nil {
		return nil, err
	}
	defer e.release()
	in, err := e.newInstance(ctx)
	if err != nil {
		return nil, err
	}
	defer in.close(ctx)
	if err := in.restore(e.base); err != nil {
		return nil, err
	}
	in.maxPages.Set(uint64(limits.Memory / pageSize))
	st, ctx, cancel := newState(ctx, in, nil, &limits, limits.LoadDeadline)
	defer cancel()
	p, err := e.evaluate(ctx, st, b)
	if err != nil {
		env := e.base.env
		return nil, st.explain(ctx, &env, err)
	}
	return p, nil
}

func (e *Engine) evaluate(ctx context.Context, st *state, b Bundle) (*Program, error) {
	env := e.base.env
	if _, err := st.in.call(ctx, fnSetMemoryLimit, uint64(env.runtime), uint64(st.limits.Memory)); err != nil {
		return nil, err
	}
	exports, err := st.run(ctx, &env, b.Code)
	if err != nil {
		return nil, err
	}
	list, err := st.in.callValue(ctx, &env, env.collect, exports)
	if err != nil {
		return nil, err
	}
	text, err := st.in.text(ctx, &env, list, 1<<20)
	if err != nil {
		return nil, err
	}
	var names []string
	if err := json.Unmarshal(text, &names); err != nil {
		return nil, ErrTrap
	}
	names = slices.DeleteFunc(names, func(n string) bool { return !exportName.MatchString(n) })
	slices.Sort(names)
	if len(names) == 0 {
		return nil, ErrNoExports
	}
	if len(names) > maxExports { // the prelude counts too, inside the sandbox
		return nil, fmt.Errorf("%w: %d exports, limit %d", ErrTooLarge, len(names), maxExports)
	}
	// What the bundle left to run later runs now, so that calls do not repeat it.
	for {
		if ran, err := st.step(ctx, &env); err != nil || !ran {
			if err != nil {
				return nil, err
			}
			break
		}
	}
	if _, err := st.in.call(ctx, fnRunGC, uint64(env.runtime)); err != nil {
		return nil, err
	}
	snap, err := st.in.takeSnapshot(env, st.limits.Snapshot)
	if err != nil {
		return nil, err
	}
	return &Program{engine: e, snap: snap, limits: *st.limits, exports: names, logs: st.logs.lines}, nil
}

// run evaluates the source text as a script or, when it does not parse as one, as a module, and returns the object that
// holds the exports.
func (st *state) run(ctx context.Context, env *environment, code []byte) (value, error) {
	f, err := st.in.eval(ctx, env, code, "bundle", evalGlobal|evalCompileOnly)
	if errors.Is(err, errException) {
		return st.runModule(ctx, env, code)
	}
	if err != nil {
		return 0, err
	}
	if _, err := st.evalFunction(ctx, env, f); err != nil {
		return 0, err
	}
	// In the global scope, so that var, let, const and plain assignment are all found.
	return st.in.eval(ctx, env, []byte("typeof cclexports === 'undefined' ? undefined : cclexports"), "exports", evalGlobal)
}

func (st *state) runModule(ctx context.Context, env *environment, code []byte) (value, error) {
	scriptErr, err := st.in.call(ctx, fnGetException, uint64(env.context))
	if err != nil {
		return 0, err
	}
	m, err := st.in.eval(ctx, env, code, "bundle", evalModule|evalCompileOnly)
	if errors.Is(err, errException) && !moduleSyntax.Match(code) {
		return 0, st.thrown(ctx, env, scriptErr)
	}
	if err != nil {
		return 0, err
	}
	if tagOf(m) != tagModule {
		return 0, ErrTrap
	}
	promise, err := st.evalFunction(ctx, env, m)
	if err != nil {
		return 0, err
	}
	if _, err := st.settle(ctx, env, promise); err != nil {
		return 0, err
	}
	return st.in.call(ctx, fnModuleNamespace, uint64(env.context), uint64(uint32(m)))
}

func (st *state) evalFunction(ctx context.Context, env *environment, f value) (value, error) {
	v, err := st.in.call(ctx, fnEvalFunction, uint64(env.context), f)
	if err == nil && tagOf(v) == tagException {
		err = errException
	}
	return v, err
}

// Exports returns the names that Call accepts, sorted.
func (p *Program) Exports() []string { return slices.Clone(p.exports) }

// Logs returns what the bundle logged while it was evaluated.
func (p *Program) Logs() []LogLine { return slices.Clone(p.logs) }

// Size is the number of bytes that the program's snapshot occupies.
func (p *Program) Size() int { return p.snap.size() }

// Limits returns the limits of the program's calls.
func (p *Program) Limits() Limits { return p.limits }

// Close gives up the program's idle instances. Calls still running finish, and later ones work, only slower.
func (p *Program) Close(ctx context.Context) { p.engine.pool.drop(ctx, p) }

// Call runs one exported function on a fresh copy of the snapshot and returns its result as JSON (undefined becomes
// null). args is a JSON array. Host errors, limits and exceptions are typed; Result holds logs and usage in any case.
func (p *Program) Call(ctx context.Context, function string, args []byte, host Host) (Result, error) {
	if err := p.checkCall(function, args, host); err != nil {
		return Result{}, err
	}
	if err := p.engine.acquire(ctx); err != nil {
		return Result{}, err
	}
	defer p.engine.release()
	in, err := p.take(ctx)
	if err != nil {
		return Result{}, err
	}
	start := time.Now()
	st, runCtx, cancel := newState(ctx, in, host, &p.limits, p.limits.Deadline)
	defer cancel()
	out, err := st.call(runCtx, p.snap.env, function, args)
	res := Result{Value: out, Logs: st.logs.lines, LogsTruncated: st.logs.truncated, Usage: st.usage(start)}
	if err != nil {
		in.close(ctx)
		return res, err
	}
	p.keep(ctx, in, st.fuelUsed() > shallow)
	return res, nil
}

func (p *Program) checkCall(function string, args []byte, host Host) error {
	if host == nil {
		return fmt.Errorf("%w: no host", ErrConfig)
	}
	if _, ok := slices.BinarySearch(p.exports, function); !ok {
		return ErrNoFunction
	}
	if len(args) > p.limits.Request {
		return fmt.Errorf("%w: the arguments have %d bytes, limit %d", ErrTooLarge, len(args), p.limits.Request)
	}
	if len(args) < 2 || args[0] != '[' || !json.Valid(args) || !utf8.Valid(args) {
		return ErrArguments
	}
	return nil
}

// call enters the prelude's dispatch and waits for its promise.
func (st *state) call(ctx context.Context, env environment, function string, args []byte) ([]byte, error) {
	v, err := st.invoke(ctx, &env, function, args)
	if err != nil {
		return nil, st.explain(ctx, &env, err)
	}
	out, err := st.in.text(ctx, &env, v, st.limits.Response)
	if err != nil {
		return nil, st.explain(ctx, &env, err)
	}
	return out, nil
}

func (st *state) invoke(ctx context.Context, env *environment, function string, args []byte) (value, error) {
	name, err := st.in.newString(ctx, env, []byte(function))
	if err != nil {
		return 0, err
	}
	text, err := st.in.newString(ctx, env, args)
	if err != nil {
		return 0, err
	}
	promise, err := st.in.callValue(ctx, env, env.dispatch, name, text)
	if err != nil {
		return 0, err
	}
	return st.settle(ctx, env, promise)
}

// maxSlack is how much larger than the snapshot a kept instance may be: more would cost every later call the clearing.
const maxSlack = 2 << 20

// take returns an instance equal to the snapshot. Idle ones already are.
func (p *Program) take(ctx context.Context) (*instance, error) {
	if in := p.engine.pool.take(p); in != nil {
		return in, nil
	}
	in, err := p.engine.newInstance(ctx)
	if err != nil {
		return nil, err
	}
	if err := in.restore(p.snap); err != nil {
		in.close(ctx)
		return nil, err
	}
	return in, nil
}

// keep recycles an instance after a clean call, or ends it. Either way nothing of the call is left in memory. A call may
// have been deep on the native stacks.
func (p *Program) keep(ctx context.Context, in *instance, deep bool) {
	if in.mem.Size() <= p.snap.pages*pageSize+maxSlack && !p.engine.closing() && in.restore(p.snap) == nil {
		if deep {
			in.shedStacks()
		}
		p.engine.pool.put(ctx, p, in)
		return
	}
	in.close(ctx)
}
