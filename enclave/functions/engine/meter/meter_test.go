package meter

import (
	"bytes"
	"context"
	"errors"
	"testing"

	quickjs "github.com/aperturerobotics/go-quickjs-wasi-reactor"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// paddedZero is index 0 as linkers write it when they leave relocations uncompressed.
var paddedZero = []byte{0x80, 0x80, 0x80, 0x80, 0x00}

// sample is a small module: one global stack pointer at 1000, one page of memory, a table of one function, and
//
//	0 spin()                endless loop
//	1 deep(n i32) i32       n == 0 ? 0 : deep(n-1)+1, with an explicit return and a branch to the function's label
//	2 push(n i32)           sp -= n, with a padded index
//	3 size() i32            memory.size
//	4 grow(n i32) i32       memory.grow
//	5 slot(i i32) i64       call_indirect through table slot i, with the type of a C function
func sample() []byte {
	cat := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	vec := func(items ...[]byte) []byte { return append([]byte{byte(len(items))}, cat(items...)...) }
	body := func(code ...byte) []byte { return append([]byte{byte(len(code) + 2), 0}, append(code, opEnd)...) }
	name := func(s string, index byte) []byte { return append(append([]byte{byte(len(s))}, s...), kindFunc, index) }
	out := append([]byte(nil), magic...)
	add := func(id byte, body []byte) { out = appendSection(out, id, body) }
	add(secType, vec([]byte{0x60, 0, 0}, []byte{0x60, 1, typeI32, 1, typeI32}, []byte{0x60, 1, typeI32, 0},
		[]byte{0x60, 0, 1, typeI32}, []byte{0x60, 1, typeI32, 1, typeI64},
		[]byte{0x60, 4, typeI32, typeI64, typeI32, typeI32, 1, typeI64}))
	add(secFunction, vec([]byte{0}, []byte{1}, []byte{2}, []byte{3}, []byte{1}, []byte{4}))
	add(secTable, vec([]byte{0x70, 1, 1, 1}))
	add(secMemory, vec([]byte{0, 1}))
	add(secGlobal, vec([]byte{typeI32, 1, opI32Const, 0xe8, 0x07, opEnd}))
	add(secExport, vec(name("spin", 0), name("deep", 1), name("push", 2), name("size", 3), name("grow", 4), name("slot", 5)))
	add(secElement, vec([]byte{0, opI32Const, 0, opEnd, 1, 0}))
	add(secCode, vec(
		body(opLoop, blockEmpty, opBr, 0, opEnd),
		body(opLocalGet, 0, 0x45, opIf, blockEmpty, opI32Const, 0, opReturn, opEnd, // n == 0: return
			opLocalGet, 0, opI32Const, 1, opI32Sub, opCall, 1, opI32Const, 1, opI32Add, opBr, 0),
		body(cat([]byte{opGlobalGet, 0, opLocalGet, 0, opI32Sub, opGlobalSet}, paddedZero)...),
		body(opMemorySize, 0), body(opLocalGet, 0, opMemoryGrow, 0),
		body(opI32Const, 1, opI64Const, 2, opI32Const, 3, opI32Const, 4, opLocalGet, 0, opCallInd, 5, 0)))
	return out
}

type rig struct {
	mod     api.Module
	refuels int
	budget  int // refuels granted before the host panics
	trapped Trap
}

var errStopped = errors.New("stopped")

func newRig(t *testing.T) *rig {
	t.Helper()
	res, err := Rewrite(sample())
	if err != nil {
		t.Fatal(err)
	}
	if res.CallSlot != 1 || res.MemoryMin != 1 {
		t.Fatalf("%+v", res)
	}
	ctx, g := t.Context(), &rig{}
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	b := r.NewHostModuleBuilder(ModuleName)
	b.NewFunctionBuilder().WithFunc(func(_ context.Context, m api.Module) {
		if g.refuels++; g.refuels > g.budget {
			panic(errStopped)
		}
		m.ExportedGlobal(GlobalFuel).(api.MutableGlobal).Set(100)
	}).Export(ImportRefuel)
	b.NewFunctionBuilder().WithFunc(func(code uint32) { g.trapped = Trap(code); panic(errStopped) }).Export(ImportTrap)
	b.NewFunctionBuilder().WithFunc(func(a uint32, b uint64, c, d uint32) uint64 {
		return uint64(a) + 10*b + 100*uint64(c) + 1000*uint64(d)
	}).Export(ImportCall)
	if _, err := b.Instantiate(ctx); err != nil {
		t.Fatal(err)
	}
	if g.mod, err = r.InstantiateWithConfig(ctx, res.Wasm, wazero.NewModuleConfig()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close(context.Background()) })
	g.set(GlobalMaxDepth, 50)
	g.set(GlobalMaxPages, 4)
	g.set(GlobalFuel, 100)
	return g
}

