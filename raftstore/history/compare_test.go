package history

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/raftstore"
)

// logOf is a whole log: one entry per term given, with data that the name and
// the place decide.
func logOf(name string, terms ...uint64) *History {
	h := &History{Chain: raftstore.Chain{ClusterID: [32]byte{1}, Epoch: 1}}
	for i, term := range terms {
		e := Entry{Index: uint64(i) + 1, Term: term, Data: fmt.Appendf(nil, "%s %d", name, i)}
		if i%5 == 2 {
			e.Type, e.Data = Noop, nil
		}
		h.Entries = append(h.Entries, e)
	}
	return h
}

// compact returns h with a snapshot up to index, keeping trailing entries of
// before it.
func compact(h *History, index, trailing uint64) *History {
	out := *h
	var chain [32]byte
	s := &Snapshot{Index: index, Term: h.Entries[index-1].Term}
	for _, e := range h.Entries[:index] {
		if e.Type == Command {
			chain = raftstore.ExtendChain(chain, e.Index, e.Term, e.Data)
			s.applied = e.Index
		}
	}
	s.chain = chain
	s.Data = append([]byte("clvsnap2"), binary.BigEndian.AppendUint64(nil, s.applied)...)
	s.Data = append(s.Data, chain[:]...)
	out.Snapshot, out.Entries = s, h.Entries[index-min(trailing, index):]
	return &out
}

func TestRelations(t *testing.T) {
	t.Parallel()
	base := logOf("a", 1, 1, 1, 2, 2, 2, 2, 2)
	epoch2 := logOf("a", 1, 1, 1)
	epoch2.Chain.Epoch = 2
	cluster2 := logOf("a", 1, 1, 1)
	cluster2.Chain.ClusterID = [32]byte{2}
	for name, c := range map[string]struct {
		a, b *History
		want Pair
	}{
		"the same":                           {base, logOf("a", 1, 1, 1, 2, 2, 2, 2, 2), Pair{0, 1, Equal, 8, 0}},
		"a prefix":                           {base, logOf("a", 1, 1, 1, 2, 2), Pair{1, 0, Behind, 5, 0}},
		"a suffix of a lower term":           {logOf("a", 1, 1, 1, 1, 1), base, Pair{0, 1, Diverged, 3, 4}},
		"a longer one of a lower term":       {logOf("a", 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1), base, Pair{0, 1, Diverged, 3, 4}},
		"from the beginning":                 {logOf("a", 1, 1), logOf("b", 2, 2, 2), Pair{0, 1, Diverged, 0, 1}},
		"same place, other content":          {base, logOf("b", 1, 1, 1, 2, 2, 2, 2, 2), Pair{0, 1, Forked, 0, 1}},
		"same place, other content, shorter": {logOf("b", 1, 1, 1, 2), base, Pair{0, 1, Forked, 0, 1}},
		"compacted, the same":                {compact(base, 6, 0), base, Pair{0, 1, Equal, 8, 0}},
		"both compacted":                     {compact(base, 6, 0), compact(base, 4, 0), Pair{0, 1, Equal, 8, 0}},
		"compacted beyond the other":         {compact(base, 6, 0), logOf("a", 1, 1, 1, 2), Pair{1, 0, Unknown, 0, 0}},
		"compacted, with trailing entries":   {compact(base, 6, 4), logOf("a", 1, 1, 1, 2), Pair{1, 0, Behind, 4, 0}},
		"a state of another history":         {compact(logOf("b", 1, 1, 1, 2, 2, 2, 2, 2), 6, 0), base, Pair{0, 1, Forked, 0, 6}},
		"a committed end that is gone":       {compact(logOf("a", 1, 1, 1, 1, 1, 1), 5, 3), base, Pair{0, 1, Forked, 3, 4}},
		"committed beyond the newer's end":   {compact(logOf("a", 1, 1, 1, 1, 1, 1), 6, 0), logOf("a", 1, 1, 2), Pair{0, 1, Forked, 0, 0}},
		"an old end under the newer's state": {logOf("a", 1, 1, 1, 1, 1, 1), compact(base, 6, 0), Pair{0, 1, Diverged, 0, 6}},
		"parted somewhere under both states": {compact(logOf("a", 1, 1, 1, 1), 2, 0), compact(base, 4, 0), Pair{0, 1, Unknown, 0, 4}},
		"another epoch":                      {base, epoch2, Pair{0, 1, Unrelated, 0, 0}},
		"another cluster":                    {base, cluster2, Pair{1, 0, Unrelated, 0, 0}},
	} {
		got := Compare([]*History{c.a, c.b})
		if len(got.Pairs) != 1 || got.Pairs[0] != c.want || order([]*History{c.a, c.b}[got.Newest], []*History{c.a, c.b}[c.want.Newer]) != 0 {
			t.Errorf("%s: %+v, newest %d, want %+v", name, got.Pairs, got.Newest, c.want)
		}
	}
	if got := Compare(nil); got.Newest != -1 || got.Pairs != nil {
		t.Errorf("of nothing: %+v", got)
	}
}

