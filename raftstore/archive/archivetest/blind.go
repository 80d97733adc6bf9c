package archivetest

import (
	"errors"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// Blind changes and hides the files of running stores, all of them, again and
// again: the stores answer, elect, take snapshots and bring up a new server as
// if nothing had happened, because they never read. What is acknowledged after
// it is right on every machine.
func Blind(t *testing.T, k Kind) {
	n, servers := found(t, k, boot{name: "a"}, boot{name: "b", key: 1}, boot{name: "c", key: 2})
	rnd := rand.New(rand.NewPCG(3, 5))
	changed := 0
	want := acknowledge(t, servers, "before", 10)
	for i := range 5 {
		for _, s := range servers {
			changed += vandalise(t, s.root, rnd)
		}
		want = append(want, acknowledge(t, servers, "after", 5)...)
		leader := servers[slices.IndexFunc(servers, func(s *server) bool { return s.IsLeader() })]
		switch i {
		case 1:
			if err := leader.Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
		case 2: // the new server is sent a snapshot of this boot's memory
			servers = append(servers, n.join(t, k, leader, boot{name: "d", key: 3}))
		case 3:
			if err := leader.TransferLeadership(t.Context()); err != nil {
				t.Logf("leadership was not handed over: %v", err)
			}
		}
	}
	if changed < 20 {
		t.Fatalf("only %d files were changed: the test does nothing", changed)
	}
	for _, s := range servers {
		eventually(t, "every machine has all that was acknowledged", func() bool { return s.has(want) })
		if s.Err() != nil {
			t.Errorf("a store noticed its files: %v", s.Err())
		}
	}
	t.Logf("%s: %d files were overwritten and hidden under four running stores, %d entries acknowledged", k.Name, changed, len(want))
}

// vandalise overwrites every file below root, without changing its length, and takes away the right to read it.
func vandalise(t *testing.T, root string, rnd *rand.Rand) (changed int) {
	t.Helper()
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil // a store may drop a file meanwhile
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return nil
		}
		defer f.Close()
		b := make([]byte, info.Size())
		for i := range b {
			b[i] = byte(rnd.Uint32())
		}
		if _, err := f.WriteAt(b, 0); err != nil {
			return err
		}
		changed++
		return f.Chmod(0)
	})
	if err != nil {
		t.Fatal(err)
	}
	return changed
}
