package functions

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"

	"github.com/claviger/claviger/enclave/persist"
)

// Errors of the quotas.
var (
	errProjects = errors.New("functions: the runtime keeps as many projects as it may")
	errDisk     = errors.New("functions: the disk quota is used up")
)

// The catalogue names the projects whose files are there, 32 bytes each: a file
// layer cannot list files. It is the machine's host that the quotas protect, so the
// host may read it and gains nothing from changing it.
const (
	catalogue    = "projects"
	maxCatalogue = 1 << 20 // projects
)

// disk keeps the books of what projects take on the machine's disk and refuses
// what is over the quotas: a number of projects, bytes of one and bytes of all.
type disk struct {
	files     persist.Files
	most      int   // projects
	each, all int64 // bytes

	mu      sync.Mutex
	known   map[ProjectID]*usage
	records int // in the catalogue
	used    int64
}

// usage is the bytes of one project's files; disk.mu guards it.
type usage struct{ total int64 }

// openDisk reads the catalogue and the sizes of what it names. Projects without
// files were moved away: they leave the catalogue.
func openDisk(files persist.Files, projects int, each, all int64) (*disk, error) {
	d := &disk{files: files, most: projects, each: each, all: all, known: map[ProjectID]*usage{}}
	ids, err := d.read()
	if err != nil {
		return nil, fmt.Errorf("functions: reading the catalogue of projects: %w", err)
	}
	var live []ProjectID
	for _, id := range ids {
		n, found, err := persist.Size(files, storeName(id))
		if err != nil {
			return nil, fmt.Errorf("functions: looking for project %s: %w", id, err)
		}
		if found && d.known[id] == nil {
			d.known[id] = &usage{n}
			d.used += n
			live = append(live, id)
		}
	}
	d.records = len(ids)
	if len(live) != len(ids) {
		if err := d.rewrite(live); err != nil {
			return nil, fmt.Errorf("functions: writing the catalogue of projects: %w", err)
		}
	}
	return d, nil
}

// read returns what the catalogue names; a last record cut short by a crash is
// none.
func (d *disk) read() ([]ProjectID, error) {
	f, err := d.files.Open(catalogue)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxCatalogue*int64(len(ProjectID{})) {
		return nil, fmt.Errorf("%w: it has %d bytes", ErrFormat, size)
	}
	ids := make([]ProjectID, size/int64(len(ProjectID{})))
	for i := range ids {
		if _, err := f.ReadAt(ids[i][:], int64(i*len(ids[i]))); err != nil {
			return nil, err
		}
	}
	return ids, nil
}

func (d *disk) rewrite(ids []ProjectID) error {
	const fresh = catalogue + ".new"
	f, err := d.files.Create(fresh)
	if err != nil {
		return err
	}
	var raw []byte
	for _, id := range ids {
		raw = append(raw, id[:]...)
	}
	_, err = f.WriteAt(raw, 0)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	d.records = len(ids)
	return errors.Join(d.files.Rename(fresh, catalogue), d.files.Sync())
}

// room reports whether the project may be here: it is, or there is room for
// another.
func (d *disk) room(id ProjectID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known[id] == nil && len(d.known) >= d.most {
		return fmt.Errorf("%w: %d", errProjects, d.most)
	}
	return nil
}

// admit enters a project into the catalogue, if it is not there and there is room,
// and returns its file layer.
func (d *disk) admit(id ProjectID) (*quotaFiles, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.known[id] != nil {
		return &quotaFiles{d.files, d, id, d.known[id]}, nil
	}
	if len(d.known) >= d.most || d.records >= maxCatalogue {
		return nil, fmt.Errorf("%w: %d", errProjects, d.most)
	}
	// Files that are here already were moved in from another machine.
	n, _, err := persist.Size(d.files, storeName(id))
	if err != nil {
		return nil, err
	}
	if n > d.all-d.used {
		return nil, fmt.Errorf("%w: the project's files have %d bytes", errDisk, n)
	}
	if err := d.enter(id); err != nil {
		return nil, fmt.Errorf("functions: writing the catalogue of projects: %w", err)
	}
	u := &usage{n}
	d.known[id], d.used = u, d.used+n
	return &quotaFiles{d.files, d, id, u}, nil
}

