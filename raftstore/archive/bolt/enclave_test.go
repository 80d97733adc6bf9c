package bolt_test

import (
	"errors"
	"fmt"
	"syscall"
	"testing"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/archivetest"
	"github.com/claviger/claviger/raftstore/archive/bolt"
)

// TestNotInsideEnclave: under the filter that the file archive passes, a database
// cannot even be made, because it maps its file. So the filter bites.
func TestNotInsideEnclave(t *testing.T) {
	t.Parallel()
	if dir, ok := archivetest.Child(); ok {
		archivetest.Confine(t, archivetest.NoMappedFiles()...)
		a, err := bolt.Create(dir+"/archives", raftstore.ServerID{1})
		if a != nil || !errors.Is(err, syscall.EPERM) {
			t.Fatalf("a database was made without a mapped file: %v", err)
		}
		fmt.Println("bolt under the filter:", err)
		return
	}
	out, err := archivetest.Confined(t, "TestNotInsideEnclave", t.TempDir())
	if err != nil {
		t.Fatalf("under the filter: %v\n%s", err, out)
	}
	t.Log(out)
}
