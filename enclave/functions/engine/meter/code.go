package meter

// Opcodes that the pass looks at or emits, §5.4.
const (
	opUnreachable, opBlock, opLoop, opIf, opEnd          = 0x00, 0x02, 0x03, 0x04, 0x0b
	opBr, opBrIf, opBrTable, opReturn, opCall, opCallInd = 0x0c, 0x0d, 0x0e, 0x0f, 0x10, 0x11
	opLocalGet, opLocalTee, opGlobalGet, opGlobalSet     = 0x20, 0x22, 0x23, 0x24
	opMemorySize, opMemoryGrow, opI32Const, opI64Const   = 0x3f, 0x40, 0x41, 0x42
	opI32Eq, opI32LtU, opI32GtU, opI64LtS, opI32Add      = 0x46, 0x49, 0x4b, 0x53, 0x6a
	opI32Sub, opI64Sub, opPrefixFC, blockEmpty           = 0x6b, 0x7d, 0xfc, 0x40
)

// rewriter holds what the emitted code refers to.
type rewriter struct {
	firstDefined uint32 // function indices from here on are shifted
	shift        uint32
	fnRefuel     uint32
	fnTrap       uint32
	fnGrow       uint32
	gFuel        uint32
	gDepth       uint32
	gMaxDepth    uint32
	gStackLow    uint32
	gStackSize   uint32
	gPages       uint32
	gMaxPages    uint32
	gDenied      uint32
}

func (w *rewriter) fn(i uint32) uint32 {
	if i >= w.firstDefined {
		return i + w.shift
	}
	return i
}

// body rewrites one function body (locals and expression, without its size).
func (w *rewriter) body(in []byte, result byte) ([]byte, error) {
	r := &reader{b: in}
	groups := r.u32()
	for i := uint32(0); i < groups && r.err == nil; i++ {
		r.u32()
		r.byte()
	}
	if r.err != nil {
		return nil, r.err
	}
	out := append([]byte(nil), in[:r.pos]...)
	calls, err := hasCalls(in[r.pos:])
	if err != nil {
		return nil, err
	}
	if calls {
		// The whole body becomes a block, so that a branch to the function's own label also passes the decrement.
		out = w.enter(out)
		out = append(out, opBlock, result)
	}
	if out, err = w.expression(out, r, calls); err != nil {
		return nil, err
	}
	if calls {
		out = w.leave(out)
		out = append(out, opEnd)
	}
	return out, r.end()
}

// hasCalls reports whether an expression calls anything. A function that does not, and has no loop, runs a bounded
// number of instructions and is paid for by its caller.
func hasCalls(expr []byte) (bool, error) {
	r := &reader{b: expr}
	for r.more() {
		switch op := r.byte(); op {
		case opCall, opCallInd:
			return true, nil
		default:
			r.skipImmediates(op)
		}
	}
	return false, r.err
}

// expression copies instructions up to and including the end that closes the function, instrumenting on the way.
func (w *rewriter) expression(out []byte, r *reader, counted bool) ([]byte, error) {
	for depth := 1; depth > 0 && r.err == nil; {
		start := r.pos
		op := r.byte()
		switch op {
		case opCall:
			out = appendU32(append(out, opCall), w.fn(r.u32()))
			continue
		case opMemorySize:
			r.byte()
			out = appendU32(append(out, opGlobalGet), w.gPages)
			continue
		case opMemoryGrow:
			r.byte()
			out = appendU32(append(out, opCall), w.fnGrow)
			continue
		case opGlobalSet:
			index := r.u32()
			out = appendU32(append(out, opGlobalSet), index)
			if index == 0 {
				out = w.guardStack(out)
			}
			continue
		case opReturn:
			if counted {
				out = w.leave(out)
			}
		case opEnd:
			depth--
		case opBlock, opIf, opLoop:
			depth++
		}
		r.skipImmediates(op)
		out = append(out, r.b[start:r.pos]...)
		if op == opLoop {
			out = w.charge(out, 1)
		}
	}
	return out, r.err
}

// charge emits: fuel -= n; if fuel < 0 { refuel() }.
func (w *rewriter) charge(out []byte, n int64) []byte {
	out = appendU32(append(out, opGlobalGet), w.gFuel)
	out = appendS64(append(out, opI64Const), n)
	out = append(out, opI64Sub)
	out = appendU32(append(out, opGlobalSet), w.gFuel)
	out = appendU32(append(out, opGlobalGet), w.gFuel)
	out = append(out, opI64Const, 0, opI64LtS, opIf, blockEmpty)
	out = appendU32(append(out, opCall), w.fnRefuel)
	return append(out, opEnd)
}

