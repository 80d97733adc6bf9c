package archivetest

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/claviger/claviger/raftstore"
)

// testDurable: Sync succeeds only if the kernel has been asked to make the
// records durable and has said yes; what it acknowledged is in the files without
// any Close.
func testDurable(t *testing.T, k Kind) {
	th := newThread(t)
	b := k.bench(t, th.Place)
	want := sample(20)
	for i, r := range want {
		b.add(r)
		if i%5 == 0 {
			b.holds(want[:i+1])
		}
	}
	if err := th.Refuse(syncsFail(syscall.EIO)); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Append([]byte("never acknowledged")), b.Sync()); err == nil {
		t.Fatal("records were acknowledged that the kernel did not make durable")
	}
	b.final("an fsync that failed")
	got, _ := k.read(t, imageOf(t, b.root), testID)
	if len(got) < len(want) || !slices.EqualFunc(got[:len(want)], want, bytes.Equal) {
		t.Fatalf("%d records are left of %d that were acknowledged", len(got), len(want))
	}
}

// crash is one state that a disk may be found in after the power went.
type crash struct {
	name string
	img  image
}

// crashes lists the states between two images: before, all of which was durable,
// and after, whose difference was being written. Plain files are appended to, so
// any part of the new bytes may be there, with zeros or rubbish behind it.
func (k Kind) crashes(before, after image) []crash {
	if k.Paged {
		return pagedCrashes(before, after)
	}
	var out []crash
	for _, name := range after.names() {
		old, new := before[name], after[name]
		if bytes.Equal(old, new) {
			continue
		}
		for n := len(old); n <= len(new); n++ {
			cut := after.clone()
			cut[name] = cut[name][:n]
			out = append(out, crash{fmt.Sprintf("%s: %d of %d bytes", name, n, len(new)), cut})
			for what, fill := range map[string]byte{"zeros": 0, "rubbish": 0xa5} {
				torn := after.clone()
				for i := n; i < len(new); i++ {
					torn[name][i] = fill
				}
				out = append(out, crash{fmt.Sprintf("%s: %d bytes, %s up to %d", name, n, what, len(new)), torn})
			}
		}
	}
	return out
}

const (
	pageSize   = 4096
	headPages  = 2   // written after all others are durable
	sectorSize = 512 // what a disk writes in one piece
)

// pagedCrashes is the same for a file of pages that are never changed in place,
// except the two heads, of which one is written when everything else is durable.
// First any sectors of the new pages are there, under the old head; then all of
// them, and any part of the new head.
func pagedCrashes(before, after image) []crash {
	var out []crash
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, name := range after.names() {
		old, new := before[name], after[name]
		size := max(len(old), len(new))
		base, full := make([]byte, size), make([]byte, size)
		copy(base, old)
		copy(full, new)
		var changed []int // sectors outside the heads
		for at := headPages * pageSize; at < size; at += sectorSize {
			if end := min(at+sectorSize, size); !bytes.Equal(base[at:end], full[at:end]) {
				changed = append(changed, at)
			}
		}
		state := func(what string, edit func(b []byte)) {
			img := after.clone()
			img[name] = slices.Clone(base)
			edit(img[name])
			out = append(out, crash{name + ": " + what, img})
		}
		sector := func(b []byte, at int) { copy(b[at:min(at+sectorSize, size)], full[at:]) }
		for n := range len(changed) + 1 {
			state(fmt.Sprintf("%d of %d sectors", n, len(changed)), func(b []byte) {
				for _, at := range changed[:n] {
					sector(b, at)
				}
			})
			state(fmt.Sprintf("%d sectors of any", n), func(b []byte) {
				for _, i := range rnd.Perm(len(changed))[:n] {
					sector(b, changed[i])
				}
			})
		}
		for head := range headPages {
			at := head * pageSize
			if bytes.Equal(base[at:at+pageSize], full[at:at+pageSize]) {
				continue
			}
			for n := range 129 { // the head's fields are in its first bytes
				state(fmt.Sprintf("%d bytes of head %d", n, head), func(b []byte) {
					copy(b[headPages*pageSize:], full[headPages*pageSize:])
					copy(b[at:at+n], full[at:])
				})
			}
		}
	}
	return out
}

