package history_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"iter"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/history"
)

// list is a machine that keeps every entry.
type list struct {
	mu      sync.Mutex
	entries []string
}

func (m *list) Apply(_ uint64, entry []byte) any {
	if string(entry) == "panic" {
		panic("poison")
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = append(m.entries, string(entry))
	return len(m.entries)
}

func (m *list) all() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.entries)
}

func (m *list) Snapshot() (io.WriterTo, error) {
	var b bytes.Buffer
	for _, e := range m.all() {
		b.Write(binary.BigEndian.AppendUint32(nil, uint32(len(e))))
		b.WriteString(e)
	}
	return &b, nil
}

func (m *list) Restore(r io.Reader) error {
	raw, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	var out []string
	for len(raw) > 0 {
		n := int(binary.BigEndian.Uint32(raw))
		out, raw = append(out, string(raw[4:4+n])), raw[4+n:]
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = out
	return nil
}

// world is a few stores, a network between them that can be cut, and their disks.
type world struct {
	t     *testing.T
	root  string
	key   secret.Key
	mu    sync.Mutex
	nodes map[raftstore.ServerID]*node
	cut   map[raftstore.ServerID]bool
	conns map[raftstore.ServerID][]net.Conn
}

type node struct {
	id      raftstore.ServerID
	store   *raftstore.Store
	machine *list
	dir     string
}

var clusterID = [32]byte{7}

func chainOf(id raftstore.ServerID) raftstore.Chain {
	return raftstore.Chain{ClusterID: clusterID, Epoch: 1, Server: id}
}

func newWorld(t *testing.T) *world {
	t.Helper()
	key, err := secret.Random(raftstore.ArchiveKeySize)
	if err != nil {
		t.Fatal(err)
	}
	return &world{t: t, root: t.TempDir(), key: key, nodes: map[raftstore.ServerID]*node{}, cut: map[raftstore.ServerID]bool{},
		conns: map[raftstore.ServerID][]net.Conn{}}
}

type dialer struct {
	w    *world
	from raftstore.ServerID
}

var errCut = errors.New("the network is cut")

func (d dialer) Dial(_ context.Context, id raftstore.ServerID, _ string) (net.Conn, error) {
	d.w.mu.Lock()
	defer d.w.mu.Unlock()
	n := d.w.nodes[id]
	if n == nil || d.w.cut[id] || d.w.cut[d.from] {
		return nil, errCut
	}
	near, far := net.Pipe()
	for _, end := range []raftstore.ServerID{id, d.from} {
		d.w.conns[end] = append(d.w.conns[end], near, far)
	}
	go n.store.Serve(far, d.from)
	return near, nil
}

// isolate cuts a server off.
func (w *world) isolate(n *node) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[n.id] = true
	for _, c := range w.conns[n.id] {
		c.Close()
	}
}

func (w *world) start(name byte) *node {
	w.t.Helper()
	n := &node{id: raftstore.ServerID{name}, machine: &list{}}
	archive, err := file.Create(w.root, n.id)
	if err != nil {
		w.t.Fatal(err)
	}
	n.dir = filepath.Join(w.root, n.id.String())
	n.store, err = raftstore.Open(raftstore.Config{ID: n.id, Address: "host:1", ClusterID: clusterID, Epoch: 1, Machine: n.machine,
		Dialer: dialer{w, n.id}, Archive: archive, ArchiveKey: w.key,
		Timeouts:   raftstore.Timeouts{Heartbeat: 150 * time.Millisecond, Election: 150 * time.Millisecond, Lease: 100 * time.Millisecond},
		Compaction: raftstore.Compaction{Threshold: 1 << 40, Trailing: 10, Interval: time.Hour}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { n.store.Shutdown() })
	w.mu.Lock()
	defer w.mu.Unlock()
	w.nodes[n.id] = n
	return n
}

// found makes a cluster of the servers named.
func (w *world) found(names ...byte) []*node {
	w.t.Helper()
	first := w.start(names[0])
	if err := first.store.Genesis(); err != nil {
		w.t.Fatal(err)
	}
	out := []*node{first}
	for _, name := range names[1:] {
		n := w.start(name)
		w.retry(func() error {
			_, index := first.store.Members()
			index, err := first.store.AddNonvoter(w.t.Context(), n.id, "host:1", index)
			if err == nil {
				_, err = first.store.AddVoter(w.t.Context(), n.id, "host:1", index)
			}
			return err
		})
		out = append(out, n)
	}
	return out
}

// retry repeats f until it succeeds, for a minute.
func (w *world) retry(f func() error) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := f()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			w.t.Fatal(err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// propose commits an entry at whoever of them leads, and returns the leader.
func (w *world) propose(among []*node, entry string) (leader *node) {
	w.t.Helper()
	w.retry(func() error {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		defer cancel()
		err := errors.New("nobody leads")
		for _, n := range among {
			if n.store.IsLeader() {
				if _, _, err = n.store.Propose(ctx, []byte(entry)); err == nil {
					leader = n
					return nil
				}
			}
		}
		return err
	})
	return leader
}

// settle waits until all of them have applied what the first of them has.
func (w *world) settle(among []*node) {
	w.t.Helper()
	w.retry(func() error {
		_, want := among[0].store.Chain()
		for _, n := range among {
			if _, got := n.store.Chain(); got != want {
				return errors.New("not level yet")
			}
		}
		return nil
	})
}

func (w *world) stop(nodes ...*node) {
	w.t.Helper()
	for _, n := range nodes {
		if err := n.store.Shutdown(); err != nil {
			w.t.Fatal(err)
		}
	}
}

// copyDisk is what a host does before it rolls a disk back.
func (w *world) copyDisk(n *node) string {
	w.t.Helper()
	dir := filepath.Join(w.t.TempDir(), "copy")
	if err := os.CopyFS(dir, os.DirFS(n.dir)); err != nil {
		w.t.Fatal(err)
	}
	return dir
}

// holds reports whether an entry reaches a server's disk within a second.
func (w *world) holds(n *node, entry string) bool {
	w.t.Helper()
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		for _, e := range w.inspect(n.dir, n.id).Entries {
			if string(e.Data) == entry {
				return true
			}
		}
	}
	return false
}

func (w *world) inspect(dir string, id raftstore.ServerID) *history.History {
	w.t.Helper()
	h, err := history.Inspect(file.Records(dir), w.key, chainOf(id))
	if err != nil {
		w.t.Fatal(err)
	}
	return h
}

func records(t *testing.T, dir string) (out [][]byte) {
	t.Helper()
	for r, err := range file.Records(dir) {
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r)
	}
	return out
}

func seq(list [][]byte) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, r := range list {
			if !yield(r, nil) {
				return
			}
		}
	}
}
