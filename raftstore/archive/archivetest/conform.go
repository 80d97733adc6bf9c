package archivetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/claviger/claviger/raftstore"
)

// Conform runs the whole suite but for Stores, Adversary and Blind.
func Conform(t *testing.T, k Kind) {
	for _, c := range []struct {
		name string
		test func(*testing.T, Kind)
	}{
		{"order", testOrder}, {"buffers of the caller", testBuffers}, {"size of a record", testSizes}, {"one boot", testOneBoot},
		{"cut and drop", testTrim}, {"any sequence of calls", testModel}, {"closed", testClosed}, {"one call at a time", testOneAtATime},
		{"acknowledged is on the disk", testDurable}, {"crash at every byte", testCrash}, {"crash while trimming", testTrimCrash},
		{"faults of the disk", testFaults}, {"drop on a full disk", testDropOnAFullDisk},
		{"drop that is not durable", testDropThatIsNotDurable},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.test(t, k)
		})
	}
}

// bench is one archive under test.
type bench struct {
	t    *testing.T
	k    Kind
	root string
	raftstore.Archive
}

func (k Kind) bench(t *testing.T, place Place) *bench {
	t.Helper()
	root := filepath.Join(t.TempDir(), "archives")
	a, err := k.Create(t, root, testID, place)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	return &bench{t, k, root, a}
}

// add appends and syncs.
func (b *bench) add(records ...[]byte) {
	b.t.Helper()
	for _, r := range records {
		if err := b.Append(r); err != nil {
			b.t.Fatal(err)
		}
	}
	if err := b.Sync(); err != nil {
		b.t.Fatal(err)
	}
}

// holds checks what a recovery would find if the machine stopped now.
func (b *bench) holds(want [][]byte) {
	b.t.Helper()
	got, err := b.k.read(b.t, imageOf(b.t, b.root), testID)
	if err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
		b.t.Fatalf("%d records can be read, want %d; %v", len(got), len(want), err)
	}
}

// sample is n records of different sizes that are told apart by their content.
func sample(n int) [][]byte {
	out := make([][]byte, n)
	for i := range out {
		out[i] = bytes.Repeat(fmt.Appendf(nil, "<%d>", i), 1+i%37)
	}
	return out
}

