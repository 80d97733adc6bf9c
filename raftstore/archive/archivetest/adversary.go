package archivetest

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/claviger/claviger/raftstore"
)

// world is what the adversary has: the disks of several boots, all sealed under
// one key, which is worse than the truth, where each boot has its own.
type world struct {
	k     Kind
	me    boot
	truth truth
	kinds []raftstore.RecordKind // of the genuine records
	// kept is the disk with all three parts of the archive, as after drops that
	// failed; trimmed has the last part only; older is kept as it was earlier.
	kept, trimmed, older image
	clone                history // another history under the same identity: a fork
	other                history // another boot of the same cluster
	cluster, epoch       history // the same server id in another cluster, and in another epoch
}

type history struct {
	truth truth
	disk  image // under the id of me
}

// write runs a store of one server on a new archive, which takes two snapshots on its way.
func write(t testing.TB, k Kind, b boot, prefix string) (older, disk image, g truth) {
	t.Helper()
	_, servers := found(t, k, b)
	s := servers[0]
	acknowledge(t, servers, prefix, 8)
	older = imageOf(t, s.root)
	for i := range 2 {
		if err := s.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		acknowledge(t, servers, fmt.Sprintf("%s-%d", prefix, i), 5+i)
	}
	if err := s.Shutdown(); err != nil {
		t.Fatal(err)
	}
	return older, imageOf(t, s.root), s.truth(t)
}

// as puts a disk under another server id.
func (img image) as(from, to raftstore.ServerID) image {
	out := image{}
	for name, b := range img {
		out[strings.ReplaceAll(name, from.String(), to.String())] = b
	}
	return out
}

func newWorld(t testing.TB, k Kind) *world {
	t.Helper()
	w := &world{k: k, me: boot{name: "a", keep: true}}
	w.older, w.kept, w.truth = write(t, k, w.me, "mine")
	opener, err := raftstore.NewOpener(w.truth.key, w.truth.chain)
	if err != nil {
		t.Fatal(err)
	}
	for i, sealed := range w.truth.sealed {
		r, err := opener.Open(sealed)
		if err != nil {
			t.Fatalf("the genuine record %d: %v", i+1, err)
		}
		w.kinds = append(w.kinds, r.Kind)
	}
	w.trimmed = w.rebuild(t, w.truth.sealed[w.checkpoints()[1]:])
	w.clone = w.history(t, boot{name: "a", keep: true})
	w.other = w.history(t, boot{name: "b", keep: true})
	w.cluster = w.history(t, boot{name: "a", cluster: 1, keep: true})
	w.epoch = w.history(t, boot{name: "a", epoch: 1, keep: true})
	return w
}

func (w *world) history(t testing.TB, b boot) history {
	t.Helper()
	_, disk, g := write(t, w.k, b, "other")
	return history{g, disk.as(b.id(), w.me.id())}
}

// checkpoints are the places of the checkpoints among the genuine records, from 0.
func (w *world) checkpoints() (at []int) {
	for i, k := range w.kinds {
		if k == raftstore.RecordCheckpoint {
			at = append(at, i)
		}
	}
	return at
}

