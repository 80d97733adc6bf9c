package engine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
)

// Flags of JS_Eval (quickjs.h).
const (
	evalGlobal      = 0
	evalModule      = 1
	evalCompileOnly = 1 << 5
)

// States of a promise (JSPromiseStateEnum).
const (
	promisePending   = 0
	promiseFulfilled = 1
	promiseRejected  = 2
)

// errException says that a JavaScript exception is pending in the context.
var errException = errors.New("engine: exception pending")

// eval evaluates source text in the global scope. The caller owns the value; errException leaves the exception pending.
func (in *instance) eval(ctx context.Context, env *environment, code []byte, name string, flags int) (value, error) {
	src, err := in.put(ctx, code)
	if err != nil {
		return 0, err
	}
	file, err := in.put(ctx, []byte(name))
	if err != nil {
		return 0, err
	}
	if src == 0 || file == 0 {
		return 0, ErrMemory
	}
	v, err := in.call(ctx, fnEval, uint64(env.context), uint64(src), uint64(len(code)), uint64(file), uint64(flags))
	if err != nil {
		return 0, err
	}
	for _, p := range []uint32{src, file} {
		if _, err := in.call(ctx, fnFree, uint64(p)); err != nil {
			return 0, err
		}
	}
	if tagOf(v) == tagException {
		return 0, errException
	}
	return v, nil
}

// callValue calls a function value with this undefined.
func (in *instance) callValue(ctx context.Context, env *environment, f value, args ...value) (value, error) {
	p, err := in.call(ctx, fnMalloc, uint64(8*len(args)+8))
	if err != nil {
		return 0, err
	}
	if uint32(p) == 0 {
		return 0, ErrMemory
	}
	for i, a := range args {
		in.mem.WriteUint64Le(uint32(p)+8*uint32(i), a)
	}
	v, err := in.call(ctx, fnCall, uint64(env.context), f, jsUndefined, uint64(len(args)), p)
	if err != nil {
		return 0, err
	}
	if _, err := in.call(ctx, fnFree, p); err != nil {
		return 0, err
	}
	if tagOf(v) == tagException {
		return 0, errException
	}
	return v, nil
}

// newString makes a string value of valid UTF-8.
func (in *instance) newString(ctx context.Context, env *environment, s []byte) (value, error) {
	p, err := in.put(ctx, s)
	if err != nil {
		return 0, err
	}
	if p == 0 {
		return 0, ErrMemory
	}
	v, err := in.call(ctx, fnNewStringLen, uint64(env.context), uint64(p), uint64(len(s)))
	if err != nil {
		return 0, err
	}
	if _, err := in.call(ctx, fnFree, uint64(p)); err != nil {
		return 0, err
	}
	if tagOf(v) == tagException {
		return 0, errException
	}
	return v, nil
}

// text copies a string value of at most max bytes out of the instance.
func (in *instance) text(ctx context.Context, env *environment, v value, max int) ([]byte, error) {
	if t := tagOf(v); t != tagString && t != tagStringRope {
		return nil, ErrTrap // the prelude's own functions return strings
	}
	lenPtr, err := in.call(ctx, fnMalloc, 8)
	if err != nil {
		return nil, err
	}
	if uint32(lenPtr) == 0 {
		return nil, ErrMemory
	}
	p, err := in.call(ctx, fnToCStringLen2, uint64(env.context), lenPtr, v, 0)
	if err != nil {
		return nil, err
	}
	if uint32(p) == 0 {
		return nil, errException
	}
	n, ok := in.mem.ReadUint32Le(uint32(lenPtr))
	if !ok {
		return nil, ErrTrap
	}
	if uint64(n) > uint64(max) {
		return nil, fmt.Errorf("%w: the result has %d bytes, limit %d", ErrTooLarge, n, max)
	}
	b, ok := in.mem.Read(uint32(p), n)
	if !ok {
		return nil, ErrTrap
	}
	return append([]byte(nil), b...), nil
}

