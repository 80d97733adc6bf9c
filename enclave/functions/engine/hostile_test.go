package engine

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// TestHostileFunctions runs what a tenant may do to get out, stay in or starve the others. Each must end with its typed
// error (or, where the language allows it, a value), and afterwards the same program must serve a good call.
func TestHostileFunctions(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		body string
		want error  // nil: the call succeeds
		val  string // with this result, unless empty
	}{
		// Time.
		"loop":               {body: `for (;;) {}`, want: ErrDeadline},
		"await loop":         {body: `for (;;) await null`, want: ErrDeadline},
		"microtask loop":     {body: `queueMicrotask(function f() { queueMicrotask(f) }); await new Promise(() => {})`, want: ErrDeadline},
		"timer loop":         {body: `(function f() { setTimeout(f, 1) })(); await new Promise(() => {})`, want: ErrDeadline},
		"native loop":        {body: `[3, 1, 2].sort(() => { for (;;); })`, want: ErrDeadline},
		"long native loop":   {body: `return new Array(2 ** 32 - 1).join("x")`, want: ErrDeadline},
		"regular expression": {body: `return /^(a+)+$/.test("a".repeat(40) + "b")`, want: ErrDeadline},
		"regexp star nest":   {body: `return /(?:(?:(?:a*)*)*)*b/.test("a".repeat(100000))`, want: ErrDeadline},
		"loop while thrown":  {body: `throw { toJSON() { for (;;); } }`, want: ErrDeadline},
		"loop in toJSON":     {body: `return { toJSON() { for (;;); } }`, want: ErrDeadline},
		"loop in then":       {body: `return { then() { for (;;); } }`, want: ErrDeadline},
		"catch for ever":     {body: `for (;;) try { await kv.get("") } catch {}`, want: ErrDeadline},
		"log for ever":       {body: `for (;;) console.log("x")`, want: ErrDeadline},
		// Memory.
		"objects":         {body: `const a = []; for (;;) a.push({})`, want: ErrMemory},
		"array buffers":   {body: `const a = []; for (;;) a.push(new ArrayBuffer(1 << 20))`, want: ErrMemory},
		"strings":         {body: `const a = []; let s = "x".repeat(1 << 16); for (;;) a.push(s = s + "y")+a.push(encodeURI(s))`, want: ErrMemory},
		"one array":       {body: `new Uint8Array(1e9)`, want: ErrMemory},
		"one string":      {body: `return "a".repeat(2 ** 30 - 1)`, want: ErrMemory},
		"spread":          {body: `return [..."a".repeat(1e7)].length`, want: ErrMemory},
		"set":             {body: `const s = new Set(); for (;;) s.add({})`, want: ErrMemory},
		"closures":        {body: `let f = () => 1; for (;;) { const g = f; f = () => g }`, want: ErrMemory},
		"survived":        {body: `const a = []; try { for (;;) a.push(new ArrayBuffer(1 << 16)) } catch (e) { a.length = 0; return e.message }`, val: `"out of memory"`},
		"jobs":            {body: `for (;;) Promise.resolve().then(() => {})`, want: ErrDeadline},
		"big integer":     {body: `return 2n ** (2n ** 40n)`, want: nil, val: "RangeError"},
		"compiler memory": {body: `return eval("1" + "+1".repeat(1e6))`, want: ErrMemory},
		// Stack.
		"recursion":       {body: `(function f() { f() })()`, want: ErrStack},
		"async recursion": {body: `await (async function f() { await f() })()`, want: ErrStack},
		"getter":          {body: `const o = { get a() { return this.a } }; return o.a`, want: ErrStack},
		"proxy":           {body: `const p = new Proxy({}, { get(t, k, r) { return r[k] } }); return p.x`, want: ErrStack},
		"proxy chain":     {body: `let p = {}; for (let i = 0; i < 1e5; i++) p = new Proxy(p, {}); return p.x`, want: ErrStack},
		"bound chain":     {body: `let f = () => 1; for (let i = 0; i < 3e4; i++) f = f.bind(null); return f()`, want: ErrMemory},
		"toJSON":          {body: `const o = { toJSON() { return JSON.stringify(o) } }; return o`, want: ErrStack},
		"toString":        {body: `const o = { toString() { return "" + this } }; return "" + o`, want: ErrStack},
		"replace":         {body: `return "abc".replace(/./g, function f() { return "abc".replace(/./g, f) })`, want: ErrStack},
		"huge frame":      {body: `let s = ""; for (let i = 0; i < 60000; i++) s += "var v" + i + "=0;"; new Function(s)()`, val: "null"},
		"huge frames":     {body: `let s = ""; for (let i = 0; i < 60000; i++) s += "var v" + i + "=0;"; const f = new Function("g", s + "g(g)"); f(f)`, want: ErrStack},
		"array in itself": {body: `const a = []; a[0] = a; a.flat(Infinity)`, want: ErrStack},
		"deep array":      {body: `let o = []; for (let i = 0; i < 1e5; i++) o = [o]; return String(o)`, want: ErrStack},
		"deep result":     {body: `let o = []; for (let i = 0; i < 1e5; i++) o = [o]; return o`, want: ErrDeadline},
		"deep clone":      {body: `let o = null; for (let i = 0; i < 1e5; i++) o = { o }; structuredClone(o)`, want: ErrStack},
		"deep free":       {body: `let o = null; for (let i = 0; i < 2e5; i++) o = { o }; o = null; return "freed"`, val: `"freed"`},
		"caught":          {body: `return (function f(n) { try { return f(n + 1) } catch { return n > 500 } })(0)`, val: `true`},
		// Parsers: a 3 MB nest of brackets, made inside, since one from outside is over the request limit.
		"JSON nest":      {body: `return JSON.parse("[".repeat(3e6))`, want: ErrStack},
		"JSON objects":   {body: `return JSON.parse('{"a":'.repeat(6e5))`, want: ErrStack},
		"eval nest":      {body: `return eval("[".repeat(3e6))`, want: ErrStack},
		"closed nest":    {body: `return eval("[".repeat(15e5) + "]".repeat(15e5))`, want: ErrStack},
		"function nest":  {body: `return new Function("[".repeat(3e6))`, want: ErrStack},
		"parentheses":    {body: `return eval("(".repeat(3e6))`, want: ErrStack},
		"blocks":         {body: `return eval("{".repeat(3e6))`, want: ErrStack},
		"unary":          {body: `return eval("!".repeat(3e6) + "1")`, want: ErrStack},
		"arrows":         {body: `return eval("a=>".repeat(1e6) + "1")`, want: ErrStack},
		"templates":      {body: "return eval('`${'.repeat(1e6))", want: ErrStack},
		"regexp nest":    {body: `return new RegExp("(?:".repeat(5e4) + ")".repeat(5e4))`, want: ErrStack},
		"regexp classes": {body: `return new RegExp("[".repeat(3e6), "v")`, want: nil, val: "SyntaxError|RangeError|stack"},
		// What is not there.
		"import os":       {body: `await import("qjs:os")`, val: "ReferenceError"},
		"import std":      {body: `await import("qjs:std")`, val: "ReferenceError"},
		"import bjson":    {body: `await import("qjs:bjson")`, val: "ReferenceError"},
		"import data":     {body: `await import("data:text/javascript,1")`, val: "ReferenceError"},
		"shared memory":   {body: `return [typeof Atomics, typeof Worker, typeof std, typeof os, typeof WebAssembly, typeof require, typeof process]`, val: `["undefined","undefined","undefined","undefined","undefined","undefined","undefined"]`},
		"print and files": {body: `return [typeof print, typeof scriptArgs, typeof load, typeof fetch]`, val: `["undefined","undefined","undefined","undefined"]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := load(t, "export async function f() {"+tc.body+"\n} export function good(x) { return x + 1 }")
			limit := 30 * time.Second
			if errors.Is(tc.want, ErrDeadline) {
				limit = 100 * time.Millisecond // the caller's deadline; TestDeadline has the engine's own
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			res, err := p.Call(ctx, "f", []byte("[]"), newHost())
			checkHostile(t, res, err, tc.want, tc.val)
			if got := call(t, p, "good", "[41]", newHost()); got != "42" {
				t.Errorf("afterwards: %s", got)
			}
			if res.Usage.Memory > 64<<20 || len(res.Logs) > 256 {
				t.Errorf("usage %+v, %d lines", res.Usage, len(res.Logs))
			}
		})
	}
}

func checkHostile(t *testing.T, res Result, err, want error, val string) {
	t.Helper()
	switch {
	case want != nil:
		if !errors.Is(err, want) || res.Value != nil {
			t.Errorf("got %v, want %v", err, want)
		}
	case err != nil: // an exception of the named kind
		for alt := range strings.SplitSeq(val, "|") {
			if strings.Contains(err.Error(), alt) {
				return
			}
		}
		t.Errorf("got %v, want %q", err, val)
	case string(res.Value) != val:
		t.Errorf("got %s, want %s", res.Value, val)
	}
}

// TestDeadline checks the engine's own limit, and that the time a stopped call takes is close to it.
func TestDeadline(t *testing.T) {
	t.Parallel()
	p, err := engineFor(t).Load(t.Context(), Bundle{Code: []byte(`export function f() { for (;;) {} }`), Limits: Limits{Deadline: 2 * time.Second}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	start := time.Now()
	res, err := p.Call(t.Context(), "f", []byte("[]"), newHost())
	if !errors.Is(err, ErrDeadline) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if res.Usage.Fuel < fuelSlice || res.Usage.Duration < 2*time.Second {
		t.Errorf("usage %+v", res.Usage)
	}
	if took := time.Since(start); took > 20*time.Second {
		t.Errorf("stopped after %v", took)
	}
}

// TestCancel checks that a caller that goes away ends its call.
func TestCancel(t *testing.T) {
	t.Parallel()
	p := load(t, `export async function f() { await kv.put("started", "1"); for (;;) {} }`)
	ctx, cancel := context.WithCancel(t.Context())
	h := &cancelHost{testHost: newHost(), cancel: cancel}
	if _, err := p.Call(ctx, "f", []byte("[]"), h); !errors.Is(err, ErrDeadline) || !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

type cancelHost struct {
	*testHost
	cancel context.CancelFunc
}

func (h *cancelHost) KVPut(context.Context, string, []byte) error { h.cancel(); return nil }

// TestTampering changes every built-in that the glue might use, from inside the call, and expects it to work or to fail
// cleanly; the host primitive must not come out, and would be of no use.
func TestTampering(t *testing.T) {
	t.Parallel()
	p := load(t, `
		const wreck = () => {
			let hits = 0; const own = Reflect.ownKeys, define = Object.defineProperty, all = [], spy = () => { hits++; throw 1 };
			for (const C of [Array, Promise, Object, String, Function, Uint8Array, Object.getPrototypeOf(Uint8Array), Map, WeakMap, RegExp, Error, ArrayBuffer, DataView, Symbol]) {
				for (const o of [C, C.prototype]) for (const k of own(o)) if (k !== "prototype" && k !== "constructor") all.push([o, k]);
			}
			for (let i = 0; i < all.length; i++) try { define(all[i][0], all[i][1], { __proto__: null, value: spy }) } catch {}
			JSON.parse = JSON.stringify = Reflect.apply = Math.min = Math.random = spy;
			globalThis.Error = globalThis.Promise = globalThis.TypeError = globalThis.Object = undefined;
			return () => hits;
		};
		export async function kvAfter() { wreck(); await kv.put("a", "b"); return await kv.get("a") }
		export async function logAfter() { const hits = wreck(); console.log("x", { a: 1 }, [1]); return hits() }
		export async function throwAfter() { wreck(); throw { message: "odd" } }
		export function setters() {
			const got = { __proto__: null, length: 0 };
			for (const k of ["0", "name", "self", "fn", "value", "due", "then", "get", "set", "length"]) {
				Object.defineProperty(Object.prototype, k, { __proto__: null, set(v) { got[got.length++] = typeof v; if (typeof v === "function") throw new Error("out") }, get() { return undefined }, configurable: true });
			}
			console.log("x"); setTimeout(() => {}, 1); kv.get("a");
			return Object.values(got).includes("function") ? "leaked" : "kept";
		}
		export async function forged() {
			const out = [];
			for (const v of [undefined, null, -1, 1e9, {}, Symbol(), new Proxy({}, {}), { byteLength: 9 }, new Proxy(new Uint8Array(4), {})]) {
				for (const f of [() => kv.get(v), () => kv.put("k", v), () => kv.delete(v), () => kv.list(v), () => crypto.getRandomValues(v),
					() => crypto.subtle.digest("SHA-256", v), () => new TextDecoder().decode(v), () => crypto.subtle.encrypt(v, v, v),
					() => crypto.subtle.importKey("raw", v, v, v, v), () => setTimeout(v)]) {
					try { await f(); } catch (e) { out.push(e instanceof Error || e instanceof DOMException ? 0 : e) }
				}
			}
			return out.filter(x => x !== 0).length;
		}
		export async function detached() {
			const b = new ArrayBuffer(8), u = new Uint8Array(b); b.transfer();
			try { await kv.put("k", u); return "stored " + (await kv.get("k", "bytes")).length } catch (e) { return e.name }
		}
		export function stack() { Error.prepareStackTrace = (e, frames) => frames.map(f => f.getFunction?.() + String(f.getThis?.())); try { null.x } catch (e) { return typeof e.stack } }
		export function good() { return "good" }`)
	h := newHost()
	for fn, want := range map[string][]string{
		"kvAfter":  {`"b"`},
		"logAfter": {"0"},
		"setters":  {`"kept"`},
		"forged":   {"0"},
		"detached": {`"stored 0"`, `"TypeError"`},
		"stack":    {`"object"`, `"string"`},
	} {
		res, err := p.Call(t.Context(), fn, []byte("[]"), h)
		ok := false
		for _, w := range want {
			ok = ok || string(res.Value) == w
		}
		if err != nil || !ok {
			t.Errorf("%s: %s %v, want %q", fn, res.Value, err, want)
		}
		if got := call(t, p, "good", "[]", h); got != `"good"` {
			t.Errorf("after %s: %s", fn, got)
		}
	}
	if _, err := p.Call(t.Context(), "throwAfter", []byte("[]"), h); err == nil || errors.Is(err, ErrTrap) {
		t.Errorf("throwAfter: %v", err)
	}
}
