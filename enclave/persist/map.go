package persist

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/claviger/claviger/enclave/secret"
)

// Options says where a store is and what protects it.
type Options struct {
	// Files is the untrusted file layer, usually Dir(path).
	Files Files
	// Name is the store's name, 1 to 128 of a-z, 0-9, - and _. It names the files
	// and is bound into every record: a store does not open under another name.
	Name string
	// Key is the store's key, at least 32 bytes, uniformly random. The Map
	// derives what it needs and does not keep it.
	Key secret.Key
	// Register is the store's freshness. Each store needs its own.
	Register Register
	// NoFreshnessUnsafe must be set when Register is nil. It accepts that the
	// host can put back an older state of the whole store unnoticed.
	NoFreshnessUnsafe bool
	// Limits lowers the hard limits.
	Limits Limits
}

func (o *Options) check() error {
	if o.Files == nil {
		return fmt.Errorf("%w: Files is missing", ErrOptions)
	}
	if err := checkName(o.Name); err != nil {
		return err
	}
	if o.Key.Len() < 32 {
		return fmt.Errorf("%w: Key needs at least 32 bytes", ErrOptions)
	}
	if (o.Register == nil) != o.NoFreshnessUnsafe {
		return fmt.Errorf("%w: set Register, or NoFreshnessUnsafe to do without", ErrOptions)
	}
	o.Limits = o.Limits.withDefaults()
	return nil
}

func (o *Options) slotName(i int) string { return o.Name + [2]string{".a", ".b"}[i] }

// Map is an open store. It is safe for concurrent use: readers never wait,
// writers take turns.
type Map struct {
	files    Files
	name     string
	register Register
	limits   Limits
	seal     *sealer
	unlock   func() error

	write chan struct{} // holds one token: whoever took it is the writer

	mu    sync.RWMutex // guards the next three
	snap  *tree        // the newest confirmed state; never changed in place
	bytes int64        // what snap is accounted for
	down  error        // why the Map no longer serves: ErrFailed, ErrConflict or ErrClosed

	// The writer's own.
	work       *tree
	live       int64
	slots      [2]File // nil while a slot has no file
	active     int
	generation uint64
	seq        uint64
	hash       [32]byte
	end        int64 // of the active slot
	checkpoint int64 // size of its checkpoint
	compactAt  int64 // end at which the next compaction is due
}

// Create makes an empty store and opens it. It returns ErrExists when the files
// or the register know one already, and never overwrites anything.
func Create(ctx context.Context, opts Options) (*Map, error) {
	m, err := lockStore(ctx, &opts)
	if err != nil {
		return nil, err
	}
	if err := m.create(ctx, &opts); err != nil {
		return nil, errors.Join(err, m.release())
	}
	return m, nil
}

// Open opens an existing store, authenticates all of it, and drops a last record
// that a crash cut short. It never initialises: no store is ErrNotFound.
func Open(ctx context.Context, opts Options) (*Map, error) {
	m, err := lockStore(ctx, &opts)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	if err := m.open(ctx, &opts); err != nil {
		return nil, errors.Join(err, m.release())
	}
	return m, nil
}

// Exists reports whether the file layer shows files of such a store. The host
// decides the answer: it saves a futile Open and proves nothing.
func Exists(files Files, name string) (bool, error) {
	_, found, err := Size(files, name)
	return found, err
}

func lockStore(ctx context.Context, opts *Options) (*Map, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := opts.check(); err != nil {
		return nil, err
	}
	unlock, err := opts.Files.Lock(opts.Name + ".lock")
	if err != nil {
		return nil, fmt.Errorf("persist: locking %q: %w", opts.Name, err)
	}
	m := &Map{
		files: opts.Files, name: opts.Name, register: opts.Register, limits: opts.Limits,
		unlock: unlock, write: make(chan struct{}, 1),
	}
	m.write <- struct{}{}
	return m, nil
}

// release closes the files and gives up the lock.
func (m *Map) release() error {
	var errs []error
	for _, f := range m.slots {
		if f != nil {
			errs = append(errs, f.Close())
		}
	}
	m.slots = [2]File{}
	return errors.Join(append(errs, m.unlock())...)
}

func (m *Map) openSlots(opts *Options) error {
	for i := range m.slots {
		f, err := openOrNil(m.files, opts.slotName(i))
		if err != nil {
			return fmt.Errorf("persist: opening %s: %w", opts.slotName(i), err)
		}
		m.slots[i] = f
	}
	return nil
}

func (m *Map) create(ctx context.Context, opts *Options) error {
	if err := m.openSlots(opts); err != nil {
		return err
	}
	if m.slots[0] != nil {
		return ErrExists
	}
	if n, err := sizeOf(m.slots[1]); err != nil || n > 0 {
		return errors.Join(ErrExists, err)
	}
	if m.register != nil {
		version, _, err := m.register.Read(ctx)
		if err != nil {
			return fmt.Errorf("persist: reading the freshness register: %w", err)
		}
		if version != 0 {
			return fmt.Errorf("%w: its register is at version %d; restore the files and open them", ErrExists, version)
		}
	}
	s, err := m.genesis(opts)
	if err != nil {
		return err
	}
	if err := confirm(ctx, m.register, s.seq, s.hash); err != nil {
		return fmt.Errorf("persist: the store was made but not confirmed: %w", err)
	}
	m.adopt(s, 0)
	return nil
}