// enter emits the fuel charge and: depth += 1; if depth > max { trap(depth) }.
func (w *rewriter) enter(out []byte) []byte {
	out = w.charge(out, 1)
	out = appendU32(append(out, opGlobalGet), w.gDepth)
	out = append(out, opI32Const, 1, opI32Add)
	out = appendU32(append(out, opGlobalSet), w.gDepth)
	out = appendU32(append(out, opGlobalGet), w.gDepth)
	out = appendU32(append(out, opGlobalGet), w.gMaxDepth)
	return w.trapIf(append(out, opI32GtU), TrapDepth)
}

func (w *rewriter) leave(out []byte) []byte {
	out = appendU32(append(out, opGlobalGet), w.gDepth)
	out = append(out, opI32Const, 1, opI32Sub)
	return appendU32(append(out, opGlobalSet), w.gDepth)
}

// guardStack emits: if sp - stackLow > stackSize (unsigned) { trap(stack) }. One comparison finds a pointer below the
// stack and one that a large frame (alloca) moved past address zero, which wraps. The host's limit leaves room for LLVM's
// red zone of 128 bytes, which a leaf function may use below the stack pointer without moving it.
func (w *rewriter) guardStack(out []byte) []byte {
	out = append(out, opGlobalGet, 0)
	out = appendU32(append(out, opGlobalGet), w.gStackLow)
	out = appendU32(append(out, opI32Sub, opGlobalGet), w.gStackSize)
	return w.trapIf(append(out, opI32GtU), TrapStack)
}

func (w *rewriter) trapIf(out []byte, code Trap) []byte {
	out = append(out, opIf, blockEmpty)
	out = appendS64(append(out, opI32Const), int64(code))
	out = appendU32(append(out, opCall), w.fnTrap)
	return append(out, opUnreachable, opEnd) // the host panics; if it ever returned, the instance would still stop
}

// growBody is the replacement of memory.grow: (param n i32) (result i32) (local wanted i32).
func (w *rewriter) growBody() []byte {
	const n, wanted = 0, 1
	deny := func(b []byte) []byte {
		b = append(b, opIf, blockEmpty, opI32Const, 1)
		b = appendU32(append(b, opGlobalSet), w.gDenied)
		return append(b, opI32Const, 0x7f, opReturn, opEnd)
	}
	b := []byte{1, 1, typeI32} // one local
	// if n > maxPages { deny }: then pages + n cannot wrap, both being at most 65536
	b = appendU32(append(b, opLocalGet, n, opGlobalGet), w.gMaxPages)
	b = deny(append(b, opI32GtU))
	// wanted = pages + n; if wanted > maxPages { deny }
	b = appendU32(append(b, opGlobalGet), w.gPages)
	b = appendU32(append(b, opLocalGet, n, opI32Add, opLocalTee, wanted, opGlobalGet), w.gMaxPages)
	b = deny(append(b, opI32GtU))
	// if wanted > memory.size { if memory.grow(wanted - memory.size) == -1 { deny } }
	b = append(b, opLocalGet, wanted, opMemorySize, 0, opI32GtU, opIf, blockEmpty)
	b = append(b, opLocalGet, wanted, opMemorySize, 0, opI32Sub, opMemoryGrow, 0, opI32Const, 0x7f, opI32Eq)
	b = append(deny(b), opEnd)
	// old = pages; pages = wanted; return old
	b = appendU32(append(b, opGlobalGet), w.gPages)
	b = appendU32(append(b, opLocalGet, wanted, opGlobalSet), w.gPages)
	return append(b, opEnd)
}

// skipImmediates moves past the operands of op, refusing what the pass does not know.
func (r *reader) skipImmediates(op byte) {
	switch {
	case op == opBlock || op == opLoop || op == opIf:
		r.skipLEB(5) // block type: s33
	case op == opBr || op == opBrIf || op == opCall || op >= opLocalGet && op <= opGlobalSet:
		r.u32()
	case op == opBrTable:
		for n := r.u32(); n > 0 && r.err == nil; n-- {
			r.u32()
		}
		r.u32()
	case op == opCallInd:
		r.u32()
		r.u32()
	case op >= 0x28 && op <= 0x3e: // loads and stores: align, offset
		r.u32()
		r.u32()
	case op == opMemorySize || op == opMemoryGrow:
		r.byte()
	case op == opI32Const:
		r.skipLEB(5)
	case op == opI64Const:
		r.skipLEB(10)
	case op == 0x43:
		r.take(4)
	case op == 0x44:
		r.take(8)
	case op == opPrefixFC:
		r.skipPrefixed()
	case op <= 0x01, op == 0x05, op == opEnd, op == opReturn, op == 0x1a, op == 0x1b, op >= 0x45 && op <= 0xc4:
	default:
		r.fail("unknown opcode")
	}
}

func (r *reader) skipPrefixed() {
	switch sub := r.u32(); {
	case sub <= 7: // saturating conversions
	case sub == 10: // memory.copy
		r.take(2)
	case sub == 11: // memory.fill
		r.take(1)
	default: // memory.init and table instructions would change state that a snapshot does not hold
		r.fail("unsupported bulk instruction")
	}
}
