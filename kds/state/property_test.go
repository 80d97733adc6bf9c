package state

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/claviger/claviger/kds/api"
)

// genEntries draws a history with rejected entries in it, of a cluster that
// begins at its level or one below.
// Statements of operators are drawn for the sequence numbers that may come up.
func genEntries(t testing.TB, rt *rapid.T) [][]byte {
	var out [][]byte
	id, err := api.ClusterID(manifest(t), identity)
	if err != nil {
		rt.Fatal(err)
	}
	for i := range rapid.IntRange(1, 40).Draw(rt, "length") {
		var e Entry
		switch rapid.IntRange(0, 14).Draw(rt, fmt.Sprintf("kind %d", i)) {
		case 0:
			e = genesis(t)
		case 1, 2, 3:
			a := admit()
			a.Slot = rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "slot")
			a.Incarnation = rapid.Uint64Range(1, 3).Draw(rt, "incarnation")
			a.ServerID[1] = rapid.ByteMax(7).Draw(rt, "server")
			a.PlatformID = [32]byte{a.Slot[0], rapid.ByteMax(1).Draw(rt, "platform")}
			a.CollateralVersion = rapid.Uint64Range(0, 2).Draw(rt, "version")
			e = a
		case 4, 5, 6:
			p := put(rapid.Uint64Range(1, 6).Draw(rt, "step"))
			p.Key.FMSPC[5] = rapid.ByteMax(3).Draw(rt, "fmspc")
			p.Key.TEE = rapid.SampledFrom([]string{"sgx", "tdx"}).Draw(rt, "tee")
			e = p
		case 7, 8, 9:
			raw, err := api.NewAdmin(id, 1, rapid.Uint64Range(1, 8).Draw(rt, "sequence"), genBody(rt))
			if err != nil {
				rt.Fatal(err)
			}
			e = signed(raw)
		case 10:
			e = &RaiseLevel{Epoch: 1, Level: Level}
		case 11:
			e = commit(rapid.Uint64Range(1, 2).Draw(rt, "epoch"), rapid.SliceOfNDistinct(rapid.ByteMax(3), 1, 3, rapid.ID).Draw(rt, "generations")...)
		default:
			r := release(rapid.Uint64Range(1, 4).Draw(rt, "version"))
			r.CollateralKey.FMSPC[5] = rapid.ByteMax(3).Draw(rt, "fmspc")
			e = r
		}
		out = append(out, encode(t, e))
	}
	first := genesis(t)
	if rapid.Bool().Draw(rt, "a cluster of before") {
		first.Level--
	}
	return append([][]byte{encode(t, first), encode(t, commit(1, 1))}, out...)
}

func genBody(rt *rapid.T) api.AdminBody {
	slot := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(rt, "slot")
	switch rapid.IntRange(0, 9).Draw(rt, "body") {
	case 0:
		return &api.Stop{}
	case 1, 2, 3:
		return &api.RemoveSlot{Slot: slot}
	case 4, 5, 6:
		return &api.NodePolicyChange{Parent: rapid.Uint64Range(1, 3).Draw(rt, "parent"), Constraints: []string{"C:bb"}}
	}
	return &api.Ticket{Slot: slot, ServerID: [32]byte{1, rapid.ByteMax(7).Draw(rt, "server")}, PlatformID: [32]byte{slot[0], 1}}
}

// genRecovery draws a history that is lost at some point, the recovery from
// it, and what comes after.
func genRecovery(t testing.TB, rt *rapid.T) [][]byte {
	m := New()
	for i, raw := range genEntries(t, rt) {
		m.Apply(uint64(i+1), raw)
	}
	if len(m.View().Members) == 0 {
		return nil
	}
	p := recovery(t, m)
	var out [][]byte
	for _, e := range append([]Entry{p.entry()}, p.parts(rapid.IntRange(200, 4000).Draw(rt, "part"))...) {
		out = append(out, encode(t, e))
		if rapid.Bool().Draw(rt, "noise") {
			out = append(out, encode(t, release(1)))
		}
	}
	founder := joining("z", 0xee, 0xee)
	founder.Epoch, founder.NodePolicy, founder.CollateralVersion = 2, m.View().NodePolicy, 1
	return append(out, encode(t, commit(2, 1, 2)), encode(t, founder))
}

