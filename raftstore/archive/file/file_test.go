package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/raftstore"
)

var id = raftstore.ServerID{0xab}

func create(t *testing.T) (*Archive, string) {
	t.Helper()
	root := filepath.Join(t.TempDir(), "archives")
	a, err := Create(root, id)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return a, filepath.Join(root, id.String())
}

func collect(dir string) (out [][]byte, err error) {
	for r, e := range Records(dir) {
		if e != nil {
			return out, e
		}
		out = append(out, r)
	}
	return out, nil
}

func TestRecordsComeBackInOrder(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	var want [][]byte
	for i := range 300 {
		r := bytes.Repeat([]byte{byte(i)}, 1+i*7)
		want = append(want, r)
		if err := a.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := collect(dir); err != nil || len(got) != 0 {
		t.Fatalf("before Sync: %d records, %v", len(got), err)
	}
	if err := a.Sync(); err != nil {
		t.Fatal(err)
	}
	got, err := collect(dir)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("%d records of %d, %v", len(got), len(want), err)
	}
}

func TestSegmentsRollOver(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	a.off = SegmentSize // as if the first file were full
	if err := a.Append([]byte("in the second file")); err != nil {
		t.Fatal(err)
	}
	if err := a.Sync(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, segmentName(2))); err != nil {
		t.Fatal(err)
	}
	if got, err := collect(dir); err != nil || len(got) != 1 || string(got[0]) != "in the second file" {
		t.Fatalf("%q, %v", got, err)
	}
}

func TestAnIdentityLivesOneBoot(t *testing.T) {
	t.Parallel()
	_, dir := create(t)
	if _, err := Create(filepath.Dir(dir), id); !errors.Is(err, ErrExists) {
		t.Fatalf("a second archive for one server id: %v", err)
	}
	if _, err := Create(t.TempDir(), raftstore.ServerID{}); err == nil {
		t.Fatal("the zero id has an archive")
	}
}

func TestRecordBounds(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, MaxRecord + 1} {
		a, _ := create(t)
		if err := a.Append(make([]byte, n)); !errors.Is(err, ErrRecordSize) {
			t.Errorf("%d bytes: %v", n, err)
		}
		if err := a.Append([]byte("x")); err == nil {
			t.Error("the archive goes on after a failure")
		}
	}
}

func TestWriteErrorsAreFinal(t *testing.T) {
	t.Parallel()
	a, _ := create(t)
	a.f.Close() // every later write fails, as on a dead disk
	if err := a.Append([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := a.Sync(); !errors.Is(err, os.ErrClosed) {
		t.Fatalf("sync to a dead disk: %v", err)
	}
	if err := a.Sync(); err == nil {
		t.Fatal("a failed archive says that it is durable")
	}
}

func TestDamagedFilesEndWithAnError(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func([]byte) []byte{
		"cut record":   func(b []byte) []byte { return b[:len(b)-1] },
		"cut length":   func(b []byte) []byte { return append(b, 0, 0) },
		"huge length":  func(b []byte) []byte { return append(b, 0xff, 0xff, 0xff, 0xff) },
		"empty record": func(b []byte) []byte { return append(b, 0, 0, 0, 0) },
	} {
		a, dir := create(t)
		if err := errors.Join(a.Append([]byte("one")), a.Append([]byte("two")), a.Sync()); err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, segmentName(1))
		raw, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, damage(raw), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := collect(dir); !errors.Is(err, ErrTorn) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
