//go:build linux

package archivetest

import (
	"bytes"
	"errors"
	"fmt"
	"os/signal"
	"slices"
	"syscall"
	"testing"
)

// Full fills a real file system of one MiB: the write that meets its end is cut
// short by the kernel and the next one says ENOSPC. It needs the right to mount.
func Full(t *testing.T, k Kind) {
	root := t.TempDir()
	if err := syscall.Mount("archivetest", root, "tmpfs", 0, "size=1m"); err != nil {
		t.Skipf("SKIPPED: no small file system can be mounted here: %v", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(root, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	fill(t, k, root, syscall.ENOSPC)
}

// ShortWrite runs the test that calls it again, in a process of its own: it may
// write files of up to 1 MiB and 777 bytes, so that the kernel cuts a write short
// at a place that is no boundary of anything, and then says EFBIG.
func ShortWrite(t *testing.T, k Kind) {
	root, ok := Child()
	if !ok {
		out, err := Again(t.Context(), t.Name(), t.TempDir()).CombinedOutput()
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		t.Logf("%s", out)
		return
	}
	signal.Ignore(syscall.SIGXFSZ)
	limit := uint64(1<<20 + 777)
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: limit, Max: limit}); err != nil {
		t.Fatal(err)
	}
	fill(t, k, root, syscall.EFBIG)
}

// fill appends until it fails, and checks that the failure is final and what was acknowledged is there.
func fill(t *testing.T, k Kind, root string, want syscall.Errno) {
	t.Helper()
	a, err := k.Create(t, root, testID, nil)
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{t, k, root, a}
	var acknowledged [][]byte
	for i := range 1000 {
		r := bytes.Repeat(fmt.Appendf(nil, "%d;", i), 3000)
		if err = errors.Join(a.Append(r), a.Sync()); err != nil {
			break
		}
		acknowledged = append(acknowledged, r)
	}
	lost := k.Paged || k.Distant && want != syscall.ENOSPC // the errno is only text: bbolt says so of growing its file
	if err == nil || !errors.Is(err, want) && !lost {
		t.Fatalf("after %d records: %v, want %v", len(acknowledged), err, want)
	}
	b.final("a full disk")
	if err := a.Close(); err != nil {
		t.Logf("Close says: %v", err)
	}
	read, rerr := collect(k.Records(t, root, testID))
	if len(read) < len(acknowledged) || !slices.EqualFunc(read[:len(acknowledged)], acknowledged, bytes.Equal) {
		t.Fatalf("%d records are left of %d that were acknowledged, %v", len(read), len(acknowledged), rerr)
	}
	if len(acknowledged) < 10 {
		t.Fatalf("only %d records were acknowledged", len(acknowledged))
	}
	fmt.Printf("%s: %d records acknowledged, then: %v; read back: %d, then: %v\n", k.Name, len(acknowledged), err, len(read), rerr)
}
