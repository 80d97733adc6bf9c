package persist_test

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/persist/persisttest"
)

// build makes a store with three commits of one sector each and closes it. The
// slot is: header, checkpoint end, commits 2, 3 and 4.
func build(t *testing.T, o persist.Options) {
	t.Helper()
	m := mustCreate(t, o)
	mustPut(t, m, "a", "1")
	mustPut(t, m, "a", "2")
	mustPut(t, m, "a", "3")
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
}

const sector = 512

func with(slot []byte) *persisttest.Files {
	f := persisttest.NewFiles()
	f.Set("store.a", slot)
	return f
}

func TestWrongKeyAndName(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	build(t, unsafeOptions(t, files))
	o := unsafeOptions(t, files)
	o.Key = testKey(t, 'x')
	wantOpen(t, o, persist.ErrWrongKey)
	files.Set("other.a", files.Bytes("store.a"))
	o = unsafeOptions(t, files)
	o.Name = "other"
	wantOpen(t, o, persist.ErrCorrupt)
}

func TestTornTailIsDropped(t *testing.T) {
	t.Parallel()
	files, register := persisttest.NewFiles(), new(persisttest.Register)
	build(t, freshOptions(t, files, register))
	slot := files.Bytes("store.a")
	if len(slot) != 5*sector {
		t.Fatalf("the slot has %d bytes", len(slot))
	}
	for n := len(slot) - sector; n < len(slot); n++ {
		m := mustOpen(t, unsafeOptions(t, with(slot[:n])))
		if got := contents(t, m); got != "a=2" {
			t.Fatalf("cut at %d: %q, want the commit before", n, got)
		}
		// The store goes on from there, and the dropped record stays dropped.
		mustPut(t, m, "b", "new")
		m.Close()
		// The register was told of the cut commit: now the cut is a rollback.
		wantOpen(t, freshOptions(t, with(slot[:n]), register), persist.ErrRolledBack)
	}
	// What is left of a long torn record does not follow a short new one.
	long := persisttest.NewFiles()
	m := mustCreate(t, unsafeOptions(t, long))
	mustPut(t, m, "long", strings.Repeat("x", 5000))
	m.Close()
	whole := long.Bytes("store.a")
	cut := with(whole[:len(whole)-100])
	m = mustOpen(t, unsafeOptions(t, cut))
	mustPut(t, m, "short", "y")
	m.Close()
	if got := contents(t, mustOpen(t, unsafeOptions(t, cut))); got != "short=y" {
		t.Fatalf("after a long torn record: %q", got)
	}
	// A file that grew before its data was written.
	hole := slices.Concat(slot[:len(slot)-sector], make([]byte, sector))
	if got := contents(t, mustOpen(t, unsafeOptions(t, with(hole)))); got != "a=2" {
		t.Fatalf("zeros in place of the last record: %q", got)
	}
}

func TestEveryChangedByteIsRefused(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	build(t, unsafeOptions(t, files))
	slot := files.Bytes("store.a")
	for i := range slot {
		bad := slices.Clone(slot)
		bad[i] ^= 1 << (i % 8)
		_, err := persist.Open(t.Context(), unsafeOptions(t, with(bad)))
		if !errors.Is(err, persist.ErrCorrupt) && !errors.Is(err, persist.ErrWrongKey) {
			t.Fatalf("byte %d changed: %v", i, err)
		}
		if errors.Is(err, persist.ErrWrongKey) && i >= sector {
			t.Fatalf("byte %d changed: reported as a wrong key", i)
		}
	}
}

func TestMovedRecordsAreRefused(t *testing.T) {
	t.Parallel()
	files, twin := persisttest.NewFiles(), persisttest.NewFiles()
	build(t, unsafeOptions(t, files))
	build(t, unsafeOptions(t, twin)) // same key, name and history, another store
	s, other := files.Bytes("store.a"), twin.Bytes("store.a")
	at := func(b []byte, i int) []byte { return b[i*sector : (i+1)*sector] }
	for name, slot := range map[string][]byte{
		"cut in the checkpoint":    s[:sector+100],
		"header only":              s[:sector],
		"half a header":            s[:100],
		"a record dropped":         slices.Concat(s[:2*sector], s[3*sector:]),
		"two records exchanged":    slices.Concat(s[:2*sector], at(s, 3), at(s, 2), at(s, 4)),
		"a record repeated":        slices.Concat(s, at(s, 4)),
		"a twin's record":          slices.Concat(s[:4*sector], at(other, 4)),
		"a twin's header":          slices.Concat(other[:sector], s[sector:]),
		"a twin's checkpoint":      slices.Concat(s[:sector], at(other, 1), s[2*sector:]),
		"an interior hole":         slices.Concat(s[:2*sector], make([]byte, sector), s[3*sector:]),
		"trailing bytes":           slices.Concat(s, bytes.Repeat([]byte{7}, 40)),
		"one empty sector too few": slices.Concat(s[:2*sector], s[2*sector+1:]),
	} {
		_, err := persist.Open(t.Context(), unsafeOptions(t, with(slot)))
		if !errors.Is(err, persist.ErrCorrupt) {
			t.Errorf("%s: %v, want ErrCorrupt", name, err)
		}
	}
	// Two branches of one store, from before the same commits.
	branch := func(v string) []byte {
		f := with(s[:4*sector])
		m := mustOpen(t, unsafeOptions(t, f))
		mustPut(t, m, "branch", v)
		mustPut(t, m, "branch", v+v)
		m.Close()
		return f.Bytes("store.a")
	}
	one, two := branch("1"), branch("2")
	wantOpen(t, unsafeOptions(t, with(slices.Concat(one[:5*sector], two[5*sector:]))), persist.ErrCorrupt)
	mixed := with(s)
	mixed.Set("store.b", other)
	wantOpen(t, unsafeOptions(t, mixed), persist.ErrCorrupt)
}