// A history that cannot be replayed is never the one to recover from, and is
// named where it is ahead.
func TestIncompleteIsNotNewest(t *testing.T) {
	t.Parallel()
	cut := logOf("a", 1, 1, 1, 2, 2, 2)
	cut.Entries = cut.Entries[3:]
	if !errors.Is(cut.Complete(), ErrIncomplete) || !errors.Is((&History{}).Complete(), ErrIncomplete) {
		t.Fatal("complete")
	}
	got := Compare([]*History{logOf("a", 1, 1), cut, logOf("a", 1, 1, 1, 2), {}})
	if got.Newest != 2 {
		t.Errorf("%+v", got)
	}
	for _, p := range got.Pairs {
		if p.Older == 2 && p.Newer == 1 && p != (Pair{2, 1, Behind, 4, 0}) {
			t.Errorf("%+v", p)
		}
	}
	if got := Compare([]*History{cut, {}}); got.Newest != -1 {
		t.Errorf("%+v", got)
	}
	if _, err := cut.Replay(nil); !errors.Is(err, ErrIncomplete) {
		t.Errorf("replayed: %v", err)
	}
}

// Logs that raft can make, compacted anywhere: what Compare says of a pair
// agrees with the whole logs, or is Unknown.
func TestPropertyRelations(t *testing.T) {
	t.Parallel()
	seen := map[Relation]int{}
	rapid.Check(t, func(rt *rapid.T) {
		grow := func(terms []uint64, n int, least uint64) []uint64 {
			for range n {
				if k := len(terms); k > 0 {
					least = max(least, terms[k-1])
				}
				terms = append(terms, least+uint64(rapid.SampledFrom([]int{0, 0, 0, 2}).Draw(rt, "rise")))
			}
			return terms
		}
		common := grow(nil, rapid.IntRange(1, 12).Draw(rt, "common"), 1)
		fork := common[len(common)-1]
		// Leaders of odd and of even terms write behind the common part; data depends on index and term alone.
		one := grow(slices.Clone(common), rapid.IntRange(0, 6).Draw(rt, "one"), fork+1)
		two := slices.Clone(common)
		if n := rapid.IntRange(0, 6).Draw(rt, "two"); n > 0 {
			two = grow(append(two, fork), n-1, fork)
			if rapid.Bool().Draw(rt, "extends") {
				two = append(slices.Clone(one), grow(one, n, 1)[len(one):]...)
			}
		}
		shrink := func(h *History) *History {
			n := uint64(len(h.Entries))
			if at := rapid.Uint64Range(0, n).Draw(rt, "snapshot"); at > 0 {
				return compact(h, at, rapid.Uint64Range(0, at).Draw(rt, "trailing"))
			}
			return h
		}
		a, b := shrink(byTerm(one)), shrink(byTerm(two))
		p := Compare([]*History{a, b}).Pairs[0]
		logs, hs := [][]uint64{one, two}, []*History{a, b}
		older, newer := logs[p.Older], logs[p.Newer]
		agree := 0
		for agree < min(len(older), len(newer)) && older[agree] == newer[agree] {
			agree++
		}
		seen[p.Relation]++
		want := Diverged
		committed := uint64(0)
		if s := hs[p.Older].Snapshot; s != nil {
			committed = s.Index
		}
		switch {
		case agree == len(older) && agree == len(newer):
			want = Equal
		case agree == len(older):
			want = Behind
		case committed > uint64(agree):
			want = Forked
		}
		if p.Relation != want && p.Relation != Unknown {
			rt.Fatalf("%v of %d, %v of %d: %+v, want %s", older, committed, newer, agree, p, want)
		}
		if p.Agree > uint64(agree) || p.Part != 0 && p.Part <= uint64(agree) {
			rt.Fatalf("they agree up to %d: %+v", agree, p)
		}
	})
	if seen[Behind] == 0 || seen[Diverged] == 0 { // the rarer ones are in TestRelations
		t.Errorf("the property was not tried on all: %v", seen)
	}
	t.Log(seen)
}

