package engine

import "sync"

// Budget is a number of bytes that several keepers of memory share: an Engine takes from it for idle instances, its owner
// for the snapshots of programs and for whatever else it holds. It counts; those who keep memory make room. It is safe for
// concurrent use; the nil Budget has no bytes to give.
type Budget struct {
	mu          sync.Mutex
	limit, used int64
}

// NewBudget returns a budget of limit bytes; a negative limit is none.
func NewBudget(limit int64) *Budget { return &Budget{limit: max(0, limit)} }

// Reserve takes n bytes, all or none, and reports whether it did. A negative n is refused.
func (b *Budget) Reserve(n int64) bool {
	if b == nil || n < 0 {
		return false
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n > b.limit-b.used {
		return false
	}
	b.used += n
	return true
}

// Release gives back n bytes that Reserve took.
func (b *Budget) Release(n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if n < 0 || n > b.used {
		panic("engine: released bytes that were not reserved")
	}
	b.used -= n
}

// Used returns the bytes in use.
func (b *Budget) Used() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// Limit returns the bytes there are.
func (b *Budget) Limit() int64 { return b.limit }
