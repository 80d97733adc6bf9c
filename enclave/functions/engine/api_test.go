package engine

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"
)

// eval runs the body of an async function and returns its result's JSON.
func eval(t *testing.T, body string, h Host) string {
	t.Helper()
	return call(t, load(t, "export async function f() {"+body+"\n}"), "f", "[]", h)
}

func TestConsole(t *testing.T) {
	t.Parallel()
	p := load(t, `console.log("loading"); export function f() {
		console.log("a", 1, null, undefined, {x: [1n < 2]}, new TypeError("t"), Symbol("s"), 10n);
		console.debug("d"); console.info("i"); console.warn("w"); console.error("e"); console.trace("\ud800");
		console.log({get x() { throw 1 }});
	} export function flood() { for (let i = 0; i < 1000; i++) console.log("x".repeat(1000)) }
	export function wide() { console.log("é".repeat(100000)) } export function fails() { console.log("before"); throw 1 }`)
	if logs := p.Logs(); len(logs) != 1 || logs[0] != (LogLine{"log", "loading"}) {
		t.Errorf("load: %v", logs)
	}
	res, err := p.Call(t.Context(), "f", []byte("[]"), newHost())
	if err != nil {
		t.Fatal(err)
	}
	want := []LogLine{{"log", `a 1 null undefined {"x":[true]} TypeError: t Symbol(s) 10`}, {"debug", "d"}, {"info", "i"},
		{"warn", "w"}, {"error", "e"}, {"debug", "\uFFFD"}, {"log", "[value that cannot be shown]"}}
	if len(res.Logs) != len(want) || res.LogsTruncated {
		t.Fatalf("%v", res.Logs)
	}
	for i, l := range res.Logs {
		if l != want[i] {
			t.Errorf("%q, want %q", l, want[i])
		}
	}
	if res, err = p.Call(t.Context(), "flood", []byte("[]"), newHost()); err != nil || !res.LogsTruncated || len(res.Logs) != 66 {
		t.Errorf("flood: %d lines, truncated %v, %v", len(res.Logs), res.LogsTruncated, err)
	}
	if res, err = p.Call(t.Context(), "wide", []byte("[]"), newHost()); err != nil || !res.LogsTruncated || len(res.Logs[0].Text) > maxLogLine+3 {
		t.Errorf("wide: %d bytes, %v", len(res.Logs[0].Text), err)
	}
	if res, err = p.Call(t.Context(), "fails", []byte("[]"), newHost()); err == nil || len(res.Logs) != 1 {
		t.Errorf("a failed call keeps its log: %v %v", res.Logs, err)
	}
}

