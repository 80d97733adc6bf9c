package raftstore

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"

	"github.com/claviger/claviger/enclave/secret"
)

// listMachine keeps every entry; Apply answers with the count.
type listMachine struct {
	mu      sync.Mutex
	entries []string
}

func (m *listMachine) Apply(_ uint64, entry []byte) any {
	m.mu.Lock()
	defer m.mu.Unlock()
	if string(entry) == "panic" {
		panic("a poisoned entry")
	}
	m.entries = append(m.entries, string(entry))
	return len(m.entries)
}

func (m *listMachine) list() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.entries)
}

func (m *listMachine) Snapshot() (io.WriterTo, error) { return listSnapshot(m.list()), nil }

type listSnapshot []string

func (s listSnapshot) WriteTo(w io.Writer) (int64, error) {
	var n int64
	for _, e := range s {
		b := append(binary.BigEndian.AppendUint32(nil, uint32(len(e))), e...)
		k, err := w.Write(b)
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func (m *listMachine) Restore(r io.Reader) error {
	var list []string
	for {
		var n uint32
		if err := binary.Read(r, binary.BigEndian, &n); err == io.EOF {
			break
		} else if err != nil {
			return err
		}
		b := make([]byte, n)
		if _, err := io.ReadFull(r, b); err != nil {
			return err
		}
		list = append(list, string(b))
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = list
	return nil
}

var errDisk = errors.New("no space left on the test's disk")

// memArchive remembers what it was given and fails on demand.
type memArchive struct {
	mu      sync.Mutex
	records [][]byte // all of them, also those dropped
	cut     int      // index of the first record after the last Cut
	first   int      // index of the first record that is not dropped
	synced  int
	broken  bool
	stuck   bool // Drop fails
	closed  bool
}

func (a *memArchive) Append(r []byte) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return errDisk
	}
	a.records = append(a.records, slices.Clone(r))
	return nil
}

func (a *memArchive) Sync() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return errDisk
	}
	a.synced = len(a.records)
	return nil
}

func (a *memArchive) Cut() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.broken {
		return errDisk
	}
	a.cut = len(a.records)
	return nil
}

func (a *memArchive) Drop() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.stuck {
		return errDisk
	}
	a.first = a.cut
	return nil
}

// kept is what a recovery would find.
func (a *memArchive) kept() [][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records[a.first:])
}

func (a *memArchive) Close() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	return nil
}

func (a *memArchive) breakDisk() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.broken = true
}

func (a *memArchive) copy() [][]byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.records)
}

// testNet connects stores by net.Pipe; it plays the authenticated channel: who
// dials is who Serve is told.
type testNet struct {
	mu       sync.Mutex
	nodes    map[ServerID]*testNode
	down     map[ServerID]bool
	walls    map[[2]ServerID]bool
	conns    map[net.Conn][2]ServerID
	timeouts map[string]Timeouts // by name; the default where there is none
	machines map[string]Machine  // by name; a listMachine where there is none
	archives map[string]Archive  // by name; a memArchive where there is none
	drop     func(from, to ServerID, request []byte) bool
	held     map[ServerID]chan struct{} // replies on connections dialled by it wait until the channel is closed
}

// testConn is the dialling end of a channel, where the adversary sits.
type testConn struct {
	net.Conn
	net      *testNet
	from, to ServerID
}

func (c *testConn) Write(p []byte) (int, error) {
	c.net.mu.Lock()
	drop := c.net.drop
	c.net.mu.Unlock()
	if drop != nil && drop(c.from, c.to, p) {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c *testConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.net.mu.Lock()
	held := c.net.held[c.from]
	c.net.mu.Unlock()
	if held != nil {
		<-held
	}
	return n, err
}

// dropping loses requests, each one write, for which f says so; nil ends it.
func (n *testNet) dropping(f func(from, to ServerID, request []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.drop = f
}

// hold keeps back the replies to what id has asked until the result is called.
func (n *testNet) hold(id ServerID) (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	gate := make(chan struct{})
	n.held[id] = gate
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.held, id)
		close(gate)
	}
}

// split loses all requests between those listed and the rest.
func (n *testNet) split(side ...ServerID) {
	n.dropping(func(from, to ServerID, _ []byte) bool {
		return slices.Contains(side, from) != slices.Contains(side, to)
	})
}

type testNode struct {
	*Store
	id      ServerID
	addr    string
	machine *listMachine
	archive *memArchive
	key     secret.Key
}

type testDialer struct {
	net  *testNet
	self ServerID
}

