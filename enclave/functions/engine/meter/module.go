package meter

import "bytes"

// Section ids of the binary format, §5.5.2.
const (
	secCustom, secType, secImport, secFunction, secTable, secMemory = 0, 1, 2, 3, 4, 5
	secGlobal, secExport, secStart, secElement, secCode, secData    = 6, 7, 8, 9, 10, 11
	secCount                                                        = 12
)

const (
	typeI32, typeI64 = 0x7f, 0x7e
	kindFunc         = 0
	kindGlobal       = 3
)

var magic = []byte("\x00asm\x01\x00\x00\x00")

// module is the parsed outline: raw bodies for what is copied, counts for what is extended.
type module struct {
	sections   [secCount][]byte
	types      uint32 // number of types
	imports    uint32 // number of imports, all of them functions
	functions  uint32 // number of functions defined in the module
	globals    uint32
	resultType []byte // per defined function: its block type (0x40 for none, else the value type)
	tableMin   uint32
	memoryMin  uint32
}

func parseModule(wasm []byte) (*module, error) {
	if !bytes.HasPrefix(wasm, magic) {
		return nil, refuse("not a version 1 module")
	}
	r := &reader{b: wasm, pos: len(magic)}
	m := &module{}
	for last := 0; r.more(); {
		id := int(r.byte())
		body := r.take(int(r.u32()))
		switch {
		case id == secCustom: // debug information and names: nothing that runs
		case id >= secCount || id == secStart:
			return nil, refuse("section %d", id)
		case id <= last:
			return nil, refuse("section %d out of order", id)
		default:
			m.sections[id], last = body, id
		}
	}
	if r.err != nil {
		return nil, r.err
	}
	for id := range m.sections {
		if m.sections[id] == nil && id != secCustom && id != secStart {
			m.sections[id] = []byte{0} // an absent section is an empty vector
		}
	}
	if err := m.outline(); err != nil {
		return nil, err
	}
	return m, nil
}

// outline reads the counts and checks the assumptions that the rewriting rests on.
func (m *module) outline() error {
	results, err := m.parseTypes()
	if err != nil {
		return err
	}
	if err := m.parseImports(); err != nil {
		return err
	}
	r := &reader{b: m.sections[secFunction]}
	m.functions = r.u32()
	for i := uint32(0); i < m.functions && r.err == nil; i++ {
		t := r.u32()
		if t >= m.types {
			return refuse("function type %d", t)
		}
		m.resultType = append(m.resultType, results[t])
	}
	if err := r.end(); err != nil {
		return err
	}
	r = &reader{b: m.sections[secGlobal]}
	m.globals = r.u32()
	// The stack pointer is global 0 (as LLVM lays it out): i32, mutable. It must be the only mutable one, or the
	// snapshot of an instance would miss the others.
	if r.byte() != typeI32 || r.byte() != 1 {
		return refuse("global 0 is not a mutable i32")
	}
	if err := m.checkGlobals(); err != nil {
		return err
	}
	return m.parseTableAndMemory()
}

func (m *module) parseTypes() ([]byte, error) {
	r := &reader{b: m.sections[secType]}
	m.types = r.u32()
	var results []byte
	for i := uint32(0); i < m.types && r.err == nil; i++ {
		if r.byte() != 0x60 {
			return nil, refuse("type %d is not a function type", i)
		}
		r.take(int(r.u32()))
		switch res := r.take(int(r.u32())); len(res) {
		case 0:
			results = append(results, 0x40)
		case 1:
			results = append(results, res[0])
		default:
			return nil, refuse("type %d has several results", i)
		}
	}
	return results, r.end()
}

func (m *module) parseImports() error {
	r := &reader{b: m.sections[secImport]}
	m.imports = r.u32()
	for i := uint32(0); i < m.imports && r.err == nil; i++ {
		r.name()
		r.name()
		if r.byte() != kindFunc {
			return refuse("import %d is not a function", i)
		}
		r.u32()
	}
	return r.end()
}

func (m *module) checkGlobals() error {
	r := &reader{b: m.sections[secGlobal]}
	n := r.u32()
	for i := uint32(0); i < n && r.err == nil; i++ {
		r.byte()
		if mutable := r.byte(); mutable != 0 && i != 0 {
			return refuse("global %d is mutable", i)
		}
		if r.byte() != opI32Const {
			return refuse("global %d is not initialised by i32.const", i)
		}
		r.skipLEB(5)
		if r.byte() != opEnd {
			return refuse("global %d has a long initialiser", i)
		}
	}
	return r.end()
}

func (m *module) parseTableAndMemory() error {
	r := &reader{b: m.sections[secTable]}
	if r.u32() != 1 || r.byte() != 0x70 || r.byte() != 1 {
		return refuse("want one bounded function table")
	}
	m.tableMin = r.u32()
	if r.u32() != m.tableMin {
		return refuse("table can grow")
	}
	if err := r.end(); err != nil {
		return err
	}
	r = &reader{b: m.sections[secMemory]}
	if r.u32() != 1 || r.byte() > 1 {
		return refuse("want one memory")
	}
	m.memoryMin = r.u32()
	return r.err
}
