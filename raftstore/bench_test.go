package raftstore_test

import (
	"bytes"
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// pipes connects the stores of a benchmark.
type pipes struct {
	mu     sync.Mutex
	stores map[raftstore.ServerID]*raftstore.Store
}

type pipeDialer struct {
	*pipes
	self raftstore.ServerID
}

func (d pipeDialer) Dial(_ context.Context, id raftstore.ServerID, _ string) (net.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s := d.stores[id]
	if s == nil {
		return nil, errors.New("no such server")
	}
	a, b := net.Pipe()
	go s.Serve(b, d.self)
	return a, nil
}

func (p *pipes) start(b *testing.B, n byte) *raftstore.Store {
	b.Helper()
	id := raftstore.ServerID{n}
	archive, err := file.Create(b.TempDir(), id)
	if err != nil {
		b.Fatal(err)
	}
	key, err := secret.Random(raftstore.ArchiveKeySize)
	if err != nil {
		b.Fatal(err)
	}
	s, err := raftstore.Open(raftstore.Config{ID: id, Address: "a", ClusterID: [32]byte{1}, Machine: &counter{},
		Dialer: pipeDialer{p, id}, Archive: archive, ArchiveKey: key})
	if err != nil {
		b.Fatal(err)
	}
	p.mu.Lock()
	p.stores[id] = s
	p.mu.Unlock()
	b.Cleanup(func() { s.Shutdown() })
	return s
}

// BenchmarkPropose commits 100-byte entries through three servers in one
// process with fsync on file archives; parallelism is the number of writers.
func BenchmarkPropose(b *testing.B) {
	p := &pipes{stores: map[raftstore.ServerID]*raftstore.Store{}}
	leader := p.start(b, 1)
	leads := leader.LeaderChanges()
	if err := leader.Genesis(); err != nil {
		b.Fatal(err)
	}
	<-leads
	ctx := context.Background()
	for n := byte(2); n <= 3; n++ {
		p.start(b, n)
		if err := leader.SafeRead(ctx); err != nil {
			b.Fatal(err)
		}
		_, prev := leader.Members()
		if _, err := leader.AddVoter(ctx, raftstore.ServerID{n}, "a", prev); err != nil {
			b.Fatal(err)
		}
	}
	entry := bytes.Repeat([]byte{1}, 100)
	for name, writers := range map[string]int{"writers=1": 0, "writers=64": 32} {
		b.Run(name, func(b *testing.B) {
			write := func() {
				if _, _, err := leader.Propose(ctx, entry); err != nil {
					b.Error(err)
				}
			}
			if writers == 0 {
				for b.Loop() {
					write()
				}
				return
			}
			b.SetParallelism(writers)
			b.RunParallel(func(pb *testing.PB) {
				for pb.Next() {
					write()
				}
			})
		})
	}
}
