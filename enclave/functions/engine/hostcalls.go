package engine

import (
	"context"
	"encoding/json"
	"time"
	"unicode/utf8"

	"github.com/tetratelabs/wazero/api"
)

// Operations of the prelude's host primitive; prelude.js has the same numbers.
const (
	opLog = iota
	opRandom
	opTimer
	opAdvance
	opKVGet
	opKVPut
	opKVDelete
	opKVList
	opProjectKey
	opDigest
	opHMAC
	opSeal
	opOpen
	opEncode
	opDecode
)

// refusal is a negative answer; prelude.js turns each into an exception.
type refusal int32

const (
	refuseLoading refusal = -1
	refuseLarge   refusal = -2
	refuseQuota   refusal = -3
	refuseHost    refusal = -4
	refuseInvalid refusal = -5
	refuseDecrypt refusal = -6
	refuseUTF8    refusal = -7
)

// hostCall reads one operation's arguments out of the instance and writes its answer back. Scripts may reach it with
// any arguments: each accessor checks tag and bounds, and none of them can run script code.
type hostCall struct {
	st   *state
	ctx  context.Context
	in   *instance
	js   uint64 // JSContext
	argc uint32
	argv uint32
	bad  bool  // an argument was missing, of another type, or out of bounds
	exc  value // the engine's own exception, pending
}

// dispatchHost is the C function behind the prelude's primitive: (ctx, this, argc, argv) → JSValue.
func dispatchHost(ctx context.Context, _ api.Module, stack []uint64) {
	st := stateOf(ctx)
	if st.inHost { // would enter a wazero function twice; no accessor below runs script code
		st.halt(ErrTrap)
	}
	st.inHost = true
	defer func() { st.inHost = false }()
	c := &hostCall{st: st, ctx: ctx, in: st.in, js: stack[0], argc: uint32(stack[2]), argv: uint32(stack[3])}
	stack[0] = c.run(c.integer(0))
	st.check() // the host may have taken its time
}

func (c *hostCall) run(op int32) value {
	if c.bad {
		return c.refuse(refuseInvalid)
	}
	switch op {
	case opLog:
		return c.log()
	case opEncode:
		return c.encode()
	case opDecode:
		return c.decode()
	}
	if c.st.host == nil {
		return c.refuse(refuseLoading)
	}
	if op != opTimer && op != opAdvance {
		defer c.st.tick()
	}
	switch op {
	case opTimer:
		return mkInt(int32(min(c.st.ahead/time.Millisecond, 1<<31-1)))
	case opAdvance:
		return c.advance()
	case opRandom:
		return c.random()
	case opKVGet, opKVPut, opKVDelete, opKVList:
		return c.kv(op)
	case opProjectKey:
		return c.projectKey()
	case opDigest, opHMAC, opSeal, opOpen:
		return c.crypto(op)
	}
	return c.refuse(refuseInvalid)
}

func (c *hostCall) refuse(r refusal) value {
	if c.exc != 0 {
		return c.exc
	}
	return mkInt(int32(r))
}

// failed notes an error of the host; the script learns only that there was one.
func (c *hostCall) failed(err error) value {
	if c.st.hostErr == nil {
		c.st.hostErr = err
	}
	return c.refuse(refuseHost)
}

func (c *hostCall) arg(i uint32) value {
	if i >= c.argc || c.argc > 64 {
		c.bad = true
		return jsUndefined
	}
	v, ok := c.in.mem.ReadUint64Le(c.argv + 8*i)
	if !ok {
		c.bad = true
		return jsUndefined
	}
	return v
}

func (c *hostCall) integer(i uint32) int32 {
	v := c.arg(i)
	if tagOf(v) != tagInt {
		c.bad = true
		return 0
	}
	return int32(uint32(v))
}

