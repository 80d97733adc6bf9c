package remote

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/claviger/claviger/raftstore"
)

// Directory is a Backend below one directory: the first attempt of a server id
// in Root/<server id>, later ones in Root/attempt-<n>/<server id>, as nodes with
// disks of their own lay them out. It reads directories and is for the host's side.
// List and Dir need the Root only.
type Directory struct {
	Root string
	// Make makes an archive in root/<server id>; an existing one is an fs.ErrExist.
	Make func(root string, id raftstore.ServerID) (raftstore.Archive, error)
	// Read reads the archive in dir.
	Read func(ctx context.Context, dir string) iter.Seq2[[]byte, error]
}

var _ Backend = Directory{}

const attemptPrefix = "attempt-"

// Dir is where the archive of a name is, or would be.
func (d Directory) Dir(name Name) string { return filepath.Join(d.root(name), name.Server.String()) }

func (d Directory) root(name Name) string {
	if name.Attempt == 1 {
		return d.Root
	}
	return filepath.Join(d.Root, attemptPrefix+strconv.Itoa(int(name.Attempt)))
}

// Split is the reverse of Dir: the Root below which the archive in dir lies, and
// its name. It is not ok for a path that is no archive's.
func Split(dir string) (root string, name Name, ok bool) {
	id, err := raftstore.ParseServerID(filepath.Base(dir))
	if err != nil {
		return "", Name{}, false
	}
	root = filepath.Dir(dir)
	if n, ok := attempt(filepath.Base(root)); ok {
		return filepath.Dir(root), Name{Attempt: n, Server: id}, true
	}
	return root, Name{Attempt: 1, Server: id}, true
}

// attempt reads the name of a directory of later attempts.
func attempt(base string) (uint16, bool) {
	digits, ok := strings.CutPrefix(base, attemptPrefix)
	n, err := strconv.ParseUint(digits, 10, 16)
	return uint16(n), ok && err == nil && n >= 2 && digits == strconv.Itoa(int(n))
}

// Create implements Backend.
func (d Directory) Create(name Name) (raftstore.Archive, error) {
	return d.Make(d.root(name), name.Server)
}

// Records implements Backend.
func (d Directory) Records(ctx context.Context, name Name) iter.Seq2[[]byte, error] {
	if _, err := os.Stat(d.Dir(name)); errors.Is(err, fs.ErrNotExist) {
		return func(yield func([]byte, error) bool) { yield(nil, ErrMissing) }
	}
	return d.Read(ctx, d.Dir(name))
}

// List implements Backend; in order of attempt and server id. What is behind a link is not ours.
func (d Directory) List() ([]Name, error) {
	names, err := list(d.Root, 1)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(d.Root)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("archive/remote: %w", err)
	}
	for _, e := range entries {
		n, ok := attempt(e.Name())
		if !ok || !e.IsDir() {
			continue
		}
		more, err := list(filepath.Join(d.Root, e.Name()), n)
		if err != nil {
			return nil, err
		}
		names = append(names, more...)
	}
	slices.SortFunc(names, func(a, b Name) int {
		return cmp.Or(cmp.Compare(a.Attempt, b.Attempt), slices.Compare(a.Server[:], b.Server[:]))
	})
	return names, nil
}

func list(dir string, attempt uint16) ([]Name, error) {
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("archive/remote: %w", err)
	}
	var names []Name
	for _, e := range entries {
		if id, err := raftstore.ParseServerID(e.Name()); err == nil && e.IsDir() {
			names = append(names, Name{Attempt: attempt, Server: id})
		}
	}
	return names, nil
}
