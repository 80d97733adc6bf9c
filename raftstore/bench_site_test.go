package raftstore_test

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// benchStore is a server of ours on loopback TCP under mutual TLS 1.3, as kds/node runs it but for the attestation of
// its channels.
type benchStore struct {
	*raftstore.Store
	id   raftstore.ServerID
	cert tls.Certificate
	ln   net.Listener
	dead atomic.Bool // the power is off: nothing leaves any more, not even a FIN
	mu   sync.Mutex
	raw  []net.Conn
}

type benchConfig struct {
	memory   bool // an archive that forgets everything
	machine  func() raftstore.Machine
	timeouts raftstore.Timeouts
	compact  raftstore.Compaction
}

// forget is the archive of nothing: what is all in memory.
type forget struct{}

func (forget) Append([]byte) error { return nil }
func (forget) Sync() error         { return nil }
func (forget) Cut() error          { return nil }
func (forget) Drop() error         { return nil }
func (forget) Close() error        { return nil }

func startBench(b *testing.B, cfg benchConfig) *benchStore {
	b.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, public, private)
	if err != nil {
		b.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		b.Fatal(err)
	}
	s := &benchStore{id: sha256.Sum256(cert.RawSubjectPublicKeyInfo), cert: tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}}
	var archive raftstore.Archive = forget{}
	if !cfg.memory {
		if archive, err = file.Create(b.TempDir(), s.id); err != nil {
			b.Fatal(err)
		}
	}
	key, err := secret.Random(raftstore.ArchiveKeySize)
	if err != nil {
		b.Fatal(err)
	}
	if s.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		b.Fatal(err)
	}
	machine := raftstore.Machine(&counter{})
	if cfg.machine != nil {
		machine = cfg.machine()
	}
	s.Store, err = raftstore.Open(raftstore.Config{ID: s.id, Address: s.ln.Addr().String(), ClusterID: [32]byte{1}, Machine: machine,
		Dialer: s, Archive: archive, ArchiveKey: key, Timeouts: cfg.timeouts, Compaction: cfg.compact})
	if err != nil {
		b.Fatal(err)
	}
	go s.accept()
	b.Cleanup(s.end)
	return s
}

func (s *benchStore) end() {
	s.ln.Close()
	s.mu.Lock()
	for _, c := range s.raw {
		c.Close()
	}
	s.mu.Unlock()
	s.Shutdown()
}

func (s *benchStore) accept() {
	for {
		conn, err := s.ln.Accept()
		if err != nil {
			return
		}
		go func() {
			c := tls.Server(s.tap(conn), &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.cert}, ClientAuth: tls.RequireAnyClientCert})
			if c.Handshake() != nil {
				c.Close()
				return
			}
			s.Serve(c, peerOf(c))
		}()
	}
}

func peerOf(c *tls.Conn) raftstore.ServerID {
	return sha256.Sum256(c.ConnectionState().PeerCertificates[0].RawSubjectPublicKeyInfo)
}

// Dial implements raftstore.Dialer.
func (s *benchStore) Dial(ctx context.Context, id raftstore.ServerID, addr string) (net.Conn, error) {
	if s.dead.Load() {
		return nil, errors.New("the power is off")
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	c := tls.Client(s.tap(conn), &tls.Config{MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{s.cert}, InsecureSkipVerify: true})
	if err := c.HandshakeContext(ctx); err != nil || peerOf(c) != id {
		c.Close()
		return nil, errors.Join(errors.New("not who was asked for"), err)
	}
	return c, nil
}

func (s *benchStore) tap(c net.Conn) net.Conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.raw = append(s.raw, c)
	return tapped{c, s}
}

// tapped is a connection of a machine whose power may go off.
type tapped struct {
	net.Conn
	s *benchStore
}

func (c tapped) Write(p []byte) (int, error) {
	if c.s.dead.Load() {
		return len(p), nil
	}
	return c.Conn.Write(p)
}

func (c tapped) Close() error {
	if c.s.dead.Load() {
		return nil // the peer hears nothing; end closes it
	}
	return c.Conn.Close()
}

// stockTimeouts are the library's defaults, so that what is compared differs in nothing else.
var stockTimeouts = raftstore.Timeouts{Heartbeat: time.Second, Election: time.Second, Lease: 500 * time.Millisecond, Commit: 50 * time.Millisecond, RPC: 10 * time.Second}

// leading returns the server that leads, or believes so.
func leading(list []*benchStore) *benchStore {
	for _, s := range list {
		if s.IsLeader() {
			return s
		}
	}
	return list[0]
}

// following returns one that does not lead.
func following(list []*benchStore) *benchStore {
	for _, s := range list {
		if !s.IsLeader() {
			return s
		}
	}
	return list[0]
}

// oursOn is a cluster of ours; the first leads.
func oursOn(b *testing.B, n int, cfg benchConfig) []*benchStore {
	b.Helper()
	list := []*benchStore{startBench(b, cfg)}
	leads := list[0].LeaderChanges()
	if err := list[0].Genesis(); err != nil {
		b.Fatal(err)
	}
	<-leads
	for range n - 1 {
		list = append(list, joinBench(b, list[0], cfg))
	}
	return list
}

