package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testHost keeps a store in memory. It is used by one call at a time unless a test says otherwise.
type testHost struct {
	mu   sync.Mutex
	kv   map[string][]byte
	key  []byte
	now  time.Time
	fail error
}

func newHost() *testHost {
	return &testHost{kv: map[string][]byte{}, key: bytes.Repeat([]byte{7}, 32), now: time.Unix(1_800_000_000, 0)}
}

func (h *testHost) KVGet(_ context.Context, k string) ([]byte, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.kv[k]
	return v, ok, h.fail
}

func (h *testHost) KVPut(_ context.Context, k string, v []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail == nil {
		h.kv[k] = v
	}
	return h.fail
}

func (h *testHost) KVDelete(_ context.Context, k string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.kv, k)
	return h.fail
}

func (h *testHost) KVList(_ context.Context, prefix string, limit int) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var keys []string
	for k := range h.kv {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys[:min(limit, len(keys))], h.fail
}

func (h *testHost) ProjectKey(context.Context) ([]byte, error) { return bytes.Clone(h.key), h.fail }
func (h *testHost) Random(p []byte) error                      { _, err := rand.Read(p); return err }
func (h *testHost) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(time.Second)
	return h.now
}

// The deadline is far away, so that on a busy machine the limit under test is met first; TestDeadline has a near one.
var sharedEngine = sync.OnceValues(func() (*Engine, error) {
	return New(context.Background(), Config{Mode: Compiler, Limits: Limits{Memory: 32 << 20, Deadline: 30 * time.Second}, Concurrency: 8, Idle: 32})
})

// engineFor returns the engine that all tests share: compiling it takes most of a second.
func engineFor(t testing.TB) *Engine {
	t.Helper()
	e, err := sharedEngine()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func load(t testing.TB, code string) *Program {
	t.Helper()
	p, err := engineFor(t).Load(t.Context(), Bundle{Code: []byte(code)})
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	return p
}

func call(t testing.TB, p *Program, fn, args string, h Host) string {
	t.Helper()
	res, err := p.Call(t.Context(), fn, []byte(args), h)
	if err != nil {
		t.Fatalf("%s%s: %v %v", fn, args, err, res.Logs)
	}
	return string(res.Value)
}

func TestExportShapes(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		code, fn, args, want string
		exports              []string
	}{
		"async export":     {`export async function f(a, b) { await null; return a + b }`, "f", `[1, 2]`, "3", []string{"f"}},
		"sync export":      {`export const f = (a) => ({a})`, "f", `["x"]`, `{"a":"x"}`, []string{"f"}},
		"default object":   {`export default { f(x) { return this.n + x }, n: 4, g() {} }`, "f", `[1]`, "5", []string{"f", "g"}},
		"default function": {`export default async function (x) { return x }`, "default", `[[]]`, "[]", []string{"default"}},
		"top-level await":  {`const n = await Promise.resolve(7); export function f() { return n }`, "f", `[]`, "7", []string{"f"}},
		"plain global":     {`cclexports = { f: (x) => x }`, "f", `[null]`, "null", []string{"f"}},
		"var":              {`"use strict"; var cclexports = { async f() { return "é" } }`, "f", `[]`, `"é"`, []string{"f"}},
		"const":            {`const cclexports = { f: () => undefined }`, "f", `[]`, "null", []string{"f"}},
		"class instance":   {`class A { #n = 2; f() { return this.#n } } var cclexports = new A()`, "f", `[]`, "2", []string{"f"}},
		"webpack": {`var cclexports;(()=>{"use strict";var e={d:(t,r)=>{for(var n in r)Object.defineProperty(t,n,{enumerable:!0,get:r[n]})},
			r:e=>Object.defineProperty(e,"__esModule",{value:!0})},t={};e.r(t),e.d(t,{f:()=>n});async function n(x){return x*2}cclexports=t})();`,
			"f", `[21]`, "42", []string{"f"}},
		"odd names are left out": {`cclexports = { "a b": () => 1, f() { return 1 }, [Symbol.iterator]() {}, n: 1 }`, "f", `[]`, "1", []string{"f"}},
		"byte order and quotes":  {`export function f(s) { return [...s].length }`, "f", "[\"\\ud83d\\ude00\u2028\"]", "2", []string{"f"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := load(t, tc.code)
			if got := p.Exports(); !slices.Equal(got, tc.exports) {
				t.Errorf("exports %q, want %q", got, tc.exports)
			}
			if got := call(t, p, tc.fn, tc.args, newHost()); got != tc.want {
				t.Errorf("got %s, want %s", got, tc.want)
			}
		})
	}
}

