package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"
)

// recovered is what a recovery can make of an archive.
type recovered struct {
	begin    uint64
	term     uint64
	vote     string
	snapshot uint64 // its index
	state    []byte
	log      map[uint64]Record
}

// recoverFrom replays sealed records by the meanings said at RecordKind.
func recoverFrom(t *testing.T, n *testNode, sealed [][]byte) recovered {
	t.Helper()
	o, err := NewOpener(n.key, Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: n.id})
	if err != nil {
		t.Fatal(err)
	}
	out := recovered{log: map[uint64]Record{}}
	var pending Record
	var data []byte
	for i, raw := range sealed {
		r, err := o.Open(raw)
		if err != nil {
			t.Fatalf("record %d of %d: %v", i, len(sealed), err)
		}
		switch r.Kind {
		case RecordTerm:
			out.term = r.Term
		case RecordVote:
			out.vote = fmt.Sprintf("%d %s", r.Term, r.Data)
		case RecordLog:
			if old, ok := out.log[r.Index]; ok && old.Term == r.Term {
				continue // told again
			}
			for j := range out.log {
				if j >= r.Index {
					delete(out.log, j)
				}
			}
			out.log[r.Index] = r
		case RecordDelete:
			for j := r.Index; j <= r.End; j++ {
				delete(out.log, j)
			}
		case RecordSnapshot:
			pending, data = r, nil
		case RecordChunk:
			if data = append(data, r.Data...); uint64(len(data)) == pending.End {
				out.snapshot, out.state = pending.Index, data
			}
		}
	}
	out.begin = o.Begin()
	return out
}

// machine applies what was recovered.
func (r recovered) machine(t *testing.T) []string {
	t.Helper()
	m := &listMachine{}
	if r.snapshot > 0 {
		if err := newFSM(m, newMembers(func(ServerID) {}), slog.New(slog.DiscardHandler)).Restore(io.NopCloser(bytes.NewReader(r.state))); err != nil {
			t.Fatal(err)
		}
	}
	for i := r.snapshot + 1; ; i++ {
		e, ok := r.log[i]
		if !ok {
			return m.list()
		}
		if raft.LogType(e.Type) == raft.LogCommand {
			m.Apply(i, e.Data)
		}
	}
}

// slowSnapshot is a machine whose snapshots take until the gate opens.
type slowSnapshot struct {
	listMachine
	gate chan struct{}
}

type gated struct {
	io.WriterTo
	gate chan struct{}
}

func (g gated) WriteTo(w io.Writer) (int64, error) {
	<-g.gate
	return g.WriterTo.WriteTo(w)
}

func (m *slowSnapshot) Snapshot() (io.WriterTo, error) {
	w, err := m.listMachine.Snapshot()
	return gated{w, m.gate}, err
}

// What is left of a trimmed archive has everything: also entries that were
// written, to the part that is dropped, while the snapshot was being taken.
func TestTrimmedArchiveIsEnough(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, m := newTestNet(), &slowSnapshot{gate: make(chan struct{})}
		net.machines["a"] = m
		nodes := net.cluster(t, "a", "b", "c")
		a := nodes[0]
		for _, e := range entries("before", 20) {
			propose(t, a, e)
		}
		compacted := make(chan error, 1)
		go func() { compacted <- a.Compact(t.Context()) }()
		synctest.Wait()
		for _, e := range entries("during", 20) {
			propose(t, a, e)
		}
		close(m.gate)
		if err := <-compacted; err != nil {
			t.Fatal(err)
		}
		for _, e := range entries("after", 5) {
			propose(t, a, e)
		}
		all, kept := a.archive.copy(), a.archive.kept()
		if len(kept) >= len(all) {
			t.Fatal("nothing was dropped")
		}
		got := recoverFrom(t, a, kept)
		if got.begin < 20 || got.term != a.Term() || got.snapshot == 0 {
			t.Fatalf("recovered from record %d: term %d, snapshot %d", got.begin, got.term, got.snapshot)
		}
		want := slices.Concat(entries("before", 20), entries("during", 20), entries("after", 5))
		if list := got.machine(t); !slices.Equal(list, want) {
			t.Fatalf("recovered %d of %d entries from what is left: %q", len(list), len(want), list)
		}
		whole := recoverFrom(t, a, all)
		if list := whole.machine(t); !slices.Equal(list, want) || whole.begin != 1 || whole.vote != got.vote {
			t.Fatalf("recovered %d of %d entries from all of it, votes %q and %q", len(list), len(want), whole.vote, got.vote)
		}
		// A received snapshot trims too.
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		propose(t, a, "tail")
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		d := net.join(t, a, "d")
		propose(t, a, "with d")
		want = append(want, "tail", "with d")
		eventually(t, "d has it", func() bool { return len(d.machine.list()) == len(want) })
		if list := recoverFrom(t, d, d.archive.kept()).machine(t); !slices.Equal(list, want) {
			t.Fatalf("the archive of a server that began with a snapshot: %q", list)
		}
	})
}

func TestArchiveIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestNet().cluster(t, "a")[0]
		entry := strings.Repeat("x", 1000)
		m := a.machine
		most := 0
		for range 20 {
			for range 50 {
				propose(t, a, entry)
			}
			m.mu.Lock()
			m.entries = nil // a state that does not grow
			m.mu.Unlock()
			if err := a.Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
			most = max(most, len(bytes.Join(a.archive.kept(), nil)))
		}
		if all := len(bytes.Join(a.archive.copy(), nil)); all < 1_000_000 || most > 20_000 {
			t.Fatalf("%d bytes were written, and up to %d were left after a snapshot", all, most)
		}
	})
}

func TestCheckpointsDoNotMix(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		for range 2 {
			propose(t, a, "x")
			for _, n := range []*testNode{a, b} {
				eventually(t, "applied", func() bool { return n.AppliedIndex() == a.AppliedIndex() })
				if err := n.Compact(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
		}
		all, kept := a.archive.copy(), a.archive.kept()
		older := slices.IndexFunc(all, func(r []byte) bool { // the first checkpoint, which leads the part dropped last
			o, err := NewOpener(a.key, Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: a.id})
			if err != nil {
				t.Fatal(err)
			}
			rec, err := o.Open(r)
			return err == nil && rec.Kind == RecordCheckpoint
		})
		if older < 1 || len(kept) < 4 {
			t.Fatalf("first checkpoint at %d, %d records kept", older, len(kept))
		}
		chain := Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: a.id}
		wrong := func(f func(*Chain)) Chain { c := chain; f(&c); return c }
		for name, c := range map[string]struct {
			chain   Chain
			records [][]byte
		}{
			"another server":                 {wrong(func(c *Chain) { c.Server = b.id }), kept},
			"another cluster":                {wrong(func(c *Chain) { c.ClusterID[0]++ }), kept},
			"another epoch":                  {wrong(func(c *Chain) { c.Epoch++ }), kept},
			"an ordinary record first":       {chain, kept[1:]},
			"one missing behind it":          {chain, slices.Delete(slices.Clone(kept), 1, 2)},
			"the checkpoint twice":           {chain, slices.Insert(slices.Clone(kept), 1, kept[0])},
			"the older checkpoint before it": {chain, slices.Insert(slices.Clone(kept), 0, all[older])},
			"the older one in its place":     {chain, append([][]byte{all[older]}, kept[1:]...)},
			"a later one within the chain":   {chain, slices.Concat(all[:older], kept)},
			"another server's checkpoint":    {chain, append([][]byte{b.archive.kept()[0]}, kept[1:]...)},
		} {
			o, err := NewOpener(a.key, c.chain)
			if err != nil {
				t.Fatal(err)
			}
			var last error
			for _, r := range c.records {
				if _, last = o.Open(r); last != nil {
					break
				}
			}
			if !errors.Is(last, ErrRecord) {
				t.Errorf("%s: opened without an error (%v)", name, last)
			}
		}
	})
}

func TestTrimmingThatFails(t *testing.T) {
	t.Run("drop", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newTestNet().cluster(t, "a")[0]
			propose(t, a, "x")
			a.archive.stuck = true
			if err := a.Compact(t.Context()); err != nil {
				t.Fatal(err)
			}
			propose(t, a, "y")
			if got := recoverFrom(t, a, a.archive.kept()).machine(t); !slices.Equal(got, []string{"x", "y"}) || a.Err() != nil {
				t.Fatalf("recovered %q, store: %v", got, a.Err())
			}
		})
	})
	t.Run("cut", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			a := newTestNet().cluster(t, "a")[0]
			propose(t, a, "x")
			a.archive.breakDisk()
			if err := a.Compact(t.Context()); err == nil {
				t.Fatal("a snapshot that could not be archived was made")
			}
			<-a.Done()
			if e, ok := errors.AsType[*ArchiveError](a.Err()); !ok || e.Op != "cut" || !errors.Is(e, errDisk) {
				t.Fatalf("the reason is %v", a.Err())
			}
		})
	})
}

// A snapshot that is finished after a newer one was received must not take its
// place in the archive, and raft must not take it for the last: as a leader it
// would look in its log for what lies between the two and, finding nothing, send
// its snapshot again and again without a pause.
func TestOlderSnapshotIsNotArchived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newTestNet().cluster(t, "a")[0]
		propose(t, a, "x")
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		before := len(a.archive.copy())
		snaps := &snapshotStore{journal: a.journal, members: a.trans.members, logs: a.logs, stable: a.stable,
			meta: &raft.SnapshotMeta{Index: 9, ID: "newer"}}
		sink, err := snaps.Create(1, 5, 1, a.configuration(), 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := sink.Close(); !errors.Is(err, errSnapshotGone) {
			t.Fatalf("the older snapshot is the last to raft: %v", err)
		}
		if list, err := snaps.List(); err != nil || list[0].ID != "newer" || len(a.archive.copy()) != before {
			t.Fatalf("the older snapshot was archived or shown: %v, %v", list, err)
		}
	})
}