// testCrash tears the last record at every byte: all that was acknowledged
// before is there, and nothing but the record in flight may follow.
func testCrash(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	want := sample(9)
	b.add(want[:8]...)
	before := imageOf(t, b.root)
	b.add(want[8])
	after := imageOf(t, b.root)
	states, torn, whole := k.crashes(before, after), 0, 0
	for _, c := range states {
		got, err := k.read(t, c.img, testID)
		if len(got) < 8 || !slices.EqualFunc(got[:8], want[:8], bytes.Equal) {
			t.Fatalf("%s: %d records are left of 8 that were acknowledged, %v", c.name, len(got), err)
		}
		if err != nil {
			torn++
		}
		if len(got) == 9 && bytes.Equal(got[8], want[8]) {
			whole++
		}
		// What follows the acknowledged may be rubbish: whether it is a record is for the Opener to say.
		if len(got) > 9 && err == nil {
			t.Fatalf("%s: %d records and no error", c.name, len(got))
		}
	}
	if len(states) < 20 || whole == 0 || whole == len(states) {
		t.Fatalf("%d states, the last record is whole in %d: the test does not tear", len(states), whole)
	}
	t.Logf("%s: %d states of the disk; in all of them the 8 acknowledged records; the record in flight whole in %d, an error at the end in %d",
		k.Name, len(states), whole, torn)
}

// testTrimCrash stops between the steps of trimming. What was synced behind the
// cut is there at each of them.
func testTrimCrash(t *testing.T, k Kind) {
	b := k.bench(t, nil)
	r := sample(8)
	b.add(r[:3]...)
	steps := []struct {
		name string
		do   func() error
	}{
		{"cut", b.Cut}, {"checkpoint", func() error { return errors.Join(b.Append(r[3]), b.Sync()) }},
		{"drop", b.Drop}, {"append", func() error { return errors.Join(b.Append(r[4]), b.Sync()) }}, {"drop again", b.Drop},
	}
	have := map[string][2]int{"cut": {0, 3}, "checkpoint": {0, 4}, "drop": {3, 4}, "append": {3, 5}, "drop again": {3, 5}}
	before := imageOf(t, b.root)
	for _, s := range steps {
		if err := s.do(); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		span := have[s.name]
		b.holds(r[span[0]:span[1]])
		if s.name == "drop" {
			b.dropCrashes(before, r[3:4], r[:4])
		}
		before = imageOf(t, b.root)
	}
}

// failedDrop is an archive of four records whose drop of the first three has failed by a fault of the disk.
func failedDrop(t *testing.T, k Kind, fault []Rule) (b *bench, written [][]byte) {
	t.Helper()
	th := newThread(t)
	b, written = k.bench(t, th.Place), sample(4)
	b.add(written[:3]...)
	if err := errors.Join(b.Cut(), b.Append(written[3]), b.Sync()); err != nil {
		t.Fatal(err)
	}
	if err := th.Refuse(fault); err != nil {
		t.Fatal(err)
	}
	if err := b.Drop(); err == nil {
		t.Fatal("nothing failed")
	}
	return b, written
}

// testDropOnAFullDisk: a drop for which there is no room takes nothing; what was acknowledged can be read.
func testDropOnAFullDisk(t *testing.T, k Kind) {
	b, written := failedDrop(t, k, writesFail(syscall.ENOSPC))
	got, err := k.read(t, imageOf(t, b.root), testID)
	if err != nil || !slices.EqualFunc(got, written, bytes.Equal) {
		t.Fatalf("%d records of %d, %v", len(got), len(written), err)
	}
}

// testDropThatIsNotDurable: a drop whose fsync fails takes nothing that counts. In a database
// the kernel may show a head that the disk does not have, and the next record
// would be written over what the disk's own head leads to: so that is final.
func testDropThatIsNotDurable(t *testing.T, k Kind) {
	b, written := failedDrop(t, k, syncsFail(syscall.EIO))
	if k.Paged {
		if err := b.Sync(); err == nil { // of nothing: the disk is not asked
			t.Fatal("the archive goes on")
		}
		b.final("a drop that was not made durable")
	}
	b.within(crash{"as it was left", imageOf(t, b.root)}, written[3:], written)
}