// TestLoadErrors loads bundles that must not become programs, among them those that use what is off while loading.
func TestLoadErrors(t *testing.T) {
	t.Parallel()
	tail := "; export function f() {}"
	for name, tc := range map[string]struct {
		code string
		want error  // a sentinel, or
		text string // a part of a ScriptError
	}{
		"empty":              {code: "", want: ErrNoExports},
		"nothing exported":   {code: "function f() {}", want: ErrNoExports},
		"no functions":       {code: "cclexports = {a: 1}", want: ErrNoExports},
		"null":               {code: "cclexports = null", want: ErrNoExports},
		"too large":          {code: strings.Repeat(" ", 1<<20+1), want: ErrTooLarge},
		"not UTF-8":          {code: "cclexports = '\xff'", text: "UTF-8"},
		"syntax of a script": {code: "cclexports = {", text: "SyntaxError"},
		"syntax of a module": {code: "export function f( {", text: "SyntaxError"},
		"throws":             {code: "throw new RangeError('mine')" + tail, text: "RangeError: mine"},
		"throws null":        {code: "throw null" + tail, text: "null"},
		"rejects":            {code: "await Promise.reject(new Error('later'))" + tail, text: "later"},
		"never settles":      {code: "await new Promise(() => {})" + tail, want: ErrUnsettled},
		"loops":              {code: "for(;;);" + tail, want: ErrDeadline},
		"recurses":           {code: "(function r() { r() })()" + tail, want: ErrStack},
		"throwing getter":    {code: "cclexports = { get f() { throw new Error('getter') } }", text: "getter"},
		"throwing proxy":     {code: "cclexports = new Proxy({}, { ownKeys() { throw new Error('proxy') } })", text: "proxy"},
		"endless prototypes": {code: "cclexports = new Proxy({}, { getPrototypeOf() { return cclexports } })", want: ErrNoExports},
		"too many exports":   {code: "cclexports = {}; for (let i = 0; i < 300; i++) cclexports['f' + i] = () => i", text: "at most 256"},
		"imports os":         {code: "import * as os from 'qjs:os'" + tail, text: "could not load module"},
		"imports std":        {code: "import * as std from 'std'" + tail, text: "could not load module"},
		"imports a file":     {code: "import '/etc/passwd'" + tail, text: "could not load module"},
		"kv":                 {code: "await kv.get('a')" + tail, text: "host calls are off"},
		"project key":        {code: "crypto.getProjectKey()" + tail, text: "host calls are off"},
		"random values":      {code: "crypto.getRandomValues(new Uint8Array(1))" + tail, text: "host calls are off"},
		"Math.random":        {code: "Math.random()" + tail, text: "host calls are off"},
		"UUID":               {code: "crypto.randomUUID()" + tail, text: "host calls are off"},
		"digest":             {code: "await crypto.subtle.digest('SHA-256', new Uint8Array(1))" + tail, text: "host calls are off"},
		"timer":              {code: "setTimeout(() => {}, 1)" + tail, text: "host calls are off"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			defer cancel()
			p, err := engineFor(t).Load(ctx, Bundle{Code: []byte(tc.code)})
			if p != nil || err == nil {
				t.Fatal("loaded")
			}
			if tc.want != nil && !errors.Is(err, tc.want) {
				t.Errorf("got %v, want %v", err, tc.want)
			}
			if _, ok := errors.AsType[*ScriptError](err); tc.want == nil && (!ok || !strings.Contains(err.Error(), tc.text)) {
				t.Errorf("got %v, want a ScriptError with %q", err, tc.text)
			}
		})
	}
}

