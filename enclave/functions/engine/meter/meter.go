package meter

// ModuleName is the import module of the three functions that the pass adds.
const ModuleName = "claviger"

// Names of the added imports. Refuel is () → (), Trap is (code i32) → (), Call has the signature of a QuickJS C
// function: (ctx i32, this i64, argc i32, argv i32) → i64.
const (
	ImportRefuel = "refuel"
	ImportTrap   = "trap"
	ImportCall   = "call"
)

// Names of the exported globals, beside those of the module. All are mutable.
const (
	GlobalStackPointer = "claviger.sp"         // i32: the module's own stack pointer
	GlobalStackLow     = "claviger.stack_low"  // i32: a write of the stack pointer below it traps; starts at 0
	GlobalStackSize    = "claviger.stack_size" // i32: and so does one beyond stack_low + stack_size; starts at 2³²-1
	GlobalFuel         = "claviger.fuel"       // i64: starts at 0
	GlobalDepth        = "claviger.depth"      // i32: present nesting
	GlobalMaxDepth     = "claviger.max_depth"  // i32: starts at 0, so nothing runs before it is set
	GlobalPages        = "claviger.pages"      // i32: what memory.size answers, in pages of 64 KiB
	GlobalMaxPages     = "claviger.max_pages"  // i32: memory.grow beyond it answers -1
	GlobalDenied       = "claviger.denied"     // i32: 1 once a growth was refused
)

// Trap is the code that the trap import receives.
type Trap uint32

// The reasons to trap.
const (
	TrapStack Trap = 1 // the stack in linear memory is used up
	TrapDepth Trap = 2 // calls are nested too deep
)

// Result is a rewritten module.
type Result struct {
	Wasm      []byte
	CallSlot  uint32 // index of the call import in the function table: a C function pointer
	MemoryMin uint32 // initial memory, in pages
}

// Rewrite instruments a module. It refuses, with ErrModule, what it does not fully understand.
func Rewrite(wasm []byte) (*Result, error) {
	m, err := parseModule(wasm)
	if err != nil {
		return nil, err
	}
	const added = 3
	w := &rewriter{
		firstDefined: m.imports, shift: added,
		fnRefuel: m.imports, fnTrap: m.imports + 1,
		fnGrow:    m.imports + added + m.functions,
		gStackLow: m.globals, gFuel: m.globals + 1, gDepth: m.globals + 2, gMaxDepth: m.globals + 3,
		gPages: m.globals + 4, gMaxPages: m.globals + 5, gDenied: m.globals + 6, gStackSize: m.globals + 7,
	}
	out := append([]byte(nil), magic...)
	for id := byte(secType); id < secCount; id++ {
		body, err := m.section(id, w)
		if err != nil {
			return nil, err
		}
		if body != nil {
			out = appendSection(out, id, body)
		}
	}
	return &Result{Wasm: out, CallSlot: m.tableMin, MemoryMin: m.memoryMin}, nil
}

// section returns the new body of one section.
func (m *module) section(id byte, w *rewriter) ([]byte, error) {
	raw := m.sections[id]
	switch id {
	case secType:
		return extend(raw, 4, []byte{
			0x60, 0, 0, // () → ()
			0x60, 1, typeI32, 0, // (i32) → ()
			0x60, 4, typeI32, typeI64, typeI32, typeI32, 1, typeI64,
			0x60, 1, typeI32, 1, typeI32, // (i32) → i32
		})
	case secImport:
		var b []byte
		for i, name := range []string{ImportRefuel, ImportTrap, ImportCall} {
			b = appendName(appendName(b, ModuleName), name)
			b = appendU32(append(b, kindFunc), m.types+uint32(i))
		}
		return extend(raw, 3, b)
	case secFunction:
		return extend(raw, 1, appendU32(nil, m.types+3))
	case secTable:
		b := []byte{1, 0x70, 1}
		return appendU32(appendU32(b, m.tableMin+1), m.tableMin+1), nil
	case secGlobal:
		return extend(raw, 8, m.newGlobals())
	case secExport:
		return m.exports(w)
	case secElement:
		return m.elements(w)
	case secCode:
		return m.code(w)
	}
	return raw, nil // memory and data stay as they are
}