// byTerm is a log whose data is decided by index and term, as raft's is.
func byTerm(terms []uint64) *History {
	h := logOf("x", terms...)
	for i := range h.Entries {
		if e := &h.Entries[i]; e.Type == Command {
			e.Data = fmt.Appendf(nil, "%d of %d", e.Index, e.Term)
		}
	}
	return h
}

func record(kind raftstore.RecordKind, index, end, term uint64, data string) raftstore.Record {
	return raftstore.Record{Kind: kind, Index: index, End: end, Term: term, Data: []byte(data)}
}

// What no store writes ends the history, whoever holds the key.
func TestRecordsThatMakeNoSense(t *testing.T) {
	t.Parallel()
	const l, d, term, vote, snap, chunk = raftstore.RecordLog, raftstore.RecordDelete, raftstore.RecordTerm, raftstore.RecordVote, raftstore.RecordSnapshot, raftstore.RecordChunk
	header := string(compact(logOf("a", 1, 1), 2, 0).Snapshot.Data)
	size := uint64(len(header))
	good := []raftstore.Record{
		record(term, 0, 0, 1, ""), record(vote, 0, 0, 1, "me"), record(l, 1, 0, 1, "a"), record(l, 2, 0, 1, "b"), record(l, 3, 0, 2, "c"),
		record(l, 2, 0, 2, "told again"), record(snap, 1, size+3, 1, "conf"), record(chunk, 0, 0, 0, header[:10]), record(l, 3, 0, 2, "d"),
		record(raftstore.RecordCheckpoint, 9, 0, 0, ""), record(snap, 2, size, 2, "conf"), record(chunk, 0, 0, 0, header), record(d, 1, 1, 0, ""),
	}
	add := func(records []raftstore.Record) (*builder, error) {
		b := &builder{}
		for i := range records {
			if err := b.add(&records[i]); err != nil {
				return b, err
			}
		}
		return b, nil
	}
	b, err := add(good)
	if err != nil || len(b.h.Entries) != 2 || string(b.h.Entries[0].Data) != "told again" || b.h.Snapshot.Index != 2 || b.size != len("told again")+1 {
		t.Fatalf("%+v, %v", b.h, err)
	}
	for name, r := range map[string]raftstore.Record{
		"told again with no term":    record(l, 2, 0, 0, ""),
		"told again as another":      record(l, 2, 0, 2, "another"),
		"a gap":                      record(l, 6, 0, 2, ""),
		"before the beginning":       record(l, 1, 0, 2, ""),
		"index zero":                 record(l, 0, 0, 2, ""),
		"a falling term in the log":  record(l, 4, 0, 1, ""),
		"term zero in the log":       record(l, 4, 0, 0, ""),
		"a falling term":             record(term, 0, 0, 0, ""),
		"a vote of before":           record(vote, 0, 0, 0, "x"),
		"deleting backwards":         record(d, 3, 2, 0, ""),
		"deleting from zero":         record(d, 0, 2, 0, ""),
		"a chunk of nothing":         record(chunk, 0, 0, 0, "x"),
		"an endless snapshot":        record(snap, 3, raftstore.MaxSnapshot+1, 2, ""),
		"a snapshot without header":  record(snap, 3, size-1, 2, ""),
		"a snapshot of no entry":     record(snap, 0, size, 2, ""),
		"an unknown kind":            record(99, 1, 1, 1, ""),
		"the last index there is":    record(l, 1<<64-1, 0, 3, ""),
		"a snapshot without a chunk": record(snap, 3, 0, 2, ""),
	} {
		b, err := add(append(slices.Clone(good), r))
		if !errors.Is(err, ErrRecords) || len(b.h.Entries) != 2 || string(b.h.Entries[1].Data) != "d" {
			t.Errorf("%s: %v, %v", name, err, b.h.Entries)
		}
	}
	for name, more := range map[string][]raftstore.Record{
		"an older snapshot":    {record(snap, 1, size, 1, ""), record(chunk, 0, 0, 0, header)},
		"another header":       {record(snap, 3, size, 2, ""), record(chunk, 0, 0, 0, "x"+header[1:])},
		"a header of later":    {record(snap, 3, size, 2, ""), record(chunk, 0, 0, 0, header[:9]+"\xff"+header[10:])},
		"a chunk too long":     {record(snap, 3, size, 2, ""), record(chunk, 0, 0, 0, header+"x")},
		"an empty chunk":       {record(snap, 3, size, 2, ""), record(chunk, 0, 0, 0, "")},
		"deleting the middle":  {record(l, 4, 0, 2, ""), record(d, 3, 3, 0, "")},
		"a log that is no log": {record(d, 2, 3, 0, ""), record(l, 7, 0, 2, ""), record(l, 9, 0, 2, "")},
	} {
		if _, err := add(append(slices.Clone(good), more...)); !errors.Is(err, ErrRecords) {
			t.Errorf("%s: %v", name, err)
		}
	}
	b = &builder{size: MaxLog}
	if r := record(l, 1, 0, 1, "x"); !errors.Is(b.add(&r), ErrRecords) {
		t.Error("a log without end")
	}
	b = &builder{h: History{Entries: make([]Entry, MaxEntries)}}
	b.h.Entries[0].Index = 1
	if r := record(l, MaxEntries+1, 0, 1, "x"); !errors.Is(b.add(&r), ErrRecords) {
		t.Error("entries without end")
	}
}