func (g *rig) set(name string, v uint64) { g.mod.ExportedGlobal(name).(api.MutableGlobal).Set(v) }
func (g *rig) get(name string) uint64    { return g.mod.ExportedGlobal(name).Get() }

func (g *rig) call(t *testing.T, fn string, args ...uint64) (uint64, error) {
	t.Helper()
	res, err := g.mod.ExportedFunction(fn).Call(t.Context(), args...)
	if err != nil || len(res) == 0 {
		return 0, err
	}
	return res[0], nil
}

func TestFuelStopsLoops(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.budget = 7
	if _, err := g.call(t, "spin"); !errors.Is(err, errStopped) || g.refuels != 8 {
		t.Errorf("%v after %d refuels", err, g.refuels)
	}
}

func TestDepth(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	g.budget = 10
	for _, n := range []uint64{0, 1, 49} {
		if got, err := g.call(t, "deep", n); err != nil || got != n {
			t.Errorf("deep(%d) = %d, %v", n, got, err)
		}
		if d := g.get(GlobalDepth); d != 0 {
			t.Errorf("depth %d at rest: a way out of the function misses its decrement", d)
		}
	}
	if _, err := g.call(t, "deep", 50); !errors.Is(err, errStopped) || g.trapped != TrapDepth {
		t.Errorf("deep(50): %v, trap %d", err, g.trapped)
	}
	g = newRig(t)
	g.set(GlobalMaxDepth, 1<<20)
	if _, err := g.call(t, "deep", 150); !errors.Is(err, errStopped) || g.refuels != 1 {
		t.Errorf("recursion is not charged: %v, %d refuels", err, g.refuels)
	}
}

// TestStackGuard moves the stack pointer to its limit and below, also beyond zero where it wraps.
func TestStackGuard(t *testing.T) {
	t.Parallel()
	for _, tc := range []struct {
		push uint64
		ok   bool
	}{{0, true}, {900, true}, {901, false}, {1000, false}, {1001, false}, {5000, false}, {0xfffffc18, false} /* up, to 2000 */} {
		g := newRig(t)
		g.set(GlobalStackLow, 100)
		g.set(GlobalStackSize, 900)
		_, err := g.call(t, "push", tc.push)
		if (err == nil) != tc.ok || !tc.ok && (!errors.Is(err, errStopped) || g.trapped != TrapStack) {
			t.Errorf("push(%d): %v, trap %d", tc.push, err, g.trapped)
		}
	}
}

func TestVirtualMemory(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	steps := []struct {
		fn         string
		arg        uint64
		want       uint64
		real, flag uint64 // real pages and the denied flag afterwards
	}{
		{"size", 0, 1, 1, 0}, {"grow", 2, 1, 3, 0}, {"grow", 0, 3, 3, 0}, {"grow", 2, 0xffffffff, 3, 1}, {"size", 0, 3, 3, 1},
		{"grow", 0xffffffff, 0xffffffff, 3, 1}, {"grow", 1, 3, 4, 1}, {"size", 0, 4, 4, 1},
	}
	run := func() {
		for i, s := range steps {
			var args []uint64
			if s.fn == "grow" {
				args = append(args, s.arg)
			}
			got, err := g.call(t, s.fn, args...)
			if err != nil || got != s.want || g.get(GlobalDenied) != s.flag {
				t.Errorf("step %d, %s(%d) = %d %v, denied %d", i, s.fn, s.arg, int32(got), err, g.get(GlobalDenied))
			}
			if real := uint64(g.mod.Memory().Size()) >> 16; real < s.real {
				t.Errorf("step %d: %d real pages", i, real)
			}
		}
	}
	run()
	// The same again in the same instance, as after a reset: the module cannot tell that its memory is larger already.
	g.set(GlobalPages, 1)
	g.set(GlobalDenied, 0)
	run()
	if real := g.mod.Memory().Size() >> 16; real != 4 {
		t.Errorf("%d real pages", real)
	}
}

