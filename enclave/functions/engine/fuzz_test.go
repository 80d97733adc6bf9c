package engine

import (
	"context"
	"encoding/json"
	"errors"
	"testing"
	"time"
)

// known reports whether err is one of the package's own errors.
func known(err error) bool {
	for _, e := range []error{ErrDeadline, ErrMemory, ErrStack, ErrNoExports, ErrNoFunction, ErrArguments, ErrTooLarge, ErrUnsettled, ErrTrap} {
		if errors.Is(err, e) {
			return true
		}
	}
	_, ok := errors.AsType[*ScriptError](err)
	return ok
}

// FuzzLoad gives the engine arbitrary bundles: a typed error or a program whose functions can be called, and the engine
// serves on.
func FuzzLoad(f *testing.F) {
	for _, s := range []string{echo, fib, "cclexports = {f: x => x}", "export default class { f() {} }", "await 1; export const f = async function* () {}",
		"`${`", "export function f() { return /(?<a>x)\\1/.exec('xx') }", "\x00", "#!/bin/sh", "<!-- -->"} {
		f.Add([]byte(s), []byte(`[1]`))
	}
	e := engineFor(f)
	good := load(f, echo)
	f.Fuzz(func(t *testing.T, code, args []byte) {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		p, err := e.Load(ctx, Bundle{Code: code})
		if (p == nil) == (err == nil) || err != nil && !known(err) {
			t.Fatalf("%v, %v", p, err)
		}
		if p != nil {
			for _, fn := range p.Exports() {
				res, err := p.Call(ctx, fn, args, newHost())
				if (res.Value == nil) == (err == nil) || err != nil && !known(err) || err == nil && !json.Valid(res.Value) {
					t.Errorf("%s: %q, %v", fn, res.Value, err)
				}
			}
			p.Close(t.Context())
		}
		if got := call(t, good, "echo", `["ok"]`, newHost()); got != `"ok"` {
			t.Error(got)
		}
	})
}