func TestScriptErrors(t *testing.T) {
	t.Parallel()
	p := load(t, `
		class Denied extends Error { get name() { return "Denied" } }
		export const f = {
			error() { throw new TypeError("bad \ud800 text") }, async rejected() { await null; throw new Denied("no") },
			string() { throw "just text" }, undef() { throw undefined }, symbol() { throw Symbol("s") }, fn() { throw () => 1 },
			object() { throw { code: 7 } }, big() { throw new Error("x".repeat(1e6)) }, cyclic() { const o = {}; o.o = o; return o },
			bigint() { return 1n }, late() { setTimeout(() => { throw new Error("late") }, 5); return new Promise(() => {}) },
			proxy() { throw new Proxy({}, { get() { throw 1 }, getPrototypeOf() { throw 2 } }) },
			hostile() { throw { toJSON() { throw 1 }, toString() { throw 2 } } },
			thenable() { return { then(_, no) { no(new Error("thenable")) } } },
		};
		export default f`)
	for fn, want := range map[string]ScriptError{
		"error": {Name: "TypeError", Message: "bad \uFFFD text"}, "rejected": {Name: "Denied", Message: "no"},
		"string": {Message: "just text"}, "undef": {Message: "undefined"}, "symbol": {Message: "Symbol(s)"},
		"fn": {Message: "[function]"}, "object": {Message: `{"code":7}`}, "big": {Name: "Error", Message: strings.Repeat("x", 2048)},
		"cyclic": {Name: "TypeError", Message: "circular reference"}, "bigint": {Name: "TypeError", Message: "BigInt are forbidden in JSON.stringify"},
		"late": {Name: "Error", Message: "late"}, "proxy": {Message: "[value that cannot be shown]"},
		"hostile": {Message: "[value that cannot be shown]"}, "thenable": {Name: "Error", Message: "thenable"},
	} {
		res, err := p.Call(t.Context(), fn, []byte("[]"), newHost())
		got, ok := errors.AsType[*ScriptError](err)
		if !ok || got.Name != want.Name || got.Message != want.Message || res.Value != nil {
			t.Errorf("%s: %v, want %+v", fn, err, want)
		}
		if fn == "error" && !strings.Contains(got.Stack, "bundle:") {
			t.Errorf("stack %q names no place", got.Stack)
		}
	}
}

