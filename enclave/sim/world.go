package sim

import (
	"context"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/enclave/secret"
)

// World is one simulated Intel with its machines. It is safe for concurrent use.
type World struct {
	pki   *simpki.PKI
	root  secret.Key // sealing keys of all machines derive from it
	clock func() time.Time
}

// NewWorld returns the world of a seed, born now by clock (nil means time.Now).
// It panics if the clock tells the zero time.
func NewWorld(seed [32]byte, clock func() time.Time) *World {
	if clock == nil {
		clock = time.Now
	}
	w, err := newWorld(seed, clock(), clock)
	if err != nil {
		panic("sim: new world: " + err.Error())
	}
	return w
}

// newWorld returns the world of a seed, born at an instant.
func newWorld(seed [32]byte, born time.Time, clock func() time.Time) (*World, error) {
	pki, err := simpki.New(simpki.Config{Seed: seed, Now: born})
	if err != nil {
		return nil, err
	}
	key, err := secret.New(seed[:])
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	root, err := key.Derive("claviger/sim/machines/v1", secret.MaxSize)
	if err != nil {
		return nil, err
	}
	return &World{pki: pki, root: root, clock: clock}, nil
}

// Root returns the world's root of trust, for verifiers.
func (w *World) Root() attest.Root { return w.pki.Root() }

// PKI returns the simulated Intel itself, for scripts: revocations, TCB
// recoveries, quotes over arbitrary reports. A script acts on this World value
// only, not on other processes that opened the same file.
func (w *World) PKI() *simpki.PKI { return w.pki }

// Now tells the world's time.
func (w *World) Now() time.Time { return w.clock() }

// Collateral returns what Intel serves now for the platform and TEE of a quote.
// The quote is only parsed, not verified.
func (w *World) Collateral(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	return w.CollateralAt(ctx, quote, w.clock())
}

// CollateralAt returns what Intel served at the instant at: with one more than 30
// days back, expired collateral.
func (w *World) CollateralAt(ctx context.Context, quote []byte, at time.Time) (*attest.Collateral, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	q, err := attest.Parse(quote)
	if err != nil {
		return nil, err
	}
	p, err := attest.PlatformOf(q)
	if err != nil {
		return nil, err
	}
	c, err := w.pki.CollateralFor(q.TEE(), p.FMSPC, simpki.CA(p.CA), at)
	if err != nil {
		return nil, fmt.Errorf("sim: collateral: %w", err)
	}
	return c, nil
}