// enter appends to the catalogue. The caller holds d.mu.
func (d *disk) enter(id ProjectID) error {
	f, err := d.files.Open(catalogue)
	if errors.Is(err, fs.ErrNotExist) {
		if f, err = d.files.Create(catalogue); err == nil {
			err = d.files.Sync()
		}
	}
	if err != nil {
		return err
	}
	_, err = f.WriteAt(id[:], int64(d.records*len(id)))
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	d.records++
	return nil
}

// forget drops a project that has no files after all. Its record stays until the
// next start and costs 32 bytes.
func (d *disk) forget(id ProjectID) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.known[id]; u != nil && u.total == 0 {
		delete(d.known, id)
	}
}

// size returns the bytes of a project's files.
func (d *disk) size(id ProjectID) int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	if u := d.known[id]; u != nil {
		return u.total
	}
	return 0
}

// totals returns how many projects there are and their bytes.
func (d *disk) totals() (projects int, bytes int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.known), d.used
}

// take accounts for n more bytes of a project, or fewer. What is there already is
// noted in any case; what is to be written may be refused.
func (d *disk) take(u *usage, n int64, there bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if n > 0 && !there && (n > d.each-u.total || n > d.all-d.used) {
		return errDisk
	}
	u.total += n
	d.used += n
	return nil
}

// quotaFiles is one project's view of the file layer while its store is opened and
// open. It accounts for the files that it has opened.
type quotaFiles struct {
	persist.Files
	disk  *disk
	id    ProjectID
	usage *usage
}

// begin forgets the sizes from before, because the store now opens its files.
func (q *quotaFiles) begin() {
	q.disk.mu.Lock()
	defer q.disk.mu.Unlock()
	q.disk.used -= q.usage.total
	q.usage.total = 0
}

// abandon measures the files of a store that did not open, and forgets the project
// if there are none.
func (q *quotaFiles) abandon() {
	q.begin()
	if n, found, err := persist.Size(q.Files, storeName(q.id)); err == nil {
		_ = q.disk.take(q.usage, n, true)
		if !found {
			q.disk.forget(q.id)
		}
	}
}

func (q *quotaFiles) track(f persist.File, err error) (persist.File, error) {
	if err != nil {
		return nil, err
	}
	size, err := f.Size()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	_ = q.disk.take(q.usage, size, true)
	return &quotaFile{File: f, files: q, size: size}, nil
}

// Open implements persist.Files.
func (q *quotaFiles) Open(name string) (persist.File, error) { return q.track(q.Files.Open(name)) }

// Create implements persist.Files.
func (q *quotaFiles) Create(name string) (persist.File, error) { return q.track(q.Files.Create(name)) }

// quotaFile is a file that keeps to the quotas. One goroutine uses it at a time.
type quotaFile struct {
	persist.File
	files *quotaFiles
	size  int64
}

func (f *quotaFile) note(size int64, there bool) error {
	if err := f.files.disk.take(f.files.usage, size-f.size, there); err != nil {
		return err
	}
	f.size = size
	return nil
}

// WriteAt implements persist.File.
func (f *quotaFile) WriteAt(b []byte, at int64) (int, error) {
	if err := f.note(max(f.size, at+int64(len(b))), false); err != nil {
		return 0, err
	}
	n, err := f.File.WriteAt(b, at)
	if err != nil {
		if size, serr := f.File.Size(); serr == nil {
			_ = f.note(size, true)
		}
	}
	return n, err
}

// Truncate implements persist.File.
func (f *quotaFile) Truncate(size int64) error {
	if err := f.File.Truncate(size); err != nil {
		return err
	}
	return f.note(size, true)
}
