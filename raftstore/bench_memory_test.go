package raftstore_test

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"runtime"
	"runtime/metrics"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
)

const (
	kvShards  = 1 << 12
	kvSize    = 16 + 32
	kvBatch   = 64 // of them in one entry when the state is filled
	kvEntries = 1_000_000
)

// kvMachine is a state of many small entries with snapshots by copy on write: a snapshot costs one array of pointers,
// and the first write to a shard after it copies that shard.
type kvMachine struct {
	generation uint64
	shards     [kvShards]*kvShard
}

type kvShard struct {
	generation uint64
	values     map[[16]byte][32]byte
}

func newKV() raftstore.Machine { return &kvMachine{} }

func (m *kvMachine) Apply(_ uint64, entry []byte) any {
	for ; len(entry) >= kvSize; entry = entry[kvSize:] {
		m.put([16]byte(entry), [32]byte(entry[16:]))
	}
	return nil
}

func (m *kvMachine) put(key [16]byte, value [32]byte) {
	n := binary.BigEndian.Uint64(key[:]) * 0x9e3779b97f4a7c15 >> 52
	shard := m.shards[n]
	if shard == nil {
		shard = &kvShard{m.generation, map[[16]byte][32]byte{}}
		m.shards[n] = shard
	}
	if shard.generation != m.generation {
		values := make(map[[16]byte][32]byte, len(shard.values)+1)
		for k, v := range shard.values {
			values[k] = v
		}
		shard = &kvShard{m.generation, values}
		m.shards[n] = shard
	}
	shard.values[key] = value
}

func (m *kvMachine) Snapshot() (io.WriterTo, error) {
	m.generation++
	return &kvView{m.shards}, nil
}

func (m *kvMachine) Restore(r io.Reader) error {
	m.shards = [kvShards]*kvShard{}
	for {
		var kv [kvSize]byte
		if _, err := io.ReadFull(r, kv[:]); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		m.put([16]byte(kv[:]), [32]byte(kv[16:]))
	}
}

type kvView struct{ shards [kvShards]*kvShard }

func (v *kvView) WriteTo(w io.Writer) (n int64, err error) {
	var buf []byte
	for _, shard := range v.shards {
		buf = buf[:0]
		if shard != nil {
			for k, v := range shard.values {
				buf = append(append(buf, k[:]...), v[:]...)
			}
		}
		k, err := w.Write(buf)
		n += int64(k)
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

func kvEntry(first, n int) []byte {
	entry := make([]byte, 0, n*kvSize)
	for i := range n {
		entry = binary.BigEndian.AppendUint64(entry, uint64(first+i))
		entry = append(entry, make([]byte, kvSize-8)...)
	}
	return entry
}

// fill brings kvEntries small entries into the state.
func fill(b *testing.B, list []*benchStore) {
	b.Helper()
	var next atomic.Int64
	var work sync.WaitGroup
	for range 64 {
		work.Go(func() {
			for {
				first := int(next.Add(kvBatch)) - kvBatch
				if first >= kvEntries {
					return
				}
				for {
					if _, _, err := leading(list).Propose(context.Background(), kvEntry(first, kvBatch)); err == nil {
						break
					}
					time.Sleep(time.Millisecond)
				}
			}
		})
	}
	work.Wait()
}

func liveHeap() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

// peakHeap samples the bytes of heap objects, dead ones included, while f runs.
func peakHeap(f func()) float64 {
	stop, done := make(chan struct{}), make(chan uint64)
	go func() {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		var peak uint64
		for {
			metrics.Read(sample)
			peak = max(peak, sample[0].Value.Uint64())
			select {
			case <-stop:
				done <- peak
				return
			case <-time.After(500 * time.Microsecond):
			}
		}
	}()
	f()
	close(stop)
	return float64(<-done)
}

// BenchmarkMemory fills one server with a million small entries of 48 bytes and reports heap bytes for each: of the
// machine alone, of the store around it (log in memory and the newest snapshot) and at the peak of a snapshot.
func BenchmarkMemory(b *testing.B) {
	before := liveHeap()
	alone := newKV()
	for first := 0; first < kvEntries; first += kvBatch {
		alone.Apply(0, kvEntry(first, kvBatch))
	}
	machine := liveHeap() - before
	runtime.KeepAlive(alone)
	alone = nil
	before = liveHeap()
	list := oursOn(b, 1, benchConfig{machine: newKV, timeouts: stockTimeouts, compact: raftstore.Compaction{Interval: time.Second}})
	fill(b, list)
	var peak, settled float64
	var took time.Duration
	for range rounds(b, 3) {
		liveHeap()
		peak = max(peak, peakHeap(func() {
			list[0].Propose(b.Context(), kvEntry(0, 1)) // something new to snapshot
			start := time.Now()
			if err := list[0].Compact(b.Context()); err != nil {
				b.Fatal(err)
			}
			took = time.Since(start)
		})-before)
		settled = liveHeap() - before
	}
	b.Logf("%d entries of %d bytes: machine %.0f bytes each, with the store %.0f, at the peak of a snapshot %.0f (%.0f MiB); a snapshot takes %v",
		kvEntries, kvSize, machine/kvEntries, settled/kvEntries, peak/kvEntries, peak/(1<<20), took.Round(time.Millisecond))
	b.ReportMetric(machine/kvEntries, "machine-B/entry")
	b.ReportMetric(settled/kvEntries, "store-B/entry")
	b.ReportMetric(peak/kvEntries, "peak-B/entry")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkSnapshotWhileWriting commits single entries from 16 writers on three servers that hold a million each:
// without snapshots, while the leader takes one after the other, and while all three do.
func BenchmarkSnapshotWhileWriting(b *testing.B) {
	list := oursOn(b, 3, benchConfig{machine: newKV, timeouts: stockTimeouts, compact: raftstore.Compaction{Threshold: 1 << 40}})
	fill(b, list)
	var next atomic.Int64
	write := func(ctx context.Context) error {
		_, _, err := leading(list).Propose(ctx, kvEntry(int(next.Add(1)*7919)%kvEntries, 1))
		return err
	}
	quiet := &series{name: "without-snapshots", call: write}
	one, all := &series{name: "leader-takes-snapshots", call: write}, &series{name: "all-take-snapshots", call: write}
	var taken [2]int
	for range rounds(b, 3) {
		quiet.turn(b.Context(), 16, time.Second)
		taken[0] += whileCompacting(b, []*benchStore{leading(list)}, func() { one.turn(b.Context(), 16, time.Second) })
		taken[1] += whileCompacting(b, list, func() { all.turn(b.Context(), 16, time.Second) })
	}
	report(b, "commits", []*series{quiet, one, all})
	b.Logf("snapshots of %d MiB: %d on the leader in %v, %d on all in %v", kvEntries*kvSize>>20, taken[0], one.elapsed, taken[1], all.elapsed)
	b.ReportMetric(float64(one.quantile(.99))/float64(quiet.quantile(.99)), "x-p99-leader")
	b.ReportMetric(float64(all.quantile(.99))/float64(quiet.quantile(.99)), "x-p99-all")
}

// whileCompacting runs f while each of list takes one snapshot after the other, and returns how many.
func whileCompacting(b *testing.B, list []*benchStore, f func()) int {
	var over atomic.Bool
	var taken atomic.Int64
	var work sync.WaitGroup
	for _, s := range list {
		work.Go(func() {
			for !over.Load() {
				if err := s.Compact(b.Context()); err != nil {
					b.Error(err)
					return
				}
				taken.Add(1)
			}
		})
	}
	f()
	over.Store(true)
	work.Wait()
	return int(taken.Load())
}
