package engine

import (
	"context"
	"slices"
	"sync"
)

// pool keeps clean instances for the next calls: a bounded number and, from a budget, of bytes over all programs. The
// longest unused is given up first.
type pool struct {
	mu     sync.Mutex
	items  []idle // oldest first
	max    int
	budget *Budget
	ended  int64 // instances given up to make room
}

// idle is an instance at rest, equal to its program's snapshot.
type idle struct {
	owner *Program
	in    *instance
	bytes int64
}

// take removes the program's most recently used instance, or returns nil.
func (p *pool) take(owner *Program) *instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, it := range slices.Backward(p.items) {
		if it.owner == owner {
			p.items = slices.Delete(p.items, i, i+1)
			p.budget.Release(it.bytes)
			return it.in
		}
	}
	return nil
}

// put adds an instance and ends the oldest while there are too many or they are too large. When others use up the budget,
// the instance itself ends.
func (p *pool) put(ctx context.Context, owner *Program, in *instance) {
	it := idle{owner, in, in.size()}
	var out []*instance
	p.mu.Lock()
	for len(p.items) >= p.max && len(p.items) > 0 {
		out = append(out, p.oldest())
	}
	kept := p.max > 0 && p.budget.Reserve(it.bytes)
	for !kept && p.max > 0 && len(p.items) > 0 {
		out = append(out, p.oldest())
		kept = p.budget.Reserve(it.bytes)
	}
	if kept {
		p.items = append(p.items, it)
	} else {
		out = append(out, in)
	}
	p.ended += int64(len(out))
	p.mu.Unlock()
	for _, in := range out {
		in.close(ctx)
	}
}

// oldest removes the longest unused instance. The caller holds p.mu.
func (p *pool) oldest() *instance {
	it := p.items[0]
	p.items = slices.Delete(p.items, 0, 1)
	p.budget.Release(it.bytes)
	return it.in
}

// trim ends the longest unused instance and reports whether there was one.
func (p *pool) trim(ctx context.Context) bool {
	p.mu.Lock()
	if len(p.items) == 0 {
		p.mu.Unlock()
		return false
	}
	in := p.oldest()
	p.ended++
	p.mu.Unlock()
	in.close(ctx)
	return true
}

// drop ends the program's instances.
func (p *pool) drop(ctx context.Context, owner *Program) {
	for in := p.take(owner); in != nil; in = p.take(owner) {
		in.close(ctx)
	}
}

// count is the number of the program's idle instances.
func (p *pool) count(owner *Program) (n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, it := range p.items {
		if it.owner == owner {
			n++
		}
	}
	return n
}
