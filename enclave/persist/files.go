package persist

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Files is the untrusted file layer: a flat set of names. Implementations need
// no locking beyond Lock; a Map calls them from one goroutine at a time.
type Files interface {
	// Open opens an existing file for reading and writing, or returns an error
	// that is fs.ErrNotExist.
	Open(name string) (File, error)
	// Create opens a file for reading and writing, empty, made if absent.
	Create(name string) (File, error)
	// Rename replaces the file to by the file from, atomically.
	Rename(from, to string) error
	// Sync makes creations and renames durable.
	Sync() error
	// Lock takes the named lock without waiting, or returns ErrLocked. The lock
	// ends with unlock or with the process.
	Lock(name string) (unlock func() error, err error)
}

// File is one open file. WriteAt and Truncate become durable with Sync.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	Truncate(size int64) error
	Sync() error
	Size() (int64, error)
}

// Dir returns the file layer over a directory of the host's. It asks nothing of
// the file system that a library operating system inside an enclave may refuse:
// no memory mapping, no directory listing, no links.
func Dir(path string) Files { return dirFiles(path) }

type dirFiles string

type osFile struct{ *os.File }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	if !st.Mode().IsRegular() {
		return 0, fmt.Errorf("%s is not a regular file", st.Name())
	}
	return st.Size(), nil
}

func (d dirFiles) path(name string) string { return filepath.Join(string(d), name) }

func (d dirFiles) Open(name string) (File, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d dirFiles) Create(name string) (File, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f}, nil
}

func (d dirFiles) Rename(from, to string) error { return os.Rename(d.path(from), d.path(to)) }

// Sync fsyncs the directory. Some file layers cannot (EGo's refuses directory
// descriptors); they say so with one of the errors below and the rename then
// becomes durable when the host's kernel writes it. Only Create depends on it:
// at worst a store vanishes that no transaction has used yet.
func (d dirFiles) Sync() error {
	f, err := os.Open(string(d))
	if err != nil {
		return ignoreUnsupported(err)
	}
	err = f.Sync()
	return errors.Join(ignoreUnsupported(err), f.Close())
}

func ignoreUnsupported(err error) error {
	for _, e := range []error{syscall.EINVAL, syscall.EBADF, syscall.ENOTSUP, syscall.ENOSYS, syscall.EISDIR} {
		if errors.Is(err, e) {
			return nil
		}
	}
	return err
}

func (d dirFiles) Lock(name string) (func() error, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := flock(f); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f.Close, nil
}

// openOrNil opens a file, or returns nil when there is none.
func openOrNil(files Files, name string) (File, error) {
	f, err := files.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return f, err
}
