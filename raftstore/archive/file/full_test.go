package file_test

import (
	"testing"

	"github.com/claviger/claviger/raftstore/archive/archivetest"
)

func TestFullDisk(t *testing.T) {
	t.Parallel()
	archivetest.Full(t, kind)
}

// TestShortWrite runs in a process of its own, whose files may not grow beyond a limit.
func TestShortWrite(t *testing.T) {
	t.Parallel()
	if root, ok := archivetest.Child(); ok {
		archivetest.ShortWrites(t, kind, root)
		return
	}
	out, err := archivetest.Again(t.Context(), "TestShortWrite", t.TempDir()).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Logf("%s", out)
}
