package bolt_test

import (
	"iter"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/archivetest"
	"github.com/claviger/claviger/raftstore/archive/bolt"
)

var kind = archivetest.Kind{
	Name: "bolt", Exists: bolt.ErrExists, RecordSize: bolt.ErrRecordSize, MaxRecord: bolt.MaxRecord, Paged: true,
	Create: func(_ testing.TB, root string, id raftstore.ServerID, place archivetest.Place) (raftstore.Archive, error) {
		return archivetest.Create(place, func() (*bolt.Archive, error) { return bolt.Create(root, id) })
	},
	Records: func(_ testing.TB, root string, id raftstore.ServerID) iter.Seq2[[]byte, error] {
		return bolt.Records(filepath.Join(root, id.String()))
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
