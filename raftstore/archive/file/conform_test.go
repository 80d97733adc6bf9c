package file_test

import (
	"iter"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/archivetest"
	"github.com/claviger/claviger/raftstore/archive/file"
)

var kind = archivetest.Kind{
	Name: "file", Exists: file.ErrExists, RecordSize: file.ErrRecordSize, MaxRecord: file.MaxRecord,
	Create: func(_ testing.TB, root string, id raftstore.ServerID, place archivetest.Place) (raftstore.Archive, error) {
		return archivetest.Create(place, func() (*file.Archive, error) { return file.Create(root, id) })
	},
	Records: func(_ testing.TB, root string, id raftstore.ServerID) iter.Seq2[[]byte, error] {
		return file.Records(filepath.Join(root, id.String()))
	},
}

func TestConform(t *testing.T) {
	t.Parallel()
	archivetest.Conform(t, kind)
}

func TestStores(t *testing.T) {
	t.Parallel()
	archivetest.Stores(t, kind, nil)
}

func TestFullDisk(t *testing.T) {
	t.Parallel()
	archivetest.Full(t, kind)
}

func TestShortWrite(t *testing.T) {
	t.Parallel()
	archivetest.ShortWrite(t, kind)
}
