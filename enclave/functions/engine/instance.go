package engine

import (
	"bytes"
	"context"
	"fmt"
	"iter"

	"github.com/claviger/claviger/enclave/functions/engine/meter"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// export names a function of the JavaScript engine's C API.
type export int

const (
	fnInitialize export = iota
	fnMalloc
	fnFree
	fnNewRuntime
	fnSetMemoryLimit
	fnSetMaxStackSize
	fnNewContext
	fnNewCFunction2
	fnEval
	fnEvalFunction
	fnCall
	fnModuleNamespace
	fnGetPropertyStr
	fnGetException
	fnFreeValue
	fnRunGC
	fnNewStringLen
	fnToCStringLen2
	fnFreeCString
	fnPromiseState
	fnPromiseResult
	fnExecutePendingJob
	fnTypedArrayType
	fnGetUint8Array
	fnNewUint8ArrayCopy
	fnHasException
	fnCount
)

var exportNames = [fnCount]string{
	"_initialize", "malloc", "free", "JS_NewRuntime", "JS_SetMemoryLimit", "JS_SetMaxStackSize", "JS_NewContext",
	"JS_NewCFunction2", "JS_Eval", "JS_EvalFunction", "JS_Call", "JS_GetModuleNamespace", "JS_GetPropertyStr",
	"JS_GetException", "JS_FreeValue", "JS_RunGC", "JS_NewStringLen", "JS_ToCStringLen2", "JS_FreeCString",
	"JS_PromiseState", "JS_PromiseResult", "JS_ExecutePendingJob", "JS_GetTypedArrayType", "JS_GetUint8Array",
	"JS_NewUint8ArrayCopy", "JS_HasException",
}

// value is a JSValue of the 32-bit engine: the tag in the upper half, a pointer or an integer in the lower.
type value = uint64

// Tags of quickjs.h.
const (
	tagStringRope = -6
	tagString     = -7
	tagModule     = -3
	tagObject     = -1
	tagInt        = 0
	tagBool       = 1
	tagNull       = 2
	tagUndefined  = 3
	tagException  = 6
)

const (
	jsUndefined = value(tagUndefined) << 32
	jsException = value(tagException) << 32
	uint8Array  = 2 // JSTypedArrayEnum: JS_TYPED_ARRAY_UINT8
)

func tagOf(v value) int32 { return int32(v >> 32) }

func mkInt(i int32) value { return value(uint32(i)) }

// instance is one sandbox: a module instance with its memory. One goroutine uses it at a time.
type instance struct {
	engine *Engine
	mod    api.Module
	mem    api.Memory
	// A wazero function keeps its own native stack and must not be entered twice, so host functions that call back into
	// the engine have a second set. A third level cannot occur: those calls never run script code.
	fns, nested [fnCount]api.Function

	sp, stackLow, stackSize, fuel, depth, maxDepth, pages, maxPages, denied api.MutableGlobal
}

func (e *Engine) newInstance(ctx context.Context) (*instance, error) {
	mod, err := e.runtime.InstantiateModule(ctx, e.compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return nil, fmt.Errorf("engine: instantiate: %w", err)
	}
	in := &instance{engine: e, mod: mod, mem: mod.Memory()}
	for i, name := range exportNames {
		in.fns[i], in.nested[i] = mod.ExportedFunction(name), mod.ExportedFunction(name)
		if in.fns[i] == nil {
			return nil, fmt.Errorf("engine: the JavaScript engine does not export %s", name)
		}
	}
	for name, g := range map[string]*api.MutableGlobal{
		meter.GlobalStackPointer: &in.sp, meter.GlobalStackLow: &in.stackLow,
		meter.GlobalStackSize: &in.stackSize, meter.GlobalFuel: &in.fuel,
		meter.GlobalDepth: &in.depth, meter.GlobalMaxDepth: &in.maxDepth, meter.GlobalPages: &in.pages,
		meter.GlobalMaxPages: &in.maxPages, meter.GlobalDenied: &in.denied,
	} {
		m, ok := mod.ExportedGlobal(name).(api.MutableGlobal)
		if !ok {
			return nil, fmt.Errorf("engine: the JavaScript engine does not export %s", name)
		}
		*g = m
	}
	in.maxPages.Set(uint64(e.limits.Memory / pageSize))
	in.maxDepth.Set(uint64(e.maxDepth))
	return in, nil
}

// close ends an instance and wipes its memory, which Go's collector would otherwise keep as it is for a while.
func (in *instance) close(ctx context.Context) {
	if view, ok := in.mem.Read(0, uint32(in.pages.Get())*pageSize); ok {
		clear(view)
	}
	_ = in.mod.Close(ctx)
}

// Beside its memory an instance has some tables and the functions' native stacks, which grow with recursion, by some
// 400 bytes for each unit of fuel, doubling, up to many megabytes, and never shrink by themselves. A call that used more
// than shallow fuel may have grown them beyond what an idle instance is accounted for.
const (
	instanceOverhead = 3 << 20
	shallow          = 3000
)

// size is what an idle instance is accounted for, in bytes: the buffer behind its memory may be a quarter larger.
func (in *instance) size() int64 {
	n := int64(in.mem.Size())
	return n + n/4 + instanceOverhead
}

// shedStacks replaces the functions by which scripts run, and so their native stacks.
func (in *instance) shedStacks() {
	for _, fn := range []export{fnCall, fnExecutePendingJob} {
		in.fns[fn] = in.mod.ExportedFunction(exportNames[fn])
	}
}

// call enters the engine from outside. An error means a trap or a halt: the instance is spoilt.
func (in *instance) call(ctx context.Context, fn export, args ...uint64) (uint64, error) {
	return invoke(ctx, in.fns[fn], args)
}

// reenter calls back into the engine from a host function; a trap in there unwinds the outer call as well.
func (in *instance) reenter(ctx context.Context, fn export, args ...uint64) uint64 {
	v, err := invoke(ctx, in.nested[fn], args)
	if err != nil {
		stateOf(ctx).halt(ErrTrap)
	}
	return v
}

func invoke(ctx context.Context, fn api.Function, args []uint64) (uint64, error) {
	var stack [6]uint64
	copy(stack[:], args)
	if err := fn.CallWithStack(ctx, stack[:]); err != nil {
		return 0, err
	}
	return stack[0], nil
}

// put copies b and a final NUL into fresh memory of the engine; the caller frees it. It returns 0 when memory is out.
func (in *instance) put(ctx context.Context, b []byte) (uint32, error) {
	p, err := in.call(ctx, fnMalloc, uint64(len(b)+1))
	if err != nil || uint32(p) == 0 {
		return 0, err
	}
	ptr := uint32(p)
	if !in.mem.Write(ptr, b) || !in.mem.WriteByte(ptr+uint32(len(b)), 0) {
		return 0, ErrTrap
	}
	return ptr, nil
}

// snapshot is everything an instance is, at rest: memory and the mutable globals (package meter makes sure that there
// is no other state), with the addresses of the few values that Go enters by.
type snapshot struct {
	runs     []run // what is not zero, in ascending order
	pages    uint32
	maxPages uint32
	sp       uint32
	stackLow uint32
	env      environment
}

// run is a piece of memory that is not all zero.
type run struct {
	at   uint32
	data []byte
}

// runSize is the granularity of a snapshot, in bytes: much of memory is the unused part of the stack.
const runSize = 4 << 10

// environment are addresses inside the snapshot's memory.
type environment struct {
	runtime, context uint32
	dispatch         value // (name, arguments JSON) → promise of result JSON
	describe         value // (thrown value) → JSON of name, message, stack
	timers           value // () → whether a timer ran
	collect          value // (exports) → JSON of names
}

// takeSnapshot copies what is not zero, at most limit bytes: ErrSnapshot comes before anything is copied.
func (in *instance) takeSnapshot(env environment, limit int) (*snapshot, error) {
	pages := uint32(in.pages.Get())
	view, ok := in.mem.Read(0, pages*pageSize)
	if !ok {
		return nil, ErrTrap
	}
	s := &snapshot{pages: pages, maxPages: uint32(in.maxPages.Get()), sp: uint32(in.sp.Get()), stackLow: uint32(in.stackLow.Get()), env: env}
	total := 0
	for at, end := range nonZero(view) {
		total += end - at
	}
	if total > limit {
		return nil, fmt.Errorf("%w: it has %d bytes of %d", ErrSnapshot, total, limit)
	}
	for at, end := range nonZero(view) {
		s.runs = append(s.runs, run{at: uint32(at), data: bytes.Clone(view[at:end])})
	}
	return s, nil
}

// nonZero yields where the pieces of memory that are not zero begin and end, in steps of runSize.
func nonZero(view []byte) iter.Seq2[int, int] {
	zero := make([]byte, runSize)
	return func(yield func(at, end int) bool) {
		for at := 0; at < len(view); {
			end := at
			for end < len(view) && !bytes.Equal(view[end:end+runSize], zero) {
				end += runSize
			}
			if end > at && !yield(at, end) {
				return
			}
			at = end + runSize
		}
	}
}

// size is the number of bytes that the snapshot holds.
func (s *snapshot) size() (n int) {
	for _, r := range s.runs {
		n += len(r.data)
	}
	return n
}

// restore makes the instance equal to the snapshot, whatever it was before: every byte of linear memory and every
// mutable global is written.
func (in *instance) restore(s *snapshot) error {
	if have := in.mem.Size() / pageSize; have < s.pages {
		if _, ok := in.mem.Grow(s.pages - have); !ok {
			return ErrMemory
		}
	}
	view, ok := in.mem.Read(0, in.mem.Size())
	if !ok {
		return ErrTrap
	}
	at := 0
	for _, r := range s.runs {
		clear(view[at:r.at])
		at = int(r.at) + copy(view[r.at:], r.data)
	}
	clear(view[at:])
	in.sp.Set(uint64(s.sp))
	in.stackLow.Set(uint64(s.stackLow))
	in.stackSize.Set(stackSize - redZone)
	in.pages.Set(uint64(s.pages))
	in.maxPages.Set(uint64(s.maxPages))
	in.depth.Set(0)
	in.denied.Set(0)
	in.fuel.Set(0)
	return nil
}
