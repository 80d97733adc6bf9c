package engine

import (
	"bytes"
	"fmt"
	"sync"
	"testing"
)

// TestNothingStays leaves traces wherever a script can and looks for them in the next call, which gets the same
// instance.
func TestNothingStays(t *testing.T) {
	t.Parallel()
	p := load(t, `
		let count = 0; const list = [], cache = new Map(), weak = new WeakMap(), anchor = {};
		export async function mark(secret) {
			count++; list.push(secret); cache.set("s", secret); weak.set(anchor, secret); globalThis.leak = secret;
			Array.prototype.leak = secret; Object.prototype.leak = secret; Promise.prototype.then.leak = secret;
			crypto.leak = secret; console.log.leak = secret; Math.random.leak = secret; Error.stackTraceLimit = 1;
			JSON.parse = () => secret; String.prototype.slice = () => secret; kv.get = async () => secret;
			const old = setTimeout; globalThis.setTimeout = () => secret; old(() => { globalThis.leak2 = secret }, 1000);
			new FinalizationRegistry(() => {}).register({}, secret); queueMicrotask(() => { globalThis.leak3 = secret });
			const { promise } = Promise.withResolvers?.() ?? {}; globalThis.pending = promise;
			/x/.leak = secret; "abc".match(/b/); await kv.put("k", secret); return look();
		}
		export function look() {
			return [count, list.length, cache.size, weak.has(anchor), typeof leak, [].leak, {}.leak, typeof leak2, typeof leak3, crypto.leak, console.log.leak,
				Math.random.leak, JSON.parse("1"), "x".slice(0), RegExp.lastMatch, typeof pending, Error.stackTraceLimit]
		}`)
	h := newHost()
	clean := call(t, p, "look", "[]", h)
	for i := range 5 {
		secret := fmt.Sprintf("marker-of-call-%d", i)
		if dirty := call(t, p, "mark", fmt.Sprintf("[%q]", secret), h); dirty == clean {
			t.Fatal("the marks do not show")
		}
		if got := call(t, p, "look", "[]", h); got != clean {
			t.Fatalf("after a call: %s\nwant %s", got, clean)
		}
		if n := p.engine.pool.count(p); n != 1 {
			t.Fatalf("%d idle instances: the test did not reuse one", n)
		}
	}
	// And below JavaScript: an instance at rest is byte for byte its snapshot and holds no argument of any call.
	in := p.engine.pool.take(p)
	view, _ := in.mem.Read(0, in.mem.Size())
	if bytes.Contains(view, []byte("marker-of-call-")) {
		t.Error("an idle instance still holds a call's argument")
	}
	at := 0
	for _, r := range p.snap.runs {
		if bytes.ContainsFunc(view[at:r.at], func(r rune) bool { return r != 0 }) || !bytes.Equal(view[r.at:int(r.at)+len(r.data)], r.data) {
			t.Fatal("an idle instance differs from the snapshot")
		}
		at = int(r.at) + len(r.data)
	}
	if bytes.ContainsFunc(view[at:], func(r rune) bool { return r != 0 }) {
		t.Error("an idle instance is not zero beyond the snapshot")
	}
	if in.sp.Get() != uint64(p.snap.sp) || in.depth.Get() != 0 || in.pages.Get() != uint64(p.snap.pages) {
		t.Error("an idle instance's globals differ from the snapshot")
	}
	p.engine.pool.put(t.Context(), p, in)
}

// TestMemoryIsTheSame checks that a recycled instance, whose real memory does not shrink, gives a script neither more nor
// less than a new one: otherwise one call could signal to the next.
func TestMemoryIsTheSame(t *testing.T) {
	t.Parallel()
	p := load(t, `export function grow(n) { const b = new Uint8Array(n); b.fill(255); return b.length }
		export function fits() { let n = 0; const a = []; try { for (;;) { a.push(new ArrayBuffer(1 << 20)); n++ } } catch { a.length = 0; return n } }`)
	h := newHost()
	first := call(t, p, "fits", "[]", h)
	if p.engine.pool.count(p) != 0 {
		t.Fatal("an instance that grew to the limit was kept")
	}
	call(t, p, "grow", "[1500000]", h)
	if p.engine.pool.count(p) != 1 {
		t.Fatal("an instance that grew a little was not kept")
	}
	if again := call(t, p, "fits", "[]", h); again != first {
		t.Errorf("%s ArrayBuffers fit into a recycled instance, %s into a new one", again, first)
	}
}

// TestRandomnessIsFresh checks that calls from one snapshot do not repeat each other's randomness.
func TestRandomnessIsFresh(t *testing.T) {
	t.Parallel()
	p := load(t, `export function f() { return [Math.random(), crypto.randomUUID(), crypto.getRandomValues(new Uint32Array(2)).join()] }`)
	seen := map[string]bool{}
	for range 20 {
		seen[call(t, p, "f", "[]", newHost())] = true
	}
	if len(seen) != 20 {
		t.Errorf("%d different outcomes of 20 calls", len(seen))
	}
}

// TestConcurrentCalls runs two programs with several hosts at once: every call sees its own arguments, store and key.
func TestConcurrentCalls(t *testing.T) {
	t.Parallel()
	const source = `let calls = 0; export async function f(me) {
		globalThis.me = me; await kv.put("me", me); for (let i = 0; i < 2000; i++) { if (i %% 500 === 0) await null; if (globalThis.me !== me) throw new Error("mixed") }
		return [%q, ++calls, await kv.get("me"), crypto.getProjectKey("raw")[0], console.log(me)] }`
	a, b := load(t, fmt.Sprintf(source, "a")), load(t, fmt.Sprintf(source, "b"))
	var wg sync.WaitGroup
	for i := range 24 {
		wg.Go(func() {
			p, name := a, "a"
			if i%2 == 1 {
				p, name = b, "b"
			}
			h := newHost()
			h.key = bytes.Repeat([]byte{byte(i)}, 32)
			for range 4 {
				res, err := p.Call(t.Context(), "f", fmt.Appendf(nil, `["caller %d"]`, i), h)
				want := fmt.Sprintf(`[%q,1,"caller %d",%d,null]`, name, i, i)
				if err != nil || string(res.Value) != want || len(res.Logs) != 1 || res.Logs[0].Text != fmt.Sprintf("caller %d", i) {
					t.Errorf("%s %v %v, want %s", res.Value, err, res.Logs, want)
				}
			}
		})
	}
	wg.Wait()
}

// TestPoolIsBounded checks that idle instances are given up, the longest unused first, and end with their program.
func TestPoolIsBounded(t *testing.T) {
	t.Parallel()
	e := engineFor(t)
	small := pool{max: 2, budget: NewBudget(1 << 30)}
	programs := []*Program{load(t, echo), load(t, echo), load(t, echo)}
	for _, p := range programs {
		in, err := e.newInstance(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		small.put(t.Context(), p, in)
	}
	if small.count(programs[0]) != 0 || small.count(programs[1]) != 1 || small.count(programs[2]) != 1 {
		t.Error("the oldest instance is not the one given up")
	}
	if small.take(programs[0]) != nil {
		t.Error("a program got another's instance")
	}
	small.drop(t.Context(), programs[1])
	if small.count(programs[1]) != 0 || small.count(programs[2]) != 1 {
		t.Error("drop is not exact")
	}
	p := programs[0]
	call(t, p, "echo", "[1]", newHost())
	p.Close(t.Context())
	if e.pool.count(p) != 0 {
		t.Error("Close left an instance")
	}
	if got := call(t, p, "echo", "[2]", newHost()); got != "2" {
		t.Error(got)
	}
}