func TestCallSlot(t *testing.T) {
	t.Parallel()
	g := newRig(t)
	if got, err := g.call(t, "slot", 1); err != nil || got != 1+20+300+4000 {
		t.Errorf("%d, %v", got, err)
	}
	if _, err := g.call(t, "slot", 0); err == nil {
		t.Error("a function of another type was called")
	}
	if _, err := g.call(t, "slot", 2); err == nil {
		t.Error("a slot beyond the table was called")
	}
}

// TestRefusals changes the sample so that a snapshot or the guard would miss something.
func TestRefusals(t *testing.T) {
	t.Parallel()
	replace := func(old, new []byte) []byte {
		out := bytes.Replace(sample(), old, new, 1)
		if bytes.Equal(out, sample()) {
			t.Fatalf("%x does not occur", old)
		}
		return out
	}
	for name, wasm := range map[string][]byte{
		"empty":             {},
		"text":              []byte("(module)"),
		"version 2":         replace(magic, []byte("\x00asm\x02\x00\x00\x00")),
		"trailing":          append(sample(), 0xff),
		"truncated":         sample()[:len(sample())-1],
		"immutable pointer": replace([]byte{typeI32, 1, opI32Const, 0xe8}, []byte{typeI32, 0, opI32Const, 0xe8}),
		"growing table":     replace([]byte{0x70, 1, 1, 1}, []byte{0x70, 1, 1, 9}),
		"table.set":         replace([]byte{opLocalGet, 0, opMemoryGrow, 0}, []byte{opLocalGet, 0, 0x26, 0}),
		"memory.init":       replace([]byte{opI64Const, 2, opI32Const, 3}, []byte{opPrefixFC, 8, 0, 0}),
		"SIMD":              replace([]byte{opI64Const, 2, opI32Const, 3}, []byte{0xfd, 0x0c, 0, 0}),
		"atomics":           replace([]byte{opI64Const, 2, opI32Const, 3}, []byte{0xfe, 0x10, 2, 0}),
		"start function":    append(sample(), secStart, 1, 0),
		"sections twice":    append(sample(), secMemory, 3, 1, 0, 1),
	} {
		if res, err := Rewrite(wasm); res != nil || !errors.Is(err, ErrModule) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestEngine checks what the rest of the engine assumes of the pinned module.
func TestEngine(t *testing.T) {
	t.Parallel()
	res, err := Rewrite(quickjs.QuickJSWASM)
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseModule(quickjs.QuickJSWASM)
	if err != nil {
		t.Fatal(err)
	}
	if m.imports != 21 || m.tableMin != res.CallSlot || m.memoryMin != 3 {
		t.Errorf("%d imports, table of %d, memory of %d pages", m.imports, m.tableMin, m.memoryMin)
	}
	again, err := Rewrite(quickjs.QuickJSWASM)
	if err != nil || !bytes.Equal(again.Wasm, res.Wasm) {
		t.Error("rewriting is not deterministic")
	}
}

func FuzzRewrite(f *testing.F) {
	f.Add(sample())
	f.Fuzz(func(t *testing.T, wasm []byte) {
		res, err := Rewrite(wasm)
		if (res == nil) == (err == nil) || err != nil && !errors.Is(err, ErrModule) {
			t.Errorf("%v, %v", res, err)
		}
	})
}