func TestKV(t *testing.T) {
	t.Parallel()
	h := newHost()
	got := eval(t, `
		const out = [await kv.get("none")];
		await kv.put("s", "grüße"); await kv.put("b", new Uint8Array([255, 0, 1])); await kv.put("j", JSON.stringify({a: [1]}));
		await kv.put("v", new Uint16Array([258]).buffer); await kv.put("sub", new Uint8Array([1, 2, 3, 4]).subarray(1, 3));
		await kv.put("dv", new DataView(new ArrayBuffer(4), 1, 2)); await kv.put("", "x").catch(e => out.push(e.name));
		await kv.put("k".repeat(1025), "x").catch(e => out.push(e.name)); await kv.put("o", {}).catch(e => out.push(e.name));
		await kv.put("big", new Uint8Array(1048577)).catch(e => out.push(e.name)); await kv.put("empty", "");
		await kv.get("b").catch(e => out.push(e.name)); await kv.get("s", "nonsense").catch(e => out.push(e.name));
		out.push(await kv.get("s"), [...await kv.get("b", "bytes")], await kv.get("j", "json"), [...await kv.get("v", "bytes")],
			[...await kv.get("sub", "bytes")], await kv.get("empty"), await kv.list(), await kv.list("s"), await kv.list("", {limit: 2}));
		await kv.list("", {limit: 0}).catch(e => out.push(e.name));
		await kv.delete("s"); await kv.delete("s"); out.push(await kv.get("s"));
		return out`, h)
	want := `[null,"TypeError","RangeError","TypeError","RangeError","TypeError","TypeError","grüße",[255,0,1],{"a":[1]},[2,1],[2,3],"",` +
		`["b","dv","empty","j","s","sub","v"],["s","sub"],["b","dv"],"RangeError",null]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if len(h.kv) != 6 || string(h.kv["dv"]) != "\x00\x00" {
		t.Errorf("store %q", h.kv)
	}
}

// TestHostFailure checks that the script learns nothing of the host's error and the caller everything.
func TestHostFailure(t *testing.T) {
	t.Parallel()
	h := newHost()
	h.fail = errors.New("disk 7 on fire")
	p := load(t, `export const uncaught = () => kv.get("a"); export const key = () => crypto.getProjectKey();
		export async function caught() { try { await kv.put("a", "b") } catch (e) { return e.name + ": " + e.message } }`)
	for _, fn := range []string{"uncaught", "key"} {
		_, err := p.Call(t.Context(), fn, []byte("[]"), h)
		e, ok := errors.AsType[*ScriptError](err)
		if !ok || !errors.Is(err, ErrHost) || !errors.Is(err, h.fail) || strings.Contains(e.Error(), "disk") {
			t.Errorf("%s: %v", fn, err)
		}
	}
	if got := call(t, p, "caught", "[]", h); got != `"OperationError: the host could not do it"` {
		t.Error(got)
	}
}

func TestQuotas(t *testing.T) {
	t.Parallel()
	h := newHost()
	p := load(t, `export async function calls() { let n = 0; try { for (;;) { await kv.get("a"); n++ } } catch (e) { return [n, e.name] } }
		export async function moved() { const b = new Uint8Array(1048576); let n = 0;
			try { for (;;) { await kv.put("a", b); n++ } } catch (e) { return [n, e.name] } }`)
	if got := call(t, p, "calls", "[]", h); got != `[10000,"QuotaExceededError"]` {
		t.Error(got)
	}
	if got := call(t, p, "moved", "[]", h); got != `[63,"QuotaExceededError"]` {
		t.Error(got)
	}
}

func TestCrypto(t *testing.T) {
	t.Parallel()
	const hex = `const hex = b => Array.from(new Uint8Array(b), x => x.toString(16).padStart(2, "0")).join("");
		const raw = s => Uint8Array.from(s.match(/../g) ?? [], x => parseInt(x, 16)), utf8 = s => new TextEncoder().encode(s);`
	for name, tc := range map[string]struct{ body, want string }{
		// FIPS 180-4 examples.
		"SHA-256": {`return hex(await crypto.subtle.digest("SHA-256", utf8("abc")))`,
			`"ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"`},
		"SHA-384": {`return hex(await crypto.subtle.digest({name: "sha-384"}, utf8("abc"))).slice(0, 32)`, `"cb00753f45a35e8bb5a03d699ac65007"`},
		"SHA-512": {`return hex(await crypto.subtle.digest("SHA-512", utf8("abc").buffer)).slice(0, 32)`, `"ddaf35a193617abacc417349ae204131"`},
		"SHA-1":   {`return crypto.subtle.digest("SHA-1", utf8("abc")).catch(e => e.name)`, `"NotSupportedError"`},
		// RFC 4231 test case 2.
		"HMAC": {`const k = await crypto.subtle.importKey("raw", utf8("Jefe"), {name: "HMAC", hash: "SHA-256"}, false, ["sign", "verify"]);
			const d = utf8("what do ya want for nothing?"), s = await crypto.subtle.sign("HMAC", k, d), bad = new Uint8Array(s.slice(0)); bad[31] ^= 1;
			return [hex(s), await crypto.subtle.verify("HMAC", k, s, d), await crypto.subtle.verify("HMAC", k, bad, d),
				await crypto.subtle.verify("HMAC", k, s.slice(1), d)]`,
			`["5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843",true,false,false]`},
		// The GCM specification's test case 16 (AES-256, 96-bit IV, additional data).
		"AES-GCM": {`const k = await crypto.subtle.importKey("raw", raw("feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"), "AES-GCM", false, ["encrypt", "decrypt"]);
			const a = {name: "AES-GCM", iv: raw("cafebabefacedbaddecaf888"), additionalData: raw("feedfacedeadbeeffeedfacedeadbeefabaddad2")};
			const p = raw("d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39");
			const c = new Uint8Array(await crypto.subtle.encrypt(a, k, p)), back = hex(await crypto.subtle.decrypt(a, k, c)) === hex(p);
			c[0] ^= 1; return [hex(c.slice(-16)), back, await crypto.subtle.decrypt(a, k, c).catch(e => e.name)]`,
			`["76fc6ece0f4e1768cddf8853bb2d551b",true,"OperationError"]`},
		"long nonce": {`const k = await crypto.subtle.generateKey({name: "AES-GCM", length: 256}, true, ["encrypt"]);
			return crypto.subtle.encrypt({name: "AES-GCM", iv: new Uint8Array(16)}, k, new Uint8Array(1)).catch(e => e.name)`, `"TypeError"`},
		"usages": {`const k = await crypto.subtle.importKey("raw", new Uint8Array(32), "AES-GCM", false, ["decrypt"]);
			const no = async p => { try { await p(); return "allowed" } catch (e) { return e.name } };
			return [await no(() => crypto.subtle.encrypt({name: "AES-GCM", iv: new Uint8Array(12)}, k, new Uint8Array(1))),
				await no(() => crypto.subtle.sign("HMAC", k, new Uint8Array(1))), await no(() => crypto.subtle.exportKey("raw", k)),
				await no(() => crypto.subtle.importKey("raw", new Uint8Array(31), "AES-GCM", false, ["encrypt"])),
				await no(() => crypto.subtle.importKey("jwk", {}, "AES-GCM", false, ["encrypt"])),
				await no(() => crypto.subtle.importKey("raw", new Uint8Array(32), "AES-GCM", false, [])),
				await no(() => new CryptoKey()), await no(() => structuredClone(k)), JSON.stringify(k)]`,
			`["InvalidAccessError","InvalidAccessError","InvalidAccessError","DataError","NotSupportedError","SyntaxError","TypeError","DataCloneError",` +
				`"{\"type\":\"secret\",\"algorithm\":{\"name\":\"AES-GCM\",\"length\":256},\"extractable\":false,\"usages\":[\"decrypt\"]}"]`},
		"project key": {`return [crypto.getProjectKey(), [...crypto.getProjectKey("raw")].join() === "7,".repeat(31) + "7"]`,
			`["BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwc=",true]`},
		"random": {`const a = crypto.getRandomValues(new Uint32Array(4)), b = crypto.getRandomValues(new Uint32Array(4)), no = [];
			for (const v of [new Float64Array(1), new Uint8Array(65537), {}, new DataView(new ArrayBuffer(1))]) {
				try { crypto.getRandomValues(v) } catch (e) { no.push(e.name) }
			}
			let low = 0; for (let i = 0; i < 1000; i++) { const r = Math.random(); if (!(r >= 0 && r < 1)) return "out of range"; low += r < 0.5 }
			return [a.join() !== b.join(), crypto.getRandomValues(new Uint8Array(0)).length, low > 400 && low < 600,
				/^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$/.test(crypto.randomUUID()), ...no]`,
			`[true,0,true,true,"TypeMismatchError","QuotaExceededError","TypeMismatchError","TypeMismatchError"]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := eval(t, hex+tc.body, newHost()); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

func TestTextAndClone(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct{ body, want string }{
		"encode": {`return [[...new TextEncoder().encode("aé😀\ud800")], new TextEncoder().encode().length,
			new TextEncoder().encodeInto("aé😀", new Uint8Array(5))]`,
			`[[97,195,169,240,159,152,128,239,191,189],0,{"read":2,"written":3}]`},
		// The examples of the Unicode Standard, §3.9, table 3-8: one U+FFFD for each maximal part.
		"decode": {`const d = new TextDecoder(), hex = s => d.decode(Uint8Array.from(s.split(" "), x => parseInt(x, 16)));
			return [hex("C0 AF E0 80 BF F0 81 82 41"), hex("ED A0 80 ED BF BF ED AF 41"), hex("F4 91 92 93 FF 41 80 BF 42"),
				hex("E1 80 E2 F0 91 92 F1 BF 41"), hex("EF BB BF 61"), hex("E2 82"), d.decode()]`,
			`["` + strings.Repeat("\uFFFD", 8) + `A","` + strings.Repeat("\uFFFD", 8) + `A","` + strings.Repeat("\uFFFD", 5) + "A\uFFFD\uFFFDB\",\"" +
				"\uFFFD\uFFFD\uFFFD\uFFFDA\",\"a\",\"\uFFFD\",\"\"]"},
		"decoder options": {`const bad = new Uint8Array([255]), no = f => { try { return f() } catch (e) { return e.name } };
			return [no(() => new TextDecoder("utf-8", {fatal: true}).decode(bad)), no(() => new TextDecoder("latin1")),
				new TextDecoder("utf-8", {ignoreBOM: true}).decode(new Uint8Array([239, 187, 191])).length, no(() => new TextDecoder().decode("x"))]`,
			`["TypeError","RangeError",1,"TypeError"]`},
		"codec bounds": {`const no = f => { try { f(); return "done" } catch (e) { return e.name } }, s = "x".repeat(5 << 20);
			return [no(() => new TextEncoder().encode(s)), no(() => new TextEncoder().encode(s + s + s + s)), no(() => new TextDecoder().decode(new Uint8Array(17 << 20)))]`,
			`["done","RangeError","RangeError"]`},
		"base64": {`return [btoa("hello\u0000"), atob("aGVsbG8A").length]`, `["aGVsbG8A",6]`},
		"clone": {`const o = {a: [1, , 3], d: new Date(5), r: /x/gi, m: new Map([[{k: 1}, new Set([1])]]), e: new RangeError("no"), n: null, u: undefined,
				b: new Uint8Array([1, 2]).subarray(1), s: Object("boxed"), big: 10n, v: new DataView(new ArrayBuffer(3), 1)}; o.self = o;
			const c = structuredClone(o);
			return [c !== o, c.self === c, 1 in c.a, c.a.length, c.d.getTime(), String(c.r), [...c.m][0][0].k, [...c.m.values()][0].has(1), c.e instanceof RangeError,
				c.e.message, c.n, "u" in c, [...c.b], c.s instanceof String, c.big === 10n, c.v.byteLength]`,
			`[true,true,false,3,5,"/x/gi",1,true,true,"no",null,true,[2],true,true,2]`},
		"not cloned": {`return [() => 1, Symbol(), new WeakMap(), Promise.resolve()].map(v => { try { structuredClone({v}); return 0 } catch (e) { return e.name } })`,
			`["DataCloneError","DataCloneError","DataCloneError","DataCloneError"]`},
		"timers": {`const seen = [], start = Date.now(), wait = ms => new Promise(r => setTimeout(r, ms));
			setTimeout((...a) => seen.push(a), 30, "c", 3); setTimeout(() => seen.push("a"), 10); const id = setTimeout(() => seen.push("never"), 15);
			setTimeout(() => seen.push("b"), 10); clearTimeout(id); clearTimeout(99); Promise.resolve().then(() => seen.push("job"));
			await wait(3600000); return [...seen, Date.now() - start]`,
			`["job","a","b",["c",3],3600000]`},
		"microtasks": {`const s = []; queueMicrotask(() => s.push(1)); s.push(0); await null; return s`, `[0,1]`},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if got := eval(t, tc.body, newHost()); got != tc.want {
				t.Errorf("got  %s\nwant %s", got, tc.want)
			}
		})
	}
}