// rebuild writes any records into an archive that is sound in itself, as an
// adversary does who knows the format and has the disk for as long as it likes.
func (w *world) rebuild(t testing.TB, records [][]byte) image {
	t.Helper()
	root := filepath.Join(t.TempDir(), "archives")
	a, err := w.k.Create(t, root, w.me.id(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if err := a.Append(r); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(a.Sync(), a.Close()); err != nil {
		t.Fatal(err)
	}
	return imageOf(t, root)
}

// expect says which records must open of a list, without any cryptography: those
// that are the genuine ones in their order, from the first or from a checkpoint.
func (w *world) expect(list [][]byte) (first, last uint64) {
	at := func(i int, sealed []byte) bool {
		return i < len(w.truth.sealed) && bytes.Equal(w.truth.sealed[i], sealed)
	}
	if len(list) == 0 {
		return 0, 0
	}
	start := slices.IndexFunc(w.truth.sealed, func(s []byte) bool { return bytes.Equal(s, list[0]) })
	if start < 0 || start > 0 && w.kinds[start] != raftstore.RecordCheckpoint {
		return 0, 0
	}
	n := 0
	for n < len(list) && at(start+n, list[n]) {
		n++
	}
	return uint64(start) + 1, uint64(start + n)
}

// row is one line of the table.
type row struct{ class, name, outcome string }

// table collects rows, and what reading costs.
type table struct {
	t      *testing.T
	w      *world
	rows   []row
	reads  int
	memory uint64        // the most that one read has allocated, in bytes
	slow   time.Duration // the longest read
}

// read opens a disk as a recovery would, within bounds of memory and time.
func (tb *table) read(img image) outcome {
	tb.t.Helper()
	return tb.judge(img, tb.w.k.Records(tb.t, img.write(tb.t), tb.w.me.id()))
}

func (tb *table) judge(img image, records iter.Seq2[[]byte, error]) outcome {
	tb.t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	start := time.Now()
	read, err := collect(records)
	took := time.Since(start)
	runtime.ReadMemStats(&after)
	tb.reads++
	tb.slow = max(tb.slow, took)
	used := after.TotalAlloc - before.TotalAlloc
	tb.memory = max(tb.memory, used)
	size := uint64(0)
	for _, b := range img {
		size += uint64(len(b))
	}
	if limit := 16*size + 32<<20; used > limit {
		tb.t.Errorf("reading %d bytes took %d bytes of memory", size, used)
	}
	o := judge(tb.t, tb.w.truth, read, err)
	if err != nil && o.why == "then reading ends with an error" {
		o.why = "then reading ends: " + reason(err)
	}
	return o
}

// reason is an error's text, short and without what differs from run to run.
func reason(err error) string {
	text := err.Error()
	for _, known := range []string{"the reader crashed", "the reader hangs", "torn record", "file size too small"} {
		if strings.Contains(text, known) {
			return known
		}
	}
	if i := strings.LastIndex(text, ": "); i >= 0 {
		text = text[i+2:]
	}
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '.' // an error may quote the file
		}
		return r
	}, text)
	return text[:min(len(text), 70)]
}

func (tb *table) add(class, name string, o outcome) {
	tb.rows = append(tb.rows, row{class, name, o.String()})
}

// Adversary plays a hostile disk against archives of the kind and prints a table
// of what a recovery then opens. Nothing wrong ever opens, nothing panics here,
// memory is bounded by what is read.
func Adversary(t *testing.T, k Kind) {
	w := newWorld(t, k)
	tb := &table{t: t, w: w}
	tb.add("sound", "all that was written", tb.must(tb.read(w.kept), 1, len(w.truth.sealed)))
	tb.add("sound", "trimmed: the last checkpoint and what follows", tb.must(tb.read(w.trimmed), w.checkpoints()[1]+1, len(w.truth.sealed)))
	tb.lists()
	tb.bytes()
	if k.Paged {
		tb.pages()
	} else {
		tb.segments()
	}
	t.Log(tb.String())
	if len(tb.rows) < 50 {
		t.Errorf("only %d cases", len(tb.rows))
	}
}

func (tb *table) must(o outcome, first, last int) outcome {
	tb.t.Helper()
	if o.first != uint64(first) || o.last != uint64(last) {
		tb.t.Errorf("a case %s, want %d to %d", o, first, last)
	}
	return o
}

func (tb *table) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "disk adversary against %s: %d cases, %d reads, %d genuine records\n", tb.w.k.Name, len(tb.rows), tb.reads, len(tb.w.truth.sealed))
	tw := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, r := range tb.rows {
		fmt.Fprintf(tw, "%s\t%s\t%s\n", r.class, r.name, r.outcome)
	}
	tw.Flush()
	fmt.Fprintf(&b, "wrong records opened: 0 (the test fails otherwise); the most memory allocated by one read: %.1f MB; the longest: %s", float64(tb.memory)/1e6, tb.slow.Round(time.Millisecond))
	return b.String()
}