// text copies a string argument of at most max bytes of UTF-8.
func (c *hostCall) text(i uint32, max int) []byte {
	v := c.arg(i)
	if c.bad || tagOf(v) != tagString && tagOf(v) != tagStringRope {
		c.bad = true
		return nil
	}
	sp := c.in.sp.Get()
	defer c.in.sp.Set(sp)
	lenPtr := c.scratch(sp)
	p := uint32(c.in.reenter(c.ctx, fnToCStringLen2, c.js, uint64(lenPtr), v, 0))
	if p == 0 {
		c.bad, c.exc = true, jsException
		return nil
	}
	defer c.in.reenter(c.ctx, fnFreeCString, c.js, uint64(p))
	n, ok := c.in.mem.ReadUint32Le(lenPtr)
	b, ok2 := c.in.mem.Read(p, n)
	if !ok || !ok2 || len(b) > max {
		c.bad = true
		return nil
	}
	return append([]byte(nil), b...)
}

// scratch reserves 16 bytes below the stack pointer, which the running C frames own nothing of.
func (c *hostCall) scratch(sp uint64) uint32 {
	p := uint32(sp) - 16
	if p < uint32(c.in.stackLow.Get()) {
		c.st.halt(ErrStack)
	}
	c.in.sp.Set(uint64(p))
	return p
}

// bytes returns a view of a Uint8Array argument of at most max bytes. It is valid until the engine runs again.
func (c *hostCall) bytes(i uint32, max int) []byte {
	v := c.arg(i)
	if c.bad || tagOf(v) != tagObject || uint32(c.in.reenter(c.ctx, fnTypedArrayType, v)) != uint8Array {
		c.bad = true
		return nil
	}
	sp := c.in.sp.Get()
	defer c.in.sp.Set(sp)
	lenPtr := c.scratch(sp)
	p := uint32(c.in.reenter(c.ctx, fnGetUint8Array, c.js, uint64(lenPtr), v))
	if p == 0 { // detached, or empty
		if uint32(c.in.reenter(c.ctx, fnHasException, c.js)) != 0 {
			c.bad, c.exc = true, jsException
		}
		return nil
	}
	n, ok := c.in.mem.ReadUint32Le(lenPtr)
	b, ok2 := c.in.mem.Read(p, n)
	if !ok || !ok2 || len(b) > max {
		c.bad = true
		return nil
	}
	return b
}

// give makes a Uint8Array of b in the engine; out of memory is the engine's own exception.
func (c *hostCall) give(b []byte) value { return c.make(fnNewUint8ArrayCopy, b) }

func (c *hostCall) make(fn export, b []byte) value {
	p := uint32(c.in.reenter(c.ctx, fnMalloc, uint64(len(b)+1)))
	if p == 0 {
		// Let the engine raise its own out-of-memory exception, by asking for what it cannot have either.
		return c.in.reenter(c.ctx, fnNewUint8ArrayCopy, c.js, 0, uint64(uint32(1<<31-1)))
	}
	if !c.in.mem.Write(p, b) {
		c.st.halt(ErrTrap)
	}
	v := c.in.reenter(c.ctx, fn, c.js, uint64(p), uint64(len(b)))
	c.in.reenter(c.ctx, fnFree, uint64(p))
	return v
}

func (c *hostCall) log() value {
	level, text := c.integer(1), c.text(2, 4*maxLogLine)
	names := [...]string{"debug", "info", "log", "warn", "error"}
	if c.bad || level < 0 || int(level) >= len(names) {
		return c.refuse(refuseInvalid)
	}
	c.st.logs.add(names[level], text)
	return jsUndefined
}

func (c *hostCall) advance() value {
	ms := c.integer(1)
	if c.bad || ms < 0 || c.st.ahead > (1<<31)*time.Millisecond {
		return c.refuse(refuseInvalid)
	}
	c.st.ahead += time.Duration(ms) * time.Millisecond
	return jsUndefined
}

func (c *hostCall) random() value {
	n := c.integer(1)
	if c.bad || n < 1 || n > maxRandom {
		return c.refuse(refuseInvalid)
	}
	b := make([]byte, n)
	if err := c.st.host.Random(b); err != nil {
		return c.failed(err)
	}
	return c.give(b)
}