func TestRegisterRevealsRollback(t *testing.T) {
	t.Parallel()
	files, register := persisttest.NewFiles(), new(persisttest.Register)
	o := freshOptions(t, files, register)
	m := mustCreate(t, o)
	var states []*persisttest.Files
	for _, v := range []string{"1", "2", "3"} {
		states = append(states, files.Clone())
		mustPut(t, m, "a", v)
	}
	if err := m.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	compacted := files.Clone()
	mustPut(t, m, "a", "4")
	m.Close()
	for i, old := range append(states, compacted) {
		wantOpen(t, freshOptions(t, old, register), persist.ErrRolledBack)
		if i > 0 { // without a register the same copy opens: the documented limit
			mustOpen(t, unsafeOptions(t, old)).Close()
		}
	}
	wantOpen(t, freshOptions(t, persisttest.NewFiles(), register), persist.ErrRolledBack)
	if _, err := persist.Create(t.Context(), freshOptions(t, persisttest.NewFiles(), register)); !errors.Is(err, persist.ErrExists) {
		t.Fatalf("Create beside a used register: %v, want ErrExists", err)
	}
	wantOpen(t, freshOptions(t, files, new(persisttest.Register)), persist.ErrRolledBack)
	// The old slot put back beside the new one does not bring anything back.
	mixed := files.Clone()
	mixed.Set("store.a", states[2].Bytes("store.a"))
	if got := contents(t, mustOpen(t, freshOptions(t, mixed, register))); got != "a=4" {
		t.Fatalf("mixed slots: %q", got)
	}
	if n := len(mixed.Bytes("store.a")); n != 0 { // or later damage to the new one would bring it back
		t.Fatalf("the old slot keeps %d bytes", n)
	}
	if got := contents(t, mustOpen(t, o)); got != "a=4" {
		t.Fatalf("the newest state: %q", got)
	}
}

func TestRegisterRevealsForks(t *testing.T) {
	t.Parallel()
	register := new(persisttest.Register)
	here := persisttest.NewFiles()
	mustCreate(t, freshOptions(t, here, register)).Close()
	there := here.Clone() // the host runs the enclave twice
	m1 := mustOpen(t, freshOptions(t, here, register))
	m2 := mustOpen(t, freshOptions(t, there, register))
	mustPut(t, m1, "from", "m1")
	if err := put(t.Context(), m2, "from", "m2"); !errors.Is(err, persist.ErrConflict) {
		t.Fatalf("the fork's commit: %v, want ErrConflict", err)
	}
	if err := put(t.Context(), m2, "again", "m2"); !errors.Is(err, persist.ErrConflict) {
		t.Fatalf("the fork goes on: %v", err)
	}
	if err := m2.View(t.Context(), func(*persist.Tx) error { return nil }); !errors.Is(err, persist.ErrConflict) {
		t.Fatalf("the fork still reads: %v", err)
	}
	m2.Close()
	wantOpen(t, freshOptions(t, there, register), persist.ErrRolledBack)
	mustPut(t, m1, "more", "m1")
	if got := contents(t, m1); got != "from=m1 more=m1" {
		t.Fatalf("the confirmed branch: %q", got)
	}
}

func TestRegisterUnknownOutcome(t *testing.T) {
	t.Parallel()
	files, register := persisttest.NewFiles(), new(persisttest.Register)
	o := freshOptions(t, files, register)
	m := mustCreate(t, o)
	register.LoseAnswer = 1 // it happened; asking again settles it
	mustPut(t, m, "a", "1")
	register.Refuse = 1 // it did not happen; asking again makes it
	mustPut(t, m, "a", "2")
	register.LoseAnswer = 2 // it happened and nobody says so
	if err := put(t.Context(), m, "a", "3"); !errors.Is(err, persist.ErrFailed) {
		t.Fatalf("unknown outcome: %v, want ErrFailed", err)
	}
	if err := put(t.Context(), m, "a", "x"); !errors.Is(err, persist.ErrFailed) {
		t.Fatalf("the Map goes on after an unknown outcome: %v", err)
	}
	m.Close()
	m = mustOpen(t, o)
	if got := contents(t, m); got != "a=3" {
		t.Fatalf("%q, want the confirmed state", got)
	}
	register.Refuse = 2 // written, never confirmed
	if err := put(t.Context(), m, "a", "4"); !errors.Is(err, persist.ErrFailed) {
		t.Fatalf("unconfirmed: %v, want ErrFailed", err)
	}
	m.Close()
	mustOpen(t, o).Close() // confirms the record it found
	if got := contents(t, mustOpen(t, o)); got != "a=4" {
		t.Fatalf("%q", got)
	}
}
