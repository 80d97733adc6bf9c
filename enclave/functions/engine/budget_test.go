package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
)

func TestBudget(t *testing.T) {
	t.Parallel()
	var none *Budget
	for name, b := range map[string]*Budget{"nil": none, "zero": NewBudget(0), "negative": NewBudget(-5)} {
		if b.Reserve(1) {
			t.Errorf("the %s budget gives a byte", name)
		}
	}
	b := NewBudget(10)
	if b.Reserve(11) || b.Reserve(-1) || !b.Reserve(10) || b.Reserve(1) {
		t.Error("the limit is not exact")
	}
	b.Release(4)
	if b.Used() != 6 || b.Limit() != 10 || b.Reserve(1<<62) {
		t.Errorf("%d of %d in use", b.Used(), b.Limit())
	}
	for _, n := range []int64{-1, 7} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("releasing %d is accepted", n)
				}
			}()
			b.Release(n)
		}()
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 1000 {
				if b.Reserve(1) {
					b.Release(1)
				}
			}
		})
	}
	wg.Wait()
	if b.Used() != 6 {
		t.Errorf("%d in use after concurrent use, want 6", b.Used())
	}
}

// TestSnapshotIsBounded deploys tiny bundles that fill memory while they are evaluated.
func TestSnapshotIsBounded(t *testing.T) {
	t.Parallel()
	e := engineFor(t)
	fill := func(mib int) Bundle {
		return Bundle{Code: fmt.Appendf(nil, `globalThis.x = new Uint8Array(%d << 20).fill(1); export function f() { return x.length }`, mib)}
	}
	if _, err := e.Load(t.Context(), fill(20)); !errors.Is(err, ErrSnapshot) {
		t.Errorf("20 MiB of data: %v, want ErrSnapshot", err)
	}
	p, err := e.Load(t.Context(), fill(6))
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close(t.Context())
	if p.Size() < 6<<20 || p.Size() > e.Limits().Snapshot {
		t.Errorf("the snapshot has %d bytes", p.Size())
	}
	tight := fill(6)
	tight.Limits.Snapshot = 4 << 20
	if _, err := e.Load(t.Context(), tight); !errors.Is(err, ErrSnapshot) {
		t.Errorf("over a program's own limit: %v, want ErrSnapshot", err)
	}
	tight.Limits.Snapshot = 9 << 20
	if _, err := e.Load(t.Context(), tight); !errors.Is(err, ErrConfig) {
		t.Errorf("above the engine's limit: %v, want ErrConfig", err)
	}
}

// TestIdleInstancesKeepToTheBudget: what others take from the budget, idle instances give up.
func TestIdleInstancesKeepToTheBudget(t *testing.T) {
	t.Parallel()
	p := load(t, echo)
	e := engineFor(t)
	in, err := e.newInstance(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	size := in.size()
	in.close(t.Context())
	small := pool{max: 8, budget: NewBudget(2*size + size/2)}
	for range 4 {
		in, err := e.newInstance(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		small.put(t.Context(), p, in)
	}
	if small.count(p) != 2 || small.ended != 2 || small.budget.Used() != 2*size {
		t.Errorf("%d instances idle, %d ended, %d bytes; want 2, 2, %d", small.count(p), small.ended, small.budget.Used(), 2*size)
	}
	if !small.budget.Reserve(size/2) || !small.trim(t.Context()) || !small.trim(t.Context()) || small.trim(t.Context()) {
		t.Error("trim does not end the two instances")
	}
	if !small.budget.Reserve(2 * size) { // somebody else's
		t.Fatal("trimmed bytes are not free")
	}
	if in, err = e.newInstance(t.Context()); err != nil {
		t.Fatal(err)
	}
	small.put(t.Context(), p, in)
	if small.count(p) != 0 || small.budget.Used() != 2*size+size/2 {
		t.Error("an instance was kept without bytes for it")
	}
}

// TestIdleInstancesShedTheirStacks recurses in several instances, as deep as JavaScript may and just below what sheds
// stacks, and measures what they keep once they are idle again. Not parallel: it measures the heap.
func TestIdleInstancesShedTheirStacks(t *testing.T) {
	const instances = 4
	e, err := New(t.Context(), Config{Mode: Compiler, Concurrency: instances, Idle: instances})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close(t.Context())
	for name, body := range map[string]string{
		"to the end": `let n = 0; (function r() { n++; try { r() } catch {} })();`,
		"shallow":    `(function r(n) { if (n) r(n - 1) })(60);`,
		"in C":       `JSON.stringify(JSON.parse("[".repeat(40) + "]".repeat(40)));`,
	} {
		p, err := e.Load(t.Context(), Bundle{Code: []byte(`export async function f() { ` + body + ` await kv.put("meet", ""); return 1 }`)})
		if err != nil {
			t.Fatal(err)
		}
		before := heap()
		meet := meeting(instances)
		var wg sync.WaitGroup
		for range instances {
			wg.Go(func() {
				if _, err := p.Call(t.Context(), "f", []byte("[]"), meetHost{newHost(), meet}); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			})
		}
		wg.Wait()
		if n := e.pool.count(p); n != instances {
			t.Fatalf("%s: %d instances are idle, want %d", name, n, instances)
		}
		if grown, most := int64(heap())-int64(before), e.pool.budget.Used(); grown > most {
			t.Errorf("%s: %d idle instances keep %d bytes, accounted for are %d", name, instances, grown, most)
		}
		p.Close(t.Context())
	}
}

func heap() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // the first one runs finalizers
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// meeting returns a function that returns in all of n callers once all have called it.
func meeting(n int) func() {
	var wg sync.WaitGroup
	wg.Add(n)
	return func() { wg.Done(); wg.Wait() }
}

// meetHost makes calls meet, so that each has an instance of its own.
type meetHost struct {
	*testHost
	meet func()
}

func (h meetHost) KVPut(ctx context.Context, key string, value []byte) error {
	h.meet()
	return h.testHost.KVPut(ctx, key, value)
}