// A follower got a snapshot, and its archive ends before the log that the
// snapshot overruled was deleted.
func TestOverruledLog(t *testing.T) {
	t.Parallel()
	o, err := raftstore.NewOpener(testKey(t), raftstore.Chain{})
	if err != nil {
		t.Fatal(err)
	}
	snapshot := compact(logOf("a", 1, 1, 1, 2, 2, 2), 5, 0).Snapshot
	for name, c := range map[string]struct {
		log  *History
		keep int
	}{
		"shorter than the snapshot": {logOf("b", 1, 1, 1), 0},
		"of another term there":     {logOf("b", 1, 1, 1, 1, 1, 1, 1), 0},
		"the same":                  {logOf("a", 1, 1, 1, 2, 2, 2), 6},
		"behind it":                 {&History{Entries: logOf("a", 1, 1, 1, 2, 2, 2, 3).Entries[5:]}, 2},
		"behind it, of a lost term": {&History{Entries: logOf("a", 1, 1, 1, 1, 1, 1).Entries[5:]}, 0},
		"far behind it":             {&History{Entries: logOf("a", 1, 1, 1, 2, 2, 2, 3).Entries[6:]}, 1},
	} {
		b := &builder{h: History{Snapshot: snapshot, Entries: c.log.Entries}}
		h := b.finish(o)
		if len(h.Entries) != c.keep || (h.Complete() == nil) == (name == "far behind it") {
			t.Errorf("%s: %d entries are kept, %v", name, len(h.Entries), h.Complete())
		}
	}
}

// FuzzBuilder feeds records that only a holder of the key could write.
func FuzzBuilder(f *testing.F) {
	f.Add([]byte{1, 1, 1, 1, 2, 1, 1, 3, 2, 2, 1, 2})
	f.Add([]byte{3, 1, 1, 4, 1, 1, 1, 1, 1, 5, 1, 1, 6, 48, 0, 1, 2, 1, 2, 1, 1})
	f.Fuzz(func(t *testing.T, plan []byte) {
		b := &builder{}
		for ; len(plan) >= 3; plan = plan[3:] {
			r := record(raftstore.RecordKind(plan[0]%9), uint64(plan[1]%12), uint64(plan[2]%60), uint64(plan[2]%7), "")
			if r.Kind == raftstore.RecordDelete {
				r.End = uint64(plan[2] % 12)
			}
			r.Data = make([]byte, plan[1]%64)
			copy(r.Data, "clvsnap2")
			if b.add(&r) != nil {
				break
			}
		}
		size := 0
		for i, e := range b.h.Entries {
			size += len(e.Data)
			if i > 0 && (e.Index != b.h.Entries[i-1].Index+1 || e.Term < b.h.Entries[i-1].Term) {
				t.Fatalf("entry %d of %+v", i, b.h.Entries)
			}
		}
		if size != b.size {
			t.Fatalf("%d bytes are counted as %d", size, b.size)
		}
		o, err := raftstore.NewOpener(testKey(t), raftstore.Chain{})
		if err != nil {
			t.Fatal(err)
		}
		h := b.finish(o)
		Compare([]*History{h, h, logOf("a", 1, 2, 3)})
	})
}

func testKey(t *testing.T) secret.Key {
	t.Helper()
	k, err := secret.Random(raftstore.ArchiveKeySize)
	if err != nil {
		t.Fatal(err)
	}
	return k
}