func TestCallRefusals(t *testing.T) {
	t.Parallel()
	p := load(t, `export function f(x) { return x } export function big(n) { return "x".repeat(n) }
		export function pending() { return new Promise(() => {}) }`)
	nest := func(n int) string { return strings.Repeat("[", n) + strings.Repeat("]", n) }
	for name, tc := range map[string]struct {
		fn, args string
		want     error
	}{
		"unknown":         {"g", "[]", ErrNoFunction},
		"empty name":      {"", "[]", ErrNoFunction},
		"inherited name":  {"toString", "[]", ErrNoFunction},
		"prototype":       {"__proto__", "[]", ErrNoFunction},
		"no arguments":    {"f", "", ErrArguments},
		"not an array":    {"f", "{}", ErrArguments},
		"not JSON":        {"f", "[1,]", ErrArguments},
		"code":            {"f", "[1];f()", ErrArguments},
		"trailing":        {"f", "[] []", ErrArguments},
		"not UTF-8":       {"f", "[\"\xff\"]", ErrArguments},
		"nested too deep": {"f", nest(20_000), ErrArguments},
		"large":           {"f", `["` + strings.Repeat("x", 1<<20) + `"]`, ErrTooLarge},
		"3 MB of nesting": {"f", nest(1_500_000), ErrTooLarge},
		"response":        {"big", "[1048575]", ErrTooLarge},
		"never settles":   {"pending", "[]", ErrUnsettled},
	} {
		res, err := p.Call(t.Context(), tc.fn, []byte(tc.args), newHost())
		if !errors.Is(err, tc.want) || res.Value != nil {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	if got := call(t, p, "big", "[1048574]", newHost()); len(got) != 1<<20 {
		t.Errorf("a response of exactly the limit: %d bytes", len(got))
	}
	if _, err := p.Call(t.Context(), "f", []byte("[]"), nil); !errors.Is(err, ErrConfig) {
		t.Errorf("no host: %v", err)
	}
	if got := call(t, p, "f", nest(5_000), newHost()); len(got) != 2*4_999 {
		t.Errorf("arguments nested 5000 deep: %d bytes", len(got))
	}
}

func TestConfigRefusals(t *testing.T) {
	t.Parallel()
	for name, cfg := range map[string]Config{
		"zero":              {},
		"unknown mode":      {Mode: 3},
		"tiny memory":       {Mode: Compiler, Limits: Limits{Memory: pageSize}},
		"odd memory":        {Mode: Compiler, Limits: Limits{Memory: 64<<20 + 1}},
		"huge memory":       {Mode: Compiler, Limits: Limits{Memory: 2 << 30}},
		"negative code":     {Mode: Compiler, Limits: Limits{Code: -1}},
		"long deadline":     {Mode: Compiler, Limits: Limits{Deadline: 2 * time.Hour}},
		"negative deadline": {Mode: Compiler, Limits: Limits{LoadDeadline: -1}},
		"concurrency":       {Mode: Compiler, Concurrency: -1},
		"idle":              {Mode: Compiler, Idle: -1},
	} {
		if e, err := New(t.Context(), cfg); e != nil || !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestProgramLimits gives a program less than the engine has, and tries to give it more.
func TestProgramLimits(t *testing.T) {
	t.Parallel()
	e := engineFor(t)
	code := []byte(`export default { f: () => "12345678", loop() { for (;;); }, async kv() { for (;;) await kv.get("a") },
		fits() { const a = []; try { for (;;) a.push(new ArrayBuffer(1 << 20)) } catch { return a.length } } }`)
	p, err := e.Load(t.Context(), Bundle{Code: code, Limits: Limits{Memory: 8 << 20, Deadline: 50 * time.Millisecond, Response: 9, Request: 4, HostCalls: 3}})
	if err != nil {
		t.Fatal(err)
	}
	if l := p.Limits(); l.Memory != 8<<20 || l.LogLines != e.Limits().LogLines {
		t.Errorf("%+v", l)
	}
	for fn, want := range map[string]error{"f": ErrTooLarge, "loop": ErrDeadline} {
		if res, err := p.Call(t.Context(), fn, []byte("[]"), newHost()); !errors.Is(err, want) {
			t.Errorf("%s: %s %v, want %v", fn, res.Value, err, want)
		}
	}
	if _, err := p.Call(t.Context(), "f", []byte("[1,2]"), newHost()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("request: %v", err)
	}
	if res, err := p.Call(t.Context(), "kv", []byte("[]"), newHost()); err == nil || res.Usage.HostCalls != 3 {
		t.Errorf("kv: %v, %d calls", err, res.Usage.HostCalls)
	}
	if got := call(t, p, "fits", "[]", newHost()); got != "5" && got != "6" {
		t.Errorf("%s MiB fit into 8", got)
	}
	for _, l := range []Limits{{Memory: 64 << 20}, {Deadline: time.Minute}, {Response: 2 << 20}, {LogBytes: -1}, {Memory: pageSize}} {
		if p, err := e.Load(t.Context(), Bundle{Code: code, Limits: l}); p != nil || !errors.Is(err, ErrConfig) {
			t.Errorf("%+v: %v", l, err)
		}
	}
}

// TestInterpreter runs the same code without a compiler, in a small memory, and closes the engine afterwards.
func TestInterpreter(t *testing.T) {
	t.Parallel()
	e, err := New(t.Context(), Config{Mode: Interpreter, Limits: Limits{Memory: 8 << 20, Deadline: time.Minute}, Concurrency: 1})
	if err != nil {
		t.Fatal(err)
	}
	bundle := Bundle{Code: []byte(`export default { async add(a, b) { return a + b }, loop() { for(;;); }, async signal() { await kv.put("a", ""); for (;;); },
		deep() { return (function r() { r() })() }, grow() { const a = []; for (;;) a.push(new ArrayBuffer(1 << 16)) } }`)}
	p, err := e.Load(t.Context(), bundle)
	if err != nil {
		t.Fatal(err)
	}
	bundle.Limits.Deadline = 300 * time.Millisecond
	hasty, err := e.Load(t.Context(), bundle)
	if err != nil {
		t.Fatal(err)
	}
	if got := call(t, p, "add", "[1,2]", newHost()); got != "3" {
		t.Error(got)
	}
	for fn, want := range map[string]error{"deep": ErrStack, "grow": ErrMemory} {
		if _, err := p.Call(t.Context(), fn, []byte("[]"), newHost()); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", fn, err, want)
		}
	}
	if _, err := hasty.Call(t.Context(), "loop", []byte("[]"), newHost()); !errors.Is(err, ErrDeadline) {
		t.Errorf("loop: %v, want ErrDeadline", err)
	}
	if got := call(t, p, "add", "[1,2]", newHost()); got != "3" {
		t.Error(got)
	}
	running := make(chan error, 1)
	started := &signalHost{testHost: newHost(), signal: make(chan struct{})}
	go func() {
		_, err := p.Call(context.Background(), "signal", []byte("[]"), started)
		running <- err
	}()
	select {
	case <-started.signal:
	case err := <-running: // waiting for a call that has ended would be for ever
		t.Fatalf("the call ended before it reached its host: %v", err)
	}
	for range 2 {
		if err := e.Close(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if err := <-running; !errors.Is(err, ErrClosed) {
		t.Errorf("a call during Close: %v", err)
	}
	if _, err := p.Call(t.Context(), "add", []byte("[1,2]"), newHost()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := e.Load(t.Context(), Bundle{Code: []byte("export const f = () => 1")}); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// signalHost says when a script has called it.
type signalHost struct {
	*testHost
	signal chan struct{}
}

func (h *signalHost) KVPut(context.Context, string, []byte) error { close(h.signal); return nil }