// Same entries, same bytes, on any two machines, with a restart from a
// snapshot anywhere in between; and nothing that must not fall falls.
func TestPropertyDeterministic(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		entries := genEntries(t, rt)
		if rapid.Bool().Draw(rt, "a recovery") {
			entries = genRecovery(t, rt)
		}
		cut := rapid.IntRange(0, len(entries)).Draw(rt, "cut")
		one, two := New(), New()
		for i, raw := range entries {
			if i == cut {
				fresh := New()
				if err := fresh.Restore(bytes.NewReader(snap(t, two))); err != nil {
					rt.Fatal(err)
				}
				if !bytes.Equal(snap(t, fresh), snap(t, two)) {
					rt.Fatal("a restored machine writes another snapshot")
				}
				two = fresh
			}
			before := one.View()
			a, b := one.Apply(uint64(i+1), raw), two.Apply(uint64(i+1), raw)
			if fmt.Sprintf("%T %v", a, a) != fmt.Sprintf("%T %v", b, b) {
				rt.Fatalf("entry %d: %v and %v", i, a, b)
			}
			after := one.View()
			if after.TimeFloor.Before(before.TimeFloor) || after.Log.Size < before.Log.Size {
				rt.Fatalf("entry %d: time floor or log fell", i)
			}
		}
		if !bytes.Equal(snap(t, one), snap(t, two)) {
			rt.Fatal("snapshots differ")
		}
	})
}

func FuzzApply(f *testing.F) {
	lost := recovery(f, run(f, genesis(f), put(1), admit()))
	for _, e := range []Entry{genesis(f), put(1), admit(), release(1), &RaiseLevel{Epoch: 1, Level: 2}, commit(1, 1), commit(2, 1, 2), lost.entry(), lost.parts(MaxPart)[0]} {
		f.Add(encode(f, e))
	}
	for _, b := range []api.AdminBody{&api.Stop{}, &api.RemoveSlot{Slot: "a"}, &api.Ticket{Slot: "b", ServerID: [32]byte{2}, PlatformID: [32]byte{2}}} {
		f.Add(encode(f, signed(statement(f, run(f, genesis(f)), b))))
	}
	f.Add([]byte{0x82, 0x18, 0x63, 0x40})
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := run(t, genesis(t), put(1), admit())
		before := snap(t, m)
		result := m.Apply(5, raw)
		if e, err := Decode(raw); err == nil {
			again, err := Encode(e)
			if r, later := e.(*RaiseLevel); later && r.Level > Level {
				again, err = encodeAny(e) // read, never proposed
			}
			if err != nil || !bytes.Equal(again, raw) {
				t.Fatalf("%x decodes, and encodes as %x: %v", raw, again, err)
			}
			if m.Halted() != nil {
				t.Fatalf("halted on a good entry: %v", m.Halted())
			}
			fresh := New()
			if err := fresh.Restore(bytes.NewReader(snap(t, m))); err != nil {
				t.Fatalf("after %v the snapshot does not restore: %v", result, err)
			}
			return
		}
		if err, ok := result.(error); !ok || !errors.Is(err, ErrHalted) || m.View().Applied != 4 {
			t.Fatalf("bad entry gave %v", result)
		}
		m.halted = nil // look past the halt: the state itself must be untouched
		if !bytes.Equal(before, snap(t, m)) {
			t.Fatal("a bad entry changed the state")
		}
	})
}

func FuzzRestore(f *testing.F) {
	f.Add(snap(f, lived(f)))
	f.Add(snap(f, New()))
	half := New()
	half.Apply(1, encode(f, recovery(f, run(f, genesis(f), put(1), admit())).entry()))
	f.Add(snap(f, half))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m := New()
		if err := m.Restore(bytes.NewReader(raw)); err != nil {
			if !errors.Is(err, ErrSnapshot) || m.View().Applied != 0 {
				t.Fatal(err)
			}
			return
		}
		if again := snap(t, m); !bytes.Equal(again, raw) {
			t.Fatalf("restored from %x, written as %x", raw, again)
		}
		m.Apply(m.View().Applied+1, encode(t, put(3)))
		if m.View().Applied != 1<<64-1 && m.Halted() != nil {
			t.Fatal(m.Halted())
		}
	})
}