// dropCrashes leaves any of the files that a drop removes, and the note where to begin, torn or whole.
func (b *bench) dropCrashes(before image, least, most [][]byte) {
	b.t.Helper()
	after := imageOf(b.t, b.root)
	if b.k.Paged {
		for _, c := range pagedCrashes(before, after) {
			b.within(c, least, most)
		}
		return
	}
	for _, name := range after.names() {
		if _, old := before[name]; !old {
			for n := range after[name] {
				b.within(crash{fmt.Sprintf("%s with %d bytes", name, n), before.with(name, after[name][:n])}, least, most)
			}
		}
	}
	for _, name := range before.names() {
		if _, left := after[name]; left {
			continue
		}
		img := after.clone() // the note is durable before the first file goes
		img[name] = before[name]
		b.within(crash{"removed late: " + name, img}, least, most)
	}
}

// within checks that one of the two lists can be read.
func (b *bench) within(c crash, least, most [][]byte) {
	b.t.Helper()
	got, err := b.k.read(b.t, c.img, testID)
	if err != nil || !slices.EqualFunc(got, least, bytes.Equal) && !slices.EqualFunc(got, most, bytes.Equal) {
		b.t.Fatalf("%s: %d records, %v", c.name, len(got), err)
	}
}

// testFaults: each way a disk fails is reported once, with its reason, and is final; what was acknowledged before stays.
func testFaults(t *testing.T, k Kind) {
	for _, f := range diskFaults() {
		t.Run(f.Name, func(t *testing.T) {
			t.Parallel()
			th := newThread(t)
			b := k.bench(t, th.Place)
			want := sample(10)
			b.add(want...)
			if err := th.Refuse(f.Rules); err != nil {
				t.Fatal(err)
			}
			err := f.Do(b)
			if f.Name == "a new file cannot be made" && err == nil && k.Paged {
				b.add([]byte("a database makes no new files"))
				return
			}
			if err == nil {
				t.Fatal("nothing failed")
			}
			// A client is told one errno, which asks something of an operator, and the text of the others.
			if !errors.Is(err, f.Errno) && (!k.Distant || f.Errno == syscall.ENOSPC) {
				t.Errorf("the reason is lost: %v", err)
			}
			b.final(f.Name)
			got, _ := k.read(t, imageOf(t, b.root), testID)
			if len(got) < len(want) || !slices.EqualFunc(got[:len(want)], want, bytes.Equal) {
				t.Fatalf("%d records are left of %d that were acknowledged", len(got), len(want))
			}
		})
	}
}

// diskFault is one way in which a disk fails.
type diskFault struct {
	Name  string
	Rules []Rule
	Errno syscall.Errno
	// Do makes the archive use the disk in the way that fails.
	Do func(raftstore.Archive) error
}

func appendAndSync(a raftstore.Archive) error {
	return errors.Join(a.Append([]byte("in flight")), a.Sync())
}

// diskFaults are the faults that a filter can make; a disk that is full in the middle of a write is [Full].
func diskFaults() []diskFault {
	return []diskFault{
		{"disk full", writesFail(syscall.ENOSPC), syscall.ENOSPC, appendAndSync},
		{"write error", writesFail(syscall.EIO), syscall.EIO, appendAndSync},
		{"read-only file system", writesFail(syscall.EROFS), syscall.EROFS, appendAndSync},
		{"quota", writesFail(syscall.EDQUOT), syscall.EDQUOT, appendAndSync},
		{"fsync error", syncsFail(syscall.EIO), syscall.EIO, appendAndSync},
		{"fsync finds the disk full", syncsFail(syscall.ENOSPC), syscall.ENOSPC, appendAndSync},
		{"cut on a full disk", writesFail(syscall.ENOSPC), syscall.ENOSPC, func(a raftstore.Archive) error {
			return errors.Join(a.Append([]byte("in flight")), a.Cut())
		}},
		{"a new file cannot be made", opensFail(syscall.ENOSPC), syscall.ENOSPC, func(a raftstore.Archive) error {
			return errors.Join(a.Append([]byte("in flight")), a.Cut(), a.Sync())
		}},
	}
}
