package persisttest

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"slices"
	"sync"

	"github.com/claviger/claviger/enclave/persist"
)

// ErrInjected is the error of an operation that FailAt chose.
var ErrInjected = errors.New("persisttest: injected fault")

const sector = 512

// Files is a file layer in memory that knows what a power loss may leave: every
// write, truncation, creation and rename is pending until the matching Sync.
type Files struct {
	mu      sync.Mutex
	now     map[string]*file // what the process sees
	durable map[string]*file // names that survive for certain
	names   []func(map[string]*file)
	locked  map[string]bool

	ops    int
	failAt int // the operation that fails, counted from 1; 0 never
	sticky bool
}

type file struct {
	data    []byte
	durable []byte
	pending []func(disk []byte, pick func(int) int) []byte
}

// NewFiles returns an empty file layer.
func NewFiles() *Files {
	return &Files{now: map[string]*file{}, durable: map[string]*file{}, locked: map[string]bool{}}
}

// FailAt makes the n-th changing operation from now fail: a write takes effect in
// part, the others not at all. With sticky, all later ones fail too, as if the
// process had died there. n = 0 ends it.
func (f *Files) FailAt(n int, sticky bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops, f.failAt, f.sticky = 0, n, sticky
}

// Ops returns the number of changing operations since FailAt.
func (f *Files) Ops() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ops
}

// Crash returns what a disk may hold after a power loss now: of each file the
// synced contents and a subset, chosen by pick(n) in [0, n), of the pending
// sectors. Locks are gone.
func (f *Files) Crash(pick func(int) int) *Files {
	f.mu.Lock()
	defer f.mu.Unlock()
	names := maps.Clone(f.durable)
	for _, change := range f.names[:pick(len(f.names)+1)] {
		change(names)
	}
	out := NewFiles()
	for _, name := range slices.Sorted(maps.Keys(names)) {
		out.Set(name, names[name].crash(pick))
	}
	return out
}

func (f *file) crash(pick func(int) int) []byte {
	disk := slices.Clone(f.durable)
	for _, apply := range f.pending {
		disk = apply(disk, pick)
	}
	return disk
}

// Clone returns an independent copy of what the process sees, as a host makes
// one of its disk.
func (f *Files) Clone() *Files { return f.Crash(func(n int) int { return n - 1 }) }

// Bytes returns a copy of a file, nil if there is none.
func (f *Files) Bytes(name string) []byte {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.now[name] == nil {
		return nil
	}
	return append([]byte{}, f.now[name].data...)
}

// Set replaces a file, durably; nil removes it.
func (f *Files) Set(name string, data []byte) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if data == nil {
		delete(f.now, name)
		delete(f.durable, name)
		return
	}
	x := &file{data: slices.Clone(data), durable: slices.Clone(data)}
	f.now[name], f.durable[name] = x, x
}

// Names returns the names of all files, sorted.
func (f *Files) Names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Sorted(maps.Keys(f.now))
}

// step counts a changing operation and fails the chosen one.
func (f *Files) step() error {
	f.ops++
	if f.failAt > 0 && (f.ops == f.failAt || f.sticky && f.ops > f.failAt) {
		return fmt.Errorf("operation %d: %w", f.ops, ErrInjected)
	}
	return nil
}

func (f *Files) rename(change func(map[string]*file)) {
	change(f.now)
	f.names = append(f.names, change)
}

// Open implements persist.Files.
func (f *Files) Open(name string) (persist.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	x := f.now[name]
	if x == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &handle{f, x}, nil
}

// Create implements persist.Files.
func (f *Files) Create(name string) (persist.File, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(); err != nil {
		return nil, err
	}
	x := &file{data: []byte{}, durable: []byte{}}
	f.rename(func(names map[string]*file) { names[name] = x })
	return &handle{f, x}, nil
}

// Rename implements persist.Files.
func (f *Files) Rename(from, to string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(); err != nil {
		return err
	}
	if f.now[from] == nil {
		return fs.ErrNotExist
	}
	f.rename(func(names map[string]*file) {
		names[to] = names[from]
		delete(names, from)
	})
	return nil
}

// Sync implements persist.Files.
func (f *Files) Sync() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.step(); err != nil {
		return err
	}
	f.durable, f.names = maps.Clone(f.now), nil
	return nil
}

// Lock implements persist.Files.
func (f *Files) Lock(name string) (func() error, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.locked[name] {
		return nil, persist.ErrLocked
	}
	f.locked[name] = true
	return func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.locked[name] = false
		return nil
	}, nil
}

type handle struct {
	fs *Files
	x  *file
}

func (h *handle) ReadAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if off >= int64(len(h.x.data)) {
		return 0, io.EOF
	}
	n := copy(p, h.x.data[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (h *handle) WriteAt(p []byte, off int64) (int, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	err := h.fs.step()
	if err != nil {
		p = p[:len(p)/2]
	}
	p = slices.Clone(p)
	h.x.data = place(h.x.data, p, off)
	h.x.pending = append(h.x.pending, func(disk []byte, pick func(int) int) []byte {
		for i := 0; i < len(p); i += sector {
			if pick(2) == 1 {
				disk = place(disk, p[i:min(i+sector, len(p))], off+int64(i))
			}
		}
		return disk
	})
	return len(p), err
}

func place(data, p []byte, off int64) []byte {
	if grow := int(off) + len(p) - len(data); grow > 0 {
		data = append(data, make([]byte, grow)...)
	}
	copy(data[off:], p)
	return data
}

func (h *handle) Truncate(size int64) error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.step(); err != nil {
		return err
	}
	cut := func(data []byte) []byte {
		if int64(len(data)) > size {
			return data[:size:size]
		}
		return append(data, make([]byte, size-int64(len(data)))...)
	}
	h.x.data = cut(h.x.data)
	h.x.pending = append(h.x.pending, func(disk []byte, pick func(int) int) []byte {
		if pick(2) == 1 {
			return cut(disk)
		}
		return disk
	})
	return nil
}

func (h *handle) Sync() error {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	if err := h.fs.step(); err != nil {
		return err
	}
	h.x.durable, h.x.pending = slices.Clone(h.x.data), nil
	return nil
}

func (h *handle) Size() (int64, error) {
	h.fs.mu.Lock()
	defer h.fs.mu.Unlock()
	return int64(len(h.x.data)), nil
}

func (h *handle) Close() error { return nil }