// genesis writes an empty store beside its final name and renames it into place,
// so that a crash leaves either no store or a whole one.
func (m *Map) genesis(opts *Options) (*slotState, error) {
	var id [32]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	seal, err := newSealer(opts.Key, opts.Name, id)
	if err != nil {
		return nil, err
	}
	s := &slotState{seal: seal, generation: 1, tree: newTree(), seq: 1, hash: seal.genesisHash()}
	if m.slots[1] == nil {
		if m.slots[1], err = m.files.Create(opts.slotName(1)); err != nil {
			return nil, fmt.Errorf("persist: creating: %w", err)
		}
	}
	fresh := opts.Name + ".new"
	if m.slots[0], err = m.files.Create(fresh); err != nil {
		return nil, fmt.Errorf("persist: creating: %w", err)
	}
	if s.end, err = writeCheckpoint(m.slots[0], s); err != nil {
		return nil, err
	}
	s.checkpoint = s.end
	if err := m.files.Rename(fresh, opts.slotName(0)); err != nil {
		return nil, fmt.Errorf("persist: creating: %w", err)
	}
	if err := m.files.Sync(); err != nil {
		return nil, fmt.Errorf("persist: creating: %w", err)
	}
	return s, nil
}

func (m *Map) open(ctx context.Context, opts *Options) error {
	if err := m.openSlots(opts); err != nil {
		return err
	}
	s, active, err := m.choose(opts)
	if errors.Is(err, ErrNotFound) && m.register != nil {
		version, _, rerr := m.register.Read(ctx)
		if rerr != nil {
			return fmt.Errorf("persist: reading the freshness register: %w", rerr)
		}
		if version != 0 {
			return fmt.Errorf("%w: there are no files, the register holds version %d", ErrRolledBack, version)
		}
	}
	if err != nil {
		return err
	}
	if err := checkFresh(ctx, m.register, s); err != nil {
		return err
	}
	// Only now, with the state accepted, is anything on disk changed.
	if s.torn {
		if err := truncate(m.slots[active], s.end); err != nil {
			return fmt.Errorf("persist: dropping a torn record: %w", err)
		}
	}
	if err := truncate(m.slots[1-active], 0); err != nil {
		return fmt.Errorf("persist: emptying the old slot: %w", err)
	}
	m.adopt(s, active)
	return nil
}

func sizeOf(f File) (int64, error) {
	if f == nil {
		return 0, nil
	}
	return f.Size()
}

// truncate cuts a file durably, if it needs cutting.
func truncate(f File, size int64) error {
	n, err := sizeOf(f)
	if err != nil || n <= size {
		return err
	}
	return errors.Join(f.Truncate(size), f.Sync())
}

// choose reads both slots and returns the newer complete one.
func (m *Map) choose(opts *Options) (*slotState, int, error) {
	var states [2]*slotState
	var errs [2]error
	var used []int
	for i, f := range m.slots {
		n, err := sizeOf(f)
		if err != nil {
			return nil, 0, err
		}
		if n == 0 {
			continue
		}
		used = append(used, i)
		states[i], errs[i] = readSlot(f, opts.Key, opts.Name)
	}
	switch {
	case len(used) == 0 && m.slots[0] == nil:
		return nil, 0, ErrNotFound
	case len(used) == 0:
		return nil, 0, fmt.Errorf("%w: its files are empty", ErrCorrupt)
	case len(used) == 1:
		return states[used[0]], used[0], errs[used[0]]
	}
	return chooseOf(states, errs)
}

// chooseOf settles two filled slots. An interrupted compaction leaves the second
// without a complete checkpoint; a crash just after one leaves both complete.
func chooseOf(states [2]*slotState, errs [2]error) (*slotState, int, error) {
	a, b := states[0], states[1]
	switch {
	case a != nil && b != nil:
		if a.seal.storeID != b.seal.storeID || a.seq == b.seq && a.hash != b.hash {
			return nil, 0, fmt.Errorf("%w: its two slots belong to different stores", ErrCorrupt)
		}
		if b.seq > a.seq || b.seq == a.seq && b.generation > a.generation {
			return b, 1, nil
		}
		return a, 0, nil
	case a != nil && errors.Is(errs[1], errIncomplete):
		return a, 0, nil
	case b != nil && errors.Is(errs[0], errIncomplete):
		return b, 1, nil
	case a == nil && b == nil && (errors.Is(errs[0], ErrWrongKey) || errors.Is(errs[1], ErrWrongKey)):
		return nil, 0, ErrWrongKey
	}
	return nil, 0, fmt.Errorf("%w: %w", ErrCorrupt, errors.Join(errs[0], errs[1]))
}

// adopt takes over an accepted state.
func (m *Map) adopt(s *slotState, active int) {
	m.seal, m.active, m.generation = s.seal, active, s.generation
	m.work, m.live, m.seq, m.hash = s.tree, s.live, s.seq, s.hash
	m.end, m.checkpoint = s.end, s.checkpoint
	m.snap, m.bytes = m.work.Clone(), m.live
	m.scheduleCompaction()
}

// Close waits for the running writer, closes the files and gives up the lock.
// Transactions begun later return ErrClosed.
func (m *Map) Close() error {
	<-m.write
	defer func() { m.write <- struct{}{} }()
	m.mu.Lock()
	defer m.mu.Unlock()
	if errors.Is(m.down, ErrClosed) {
		return nil
	}
	m.down = ErrClosed
	return m.release()
}

// fail stops the Map: its memory and its files may now disagree.
func (m *Map) fail(err error) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.down == nil {
		m.down = err
	}
	return err
}

// snapshot returns the newest confirmed state.
func (m *Map) snapshot() (*tree, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.snap, m.down
}
