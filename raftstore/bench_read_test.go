package raftstore

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"
)

// benchNet is testNet without an adversary.
type benchNet struct {
	mu    sync.Mutex
	nodes map[ServerID]*Store
}

func (n *benchNet) start(b *testing.B, name string) (*Store, ServerID) {
	b.Helper()
	id := ServerID(sha256.Sum256([]byte(name)))
	dial := benchDialer(func(to ServerID) (net.Conn, error) {
		n.mu.Lock()
		defer n.mu.Unlock()
		s := n.nodes[to]
		if s == nil {
			return nil, errors.New("no such server")
		}
		near, far := net.Pipe()
		go s.Serve(far, id)
		return near, nil
	})
	s, err := Open(Config{ID: id, Address: "a", ClusterID: [32]byte{1}, Machine: &listMachine{}, Dialer: dial,
		Archive: &memArchive{}, ArchiveKey: testKey(b)})
	if err != nil {
		b.Fatal(err)
	}
	n.mu.Lock()
	n.nodes[id] = s
	n.mu.Unlock()
	b.Cleanup(func() { s.Shutdown() })
	return s, id
}

type benchDialer func(ServerID) (net.Conn, error)

func (d benchDialer) Dial(_ context.Context, id ServerID, _ string) (net.Conn, error) { return d(id) }

// BenchmarkRead measures one linearizable read three ways on three servers in
// one process, in turns within one run: SafeRead; the library's VerifyLeader,
// which is no proof; and its Barrier, which writes to archives in memory here,
// so without the fsyncs a disk would add. It reports microseconds for each and
// the rate of SafeRead as a multiple of the others'.
func BenchmarkRead(b *testing.B) {
	n := &benchNet{nodes: map[ServerID]*Store{}}
	leader, _ := n.start(b, "a")
	leads := leader.LeaderChanges()
	if err := leader.Genesis(); err != nil {
		b.Fatal(err)
	}
	<-leads
	for _, name := range []string{"b", "c"} {
		_, id := n.start(b, name)
		if err := leader.SafeRead(b.Context()); err != nil {
			b.Fatal(err)
		}
		_, prev := leader.Members()
		index, err := leader.AddNonvoter(b.Context(), id, "a", prev)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := leader.AddVoter(b.Context(), id, "a", index); err != nil { // it answers within the limit of that call
			b.Fatal(err)
		}
	}
	kinds := []func() error{
		func() error { return leader.SafeRead(b.Context()) },
		func() error { return leader.raft.VerifyLeader().Error() },
		func() error { return leader.raft.Barrier(0).Error() },
	}
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			const turns = 8
			var took [3]time.Duration
			for range turns {
				for k, read := range kinds {
					took[k] += benchCalls(b, callers, max(b.N/turns, callers), read)
				}
			}
			per := func(k int) float64 { return float64(took[k].Microseconds()) / float64(turns*max(b.N/turns, callers)) }
			b.ReportMetric(per(0), "µs/SafeRead")
			b.ReportMetric(per(1), "µs/VerifyLeader")
			b.ReportMetric(per(2), "µs/Barrier")
			b.ReportMetric(per(1)/per(0), "xVerifyLeader")
			b.ReportMetric(per(2)/per(0), "xBarrier")
			b.ReportMetric(0, "ns/op")
		})
	}
}

func benchCalls(b *testing.B, callers, calls int, read func() error) time.Duration {
	var work sync.WaitGroup
	start := time.Now()
	for c := range callers {
		work.Go(func() {
			for range (calls + callers - 1 - c) / callers {
				if err := read(); err != nil {
					b.Error(err)
					return
				}
			}
		})
	}
	work.Wait()
	return time.Since(start)
}
