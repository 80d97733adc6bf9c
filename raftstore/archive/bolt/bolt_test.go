package bolt

import (
	"bytes"
	"errors"
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

func TestRecordsComeBackInOrder(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	var want [][]byte
	for i := range 50 {
		r := bytes.Repeat([]byte{byte(i)}, 1+i*7)
		want = append(want, bytes.Clone(r))
		if err := a.Append(r); err != nil {
			t.Fatal(err)
		}
		clear(r) // the caller may reuse its buffer
		if i%20 == 19 {
			if err := a.Sync(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := errors.Join(a.Sync(), a.Close()); err != nil {
		t.Fatal(err)
	}
	i := 0
	for r, err := range Records(dir) {
		if err != nil || !bytes.Equal(r, want[i]) {
			t.Fatalf("record %d: %x, %v", i, r, err)
		}
		i++
	}
	if i != len(want) {
		t.Fatalf("%d records of %d", i, len(want))
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

func TestErrorsAreFinal(t *testing.T) {
	t.Parallel()
	for name, breakIt := range map[string]func(*Archive) error{
		"empty":  func(a *Archive) error { return a.Append(nil) },
		"large":  func(a *Archive) error { return a.Append(make([]byte, MaxRecord+1)) },
		"closed": func(a *Archive) error { a.db.Close(); a.Append([]byte("x")); return a.Sync() },
	} {
		a, _ := create(t)
		if err := breakIt(a); err == nil {
			t.Errorf("%s: no error", name)
		}
		if err := a.Append([]byte("x")); err == nil {
			t.Errorf("%s: the archive goes on after a failure", name)
		}
		if err := a.Sync(); err == nil {
			t.Errorf("%s: a failed archive says that it is durable", name)
		}
	}
}