// joinBench starts a server and makes it a voter, by way of a nonvoter that has caught up.
func joinBench(b *testing.B, leader *benchStore, cfg benchConfig) *benchStore {
	b.Helper()
	s := startBench(b, cfg)
	if err := leader.SafeRead(b.Context()); err != nil {
		b.Fatal(err)
	}
	_, prev := leader.Members()
	index, err := leader.AddNonvoter(b.Context(), s.id, s.ln.Addr().String(), prev)
	if err != nil {
		b.Fatal(err)
	}
	for s.AppliedIndex() < index {
		time.Sleep(100 * time.Microsecond)
	}
	if _, err := leader.AddVoter(b.Context(), s.id, s.ln.Addr().String(), index); err != nil {
		b.Fatal(err)
	}
	return s
}

// stockFSM is counter for raft.
type stockFSM struct{ counter }

func (f *stockFSM) Apply(l *raft.Log) any               { return f.counter.Apply(l.Index, l.Data) }
func (f *stockFSM) Snapshot() (raft.FSMSnapshot, error) { return nil, errors.New("no snapshots here") }
func (f *stockFSM) Restore(io.ReadCloser) error         { return nil }

// stockOn is a cluster of three of hashicorp/raft as documented, on loopback TCP: BoltStore behind a LogCache and with
// fsync, or its stores in memory. It returns the leader.
func stockOn(b *testing.B, memory bool) *raft.Raft {
	b.Helper()
	const servers = 3
	var conf raft.Configuration
	var trans []*raft.NetworkTransport
	for i := range servers {
		t, err := raft.NewTCPTransportWithLogger("127.0.0.1:0", nil, 3, 10*time.Second, hclog.NewNullLogger())
		if err != nil {
			b.Fatal(err)
		}
		trans = append(trans, t)
		conf.Servers = append(conf.Servers, raft.Server{ID: raft.ServerID(fmt.Sprint(i)), Address: t.LocalAddr()})
	}
	var nodes []*raft.Raft
	for i, t := range trans {
		var logs raft.LogStore
		var stable raft.StableStore
		if memory {
			store := raft.NewInmemStore()
			logs, stable = store, store
		} else {
			store, err := raftboltdb.NewBoltStore(filepath.Join(b.TempDir(), "raft.db"))
			if err != nil {
				b.Fatal(err)
			}
			if logs, err = raft.NewLogCache(512, store); err != nil {
				b.Fatal(err)
			}
			stable = store
			b.Cleanup(func() { store.Close() })
		}
		c := raft.DefaultConfig()
		c.LocalID, c.Logger, c.SnapshotThreshold = conf.Servers[i].ID, hclog.NewNullLogger(), 1<<40
		snaps := raft.NewDiscardSnapshotStore()
		if err := raft.BootstrapCluster(c, logs, stable, snaps, t, conf); err != nil {
			b.Fatal(err)
		}
		r, err := raft.NewRaft(c, &stockFSM{}, logs, stable, snaps, t)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { r.Shutdown().Error() })
		nodes = append(nodes, r)
	}
	for {
		for _, r := range nodes {
			if r.State() == raft.Leader && r.Barrier(time.Second).Error() == nil {
				return r
			}
		}
		time.Sleep(time.Millisecond)
	}
}

// series is what one contender has done over all its turns.
type series struct {
	name    string
	call    func(context.Context) error
	took    []time.Duration
	elapsed time.Duration
	failed  int
	first   error         // of those that failed
	after   time.Duration // how long the first of those had taken
}

// turn lets callers call for d.
func (s *series) turn(ctx context.Context, callers int, d time.Duration) {
	var work sync.WaitGroup
	all := make([][]time.Duration, callers)
	var failures sync.Mutex
	start := time.Now()
	for c := range callers {
		work.Go(func() {
			for begun := start; begun.Sub(start) < d; {
				err := s.call(ctx)
				now := time.Now()
				if err == nil {
					all[c] = append(all[c], now.Sub(begun))
				} else {
					failures.Lock()
					if s.failed++; s.first == nil {
						s.first, s.after = err, now.Sub(begun)
					}
					failures.Unlock()
					time.Sleep(time.Millisecond)
				}
				begun = now
			}
		})
	}
	work.Wait()
	s.elapsed += time.Since(start)
	s.took = append(s.took, slices.Concat(all...)...)
}

func (s *series) rate() float64 { return float64(len(s.took)) / s.elapsed.Seconds() }

// quantile needs took to be sorted.
func (s *series) quantile(q float64) time.Duration {
	return s.took[min(int(q*float64(len(s.took))), len(s.took)-1)]
}

// report prints one line for each series, and rates relative to the first.
func report(b *testing.B, what string, list []*series) {
	b.Helper()
	for _, s := range list {
		slices.SortFunc(s.took, cmp.Compare)
		b.Logf("%-28s %9.0f %s/s   p50 %8.3f ms   p99 %8.3f ms   %5.2f of the first", s.name, s.rate(), what,
			ms(s.quantile(.5)), ms(s.quantile(.99)), s.rate()/list[0].rate())
		b.ReportMetric(s.rate(), s.name+"/s")
		if s.failed != 0 { // an election, on a busy machine
			b.Logf("%s: %d calls failed, the first after %v: %v", s.name, s.failed, s.after, s.first)
		}
		if s.failed > len(s.took)/100 {
			b.Errorf("%s: %d calls failed beside %d: nothing was measured", s.name, s.failed, len(s.took))
		}
	}
	b.ReportMetric(0, "ns/op")
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