func testOrder(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	want := sample(300)
	b.add(want[:100]...)
	for _, r := range want[100:] {
		b.add(r)
	}
	b.holds(want)
	if err := errors.Join(b.Sync(), b.Sync()); err != nil {
		t.Fatalf("a sync with nothing to do: %v", err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := collect(k.Records(t, b.root, testID)); err != nil || !slices.EqualFunc(got, want, bytes.Equal) {
		t.Fatalf("after Close %d records of %d, %v", len(got), len(want), err)
	}
	some := 0
	for range k.Records(t, b.root, testID) {
		if some++; some == 7 {
			break // a reader that has enough must not be called again
		}
	}
	if some != 7 {
		t.Fatalf("%d records before the break", some)
	}
}

func testBuffers(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	want := sample(50)
	buf := make([]byte, 4096)
	for _, r := range want {
		n := copy(buf, r)
		if err := b.Append(buf[:n]); err != nil {
			t.Fatal(err)
		}
		clear(buf) // the record was valid during the call only
	}
	if err := b.Sync(); err != nil {
		t.Fatal(err)
	}
	b.holds(want)
}

func testSizes(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	largest := bytes.Repeat([]byte{7}, k.MaxRecord)
	want := [][]byte{{1}, largest, {2}, largest, largest, largest, largest, largest, {3}}
	b.add(want...)
	b.holds(want)
	for _, n := range []int{0, k.MaxRecord + 1} {
		b := k.bench(t, nil)
		b.add([]byte("before"))
		if err := b.Append(make([]byte, n)); !errors.Is(err, k.RecordSize) {
			t.Errorf("a record of %d bytes: %v", n, err)
		}
		b.final("a refused record")
		b.holds([][]byte{[]byte("before")})
	}
}

// final checks that an archive which has failed goes on failing.
func (b *bench) final(after string) {
	b.t.Helper()
	for name, err := range map[string]error{"Append": b.Append([]byte("x")), "Sync": b.Sync(), "Cut": b.Cut(), "Drop": b.Drop()} {
		if err == nil {
			b.t.Errorf("after %s, %s succeeds", after, name)
		}
	}
}

func testOneBoot(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	b.add([]byte("one"))
	refused := func(when string) {
		t.Helper()
		if a, err := k.Create(t, b.root, testID, nil); !errors.Is(err, k.Exists) || a != nil {
			t.Errorf("a second archive %s: %v", when, err)
		}
	}
	refused("while the first is open")
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	refused("after the first was closed")
	if got, err := collect(k.Records(t, b.root, testID)); err != nil || len(got) != 1 {
		t.Errorf("the first has %d records, %v", len(got), err)
	}
	other, err := k.Create(t, b.root, raftstore.ServerID{1}, nil)
	if err != nil {
		t.Fatalf("another server id: %v", err)
	}
	other.Close()
	if a, err := k.Create(t, b.root, raftstore.ServerID{}, nil); err == nil || a != nil {
		t.Error("the zero id has an archive")
	}
}

func testTrim(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	r := sample(12)
	step := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	step(b.Drop()) // nothing was cut
	b.add(r[0], r[1])
	step(b.Append(r[2]))
	step(b.Cut()) // with a record that waits
	step(b.Append(r[3]))
	step(b.Sync())
	b.holds(r[:4])
	step(b.Drop())
	b.holds(r[3:4])
	step(b.Drop())
	b.add(r[4])
	b.holds(r[3:5])
	step(b.Cut())
	b.add(r[5])
	step(b.Cut()) // again, with no drop in between
	b.add(r[6])
	b.holds(r[3:7])
	step(b.Drop())
	b.holds(r[6:7])
	b.add(r[7:]...)
	b.holds(r[6:])
}

// testModel makes calls in random order and compares with a list.
func testModel(t *testing.T, k Kind) {
	for seed := range uint64(8) {
		b, rnd := k.bench(t, nil), rand.New(rand.NewPCG(seed, 1))
		var all [][]byte
		cut, first := 0, 0
		for i := range 150 {
			var err error
			switch n := rnd.IntN(100); {
			case n < 60:
				r := bytes.Repeat(fmt.Appendf(nil, "%d/%d;", seed, i), 1+rnd.IntN(800))
				err, all = b.Append(r), append(all, r)
			case n < 85:
				err = b.Sync()
			case n < 93:
				err, cut = b.Cut(), len(all)
			default: // as the store does it
				err, first = errors.Join(b.Sync(), b.Drop()), cut
			}
			if err != nil {
				t.Fatalf("seed %d, call %d: %v", seed, i, err)
			}
		}
		if err := b.Sync(); err != nil {
			t.Fatal(err)
		}
		b.holds(all[first:])
		b.Close()
	}
}

func testClosed(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	b.add([]byte("one"))
	for range 2 {
		if err := b.Close(); err != nil {
			t.Fatalf("close: %v", err)
		}
	}
	b.final("Close")
	b.holds([][]byte{[]byte("one")})
}

// testOneAtATime calls from many goroutines, one at a time, as the store does,
// on two archives at once; the race detector says whether that is enough.
func testOneAtATime(t *testing.T, k Kind) {
	var archives sync.WaitGroup
	for range 2 {
		b := k.bench(t, nil)
		archives.Go(func() {
			var mu sync.Mutex
			var want [][]byte
			var callers sync.WaitGroup
			for i := range 8 {
				callers.Go(func() {
					for j := range 10 {
						r := fmt.Appendf(nil, "%d of %d", j, i)
						mu.Lock()
						want = append(want, r)
						if err := errors.Join(b.Append(r), b.Sync()); err != nil {
							t.Error(err)
						}
						mu.Unlock()
					}
				})
			}
			callers.Wait()
			b.holds(want)
		})
	}
	archives.Wait()
}
