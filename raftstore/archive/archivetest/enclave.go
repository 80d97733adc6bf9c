package archivetest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
)

// Confined runs test again in a process that lives under rules from its begin,
// all threads of it, and returns what it printed; a failure there is err. The
// test there calls [Confine] first. Where there are no filters the test is skipped.
func Confined(t *testing.T, test, root string) (output string, err error) {
	t.Helper()
	if !filtersWork {
		t.Skipf("SKIPPED: no seccomp filter on %s/%s; it needs linux on amd64 or arm64", runtime.GOOS, runtime.GOARCH)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := Again(ctx, test, root).CombinedOutput()
	if strings.Contains(string(out), cannotConfine) {
		t.Skipf("SKIPPED: this system does not let a process put itself under a seccomp filter:\n%s", out)
	}
	return string(out), err
}

const cannotConfine = "CANNOT CONFINE"

// Confine puts this whole process under rules for good. It fails the test where that cannot be done.
func Confine(t *testing.T, rules ...Rule) {
	t.Helper()
	if err := install(true, rules); err != nil {
		t.Fatalf("%s: %v", cannotConfine, err)
	}
}

// Bites checks that the filters of Enclave and NoReading are really there: what
// they refuse fails in this process with the errors that they give.
func Bites(t *testing.T, dir string) {
	t.Helper()
	if _, err := os.ReadDir(dir); !errors.Is(err, syscall.ENOSYS) {
		t.Errorf("reading a directory: %v", err)
	}
	name := dir + "/bite"
	if err := os.WriteFile(name, []byte("more than eight bytes"), 0o600); err != nil {
		t.Errorf("writing a file: %v", err)
	}
	if _, err := os.ReadFile(name); !errors.Is(err, syscall.EPERM) {
		t.Errorf("reading a file: %v", err)
	}
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.ReadAt(make([]byte, 4), 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("reading a file at a place: %v", err)
	}
	if _, err := syscall.Mmap(int(f.Fd()), 0, 8, syscall.PROT_READ, syscall.MAP_SHARED); !errors.Is(err, syscall.EPERM) {
		t.Errorf("mapping a file: %v", err)
	}
	if b, err := syscall.Mmap(-1, 0, 1<<20, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE); err != nil {
		t.Errorf("anonymous memory: %v", err)
	} else if err := syscall.Munmap(b); err != nil {
		t.Error(err)
	}
	if err := os.Mkdir(dir+"/full", 0o700); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(dir+"/full/x", nil, 0o600); err != nil {
		t.Error(err)
	}
	if err := os.RemoveAll(dir + "/full"); err == nil {
		t.Error("a directory with a file in it was removed, which needs calls relative to it")
	}
	fmt.Println("the filters bite: no mapped file, no directory read, no call relative to a directory, no file read")
}

func confinedBoots(dir string) []boot {
	boots := []boot{{name: "a"}, {name: "b", key: 1}, {name: "c", key: 2}}
	for i := range boots {
		boots[i].root = filepath.Join(dir, boots[i].name)
	}
	return boots
}

const confinedEntries = 10

// ConfinedStores is for a process that is confined: a cluster of three on
// archives below dir, with snapshots, dropped parts and a change of leader.
// CheckConfined looks at what it has left, from a process that can read.
func ConfinedStores(t *testing.T, k Kind, dir string) {
	_, servers := found(t, k, confinedBoots(dir)...)
	want := acknowledge(t, servers, "one", 3*confinedEntries)
	for _, s := range servers {
		eventually(t, "applied", func() bool { return s.has(want) })
		if err := s.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if err := servers[0].Shutdown(); err != nil {
		t.Fatal(err)
	}
	want = append(want, acknowledge(t, servers[1:], "two", confinedEntries)...)
	for _, s := range servers[1:] {
		eventually(t, "applied", func() bool { return s.has(want) })
	}
	for _, s := range servers[1:] {
		if err := s.Shutdown(); err != nil {
			t.Fatal(err)
		}
	}
	fmt.Printf("%d entries acknowledged and three snapshots taken by %d stores that cannot read a file\n", len(want), len(servers))
}

// CheckConfined opens the archives of ConfinedStores as a recovery would.
func CheckConfined(t *testing.T, k Kind, dir string) {
	t.Helper()
	for _, b := range confinedBoots(dir)[1:] {
		opener, err := raftstore.NewOpener(b.archiveKey(t), b.chain())
		if err != nil {
			t.Fatal(err)
		}
		entries, snapshots := 0, 0
		for sealed, err := range k.Records(t, b.root, b.id()) {
			if err != nil {
				t.Fatal(err)
			}
			r, err := opener.Open(sealed)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case r.Kind == raftstore.RecordSnapshot:
				snapshots++
			case r.Kind == raftstore.RecordLog && strings.HasPrefix(string(r.Data), "two-"):
				entries++
			}
		}
		last, _ := opener.Head()
		if opener.Begin() < 2 || snapshots != 1 || entries < confinedEntries {
			t.Errorf("server %s: records %d to %d, %d snapshots, %d late entries: want a trimmed archive with one snapshot and all of them",
				b.name, opener.Begin(), last, snapshots, entries)
		}
		t.Logf("server %s: records %d to %d open afterwards", b.name, opener.Begin(), last)
	}
}
