package engine

import (
	"errors"
	"strings"
	"testing"
	"time"
)

// TestWASI drives the C library below JavaScript: there is no file to open, and what it prints goes to the call's log.
func TestWASI(t *testing.T) {
	t.Parallel()
	e := engineFor(t)
	in, err := e.newInstance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer in.close(t.Context())
	if err := in.restore(e.base); err != nil {
		t.Fatal(err)
	}
	st, ctx, cancel := newState(t.Context(), in, newHost(), &e.limits, time.Minute)
	defer cancel()
	env := e.base.env

	for _, name := range []string{"/etc/passwd", "bundle", ".", "/dev/stdin"} {
		path, err := in.put(ctx, []byte(name))
		if err != nil {
			t.Fatal(err)
		}
		res, err := in.mod.ExportedFunction("js_load_file").Call(ctx, uint64(env.context), 0, uint64(path))
		if err != nil || res[0] != 0 {
			t.Errorf("%s was opened: %v %v", name, res, err)
		}
	}
	if _, err := in.eval(ctx, &env, []byte("throw new Error('to stderr')"), "x", evalGlobal); !errors.Is(err, errException) {
		t.Fatal(err)
	}
	if _, err := in.mod.ExportedFunction("js_std_dump_error").Call(ctx, uint64(env.context)); err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	for _, l := range st.logs.lines {
		if l.Level != "engine" {
			t.Errorf("level %q", l.Level)
		}
		text.WriteString(l.Text)
	}
	if !strings.Contains(text.String(), "to stderr") {
		t.Errorf("log %q", text.String())
	}
	if _, err := in.mod.ExportedFunction("JS_SetMaxStackSize").Call(ctx, uint64(env.runtime), 1<<30); err != nil {
		t.Fatal(err)
	}
	// Without QuickJS's own check the guard stops the recursion.
	if _, err := in.eval(ctx, &env, []byte("(function f() { f() })()"), "x", evalGlobal); !errors.Is(st.failure(err), ErrStack) || st.stop == nil {
		t.Errorf("%v", err)
	}
}