// settle runs pending jobs, then timers, until the promise is settled, and returns its result. A rejection is a
// *ScriptError; a promise that nothing is left to settle is ErrUnsettled.
func (st *state) settle(ctx context.Context, env *environment, promise value) (value, error) {
	for {
		status, err := st.in.call(ctx, fnPromiseState, uint64(env.context), promise)
		if err != nil {
			return 0, err
		}
		switch int32(status) {
		case promiseFulfilled, promiseRejected:
			v, err := st.in.call(ctx, fnPromiseResult, uint64(env.context), promise)
			if err != nil {
				return 0, err
			}
			if int32(status) == promiseRejected {
				return 0, st.thrown(ctx, env, v)
			}
			return v, nil
		case promisePending:
		default:
			return 0, ErrTrap
		}
		ran, err := st.step(ctx, env)
		if err != nil {
			return 0, err
		}
		if !ran {
			return 0, ErrUnsettled
		}
	}
}

// step runs one pending job or, without any, the next timer; false means that there was neither.
func (st *state) step(ctx context.Context, env *environment) (bool, error) {
	out, err := st.in.call(ctx, fnMalloc, 8)
	if err != nil {
		return false, err
	}
	if uint32(out) == 0 {
		return false, ErrMemory
	}
	n, err := st.in.call(ctx, fnExecutePendingJob, uint64(env.runtime), out)
	if err != nil {
		return false, err
	}
	if _, err := st.in.call(ctx, fnFree, out); err != nil {
		return false, err
	}
	switch {
	case int32(n) > 0:
		return true, nil
	case int32(n) < 0:
		return false, errException
	}
	v, err := st.in.callValue(ctx, env, env.timers)
	if err != nil {
		return false, err
	}
	return v == value(tagBool)<<32|1, nil
}

// explain turns what ended a script into the error for the caller.
func (st *state) explain(ctx context.Context, env *environment, err error) error {
	if !errors.Is(err, errException) {
		return st.failure(err)
	}
	v, err := st.in.call(ctx, fnGetException, uint64(env.context))
	if err != nil {
		return st.failure(err)
	}
	return st.failure(st.thrown(ctx, env, v))
}

// thrown describes a thrown value. Describing may run the script's code (a getter, a proxy), under the same limits.
func (st *state) thrown(ctx context.Context, env *environment, v value) error {
	if tagOf(v) == tagNull && st.in.denied.Get() != 0 {
		return ErrMemory // QuickJS throws null when it cannot even allocate the exception
	}
	d, err := st.in.callValue(ctx, env, env.describe, v)
	if err == nil {
		var b []byte
		if b, err = st.in.text(ctx, env, d, 64<<10); err == nil {
			return st.scriptError(b)
		}
	}
	if err = st.failure(err); errors.Is(err, errException) {
		// Even the description threw: memory or stack is used up to the last.
		if st.in.denied.Get() != 0 {
			return ErrMemory
		}
		return &ScriptError{Message: "a value that cannot be described", cause: st.hostCause()}
	}
	return err
}

func (st *state) scriptError(description []byte) error {
	var d struct{ Name, Message, Stack string }
	if err := json.Unmarshal(description, &d); err != nil {
		return ErrTrap
	}
	e := &ScriptError{
		Name:    clip(d.Name, maxErrorName),
		Message: clip(d.Message, maxErrorMessage),
		Stack:   clip(strings.TrimRight(d.Stack, "\n"), maxErrorStack),
		cause:   st.hostCause(),
	}
	// The engine's own exceptions for its limits. A script can throw the same and be told the same.
	switch {
	case e.Name == "InternalError" && e.Message == "out of memory":
		e.cause = ErrMemory
	case e.Name == "RangeError" && e.Message == "Maximum call stack size exceeded",
		e.Name == "SyntaxError" && e.Message == "stack overflow": // of a regular expression
		e.cause = ErrStack
	}
	return e
}

func (st *state) hostCause() error {
	if st.hostErr == nil {
		return nil
	}
	return fmt.Errorf("%w: %w", ErrHost, st.hostErr)
}

// failure replaces what wazero reports with the reason that halted the instance, or ErrTrap.
func (st *state) failure(err error) error {
	if st.stop != nil {
		return st.stop
	}
	var script *ScriptError
	for _, known := range []error{ErrMemory, ErrStack, ErrDeadline, ErrUnsettled, ErrTooLarge, ErrSnapshot, ErrTrap, ErrNoExports, errException} {
		if errors.Is(err, known) {
			return err
		}
	}
	if errors.As(err, &script) {
		return err
	}
	if st.in.denied.Get() != 0 {
		return ErrMemory // the engine does not survive every failed allocation
	}
	return ErrTrap
}
