package remote_test

import (
	"context"
	"iter"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

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
				return remote.Create(t.Context(), address, first(id), lines.options(root))
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

// wires are the connections of the clients under test, by the root of their archive.
type wires struct {
	mu    sync.Mutex
	conns map[string]*wire
}

// wire is a connection that can be cut, or swallow what is written to it.
type wire struct {
	net.Conn
	deaf atomic.Bool
}

func (w *wire) Write(p []byte) (int, error) {
	if w.deaf.Load() {
		return len(p), nil
	}
	return w.Conn.Write(p)
}

var lines = wires{conns: map[string]*wire{}}

func (w *wires) options(root string) remote.Options {
	return remote.Options{Timeout: 2 * time.Second, Dial: func(ctx context.Context, address string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return nil, err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		w.conns[root] = &wire{Conn: conn}
		return w.conns[root], nil
	}}
}

func (w *wires) of(root string) *wire {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.conns[root]
}

func TestStores(t *testing.T) {
	t.Parallel()
	for _, k := range []archivetest.Kind{kindFile, kindBolt} {
		t.Run(k.Name, func(t *testing.T) {
			t.Parallel()
			archivetest.Stores(t, k, map[string]func(string){
				"connection lost": func(root string) { lines.of(root).Close() },
				"silent server":   func(root string) { lines.of(root).deaf.Store(true) },
			})
		})
	}
}

// The client has no files; the server does not read those it writes.
func TestBlind(t *testing.T) {
	t.Parallel()
	archivetest.Blind(t, kindFile)
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

func TestFullDisk(t *testing.T) {
	t.Parallel()
	archivetest.Full(t, kindFile)
}

func TestShortWrite(t *testing.T) {
	t.Parallel()
	archivetest.ShortWrite(t, kindFile)
}
