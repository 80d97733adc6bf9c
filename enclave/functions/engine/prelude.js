// The JavaScript side of the engine: the functions' API, over one primitive `host`, which exists only in this closure.
// A script that reached it would hold nothing new: every operation checks its own arguments on the Go side, is charged
// there, and is what the API offers anyway (DESIGN §8). What is captured here first keeps the API working when a script
// changes the built-in prototypes; it does not protect anything.
(function (host) {
	'use strict';
	const G = globalThis;
	const { Object, Array, Error, TypeError, RangeError, Promise, Map, Set, WeakMap, Date, RegExp, String, Number, Boolean,
		BigInt, Symbol, ArrayBuffer, Uint8Array, DataView, Math, JSON, Reflect, DOMException } = G;
	const apply = Reflect.apply;
	const uncurry = (f) => (self, ...args) => apply(f, self, args);
	const getter = (proto, name) => uncurry(Object.getOwnPropertyDescriptor(proto, name).get);
	const parse = JSON.parse, stringify = JSON.stringify;
	const define = Object.defineProperty, protoOf = Object.getPrototypeOf, create = Object.create;
	const push = uncurry(Array.prototype.push), splice = uncurry(Array.prototype.splice);
	const join = uncurry(Array.prototype.join);
	const slice = uncurry(String.prototype.slice), wellFormed = uncurry(String.prototype.toWellFormed);
	const lower = uncurry(String.prototype.toLowerCase), upper = uncurry(String.prototype.toUpperCase);
	const objectTag = uncurry(Object.prototype.toString);
	const TypedArray = protoOf(Uint8Array);
	const taName = getter(TypedArray.prototype, Symbol.toStringTag);
	const taBuffer = getter(TypedArray.prototype, 'buffer');
	const taOffset = getter(TypedArray.prototype, 'byteOffset'), taBytes = getter(TypedArray.prototype, 'byteLength');
	const taLength = getter(TypedArray.prototype, 'length');
	const taSet = uncurry(TypedArray.prototype.set), taSlice = uncurry(TypedArray.prototype.slice);
	const dvBuffer = getter(DataView.prototype, 'buffer');
	const dvOffset = getter(DataView.prototype, 'byteOffset'), dvBytes = getter(DataView.prototype, 'byteLength');
	const abBytes = getter(ArrayBuffer.prototype, 'byteLength'), abSlice = uncurry(ArrayBuffer.prototype.slice);
	const isView = ArrayBuffer.isView;
	const wmGet = uncurry(WeakMap.prototype.get), wmSet = uncurry(WeakMap.prototype.set);
	const mapGet = uncurry(Map.prototype.get), mapSet = uncurry(Map.prototype.set);
	const mapEach = uncurry(Map.prototype.forEach), setEach = uncurry(Set.prototype.forEach);
	const setAdd = uncurry(Set.prototype.add);

	// Operations of the host; the same numbers are in hostcalls.go.
	const LOG = 0, RANDOM = 1, TIMER = 2, ADVANCE = 3, KV_GET = 4, KV_PUT = 5, KV_DELETE = 6, KV_LIST = 7,
		PROJECT_KEY = 8, DIGEST = 9, HMAC = 10, SEAL = 11, OPEN = 12, ENCODE = 13, DECODE = 14;

	const dom = (message, name) => new DOMException(message, name);
	const refusals = [
		null,
		() => new Error('host calls are off while a bundle is being evaluated: call this from inside a function'),
		() => new RangeError('too large'),
		() => dom('this call used up its host calls', 'QuotaExceededError'),
		() => dom('the host could not do it', 'OperationError'),
		() => new TypeError('invalid argument'),
		() => dom('decryption failed', 'OperationError'),
		() => new TypeError('the bytes are not valid UTF-8'),
	];
	const call = (op, a, b, c, d, e) => {
		const r = host(op, a, b, c, d, e);
		if (typeof r === 'number' && r < 0) throw refusals[-r]();
		return r;
	};

	const hide = (object, members) => {
		for (const name of Reflect.ownKeys(members)) {
			define(object, name, { value: members[name], writable: true, enumerable: false, configurable: true });
		}
	};

	// bytes gives a Uint8Array over the same memory as any ArrayBuffer or view.
	const bytes = (v) => {
		if (isView(v)) {
			if (taName(v) === 'Uint8Array') return v;
			if (taName(v) !== undefined) return new Uint8Array(taBuffer(v), taOffset(v), taBytes(v));
			return new Uint8Array(dvBuffer(v), dvOffset(v), dvBytes(v));
		}
		try { abBytes(v); } catch { throw new TypeError('want an ArrayBuffer or a view of one'); }
		return new Uint8Array(v);
	};
	const buffer = (u8) => taBuffer(u8);
	const encode = (s) => call(ENCODE, wellFormed(s));
	const decode = (u8, fatal) => call(DECODE, u8, fatal ? 1 : 0);

	// --- console -------------------------------------------------------------------------------------------------
	const text = (v) => {
		try {
			switch (typeof v) {
			case 'string': return v;
			case 'symbol': case 'bigint': case 'number': case 'boolean': case 'undefined': return String(v);
			case 'function': return '[function]';
			}
			if (v === null) return 'null';
			if (v instanceof Error) return `${v.name}: ${v.message}`;
			const s = stringify(v);
			return typeof s === 'string' ? s : objectTag(v);
		} catch {
			return '[value that cannot be shown]';
		}
	};
	const logger = (level) => (...args) => {
		const parts = [];
		for (let i = 0; i < args.length && i < 64; i++) push(parts, slice(text(args[i]), 0, 4096));
		host(LOG, level, wellFormed(slice(join(parts, ' '), 0, 4096)));
	};
	const levels = { debug: 0, info: 1, log: 2, warn: 3, error: 4, trace: 0 };
	const console = create(Object.prototype);
	for (const name of Object.keys(levels)) hide(console, { [name]: logger(levels[name]) });

	// --- randomness: every number comes from the host, none while a bundle is evaluated -----------------------------
	let pool = null, poolNext = 0;
	const random = () => {
		if (pool === null || poolNext >= 64) {
			pool = new DataView(buffer(call(RANDOM, 64 * 8)));
			poolNext = 0;
		}
		const at = 8 * poolNext++;
		return (dvU32(pool, at) >>> 5) / 134217728 + (dvU32(pool, at + 4) >>> 6) / 9007199254740992;
	};
	const dvU32 = uncurry(DataView.prototype.getUint32);
	hide(Math, { random });

	const integers = { __proto__: null, Int8Array: 1, Uint8Array: 1, Uint8ClampedArray: 1, Int16Array: 1, Uint16Array: 1,
		Int32Array: 1, Uint32Array: 1, BigInt64Array: 1, BigUint64Array: 1 };
	const getRandomValues = (view) => {
		if (!isView(view) || integers[taName(view)] === undefined) throw dom('want an integer typed array', 'TypeMismatchError');
		if (taBytes(view) > 65536) throw dom('at most 65536 bytes at a time', 'QuotaExceededError');
		if (taBytes(view) > 0) taSet(bytes(view), call(RANDOM, taBytes(view)));
		return view;
	};
	const hex = '0123456789abcdef';
	const randomUUID = () => {
		const b = call(RANDOM, 16);
		b[6] = b[6] & 0x0f | 0x40;
		b[8] = b[8] & 0x3f | 0x80;
		let s = '';
		for (let i = 0; i < 16; i++) {
			if (i === 4 || i === 6 || i === 8 || i === 10) s += '-';
			s += hex[b[i] >> 4] + hex[b[i] & 15];
		}
		return s;
	};

	// --- crypto ------------------------------------------------------------------------------------------------------
	const toBase64 = G.btoa;
	const latin1 = (u8) => {
		let s = '';
		for (let i = 0; i < taLength(u8); i++) s += String.fromCharCode(u8[i]);
		return s;
	};
	// Conclave Functions' getProjectKey is synchronous and returns Base64 text, and code uses it as a passphrase.
	// getProjectKey('raw') gives the bytes.
	const getProjectKey = (format) => {
		const key = call(PROJECT_KEY);
		return format === 'raw' ? key : toBase64(latin1(key));
	};

	const secrets = new WeakMap(); // CryptoKey → its bytes
	const token = {};
	class CryptoKey {
		constructor(t, raw, type, algorithm, extractable, usages) {
			if (t !== token) throw new TypeError('Illegal constructor');
			wmSet(secrets, this, raw);
			define(this, 'type', { value: type, enumerable: true });
			define(this, 'algorithm', { value: algorithm, enumerable: true });
			define(this, 'extractable', { value: extractable, enumerable: true });
			define(this, 'usages', { value: usages, enumerable: true });
		}
		get [Symbol.toStringTag]() { return 'CryptoKey'; }
	}
	const algorithmName = (a) => upper(String(typeof a === 'object' && a !== null ? a.name : a));
	const hashes = { __proto__: null, 'SHA-256': 256, 'SHA-384': 384, 'SHA-512': 512 };
	const hashOf = (a) => {
		const bits = hashes[algorithmName(a)];
		if (bits === undefined) throw dom('want SHA-256, SHA-384 or SHA-512', 'NotSupportedError');
		return bits;
	};
	const keyFor = (key, name, usage) => {
		const raw = wmGet(secrets, key);
		if (raw === undefined) throw new TypeError('want a CryptoKey');
		if (key.algorithm.name !== name) throw dom(`the key is for ${key.algorithm.name}`, 'InvalidAccessError');
		for (let i = 0; i < key.usages.length; i++) if (key.usages[i] === usage) return raw;
		throw dom(`the key may not be used to ${usage}`, 'InvalidAccessError');
	};
	const usagesOf = { __proto__: null, 'AES-GCM': ['encrypt', 'decrypt'], HMAC: ['sign', 'verify'] };
	const newKey = (raw, algorithm, extractable, usages) => {
		const name = algorithmName(algorithm), allowed = usagesOf[name];
		if (allowed === undefined) throw dom('want AES-GCM or HMAC', 'NotSupportedError');
		const list = [];
		for (const u of usages) {
			if (u !== allowed[0] && u !== allowed[1]) throw dom(`${name} keys cannot be used so`, 'SyntaxError');
			push(list, u);
		}
		if (list.length === 0) throw dom('a secret key needs at least one usage', 'SyntaxError');
		const n = taLength(raw), about = { name, length: 8 * n };
		if (name === 'AES-GCM' && n !== 16 && n !== 32) throw dom('an AES key has 16 or 32 bytes', 'DataError');
		if (name === 'HMAC') {
			if (n === 0 || n > 1024) throw dom('an HMAC key has 1 to 1024 bytes', 'DataError');
			about.hash = { name: `SHA-${hashOf(algorithm.hash)}` };
		}
		return new CryptoKey(token, raw, 'secret', Object.freeze(about), !!extractable, Object.freeze(list));
	};
	const gcm = (op, algorithm, key, data) => {
		if (algorithmName(algorithm) !== 'AES-GCM') throw dom('want AES-GCM', 'NotSupportedError');
		const raw = keyFor(key, 'AES-GCM', op === SEAL ? 'encrypt' : 'decrypt');
		if (algorithm.tagLength !== undefined && algorithm.tagLength !== 128) throw dom('the tag has 128 bits', 'OperationError');
		const aad = algorithm.additionalData === undefined ? new Uint8Array(0) : bytes(algorithm.additionalData);
		return buffer(call(op, raw, bytes(algorithm.iv), aad, bytes(data)));
	};
	const mac = (algorithm, key, usage, data) => {
		if (algorithmName(algorithm) !== 'HMAC') throw dom('want HMAC', 'NotSupportedError');
		const raw = keyFor(key, 'HMAC', usage);
		return call(HMAC, hashOf(key.algorithm.hash), raw, bytes(data));
	};
	const subtle = create(Object.prototype);
	hide(subtle, {
		async digest(algorithm, data) { return buffer(call(DIGEST, hashOf(algorithm), bytes(data))); },
		async importKey(format, data, algorithm, extractable, usages) {
			if (format !== 'raw') throw dom('want format "raw"', 'NotSupportedError');
			return newKey(taSlice(bytes(data)), algorithm, extractable, usages);
		},
		async generateKey(algorithm, extractable, usages) {
			const bits = algorithmName(algorithm) === 'HMAC' ? algorithm.length ?? 512 : algorithm.length;
			if (bits !== 128 && bits !== 256 && bits !== 512) throw dom('want a length of 128, 256 or 512 bits', 'OperationError');
			return newKey(call(RANDOM, bits / 8), algorithm, extractable, usages);
		},
		async exportKey(format, key) {
			if (format !== 'raw') throw dom('want format "raw"', 'NotSupportedError');
			const raw = wmGet(secrets, key);
			if (raw === undefined) throw new TypeError('want a CryptoKey');
			if (!key.extractable) throw dom('the key is not extractable', 'InvalidAccessError');
			return buffer(taSlice(raw));
		},
		async encrypt(algorithm, key, data) { return gcm(SEAL, algorithm, key, data); },
		async decrypt(algorithm, key, data) { return gcm(OPEN, algorithm, key, data); },
		async sign(algorithm, key, data) { return buffer(mac(algorithm, key, 'sign', data)); },
		async verify(algorithm, key, signature, data) {
			const want = mac(algorithm, key, 'verify', data), got = bytes(signature);
			if (taLength(want) !== taLength(got)) return false;
			let diff = 0;
			for (let i = 0; i < taLength(want); i++) diff |= want[i] ^ got[i];
			return diff === 0;
		},
	});
	const crypto = create(Object.prototype);
	hide(crypto, { subtle, getRandomValues, randomUUID, getProjectKey });

	// --- kv ----------------------------------------------------------------------------------------------------------
	const keyText = (key) => {
		if (typeof key !== 'string' || key === '') throw new TypeError('a kv key is a string of 1 to 1024 bytes');
		return wellFormed(key);
	};
	const kv = create(Object.prototype);
	hide(kv, {
		// get(key, type = 'text' | 'json' | 'bytes') → string, parsed JSON, Uint8Array; null when there is none.
		async get(key, type) {
			if (type !== undefined && type !== 'text' && type !== 'json' && type !== 'bytes') {
				throw new TypeError('kv.get takes "text", "json" or "bytes"');
			}
			const v = call(KV_GET, keyText(key));
			if (v === undefined) return null;
			if (type === 'bytes') return v;
			return type === 'json' ? parse(decode(v, true)) : decode(v, true);
		},
		async put(key, v) {
			const k = keyText(key);
			call(KV_PUT, k, typeof v === 'string' ? encode(v) : bytes(v));
		},
		async delete(key) { call(KV_DELETE, keyText(key)); },
		async list(prefix = '', options = undefined) {
			if (typeof prefix !== 'string') throw new TypeError('kv.list takes a string');
			const limit = options?.limit ?? 1000;
			if (!(limit >= 1 && limit <= 1000)) throw new RangeError('kv.list gives 1 to 1000 keys');
			return parse(decode(call(KV_LIST, wellFormed(prefix), limit | 0), true));
		},
	});

	// --- text --------------------------------------------------------------------------------------------------------
	class TextEncoder {
		get encoding() { return 'utf-8'; }
		encode(s = '') { return encode(`${s}`); }
		encodeInto(s, target) {
			if (taName(target) !== 'Uint8Array') throw new TypeError('want a Uint8Array');
			let read = 0, written = 0;
			for (const c of `${s}`) {
				const b = encode(c);
				if (written + taLength(b) > taLength(target)) break;
				taSet(target, b, written);
				written += taLength(b);
				read += c.length;
			}
			return { read, written };
		}
	}
	class TextDecoder {
		#fatal; #bom;
		constructor(label = 'utf-8', options = {}) {
			const l = lower(`${label}`);
			if (l !== 'utf-8' && l !== 'utf8' && l !== 'unicode-1-1-utf-8') throw new RangeError('only utf-8 is supported');
			this.#fatal = !!options.fatal;
			this.#bom = !!options.ignoreBOM;
		}
		get encoding() { return 'utf-8'; }
		get fatal() { return this.#fatal; }
		get ignoreBOM() { return this.#bom; }
		decode(data, options) {
			if (options?.stream) throw dom('streaming is not supported', 'NotSupportedError');
			if (data === undefined) return '';
			const s = decode(bytes(data), this.#fatal);
			return !this.#bom && s[0] === '\uFEFF' ? slice(s, 1) : s;
		}
	}

	// --- structuredClone ---------------------------------------------------------------------------------------------
	const errors = { __proto__: null, Error, EvalError: G.EvalError, RangeError, ReferenceError: G.ReferenceError,
		SyntaxError: G.SyntaxError, TypeError, URIError: G.URIError };
	const unwrap = [[Boolean, Boolean.prototype.valueOf], [Number, Number.prototype.valueOf], [String, String.prototype.valueOf],
		[BigInt, BigInt.prototype.valueOf]];
	const cannot = () => dom('the value cannot be cloned', 'DataCloneError');
	const brand = (f, v) => { try { return apply(f, v, []); } catch { return undefined; } };
	const dateTime = Date.prototype.getTime, mapSize = getter(Map.prototype, 'size'), setSize = getter(Set.prototype, 'size');
	const is = (f, v) => { try { f(v); return true; } catch { return false; } };
	const regexpSource = Object.getOwnPropertyDescriptor(RegExp.prototype, 'source').get;
	const regexpFlags = Object.getOwnPropertyDescriptor(RegExp.prototype, 'flags').get;
	const clone = (v, seen) => {
		if (typeof v === 'function' || typeof v === 'symbol') throw cannot();
		if (typeof v !== 'object' || v === null) return v;
		const known = mapGet(seen, v);
		if (known !== undefined) return known;
		const keep = (c) => { mapSet(seen, v, c); return c; };
		for (const [Box, valueOf] of unwrap) {
			const p = brand(valueOf, v);
			if (p !== undefined) return keep(Object(p));
		}
		const t = brand(dateTime, v);
		if (t !== undefined) return keep(new Date(t));
		if (is(abBytes, v)) return keep(abSlice(v, 0));
		if (isView(v)) {
			const name = taName(v), b = clone(name === undefined ? dvBuffer(v) : taBuffer(v), seen);
			return keep(name === undefined ? new DataView(b, dvOffset(v), dvBytes(v)) : new G[name](b, taOffset(v), taLength(v)));
		}
		if (is(mapSize, v)) {
			const c = keep(new Map());
			mapEach(v, (value, key) => mapSet(c, clone(key, seen), clone(value, seen)));
			return c;
		}
		if (is(setSize, v)) {
			const c = keep(new Set());
			setEach(v, (value) => setAdd(c, clone(value, seen)));
			return c;
		}
		switch (objectTag(v)) {
		case '[object RegExp]': return keep(new RegExp(apply(regexpSource, v, []), apply(regexpFlags, v, [])));
		case '[object Error]': {
			const c = keep(create((errors[v.name] ?? Error).prototype));
			const e = new (errors[v.name] ?? Error)(`${v.message}`);
			hide(c, { message: e.message, stack: `${v.stack}` });
			return c;
		}
		case '[object Array]': case '[object Object]': break;
		default: throw cannot();
		}
		if (wmGet(secrets, v) !== undefined) throw cannot();
		const c = keep(Array.isArray(v) ? new Array(v.length) : {});
		for (const name of Object.keys(v)) {
			define(c, name, { value: clone(v[name], seen), writable: true, enumerable: true, configurable: true });
		}
		return c;
	};
	const structuredClone = (v, options) => {
		if (options?.transfer?.length) throw dom('transfer is not supported', 'NotSupportedError');
		return clone(v, new Map());
	};

	// --- timers: on the script's own clock, which jumps to the next timer once nothing else is left to run ------------
	let waiting = [], serial = 0;
	const setTimeout = (f, ms = 0, ...args) => {
		if (typeof f !== 'function') throw new TypeError('setTimeout takes a function');
		if (waiting.length >= 1000) throw new RangeError('too many timers');
		const delay = ms >= 1 ? Math_min(ms | 0, 0x7fffffff) : 0;
		const due = call(TIMER) + delay, id = ++serial;
		let i = waiting.length;
		while (i > 0 && waiting[i - 1].due > due) i--;
		splice(waiting, i, 0, { id, due, f, args });
		return id;
	};
	const Math_min = Math.min;
	const clearTimeout = (id) => {
		for (let i = 0; i < waiting.length; i++) if (waiting[i].id === id) { splice(waiting, i, 1); return; }
	};
	const timers = () => {
		if (waiting.length === 0) return false;
		const t = splice(waiting, 0, 1)[0];
		const ahead = t.due - call(TIMER);
		if (ahead > 0) call(ADVANCE, Math_min(ahead, 0x7fffffff));
		apply(t.f, undefined, t.args);
		return true;
	};

	hide(G, { console, crypto, kv, CryptoKey, TextEncoder, TextDecoder, structuredClone, setTimeout, clearTimeout });

	// --- entry points for Go -----------------------------------------------------------------------------------------
	const exported = create(null);
	const names = [];
	const add = (name, fn, self) => {
		if (typeof name !== 'string' || typeof fn !== 'function' || exported[name] !== undefined) return;
		if (names.length >= 256) throw new RangeError('a bundle exports at most 256 functions');
		exported[name] = { fn, self };
		push(names, name);
	};
	// collect records the functions of an exports object and of the classes it is an instance of.
	const collect = (ns) => {
		const from = (object) => {
			for (let o = object, depth = 0; o !== null && o !== undefined && depth < 8; o = protoOf(o), depth++) {
				if (o === Object.prototype || o === Function_prototype) break;
				for (const name of Reflect.ownKeys(o)) {
					if (name === 'constructor' || name === 'prototype' || name === 'default') continue;
					add(name, object[name], object);
				}
			}
		};
		if (typeof ns === 'object' && ns !== null || typeof ns === 'function') {
			from(ns);
			const d = ns.default;
			if (typeof d === 'function') add('default', d, ns);
			else if (typeof d === 'object' && d !== null) from(d);
		}
		return stringify(names);
	};
	const Function_prototype = protoOf(collect);
	const dispatch = async (name, args) => {
		const target = exported[name];
		const v = await apply(target.fn, target.self, parse(args));
		const json = stringify(v);
		return json === undefined ? 'null' : json;
	};
	const describe = (e) => {
		const str = (f, max) => {
			try { const s = f(); return typeof s === 'string' ? wellFormed(slice(s, 0, max)) : ''; } catch { return ''; }
		};
		let error = false;
		try { error = e instanceof Error || e instanceof DOMException; } catch { /* a proxy that throws */ }
		if (!error) return stringify({ name: '', message: str(() => text(e), 2048), stack: '' });
		return stringify({ name: str(() => e.name, 128), message: str(() => e.message, 2048), stack: str(() => e.stack, 4096) });
	};
	return { dispatch, describe, timers, collect };
})
