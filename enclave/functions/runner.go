package functions

import (
	"context"

	"github.com/claviger/claviger/enclave/functions/engine"
)

// Runner loads bundles. NewRunner makes one of the JavaScript engine.
type Runner interface {
	Load(ctx context.Context, code []byte) (Program, error)
}

// Program is a loaded bundle; every call starts from the same state.
type Program interface {
	Call(ctx context.Context, function string, args []byte, host engine.Host) (engine.Result, error)
	Exports() []string
	Close(ctx context.Context)
}

type engineRunner struct{ *engine.Engine }

// NewRunner adapts the engine; the caller closes it after the Host.
func NewRunner(e *engine.Engine) Runner { return engineRunner{e} }

func (r engineRunner) Load(ctx context.Context, code []byte) (Program, error) {
	p, err := r.Engine.Load(ctx, engine.Bundle{Code: code})
	if err != nil {
		return nil, err
	}
	return p, nil
}