// extend adds n entries to a section that is a vector.
func extend(raw []byte, n uint32, entries []byte) ([]byte, error) {
	r := &reader{b: raw}
	out := appendU32(nil, r.u32()+n)
	if r.err != nil {
		return nil, r.err
	}
	return append(append(out, raw[r.pos:]...), entries...), nil
}

func (m *module) newGlobals() []byte {
	var b []byte
	for i := range 8 {
		switch i {
		case 1: // fuel
			b = append(b, typeI64, 1, opI64Const, 0, opEnd)
		case 4: // pages
			b = append(b, typeI32, 1, opI32Const)
			b = append(appendS64(b, int64(m.memoryMin)), opEnd)
		case 7: // stack size
			b = append(b, typeI32, 1, opI32Const, 0x7f, opEnd)
		default:
			b = append(b, typeI32, 1, opI32Const, 0, opEnd)
		}
	}
	return b
}

func (m *module) exports(w *rewriter) ([]byte, error) {
	r := &reader{b: m.sections[secExport]}
	n := r.u32()
	var b []byte
	for i := uint32(0); i < n && r.err == nil; i++ {
		b = appendName(b, r.name())
		kind, index := r.byte(), r.u32()
		if kind == kindFunc {
			index = w.fn(index)
		}
		b = appendU32(append(b, kind), index)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	added := []struct {
		name  string
		index uint32
	}{
		{GlobalStackPointer, 0}, {GlobalStackLow, w.gStackLow}, {GlobalStackSize, w.gStackSize}, {GlobalFuel, w.gFuel}, {GlobalDepth, w.gDepth},
		{GlobalMaxDepth, w.gMaxDepth}, {GlobalPages, w.gPages}, {GlobalMaxPages, w.gMaxPages}, {GlobalDenied, w.gDenied},
	}
	for _, g := range added {
		b = appendU32(append(appendName(b, g.name), kindGlobal), g.index)
	}
	return append(appendU32(nil, n+uint32(len(added))), b...), nil
}

// elements shifts the function table and appends a segment with the call import in the new last slot.
func (m *module) elements(w *rewriter) ([]byte, error) {
	r := &reader{b: m.sections[secElement]}
	n := r.u32()
	var b []byte
	for i := uint32(0); i < n && r.err == nil; i++ {
		if r.u32() != 0 {
			return nil, refuse("element segment %d is not plain", i)
		}
		start := r.pos
		if r.byte() != opI32Const {
			return nil, refuse("element segment %d has no constant offset", i)
		}
		r.skipLEB(5)
		if r.byte() != opEnd {
			return nil, refuse("element segment %d has a long offset", i)
		}
		b = append(append(b, 0), r.b[start:r.pos]...)
		count := r.u32()
		b = appendU32(b, count)
		for ; count > 0 && r.err == nil; count-- {
			b = appendU32(b, w.fn(r.u32()))
		}
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	b = appendS64(append(b, 0, opI32Const), int64(m.tableMin))
	b = appendU32(append(b, opEnd, 1), m.imports+2)
	return append(appendU32(nil, n+1), b...), nil
}

func (m *module) code(w *rewriter) ([]byte, error) {
	r := &reader{b: m.sections[secCode]}
	n := r.u32()
	if n != m.functions {
		return nil, refuse("%d bodies for %d functions", n, m.functions)
	}
	out := appendU32(make([]byte, 0, 2*len(r.b)), n+1)
	for i := range n {
		body, err := w.body(r.take(int(r.u32())), m.resultType[i])
		if err != nil {
			return nil, err
		}
		out = append(appendU32(out, uint32(len(body))), body...)
	}
	if err := r.end(); err != nil {
		return nil, err
	}
	grow := w.growBody()
	return append(appendU32(out, uint32(len(grow))), grow...), nil
}
