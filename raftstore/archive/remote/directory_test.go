package remote

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/raftstore"
)

// Split finds the name in every path that Dir makes, and none in what is no archive's.
func TestSplit(t *testing.T) {
	t.Parallel()
	d, id := Directory{Root: filepath.Join("some", "data")}, raftstore.ServerID{0x11}
	for _, n := range []Name{{1, id}, {2, id}, {10, id}, {65535, id}} {
		if root, got, ok := Split(d.Dir(n)); !ok || root != d.Root || got != n {
			t.Errorf("%s: %s %+v %v", d.Dir(n), root, got, ok)
		}
	}
	for dir, want := range map[string]string{ // of attempts that nobody makes, the directory is only that
		filepath.Join("data", "attempt-1", id.String()):     filepath.Join("data", "attempt-1"),
		filepath.Join("data", "attempt-x", id.String()):     filepath.Join("data", "attempt-x"),
		filepath.Join("data", "attempt-02", id.String()):    filepath.Join("data", "attempt-02"),
		filepath.Join("data", "attempt-65536", id.String()): filepath.Join("data", "attempt-65536"),
	} {
		if root, n, ok := Split(dir); !ok || root != want || n != (Name{1, id}) {
			t.Errorf("%s: %s %+v %v", dir, root, n, ok)
		}
	}
	for _, dir := range []string{"", ".", "data", "attempt-3/x", id.String()[1:], strings.ToUpper(raftstore.ServerID{0xab}.String()), strings.Repeat("0", 64)} {
		if root, n, ok := Split(dir); ok || root != "" || n != (Name{}) {
			t.Errorf("%q: %s %+v", dir, root, n)
		}
	}
}

// List finds what Dir names, and neither files nor what lies behind a link.
func TestListIsOfDirectories(t *testing.T) {
	t.Parallel()
	d, id := Directory{Root: t.TempDir()}, raftstore.ServerID{0x11}
	want := []Name{{1, id}, {3, id}}
	for _, n := range want {
		if err := os.MkdirAll(d.Dir(n), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	elsewhere := t.TempDir()
	if err := os.Mkdir(filepath.Join(elsewhere, id.String()), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{"attempt-2": elsewhere, raftstore.ServerID{0x22}.String(): elsewhere} {
		if err := os.Symlink(to, filepath.Join(d.Root, name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(d.Root, "attempt-4"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := d.List(); err != nil || !slices.Equal(got, want) {
		t.Errorf("%+v, %v", got, err)
	}
}
