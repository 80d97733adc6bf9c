package engine

import (
	"context"
	"slices"
	"sync"
)

// pool keeps clean instances for the next calls: a bounded number over all programs, the longest unused given up first.
type pool struct {
	mu    sync.Mutex
	items []idle // oldest first
	max   int
}

// idle is an instance at rest, equal to its program's snapshot.
type idle struct {
	owner *Program
	in    *instance
}

// take removes the program's most recently used instance, or returns nil.
func (p *pool) take(owner *Program) *instance {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, it := range slices.Backward(p.items) {
		if it.owner == owner {
			p.items = slices.Delete(p.items, i, i+1)
			return it.in
		}
	}
	return nil
}

// put adds an instance and ends the oldest when there are too many.
func (p *pool) put(ctx context.Context, owner *Program, in *instance) {
	p.mu.Lock()
	p.items = append(p.items, idle{owner, in})
	var out *instance
	if len(p.items) > p.max {
		out = p.items[0].in
		p.items = slices.Delete(p.items, 0, 1)
	}
	p.mu.Unlock()
	if out != nil {
		out.close(ctx)
	}
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
