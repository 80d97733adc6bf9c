package archivetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"

	"github.com/claviger/claviger/raftstore"
)

// lists plays the adversary who rewrites the archive record by record.
func (tb *table) lists() {
	w, g := tb.w, tb.w.truth.sealed
	n, check := len(g), w.checkpoints()
	mid := n / 2
	edit := func(at int, f func(r []byte) []byte) [][]byte {
		l := slices.Clone(g)
		l[at] = f(slices.Clone(l[at]))
		return l
	}
	flip := func(i int) func([]byte) []byte {
		return func(r []byte) []byte {
			r[(i+len(r))%len(r)] ^= 0x10
			return r
		}
	}
	without := func(i, j int) [][]byte { return slices.Delete(slices.Clone(g), i, j) }
	swapped := func(i, j int) [][]byte {
		l := slices.Clone(g)
		l[i], l[j] = l[j], l[i]
		return l
	}
	reversed := slices.Clone(g)
	slices.Reverse(reversed)
	shuffled := slices.Clone(g)
	rand.New(rand.NewPCG(7, 7)).Shuffle(n, func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
	rubbish := bytes.Repeat([]byte{0x5a}, 300)
	largest := bytes.Repeat([]byte{0x5a}, w.k.MaxRecord)
	other, clone := w.other.truth.sealed, w.clone.truth.sealed
	for _, c := range []struct {
		class, name string
		list        [][]byte
	}{
		{"flip", "nonce of the first record", edit(0, flip(0))},
		{"flip", "nonce of a middle record", edit(mid, flip(5))},
		{"flip", "ciphertext of a middle record", edit(mid, flip(26))},
		{"flip", "tag of a middle record", edit(mid, flip(-1))},
		{"flip", "tag of the last record", edit(n-1, flip(-1))},
		{"flip", "a checkpoint within the chain", edit(check[0], flip(30))},
		{"cut", "nothing is left", nil},
		{"cut", "the last record is missing", g[:n-1]},
		{"cut", "the second half is missing", g[:mid]},
		{"cut", "the first record is missing", g[1:]},
		{"cut", "all before a checkpoint is missing", g[check[0]:]},
		{"cut", "a middle record is missing", without(mid, mid+1)},
		{"cut", "ten middle records are missing", without(mid-5, mid+5)},
		{"cut", "a middle record is one byte shorter", edit(mid, func(r []byte) []byte { return r[:len(r)-1] })},
		{"cut", "a middle record is one byte long", edit(mid, func(r []byte) []byte { return r[:1] })},
		{"cut", "the middle part is missing", without(check[0], check[1])},
		{"swap", "two neighbours", swapped(mid, mid+1)},
		{"swap", "the first and the last", swapped(0, n-1)},
		{"swap", "two checkpoints", swapped(check[0], check[1])},
		{"reorder", "all, the last first", reversed},
		{"reorder", "all, at random", shuffled},
		{"reorder", "the parts: 2, 1, 3", slices.Concat(g[check[0]:check[1]], g[:check[0]], g[check[1]:])},
		{"reorder", "the parts: 3, 2, 1", slices.Concat(g[check[1]:], g[check[0]:check[1]], g[:check[0]])},
		{"duplicate", "the first record", slices.Insert(slices.Clone(g), 1, g[0])},
		{"duplicate", "a middle record", slices.Insert(slices.Clone(g), mid, g[mid])},
		{"duplicate", "a checkpoint", slices.Insert(slices.Clone(g), check[0], g[check[0]])},
		{"duplicate", "all of it behind itself", slices.Concat(g, g)},
		{"replay", "an older archive, which was complete once", g[:check[0]]},
		{"replay", "an older part in front of the newest", slices.Concat(g[check[0]:check[1]-3], g[check[1]:])},
		{"replay", "an older checkpoint in front of the newest part", slices.Concat(g[check[0]:check[0]+1], g[check[1]:])},
		{"mix", "another boot's archive under this id", other},
		{"mix", "another cluster's archive of this id", w.cluster.truth.sealed},
		{"mix", "another epoch's archive of this id", w.epoch.truth.sealed},
		{"mix", "this chain, then another boot's", slices.Concat(g[:mid], other[mid:])},
		{"mix", "this chain, then a clone's", slices.Concat(g[:mid], clone[mid:])},
		{"mix", "this chain, then another epoch's", slices.Concat(g[:mid], w.epoch.truth.sealed[mid:])},
		{"mix", "one record of another boot in its place", slices.Concat(g[:mid], other[mid:mid+1], g[mid+1:])},
		{"mix", "records of two boots in turns", interleave(g, other)},
		{"grow", "rubbish behind the last record", append(slices.Clone(g), rubbish)},
		{"grow", "rubbish in front of the first", slices.Insert(slices.Clone(g), 0, rubbish)},
		{"grow", "rubbish in the middle", slices.Insert(slices.Clone(g), mid, rubbish)},
		{"grow", "thirty of the largest records of rubbish", append(slices.Clone(g), slices.Repeat([][]byte{largest}, 30)...)},
		{"grow", "ten thousand times the last record", append(slices.Clone(g), slices.Repeat(g[n-1:], 10_000)...)},
		{"grow", "a middle record is one byte longer", edit(mid, func(r []byte) []byte { return append(r, 0) })},
	} {
		first, last := w.expect(c.list)
		if c.name == "this chain, then a clone's" && last != uint64(len(g[:mid])) {
			tb.t.Errorf("the clone's records are this chain's")
		}
		tb.add(c.class, c.name, tb.must(tb.read(w.rebuild(tb.t, c.list)), int(first), int(last)))
	}
	// A fork is genuine in itself: which of two is meant is for the comparison of archives to say. They do not mix.
	at := clone[w.cloneCheckpoint():]
	tb.fork("a clone's archive, the same identity", clone, 1, len(clone))
	tb.fork("a clone's checkpoint, then this chain", slices.Concat(at[:1], g[check[1]+1:]), w.cloneCheckpoint()+1, w.cloneCheckpoint()+1)
	tb.everyRecord(func(i int) [][]byte { return edit(i, flip(i*7)) }, "flip", "each record in turn, one bit")
	tb.everyRecord(func(i int) [][]byte { return without(i, i+1) }, "cut", "each record in turn is missing")
}

// cloneCheckpoint is the place of the clone's last checkpoint.
func (w *world) cloneCheckpoint() int {
	opener, err := raftstore.NewOpener(w.clone.truth.key, w.clone.truth.chain)
	last := -1
	for i, sealed := range w.clone.truth.sealed {
		r, oerr := opener.Open(sealed)
		if err = errors.Join(err, oerr); r.Kind == raftstore.RecordCheckpoint {
			last = i
		}
	}
	if err != nil || last < 0 {
		panic(fmt.Sprint("the clone's history does not open: ", err))
	}
	return last
}

// fork reads an archive that begins as another genuine history of the same identity.
func (tb *table) fork(name string, list [][]byte, first, last int) {
	tb.t.Helper()
	img := tb.w.rebuild(tb.t, list)
	read, err := collect(tb.w.k.Records(tb.t, img.write(tb.t), tb.w.me.id()))
	o := tb.must(judge(tb.t, tb.w.clone.truth, read, err), first, last)
	o.why += " (a fork of its own, which shows when archives are compared)"
	tb.add("mix", name, o)
}

// everyRecord damages each record in turn and sums up.
func (tb *table) everyRecord(list func(i int) [][]byte, class, name string) {
	n, opened := len(tb.w.truth.sealed), 0
	step, cases := 1, 0
	if tb.w.k.Stride > 1 {
		step = 5
	}
	for i := 0; i < n; i += step {
		l := list(i)
		first, last := tb.w.expect(l)
		o := tb.must(tb.read(tb.w.rebuild(tb.t, l)), int(first), int(last))
		opened += len(o.records)
		cases++
	}
	tb.rows = append(tb.rows, row{class, name, fmt.Sprintf("%d cases: each opens exactly up to the damage (%d records in all)", cases, opened)})
}

func interleave(a, b [][]byte) (out [][]byte) {
	for i := range min(len(a), len(b)) {
		out = append(out, a[i], b[i])
	}
	return out
}
