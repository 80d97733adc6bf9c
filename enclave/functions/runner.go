package functions

import (
	"context"

	"github.com/claviger/claviger/enclave/functions/engine"
)

// Runner loads bundles. NewRunner makes one of the JavaScript engine.
type Runner interface {
	Load(ctx context.Context, code []byte) (Program, error)
	// Largest is the most bytes that a loaded program keeps.
	Largest() int64
	// Concurrency is how many calls run at once; others wait.
	Concurrency() int
	// Trim gives up something that is kept for later calls, for those who need its
	// bytes of the budget, and reports whether there was anything.
	Trim(ctx context.Context) bool
}

// Program is a loaded bundle; every call starts from the same state.
type Program interface {
	Call(ctx context.Context, function string, args []byte, host engine.Host) (engine.Result, error)
	Exports() []string
	// Size is the bytes that the program keeps.
	Size() int64
	Close(ctx context.Context)
}

type engineRunner struct{ *engine.Engine }

// NewRunner adapts the engine; the caller closes it after the Host. The engine and
// the Host should share a budget.
func NewRunner(e *engine.Engine) Runner { return engineRunner{e} }

func (r engineRunner) Load(ctx context.Context, code []byte) (Program, error) {
	p, err := r.Engine.Load(ctx, engine.Bundle{Code: code})
	if err != nil {
		return nil, err
	}
	return engineProgram{p}, nil
}

func (r engineRunner) Largest() int64 { return int64(r.Limits().Snapshot) + programOverhead }

// programOverhead is what a program keeps beside its snapshot: names, log lines
// and tables, at most.
const programOverhead = 256 << 10

type engineProgram struct{ *engine.Program }

func (p engineProgram) Size() int64 { return int64(p.Program.Size()) + programOverhead }
