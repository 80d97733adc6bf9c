package history_test

import (
	"fmt"
	"io"
	"path/filepath"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/history"
)

// undropped is an archive whose beginning is still there, as it is until a snapshot is durable.
type undropped struct{ *file.Archive }

func (undropped) Drop() error { return nil }

// gated is a machine whose snapshots are written when the gate opens.
type gated struct {
	list
	begun, gate chan struct{}
}

type gatedState struct {
	io.WriterTo
	m *gated
}

func (m *gated) Snapshot() (io.WriterTo, error) {
	w, err := m.list.Snapshot()
	return gatedState{w, m}, err
}

func (s gatedState) WriteTo(w io.Writer) (int64, error) {
	close(s.m.begun)
	<-s.m.gate
	return s.WriterTo.WriteTo(w)
}

// A disk is full, or the power is gone, while a checkpoint tells the log behind
// its snapshot again: what was durable before is still there.
func TestCheckpointThatIsCutLosesNothing(t *testing.T) {
	t.Parallel()
	w, id, m := newWorld(t), raftstore.ServerID{1}, &gated{begun: make(chan struct{}), gate: make(chan struct{})}
	archive, err := file.Create(w.root, id)
	if err != nil {
		t.Fatal(err)
	}
	store, err := raftstore.Open(raftstore.Config{ID: id, Address: "host:1", ClusterID: clusterID, Epoch: 1, Machine: m,
		Dialer: dialer{w, id}, Archive: undropped{archive}, ArchiveKey: w.key,
		Compaction: raftstore.Compaction{Threshold: 1 << 40, Trailing: 10, Interval: time.Hour}})
	if err != nil {
		t.Fatal(err)
	}
	defer store.Shutdown()
	if err := store.Genesis(); err != nil {
		t.Fatal(err)
	}
	commit := func(entry string) {
		w.retry(func() error { _, _, err := store.Propose(t.Context(), []byte(entry)); return err })
	}
	commit("before")
	done := make(chan error, 1)
	go func() { done <- store.Compact(t.Context()) }()
	<-m.begun
	for i := range 10 {
		commit(fmt.Sprint("meanwhile ", i))
	}
	close(m.gate)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	all := records(t, filepath.Join(w.root, id.String()))
	last := uint64(0)
	for n := 1; n <= len(all); n++ {
		h, err := history.Inspect(seq(all[:n]), w.key, chainOf(id))
		if err != nil {
			t.Fatal(err)
		}
		at, _ := h.Last()
		if at < last {
			t.Errorf("cut after record %d of %d: the log ends at %d, and it was at %d", n, len(all), at, last)
		}
		last = max(last, at)
	}
	if last < 11 {
		t.Fatalf("the log ends at %d", last)
	}
}
