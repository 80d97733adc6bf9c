package archivetest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
)

// list is a machine that keeps every entry in order.
type list struct {
	mu      sync.Mutex
	entries []string
}

func (m *list) Apply(_ uint64, entry []byte) any {
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
	b, err := json.Marshal(m.all())
	return bytes.NewReader(b), err
}

func (m *list) Restore(r io.Reader) error {
	var entries []string
	if err := json.NewDecoder(r).Decode(&entries); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries = entries
	return nil
}

// recorder is an archive that remembers what it passed on: the truth that a disk is held against.
type recorder struct {
	raftstore.Archive
	mu     sync.Mutex
	sealed [][]byte
	keep   bool // drops are not passed on
}

func (r *recorder) Append(record []byte) error {
	r.mu.Lock()
	r.sealed = append(r.sealed, slices.Clone(record))
	r.mu.Unlock()
	return r.Archive.Append(record)
}

func (r *recorder) Drop() error {
	if r.keep {
		return nil
	}
	return r.Archive.Drop()
}

func (r *recorder) all() [][]byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.sealed)
}

// boot says which boot of which server a store is.
type boot struct {
	name    string
	cluster byte
	epoch   uint64
	key     byte
	place   Place
	keep    bool   // nothing is dropped from the archive
	root    string // of the archive; a directory of the test's if it is empty
}

func (b boot) id() raftstore.ServerID { return sha256.Sum256([]byte(b.name)) }

func (b boot) chain() raftstore.Chain {
	return raftstore.Chain{ClusterID: [32]byte{1, b.cluster}, Epoch: b.epoch, Server: b.id()}
}

func (b boot) archiveKey(t testing.TB) secret.Key {
	t.Helper()
	k, err := secret.New(bytes.Repeat([]byte{1 + b.key}, raftstore.ArchiveKeySize))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// network connects the stores of one test by pipes; it plays the authenticated channel.
type network struct {
	mu      sync.Mutex
	servers map[raftstore.ServerID]*server
}

type server struct {
	*raftstore.Store
	boot    boot
	root    string
	machine *list
	archive *recorder
}

type dialer struct {
	net  *network
	self raftstore.ServerID
}

func (d dialer) Dial(_ context.Context, id raftstore.ServerID, _ string) (net.Conn, error) {
	d.net.mu.Lock()
	defer d.net.mu.Unlock()
	s := d.net.servers[id]
	if s == nil {
		return nil, errors.New("connection refused")
	}
	a, b := net.Pipe()
	go s.Serve(b, d.self)
	return a, nil
}

// start opens a store on a new archive of the kind.
func (n *network) start(t testing.TB, k Kind, b boot) *server {
	t.Helper()
	s := &server{boot: b, root: b.root, machine: &list{}}
	if s.root == "" {
		s.root = filepath.Join(t.TempDir(), "archives")
	}
	a, err := k.Create(t, s.root, b.id(), b.place)
	if err != nil {
		t.Fatal(err)
	}
	s.archive = &recorder{Archive: a, keep: b.keep}
	chain := b.chain()
	s.Store, err = raftstore.Open(raftstore.Config{
		ID: b.id(), Address: b.name, ClusterID: chain.ClusterID, Epoch: chain.Epoch, Machine: s.machine,
		Dialer: dialer{n, b.id()}, Archive: s.archive, ArchiveKey: b.archiveKey(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	n.servers[b.id()] = s
	n.mu.Unlock()
	t.Cleanup(func() { s.Shutdown() })
	return s
}

// found makes a cluster of the boots, all of them voters.
func found(t testing.TB, k Kind, boots ...boot) (*network, []*server) {
	t.Helper()
	n := &network{servers: map[raftstore.ServerID]*server{}}
	first := n.start(t, k, boots[0])
	if err := first.Genesis(); err != nil {
		t.Fatal(err)
	}
	servers := []*server{first}
	eventually(t, "the first server leads", func() bool { return first.SafeRead(t.Context()) == nil })
	for _, b := range boots[1:] {
		servers = append(servers, n.join(t, k, first, b))
	}
	return n, servers
}

func (n *network) join(t testing.TB, k Kind, leader *server, b boot) *server {
	t.Helper()
	s := n.start(t, k, b)
	_, prev := leader.Members()
	index, err := leader.AddNonvoter(t.Context(), b.id(), b.name, prev)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the new server has caught up", func() bool { return s.AppliedIndex() >= index })
	if _, err := leader.AddVoter(t.Context(), b.id(), b.name, index); err != nil {
		t.Fatal(err)
	}
	return s
}

func eventually(t testing.TB, what string, f func() bool) {
	t.Helper()
	for limit := time.Now().Add(2 * time.Minute); !f(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatalf("did not happen within two minutes: %s", what)
		}
	}
}

// acknowledge proposes entries on whichever server leads until each is acknowledged.
// An entry whose outcome is unknown is proposed again under another name.
func acknowledge(t testing.TB, servers []*server, prefix string, n int) (acknowledged []string) {
	t.Helper()
	for i := range n {
		try, entry := 0, ""
		eventually(t, fmt.Sprintf("an entry %s-%d is acknowledged", prefix, i), func() bool {
			entry = fmt.Sprintf("%s-%d-%d", prefix, i, try)
			try++
			return slices.ContainsFunc(servers, func(s *server) bool { return s.propose(t, entry) })
		})
		acknowledged = append(acknowledged, entry)
	}
	return acknowledged
}

func (s *server) propose(t testing.TB, entry string) bool {
	if !s.IsLeader() || s.Err() != nil {
		return false
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	_, _, err := s.Propose(ctx, []byte(entry))
	return err == nil
}

// has checks that every entry is in the machine, once and in order.
func (s *server) has(want []string) bool {
	at, all := 0, s.machine.all()
	for _, e := range all {
		if at < len(want) && e == want[at] {
			at++
		}
	}
	return at == len(want)
}
