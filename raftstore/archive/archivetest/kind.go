package archivetest

import (
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/claviger/claviger/raftstore"
)

// Place runs a constructor and says where the archive's calls are made; a nil Place is the caller's own goroutine.
type Place func(func() (raftstore.Archive, error)) (raftstore.Archive, error)

func (p Place) make(f func() (raftstore.Archive, error)) (raftstore.Archive, error) {
	if p == nil {
		return f()
	}
	return p(f)
}

// Kind is one kind of archive under test.
type Kind struct {
	Name string
	// Create makes an archive below root whose system calls are made in place.
	Create func(t testing.TB, root string, id raftstore.ServerID, place Place) (raftstore.Archive, error)
	// Records reads what is below root and not open.
	Records func(t testing.TB, root string, id raftstore.ServerID) iter.Seq2[[]byte, error]
	// Exists and RecordSize are the errors for a second archive of one id and for a record out of bounds.
	Exists, RecordSize error
	MaxRecord          int
	// Paged says that files change in place, by pages of 4096 bytes of which the first two are the heads: bbolt.
	Paged bool
	// Distant says that the calls in place are made in answer to a client: faults
	// reach it as text, and only those that it must tell apart as their errno.
	Distant bool
	// Stride is how many bytes lie between those that the adversary changes one after the other; 0 means every byte.
	Stride int
}

// Create adapts a constructor with a concrete result; it keeps a nil pointer out of the interface.
func Create[A raftstore.Archive](place Place, f func() (A, error)) (raftstore.Archive, error) {
	return place.make(func() (raftstore.Archive, error) {
		a, err := f()
		if err != nil {
			return nil, err
		}
		return a, nil
	})
}

var testID = raftstore.ServerID{0xab, 0xcd}

// image is the content of a directory: files by path.
type image map[string][]byte

// imageOf reads what is below root now, as a disk would have it if everything written were on it.
func imageOf(t testing.TB, root string) image {
	t.Helper()
	img := image{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		img[rel], err = os.ReadFile(path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return img
}

func (img image) clone() image {
	c := image{}
	for name, b := range img {
		c[name] = slices.Clone(b)
	}
	return c
}

// names are the paths in order.
func (img image) names() []string { return slices.Sorted(maps.Keys(img)) }

// write puts the image below a new directory.
func (img image) write(t testing.TB) (root string) {
	t.Helper()
	root, err := os.MkdirTemp(t.TempDir(), "disk")
	if err != nil {
		t.Fatal(err)
	}
	for name, b := range img {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

// read opens an image as a recovery would: the records before the first error, and that error.
func (k Kind) read(t testing.TB, img image, id raftstore.ServerID) ([][]byte, error) {
	t.Helper()
	return collect(k.Records(t, img.write(t), id))
}

func collect(records iter.Seq2[[]byte, error]) (out [][]byte, err error) {
	for r, err := range records {
		if err != nil {
			return out, err
		}
		out = append(out, slices.Clone(r))
	}
	return out, nil
}
