package remote_test

import (
	"context"
	"iter"
	"net"
	"sync"
	"testing"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/archivetest"
	"github.com/claviger/claviger/raftstore/archive/bolt"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

// serve starts a server on loopback until the test ends, or until stop.
func serve(t testing.TB, b remote.Backend) (address string, stop func()) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	done.Go(func() {
		if err := remote.NewServer(b, nil).Serve(ctx, l); err != nil {
			t.Error(err)
		}
	})
	stop = func() {
		cancel()
		done.Wait()
	}
	t.Cleanup(stop)
	return l.Addr().String(), stop
}

func onFiles(root string, place archivetest.Place) remote.Directory {
	return remote.Directory{
		Root: root,
		Make: func(root string, id raftstore.ServerID) (raftstore.Archive, error) {
			return archivetest.Create(place, func() (*file.Archive, error) { return file.Create(root, id) })
		},
		Read: func(_ context.Context, dir string) iter.Seq2[[]byte, error] { return file.Records(dir) },
	}
}

func onBolt(root string, place archivetest.Place) remote.Directory {
	return remote.Directory{
		Root: root,
		Make: func(root string, id raftstore.ServerID) (raftstore.Archive, error) {
			return archivetest.Create(place, func() (*bolt.Archive, error) { return bolt.Create(root, id) })
		},
		Read: func(_ context.Context, dir string) iter.Seq2[[]byte, error] { return bolt.Records(dir) },
	}
}

func kindOn(name string, paged bool, on func(string, archivetest.Place) remote.Directory) archivetest.Kind {
	return archivetest.Kind{
		Name: name, Exists: remote.ErrExists, RecordSize: remote.ErrRecordSize, MaxRecord: remote.MaxRecord, Distant: true,
		Paged: paged,
		Create: func(t testing.TB, root string, id raftstore.ServerID, place archivetest.Place) (raftstore.Archive, error) {
			address, _ := serve(t, on(root, place))
			return archivetest.Create(nil, func() (*remote.Archive, error) {
				return remote.Create(t.Context(), address, first(id), remote.Options{})
			})
		},
		Records: func(t testing.TB, root string, id raftstore.ServerID) iter.Seq2[[]byte, error] {
			return func(yield func([]byte, error) bool) {
				address, stop := serve(t, on(root, nil))
				defer stop()
				remote.Records(t.Context(), address, first(id), remote.Options{})(yield)
			}
		},
	}
}

func first(id raftstore.ServerID) remote.Name { return remote.Name{Attempt: 1, Server: id} }

var (
	kindFile = kindOn("remote, server on files", false, onFiles)
	kindBolt = kindOn("remote, server on bolt", true, onBolt)
)

func TestConform(t *testing.T) {
	t.Parallel()
	for _, k := range []archivetest.Kind{kindFile, kindBolt} {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			archivetest.Conform(t, k)
		})
	}
}
