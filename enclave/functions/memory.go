package functions

import (
	"context"
	"errors"

	"github.com/claviger/claviger/enclave/persist"
)

// What is kept between calls, the snapshots of programs, open stores and idle
// instances, comes out of one budget of bytes. Whoever needs bytes makes room
// first: idle instances end, then the projects close that were not in use for
// longest. What a call is working with is never taken away.

// errMemory: what is in use leaves no room.
var errMemory = errors.New("functions: the memory is in use")

const (
	entryBytes = 96       // persist's account of one entry beside its key and value
	storeBytes = 64 << 10 // of an open store beside its entries
	// expansion is how many times larger a store may be in memory than in its
	// files: an entry has at least 4 bytes there and 97 here.
	expansion = 25
)

// reserve takes n bytes from the budget, making room if it must. The caller may
// hold the lock of a project that is in use, and must not hold Host.mu.
func (h *Host) reserve(ctx context.Context, n int64) error {
	for !h.budget.Reserve(n) {
		if n > h.budget.Limit() {
			return errMemory
		}
		if !h.cfg.Runner.Trim(ctx) && !h.evict() {
			return errMemory
		}
	}
	return nil
}

// evict closes the project that was not in use for longest and reports whether
// there was one.
func (h *Host) evict() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.closeIdle()
}

// loaded is a program and what gives it back, with its bytes.
func (h *Host) load(ctx context.Context, code []byte) (program Program, free func(), err error) {
	most := h.cfg.Runner.Largest()
	if err := h.reserve(ctx, most); err != nil {
		return nil, nil, err
	}
	program, err = h.cfg.Runner.Load(ctx, code)
	if err != nil {
		h.budget.Release(most)
		return nil, nil, err
	}
	bytes := min(program.Size(), most)
	h.budget.Release(most - bytes)
	return program, func() {
		program.Close(context.Background())
		h.budget.Release(bytes)
	}, nil
}

// estimate is what opening a store takes at most, if its owner kept to the limits.
func (h *Host) estimate(files int64) int64 {
	return storeBytes + min(h.cfg.ProjectBytes, expansion*min(files, h.cfg.ProjectBytes))
}

// settle accounts for what the store now takes. Growth comes out of reserved,
// which the caller took before, and what is left of it is returned. The caller
// holds p.mu.
func (p *project) settle(store *persist.Map, reserved int64) (left int64) {
	if p.store != store || store == nil {
		return reserved
	}
	now := storeBytes + store.Bytes()
	if now <= p.bytes {
		p.host.budget.Release(p.bytes - now)
		p.bytes = now
		return reserved
	}
	grown := min(now-p.bytes, reserved)
	p.bytes += grown
	return reserved - grown
}
