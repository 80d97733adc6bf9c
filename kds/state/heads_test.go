package state

import (
	"bytes"
	"errors"
	"testing"
)

// Every head that was ever shown is found again in a replay; a head of a fork,
// or of later, is not; one before the snapshot is neither, but where the
// snapshot's peaks show it.
func TestHeads(t *testing.T) {
	t.Parallel()
	start := []Entry{genesis(t), commit(1, 1), put(1), admit()}
	h, fork := NewHeads(), NewHeads()
	for i, e := range start {
		h.Apply(uint64(i+1), encode(t, e))
		fork.Apply(uint64(i+1), encode(t, e))
	}
	var shown []Head // as receipts have them
	apply := func(m interface{ Apply(uint64, []byte) any }, index uint64, leaf byte) Head {
		e := release(1)
		e.Leaf = [32]byte{leaf, 1}
		got, ok := m.Apply(index, encode(t, e)).(Released)
		if !ok {
			t.Fatal("rejected")
		}
		return Head{got.Size, got.Root}
	}
	var middle []byte
	for i := range uint64(40) {
		shown = append(shown, apply(h, 5+i, byte(i)))
		if i == 20 {
			middle = snap(t, h.Machine)
		}
	}
	apply(fork, 5, 0)
	forked := apply(fork, 6, 99)
	for _, head := range append(shown, Head{1, headOf(t, start).Root}) {
		if err := h.Check(head.Size, head.Root); err != nil {
			t.Errorf("size %d: %v", head.Size, err)
		}
	}
	if err := h.Check(forked.Size, forked.Root); !errors.Is(err, ErrOtherLog) {
		t.Errorf("a fork: %v", err)
	}
	if err := h.Check(42, [32]byte{1}); !errors.Is(err, ErrBelow) {
		t.Errorf("newer: %v", err)
	}
	for _, size := range []uint64{0, 1 << 63} {
		if err := h.Check(size, [32]byte{}); !errors.Is(err, ErrOtherLog) {
			t.Errorf("a head of %d leaves: %v", size, err)
		}
	}

	// An archive that was trimmed, and rolled back behind the last ten.
	late := NewHeads()
	if err := late.Restore(bytes.NewReader(middle)); err != nil {
		t.Fatal(err)
	}
	for i := uint64(21); i < 30; i++ {
		apply(late, 5+i, byte(i))
	}
	counts := map[error]int{}
	for i, head := range shown { // size is i+2; the snapshot has 22 = 16+4+2 leaves
		err := late.Check(head.Size, head.Root)
		want := error(nil)
		switch size := i + 2; {
		case size > 31:
			want = ErrBelow
		case size < 22 && size != 16 && size != 20:
			want = ErrUnseen
		}
		if !errors.Is(err, want) {
			t.Errorf("size %d: %v, want %v", head.Size, err, want)
		}
		counts[want]++
		head.Root[5] ^= 1
		if err := late.Check(head.Size, head.Root); want == nil && !errors.Is(err, ErrOtherLog) {
			t.Errorf("size %d, another root: %v", head.Size, err)
		}
	}
	if counts[nil] != 12 || counts[ErrBelow] != 10 || counts[ErrUnseen] != 18 {
		t.Errorf("%v", counts)
	}
	if err := late.Restore(bytes.NewReader(nil)); !errors.Is(err, ErrSnapshot) || late.Check(shown[29].Size, shown[29].Root) != nil {
		t.Errorf("a failed restore: %v", err)
	}
}

// headOf is the head after the entries.
func headOf(t *testing.T, entries []Entry) Head { return run(t, entries...).View().Log }

// A log that a recovery brought begins at the head it ended with.
func TestHeadsOfARecovery(t *testing.T) {
	t.Parallel()
	source := lived(t)
	p := recovery(t, source)
	p.keys = operatorKeys[:2]
	h := NewHeads()
	h.Apply(1, encode(t, p.entry()))
	for i, e := range p.parts(300) {
		h.Apply(uint64(i+2), encode(t, e))
	}
	now := h.View().Log
	if err := h.Check(now.Size, now.Root); err != nil || now.Size != source.View().Log.Size+1 {
		t.Errorf("the first leaf: %v", err)
	}
	if err := h.Check(now.Size+1, now.Root); !errors.Is(err, ErrBelow) {
		t.Error(err)
	}
	if err := h.Check(now.Size-1, [32]byte{1}); !errors.Is(err, ErrUnseen) && !errors.Is(err, ErrOtherLog) {
		t.Error(err)
	}
}