func (d testDialer) Dial(_ context.Context, id ServerID, addr string) (net.Conn, error) {
	d.net.mu.Lock()
	defer d.net.mu.Unlock()
	n := d.net.nodes[id]
	if n == nil || n.addr != addr || d.net.down[id] || d.net.down[d.self] || d.net.walls[[2]ServerID{d.self, id}] {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	d.net.conns[a] = [2]ServerID{d.self, id}
	go n.Serve(b, d.self)
	return &testConn{a, d.net, d.self, id}, nil
}

// cut isolates a server: its connections break and new ones are refused.
func (n *testNet) cut(id ServerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down[id] = true
	for c, ends := range n.conns {
		if ends[0] == id || ends[1] == id {
			c.Close()
			delete(n.conns, c)
		}
	}
}

// wall breaks the connections that one server has dialled to another, and lets it dial no more there.
func (n *testNet) wall(from, to ServerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	way := [2]ServerID{from, to}
	n.walls[way] = true
	for c, ends := range n.conns {
		if ends == way {
			c.Close()
			delete(n.conns, c)
		}
	}
}

func (n *testNet) heal(id ServerID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.down, id)
}

func newTestNet() *testNet {
	return &testNet{nodes: map[ServerID]*testNode{}, down: map[ServerID]bool{}, walls: map[[2]ServerID]bool{}, conns: map[net.Conn][2]ServerID{},
		timeouts: map[string]Timeouts{}, machines: map[string]Machine{}, archives: map[string]Archive{}, held: map[ServerID]chan struct{}{}}
}

func testLogger() *slog.Logger {
	if os.Getenv("CLAVIGER_TEST_LOG") != "" {
		return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return nil
}

func (n *testNet) start(t *testing.T, name string) *testNode {
	t.Helper()
	key, err := secret.New(slices.Repeat([]byte{byte(len(name))}, ArchiveKeySize))
	if err != nil {
		t.Fatal(err)
	}
	return n.open(t, sha256.Sum256([]byte(name)), name+":1", key, func(c *Config) {
		c.Timeouts = n.timeouts[name]
		if m := n.machines[name]; m != nil {
			c.Machine = m
		}
		if a := n.archives[name]; a != nil {
			c.Archive = a
		}
	})
}

// open starts a server, on a list and an archive in memory if change does not say otherwise.
func (n *testNet) open(t *testing.T, id ServerID, addr string, key secret.Key, change func(*Config)) *testNode {
	t.Helper()
	node := &testNode{id: id, addr: addr, machine: &listMachine{}, archive: &memArchive{}, key: key}
	cfg := Config{ID: id, Address: addr, ClusterID: [32]byte{1}, Epoch: 1, Machine: node.machine, Dialer: testDialer{n, id},
		Archive: node.archive, ArchiveKey: key, Logger: testLogger()}
	change(&cfg)
	var err error
	if node.Store, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.nodes[id] = node
	n.mu.Unlock()
	t.Cleanup(func() { node.Shutdown() })
	return node
}

// eventually polls; inside a synctest bubble the time is the bubble's.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for range 4000 {
		if f() {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("did not happen within 20 s: %s", what)
}

// pending fails the test if a call that everything else waits for has an answer.
func pending[T any](t *testing.T, done <-chan T, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-done:
		t.Fatalf("%s, and the call was answered: %+v", why, got)
	default:
	}
}

// cluster starts the named nodes, the first by genesis, the others added as
// nonvoter and then voter.
func (n *testNet) cluster(t *testing.T, names ...string) []*testNode {
	t.Helper()
	first := n.start(t, names[0])
	if err := first.Genesis(); err != nil {
		t.Fatal(err)
	}
	nodes := []*testNode{first}
	eventually(t, "first leader", func() bool { return first.SafeRead(t.Context()) == nil })
	for _, name := range names[1:] {
		nodes = append(nodes, n.join(t, first, name))
	}
	return nodes
}

func (n *testNet) join(t *testing.T, leader *testNode, name string) *testNode {
	t.Helper()
	node := n.start(t, name)
	_, prev := leader.Members()
	index, err := leader.AddNonvoter(t.Context(), node.id, node.addr, prev)
	if err != nil {
		t.Fatalf("add nonvoter: %v", err)
	}
	eventually(t, "nonvoter catches up", func() bool { return node.AppliedIndex() >= index })
	if _, err := leader.AddVoter(t.Context(), node.id, node.addr, index); err != nil {
		t.Fatalf("add voter: %v", err)
	}
	return node
}

func leaderOf(t *testing.T, nodes ...*testNode) *testNode {
	t.Helper()
	var leader *testNode
	eventually(t, "a leader that can read", func() bool {
		for _, n := range nodes {
			if n.SafeRead(t.Context()) == nil {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

func propose(t *testing.T, n *testNode, entry string) {
	t.Helper()
	if _, _, err := n.Propose(t.Context(), []byte(entry)); err != nil {
		t.Fatalf("propose %q: %v", entry, err)
	}
}

func entries(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return out
}

func reloadTrailing(n *testNode, trailing uint64) raft.ReloadableConfig {
	rc := n.raft.ReloadableConfig()
	rc.TrailingLogs = trailing
	return rc
}
