// Package engine runs confidential functions written in JavaScript: one bundle, one WebAssembly sandbox per call, no
// keys and no network. It is QuickJS-NG compiled to WebAssembly under wazero, instrumented by package meter, with a host
// interface of our own instead of WASI's. DESIGN §8 is the plan of record.
//
// A bundle is loaded once per deployment: Load evaluates it with host calls off and takes a snapshot of linear memory and
// globals. Every Call starts from a copy of that snapshot, in an instance that one call uses and that is made equal to
// the snapshot before the next: nothing stays between calls, warm or cold, and programs never share an instance.
//
//	e, err := engine.New(ctx, engine.Config{Mode: engine.Compiler})
//	p, err := e.Load(ctx, engine.Bundle{Code: source})
//	res, err := p.Call(ctx, "greet", []byte(`["Ada"]`), host)
//
// # Exports
//
// An ES module's exported functions (and those of an object exported as default), or the functions of the global
// cclexports, however it is declared: the shape of a Conclave Functions project built with webpack's output.library.
// Results and arguments are JSON. A function may be async; what its promise becomes is the result.
//
// # What a function finds
//
//   - ECMAScript as QuickJS-NG has it, with atob, btoa, queueMicrotask, DOMException and performance.
//   - console.debug, info, log, warn, error, trace: bounded lines in Result.Logs.
//   - kv.get(key, "text"|"json"|"bytes"), kv.put(key, string or bytes), kv.delete(key), kv.list(prefix, {limit}), all
//     returning promises. A missing key is null; keys are strings of 1 to 1024 bytes; values up to 1 MiB.
//   - crypto.getProjectKey(): synchronous, Base64 text, as Conclave Functions had it; getProjectKey("raw") is bytes.
//   - crypto.getRandomValues, crypto.randomUUID, Math.random: from the host's generator.
//   - crypto.subtle: digest (SHA-256, SHA-384, SHA-512), importKey and exportKey "raw", generateKey, encrypt and decrypt
//     (AES-GCM, 96-bit nonce, 128-bit tag), sign and verify (HMAC). Inputs up to 8 MiB.
//   - TextEncoder, TextDecoder (UTF-8, up to 16 MiB at a time), structuredClone (without transfer).
//   - setTimeout, clearTimeout on a virtual clock: when nothing else is left to run the clock jumps to the next timer.
//   - Date and performance stand still between host calls.
//
// Of DESIGN §8 not here yet: fetch, Request, Response, Headers, URL, AbortController, crypto.getCodeKey, kv's atomic
// operations; nor user WebAssembly. setInterval and a report of unhandled rejections are not there either. An import statement fails: a bundle is one file. While a bundle is evaluated, kv,
// keys, timers and randomness throw and Date stands at the epoch.
//
// # Limits
//
// Time: instrumented code asks the host about once a millisecond, so `for(;;){}` ends at the deadline and never keeps
// Go's scheduler or collector waiting. Memory: growth of linear memory is refused at the limit and the script gets an
// "out of memory" exception. Stack: QuickJS throws a RangeError at 768 KiB of its 1 MiB stack, some 2000 calls deep; recursion
// that it does not check (its JSON parser, parts of its compiler) meets a guard that stops the call before the stack
// reaches other data, or a limit of nesting. After any trap the instance is thrown away. What a bundle leaves in memory when
// it is evaluated is bounded by Limits.Snapshot, and idle instances by a Budget. Everything that crosses the boundary is
// bounded by Limits.
//
// # The host primitive
//
// The prelude receives one function object, made from an import that meter puts into the function table; no file
// descriptor and no global leads to it. A script that tricks the prelude into handing it over gains nothing: each
// operation checks its arguments in Go, is charged to the call, and is what kv and crypto offer already, for the script's
// own project. What separates tenants is the sandbox and the snapshot, not JavaScript.
package engine
