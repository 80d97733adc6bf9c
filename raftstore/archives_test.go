package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/bolt"
	"github.com/claviger/claviger/raftstore/archive/file"
)

type counter struct {
	mu sync.Mutex
	n  int
}

func (c *counter) Apply(uint64, []byte) any {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return c.n
}
func (c *counter) Snapshot() (io.WriterTo, error) { return bytes.NewReader(nil), nil }
func (c *counter) Restore(io.Reader) error        { return nil }

type nobody struct{}

func (nobody) Dial(context.Context, raftstore.ServerID, string) (net.Conn, error) {
	return nil, errors.New("no peers")
}

// A store on each real archive: everything acknowledged can be opened
// afterwards, in order, and a damaged record ends it.
func TestStoreOnEachArchive(t *testing.T) {
	t.Parallel()
	for name, kind := range map[string]struct {
		create func(string, raftstore.ServerID) (raftstore.Archive, error)
		read   func(string) iter.Seq2[[]byte, error]
	}{
		"file": {func(d string, id raftstore.ServerID) (raftstore.Archive, error) { return file.Create(d, id) }, file.Records},
		"bolt": {func(d string, id raftstore.ServerID) (raftstore.Archive, error) { return bolt.Create(d, id) }, bolt.Records},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, id := t.TempDir(), raftstore.ServerID{1}
			key, err := secret.Random(raftstore.ArchiveKeySize)
			if err != nil {
				t.Fatal(err)
			}
			archive, err := kind.create(root, id)
			if err != nil {
				t.Fatal(err)
			}
			s, err := raftstore.Open(raftstore.Config{ID: id, Address: "a", ClusterID: [32]byte{1}, Machine: &counter{}, Dialer: nobody{},
				Archive: archive, ArchiveKey: key, Timeouts: raftstore.Timeouts{Heartbeat: 20 * time.Millisecond, Election: 20 * time.Millisecond, Lease: 20 * time.Millisecond}})
			if err != nil {
				t.Fatal(err)
			}
			defer s.Shutdown()
			leads := s.LeaderChanges()
			if err := s.Genesis(); err != nil {
				t.Fatal(err)
			}
			<-leads
			var want [][]byte
			for i := range 20 {
				e := bytes.Repeat([]byte{byte(i + 1)}, 100)
				want = append(want, e)
				if _, _, err := s.Propose(t.Context(), e); err != nil {
					t.Fatal(err)
				}
			}
			if err := s.Shutdown(); err != nil {
				t.Fatal(err)
			}
			chain := raftstore.Chain{ClusterID: [32]byte{1}, Server: id}
			got, err := replay(key, chain, kind.read(filepath.Join(root, id.String())), nil)
			if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
				t.Fatalf("%d of %d entries in the archive, %v", len(got), len(want), err)
			}
			_, err = replay(key, chain, kind.read(filepath.Join(root, id.String())), func(i int, r []byte) {
				if i == 5 {
					r[len(r)-1] ^= 1
				}
			})
			if !errors.Is(err, raftstore.ErrRecord) {
				t.Fatalf("a flipped bit: %v", err)
			}
		})
	}
}

// replay opens an archive and returns the commands in it.
func replay(key secret.Key, chain raftstore.Chain, records iter.Seq2[[]byte, error], touch func(int, []byte)) (out [][]byte, err error) {
	o, err := raftstore.NewOpener(key, chain)
	if err != nil {
		return nil, err
	}
	i := 0
	for sealed, err := range records {
		if err != nil {
			return out, err
		}
		if touch != nil {
			touch(i, sealed)
		}
		i++
		r, err := o.Open(sealed)
		if err != nil {
			return out, err
		}
		if r.Kind == raftstore.RecordLog && r.Type == 0 {
			out = append(out, r.Data)
		}
	}
	return out, nil
}
