// Package meter rewrites a WebAssembly module so that whatever runs inside it is interruptible, metered and unable to
// overrun its own stack. The input is a trusted, pinned module (the JavaScript engine); the code of tenants is data
// inside it. The result is ordinary WebAssembly: the same guarantees hold in wazero's compiler and interpreter.
//
// The pass adds (DESIGN §8, "a wasm→wasm pass"):
//
//   - Fuel. A counter is charged at the head of every loop and at the entry of every function that calls another.
//     Every cycle of execution passes one of the two, so between two charges only a bounded piece of straight code
//     runs. When the counter falls below zero the host's refuel function is called: it refills, or it panics and so
//     ends the call. It is also the point where a tight loop lets Go's scheduler and collector run: compiled
//     WebAssembly is not otherwise preemptible.
//   - Depth. The same functions count their nesting and trap beyond a limit, before the engine's native stack grows large.
//   - A guarded stack. C code keeps its frames in linear memory, here directly above its static data, without a guard:
//     deep recursion would silently overwrite constants and allocator state. Every write of the stack pointer is
//     compared with a lower limit, and the host may place the stack where it likes.
//   - A virtual memory size. memory.size and memory.grow act on a counter with its own maximum, so that a recycled
//     instance, whose real memory cannot shrink, behaves as a new one, and a refused growth is visible to the host.
//   - One function import in the function table, so that C code can call the host through a function pointer.
//
// Spec: WebAssembly Core Specification 2.0, §5 (binary format). Opcodes outside MVP, sign extension, saturating
// conversion and bulk memory are refused, as is everything that could keep state outside memory and the listed globals
// (table writes, passive segments).
package meter
