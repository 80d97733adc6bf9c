package bolt_test

import (
	"iter"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/archivetest"
	"github.com/claviger/claviger/raftstore/archive/bolt"
)

// TestReadInChild is the process that TestAdversary reads hostile files in.
func TestReadInChild(t *testing.T) {
	dir, ok := archivetest.Child()
	if !ok {
		t.Skip("this is the other half of TestAdversary")
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_DATA, &syscall.Rlimit{Cur: 512 << 20, Max: 512 << 20}); err != nil {
		t.Log("memory is not limited: ", err)
	}
	if err := archivetest.PrintRecords(bolt.Records(dir)); err != nil {
		t.Fatal(err)
	}
}

// A hostile file can crash bbolt, make it turn in circles and take gigabytes, so
// each is read in a process of its own with a limit on time and memory, as
// claviger-archive does it.
func TestAdversary(t *testing.T) {
	if archivetest.RaceDetector {
		t.Skip("SKIPPED: every read is a process of its own, in which nothing races; it runs without the race detector")
	}
	var rss int64
	k := kind
	k.Stride = 797
	k.Records = func(t testing.TB, root string, id raftstore.ServerID) iter.Seq2[[]byte, error] {
		return archivetest.ReadInChild(t, "TestReadInChild", filepath.Join(root, id.String()), &rss)
	}
	archivetest.Adversary(t, k)
	t.Logf("the largest process that read a file had %d MiB", rss>>20)
	if rss > 1<<30 {
		t.Error("the limit of the reader's memory does not hold")
	}
}
