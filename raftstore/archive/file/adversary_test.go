package file_test

import (
	"testing"

	"github.com/claviger/claviger/raftstore/archive/archivetest"
)

// It does not run beside other tests: it measures memory.
func TestAdversary(t *testing.T) { archivetest.Adversary(t, kind) }