func (c *hostCall) kv(op int32) value {
	key := c.text(1, maxKey)
	if c.bad {
		return c.refuse(refuseLarge)
	}
	if !utf8.Valid(key) || len(key) == 0 && op != opKVList {
		return c.refuse(refuseInvalid)
	}
	if !c.st.charge(len(key)) {
		return c.refuse(refuseQuota)
	}
	switch op {
	case opKVGet:
		v, found, err := c.st.host.KVGet(c.st.ctx, string(key))
		if err != nil {
			return c.failed(err)
		}
		if !found {
			return jsUndefined
		}
		return c.answer(v)
	case opKVPut:
		return c.kvPut(string(key))
	case opKVDelete:
		if err := c.st.host.KVDelete(c.st.ctx, string(key)); err != nil {
			return c.failed(err)
		}
		return jsUndefined
	}
	return c.kvList(string(key))
}

// answer charges for what the host returned and hands it over.
func (c *hostCall) answer(b []byte) value {
	if len(b) > c.st.limits.HostBytes-c.st.moved {
		return c.refuse(refuseQuota)
	}
	c.st.moved += len(b)
	return c.give(b)
}

func (c *hostCall) kvPut(key string) value {
	v := c.bytes(2, maxValue)
	if c.bad {
		return c.refuse(refuseLarge)
	}
	if len(v) > c.st.limits.HostBytes-c.st.moved {
		return c.refuse(refuseQuota)
	}
	c.st.moved += len(v)
	if err := c.st.host.KVPut(c.st.ctx, key, append([]byte(nil), v...)); err != nil {
		return c.failed(err)
	}
	return jsUndefined
}

func (c *hostCall) kvList(prefix string) value {
	limit := int(c.integer(2))
	if c.bad || limit < 1 || limit > maxList {
		return c.refuse(refuseInvalid)
	}
	keys, err := c.st.host.KVList(c.st.ctx, prefix, limit)
	if err != nil {
		return c.failed(err)
	}
	if keys == nil {
		keys = []string{}
	}
	b, err := json.Marshal(keys[:min(limit, len(keys))])
	if err != nil {
		return c.failed(err)
	}
	return c.answer(b)
}

func (c *hostCall) projectKey() value {
	if !c.st.charge(0) {
		return c.refuse(refuseQuota)
	}
	k, err := c.st.host.ProjectKey(c.st.ctx)
	if err != nil {
		return c.failed(err)
	}
	defer clear(k)
	return c.give(k)
}

func (c *hostCall) encode() value {
	b := c.text(1, maxCodec)
	if c.bad {
		return c.refuse(refuseLarge)
	}
	return c.give(b)
}

func (c *hostCall) decode() value {
	b := c.bytes(1, maxCodec)
	fatal := c.integer(2)
	if c.bad {
		return c.refuse(refuseLarge)
	}
	b = append([]byte(nil), b...) // the view does not outlive the allocation that follows
	if !utf8.Valid(b) {
		if fatal != 0 {
			return c.refuse(refuseUTF8)
		}
		b = replaceInvalid(b)
	}
	return c.make(fnNewStringLen, b)
}

// replaceInvalid puts U+FFFD in the place of each maximal invalid part, as the WHATWG Encoding Standard's UTF-8 decoder
// does (Go's own conversion replaces each byte).
func replaceInvalid(b []byte) []byte {
	out := make([]byte, 0, len(b)+16)
	for len(b) > 0 {
		if r, n := utf8.DecodeRune(b); r != utf8.RuneError || n > 1 {
			out, b = append(out, b[:n]...), b[n:]
			continue
		}
		n := 1 // FullRune is false for a valid but incomplete beginning only
		for n < len(b) && !utf8.FullRune(b[:n]) && !utf8.FullRune(b[:n+1]) {
			n++
		}
		out, b = utf8.AppendRune(out, utf8.RuneError), b[n:]
	}
	return out
}