// TestClock checks that a script cannot measure time: its clock stands still until a host call.
func TestClock(t *testing.T) {
	t.Parallel()
	p := load(t, `const loaded = Date.now(); export async function f() {
		const a = Date.now(), p = performance.now(); for (let i = 0; i < 1e5; i++); const b = Date.now(), q = performance.now();
		await kv.get("x"); const c = Date.now(); return [loaded, a, b - a, q - p, c - b, new Date(0).getTimezoneOffset()] }`)
	h := newHost()
	h.now = time.UnixMilli(1_700_000_000_000)
	if got := call(t, p, "f", "[]", h); got != `[0,1700000001000,0,0,1000,0]` {
		t.Error(got)
	}
}

// TestGlobals pins what a script finds: an addition to the list is a decision.
func TestGlobals(t *testing.T) {
	t.Parallel()
	got := eval(t, `return Object.getOwnPropertyNames(globalThis).filter(n => !/^[A-Z]/.test(n)).sort()`, newHost())
	var names []string
	if err := json.Unmarshal([]byte(got), &names); err != nil {
		t.Fatal(err)
	}
	want := "atob btoa clearTimeout console crypto decodeURI decodeURIComponent encodeURI encodeURIComponent escape eval globalThis " +
		"isFinite isNaN kv parseFloat parseInt performance queueMicrotask setTimeout structuredClone undefined unescape"
	if strings.Join(names, " ") != want {
		t.Errorf("got  %s\nwant %s", strings.Join(names, " "), want)
	}
}
