package persist

import (
	"context"
	"fmt"
	"iter"
	"slices"
	"strings"
)

// Tx is one transaction. It is used by one goroutine and ends with the function
// it was given to, or with Commit or Rollback.
type Tx struct {
	m       *Map
	tree    *tree
	write   bool
	managed bool // Update commits it
	done    bool
	live    int64
	size    int // encoded bytes of changes
	changes map[string]change
}

// View runs fn on the newest confirmed state, which does not change meanwhile.
// Any number of Views run at once, beside a writer. It returns fn's error.
func (m *Map) View(ctx context.Context, fn func(*Tx) error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	snap, err := m.snapshot()
	if err != nil {
		return err
	}
	tx := &Tx{m: m, tree: snap}
	defer tx.Rollback()
	return fn(tx)
}

// Update runs fn as the only writer and commits its changes: all of them are
// durable and confirmed when Update returns nil, none happened when fn returns an
// error or panics. After ErrFailed the outcome is unknown until the store is
// opened again. Update inside Update waits for itself for ever.
func (m *Map) Update(ctx context.Context, fn func(*Tx) error) error {
	tx, err := m.Begin(ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback()
	tx.managed = true
	if err := fn(tx); err != nil {
		return err
	}
	tx.managed = false
	return tx.Commit(ctx)
}

// Begin starts a writing transaction for callers that cannot use Update. It waits
// for the writer before it or for ctx. The caller must end it with Commit or
// Rollback: until then no other writer starts and Close waits.
func (m *Map) Begin(ctx context.Context) (*Tx, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-m.write:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if _, err := m.snapshot(); err != nil {
		m.write <- struct{}{}
		return nil, err
	}
	return &Tx{m: m, tree: m.work.Clone(), write: true, live: m.live, changes: map[string]change{}}, nil
}

// Commit makes the changes of a transaction from Begin durable, as Update does,
// and ends it. Cancelling ctx stops it only before anything is written.
func (tx *Tx) Commit(ctx context.Context) error {
	if tx.done || tx.managed || !tx.write {
		return ErrTxDone
	}
	defer tx.Rollback()
	if err := ctx.Err(); err != nil {
		return err
	}
	if len(tx.changes) == 0 {
		return nil
	}
	return tx.m.commit(ctx, tx)
}

// Rollback ends a transaction; what it changed is dropped unless it was
// committed. Calling it again is harmless.
func (tx *Tx) Rollback() {
	if tx.done {
		return
	}
	tx.done, tx.tree, tx.changes = true, nil, nil
	if tx.write {
		tx.m.write <- struct{}{}
	}
}

// Get returns a copy of the value of key and whether there is one.
func (tx *Tx) Get(key []byte) (value []byte, ok bool, err error) {
	if tx.done {
		return nil, false, ErrTxDone
	}
	e, ok := tx.tree.Get(entry{key: string(key)})
	if !ok {
		return nil, false, nil
	}
	return append(make([]byte, 0, len(e.value)), e.value...), true, nil
}

// Has reports whether key has a value.
func (tx *Tx) Has(key []byte) (bool, error) {
	if tx.done {
		return false, ErrTxDone
	}
	return tx.tree.Has(entry{key: string(key)}), nil
}

// Len returns the number of keys.
func (tx *Tx) Len() (int, error) {
	if tx.done {
		return 0, ErrTxDone
	}
	return tx.tree.Len(), nil
}

// Put sets the value of key, 1 to MaxKey bytes, to a copy of value, up to
// MaxValue bytes, nil being empty. A size over a limit is ErrTooLarge and changes
// nothing.
func (tx *Tx) Put(key, value []byte) error {
	if err := tx.writable(); err != nil {
		return err
	}
	l := tx.m.limits
	if len(key) == 0 || len(key) > l.Key {
		return fmt.Errorf("%w: a key has 1 to %d bytes, not %d", ErrTooLarge, l.Key, len(key))
	}
	if len(value) > l.Value {
		return fmt.Errorf("%w: a value has up to %d bytes, not %d", ErrTooLarge, l.Value, len(value))
	}
	return tx.change(change{key: string(key), value: append(make([]byte, 0, len(value)), value...)})
}

// Delete removes key; a key that is not there is fine.
func (tx *Tx) Delete(key []byte) error {
	if err := tx.writable(); err != nil {
		return err
	}
	if !tx.tree.Has(entry{key: string(key)}) {
		return nil
	}
	return tx.change(change{key: string(key)})
}

func (tx *Tx) writable() error {
	switch {
	case tx.done:
		return ErrTxDone
	case !tx.write:
		return ErrReadOnly
	}
	return nil
}

func (tx *Tx) change(c change) error {
	size := tx.size + c.size()
	if before, ok := tx.changes[c.key]; ok {
		size -= before.size()
	}
	if size > tx.m.limits.Txn {
		return fmt.Errorf("%w: a transaction has up to %d bytes", ErrTooLarge, tx.m.limits.Txn)
	}
	if c.value != nil {
		live := tx.live + cost(entry(c))
		if old, ok := tx.tree.Get(entry{key: c.key}); ok {
			live -= cost(old)
		}
		if live > tx.m.limits.Store && live > tx.live {
			return fmt.Errorf("%w: the store holds up to %d bytes", ErrTooLarge, tx.m.limits.Store)
		}
	}
	tx.live += applyTo(tx.tree, c)
	tx.size = size
	tx.changes[c.key] = c
	return nil
}

// ordered returns the changes in ascending order of keys.
func (tx *Tx) ordered() []change {
	list := make([]change, 0, len(tx.changes))
	for _, c := range tx.changes {
		list = append(list, c)
	}
	slices.SortFunc(list, func(a, b change) int {
		if a.key < b.key {
			return -1
		}
		return 1
	})
	return list
}

// Scan yields copies of the entries with from ≤ key < to in ascending order; a
// nil to has no end. The loop sees the transaction as it was when the loop began
// and may change it. A transaction that has ended yields nothing.
func (tx *Tx) Scan(from, to []byte) iter.Seq2[[]byte, []byte] {
	return func(yield func(key, value []byte) bool) {
		if tx.done {
			return
		}
		visit := func(e entry) bool {
			return yield([]byte(e.key), append(make([]byte, 0, len(e.value)), e.value...))
		}
		t := tx.tree
		if tx.write {
			t = t.Clone() // the loop's body may change tx.tree
		}
		if to == nil {
			t.AscendGreaterOrEqual(entry{key: string(from)}, visit)
			return
		}
		t.AscendRange(entry{key: string(from)}, entry{key: string(to)}, visit)
	}
}

// Prefix yields copies of the entries whose keys begin with prefix, as Scan does.
func (tx *Tx) Prefix(prefix []byte) iter.Seq2[[]byte, []byte] {
	return tx.Scan(prefix, prefixEnd(prefix))
}

// Keys yields the keys that begin with prefix in ascending order, as Prefix does,
// without copying the values.
func (tx *Tx) Keys(prefix []byte) iter.Seq[[]byte] {
	return func(yield func(key []byte) bool) {
		if tx.done {
			return
		}
		t := tx.tree
		if tx.write {
			t = t.Clone()
		}
		t.AscendGreaterOrEqual(entry{key: string(prefix)}, func(e entry) bool {
			return strings.HasPrefix(e.key, string(prefix)) && yield([]byte(e.key))
		})
	}
}

// prefixEnd returns the least key greater than all keys with the prefix, or nil
// when there is none.
func prefixEnd(prefix []byte) []byte {
	end := slices.Clone(prefix)
	for len(end) > 0 {
		if last := len(end) - 1; end[last] == 0xff {
			end = end[:last]
			continue
		}
		end[len(end)-1]++
		return end
	}
	return nil
}
