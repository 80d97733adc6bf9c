package file_test

import (
	"testing"

	"github.com/claviger/claviger/raftstore/archive/archivetest"
)

// TestInsideEnclave runs three stores on files in a process where the kernel
// refuses what EGo refuses inside SGX (mapping a file, reading a directory, calls
// relative to an open directory), and reading of any file besides.
func TestInsideEnclave(t *testing.T) {
	t.Parallel()
	if dir, ok := archivetest.Child(); ok {
		archivetest.Confine(t, append(archivetest.Enclave(), archivetest.NoReading()...)...)
		archivetest.Bites(t, dir)
		archivetest.ConfinedStores(t, kind, dir)
		return
	}
	dir := t.TempDir()
	out, err := archivetest.Confined(t, "TestInsideEnclave", dir)
	if err != nil {
		t.Fatalf("under the filter: %v\n%s", err, out)
	}
	t.Log(out)
	archivetest.CheckConfined(t, kind, dir)
}

func TestBlind(t *testing.T) {
	t.Parallel()
	archivetest.Blind(t, kind)
}
