package state

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// A boot that was superseded asks again for its slot: never again, however
// many boots came after it, and the present one stays.
func TestSupersededBootCannotReturn(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t), put(1), admit())
	apply := func(e *Admit) any { return m.Apply(m.View().Applied+1, encode(t, e)) }
	for i := range 40 {
		e := admit()
		e.Incarnation, e.ServerID = uint64(i)+2, [32]byte{2, byte(i)}
		if _, ok := apply(e).(Admitted); !ok {
			t.Fatalf("boot %d was not admitted", i)
		}
		back := admit() // the very first boot
		back.Incarnation = e.Incarnation + 1
		if err, _ := apply(back).(error); !errors.Is(err, ErrSuperseded) {
			t.Fatalf("after %d newer boots: %v", i+1, err)
		}
		if got := m.View().Members[0]; got.ServerID != e.ServerID || got.Incarnation != e.Incarnation {
			t.Fatalf("the slot's holder changed: %+v", got)
		}
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(snap(t, m))); err != nil {
		t.Fatal(err)
	}
	back := admit()
	back.Incarnation = m.View().Members[0].Incarnation + 1
	if err, _ := restored.Apply(m.View().Applied+1, encode(t, back)).(error); !errors.Is(err, ErrSuperseded) {
		t.Fatalf("after a snapshot: %v", err)
	}
}

// The list of former boots is bounded, and a state at the bound is one that
// restores.
func TestFormerBootsAreBounded(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t), put(1), admit())
	for i := range MaxFormer + 10 {
		e := admit()
		e.Incarnation, e.ServerID = uint64(i)+2, [32]byte{2, byte(i), byte(i >> 8)}
		if _, ok := m.Apply(m.View().Applied+1, encode(t, e)).(Admitted); !ok {
			t.Fatalf("boot %d was not admitted", i)
		}
	}
	if got := len(m.View().Members[0].Former); got != MaxFormer {
		t.Errorf("%d former boots are kept", got)
	}
	if err := New().Restore(bytes.NewReader(snap(t, m))); err != nil {
		t.Error(err)
	}
}

// The holder of a slot is admitted again after an interruption: the same
// member, and a decision by collateral of today.
func TestHolderIsAdmittedAgain(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t), put(1), admit(), put(2))
	before := m.View().Members
	e := admit()
	if err, _ := next(t, m, e).(error); !errors.Is(err, ErrCollateral) {
		t.Fatalf("by collateral that is over: %v", err)
	}
	e.CollateralVersion = 2
	got, ok := next(t, m, e).(Admitted)
	if !ok || !reflect.DeepEqual(got.Member, before[0]) || !reflect.DeepEqual(m.View().Members, before) {
		t.Fatalf("%+v", got)
	}
}

// Parts of a set are signed one by one: a set is as old as its oldest part.
func TestASetIsAsOldAsItsOldestPart(t *testing.T) {
	t.Parallel()
	for name, m := range map[string]CollateralMeta{
		"list":        {TCBInfoIssue: 9, QEIdentityIssue: 9, PCKCRLIssue: 2, LatestIssue: 9},
		"TCB info":    {TCBInfoIssue: 2, QEIdentityIssue: 9, PCKCRLIssue: 9, LatestIssue: 9},
		"QE identity": {TCBInfoIssue: 9, QEIdentityIssue: 2, PCKCRLIssue: 9, LatestIssue: 9},
	} {
		if m.Oldest() != 2 {
			t.Errorf("old %s: %d", name, m.Oldest())
		}
	}
}

// Two machines claim one slot at the same time: one is admitted.
func TestTwoClaimantsOneAdmitted(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t), put(1), admit())
	claim := func(id byte) any {
		e := admit()
		e.Incarnation, e.ServerID = 2, [32]byte{id}
		return m.Apply(m.View().Applied+1, encode(t, e))
	}
	if got := claim(2); got.(Admitted).Member.ServerID != [32]byte{2} {
		t.Fatalf("first: %v", got)
	}
	if err, _ := claim(3).(error); !errors.Is(err, ErrIncarnation) {
		t.Fatalf("second: %v", err)
	}
}

// What runs in a TD is recorded from the level on at which all builds know it; below that its firmware is, as before, and a
// build of before never sees more.
func TestMeasurementOfATD(t *testing.T) {
	t.Parallel()
	whole := make([]byte, lenTD)
	for i := range whole {
		whole[i] = byte(i)
	}
	low := genesis(t)
	low.Level = LevelRTMRs - 1
	tdKey := CollateralKey{TEE: "tdx", FMSPC: [6]byte{1}, CA: "platform"}
	collateral := put(1)
	collateral.Key = tdKey
	td := func(slot string, id byte, level uint64) *Admit {
		e := admit()
		e.Slot, e.ServerID, e.PlatformID = slot, [32]byte{id}, [32]byte{id}
		e.TEE, e.CollateralKey, e.Measurement = "tdx", tdKey, MeasurementAt(level, whole)
		return e
	}
	m := run(t, low, collateral, td("a", 1, LevelRTMRs-1))
	rejected(t, "below its level", m, td("b", 2, LevelRTMRs), ErrLevel)
	before := NewAt(LevelRTMRs - 1)
	if err := before.Restore(bytes.NewReader(snap(t, m))); err != nil {
		t.Fatal(err)
	}
	if err, _ := next(t, before, td("b", 2, LevelRTMRs)).(error); !errors.Is(err, ErrHalted) || !errors.Is(err, ErrKind) {
		t.Errorf("a build of before: %v", err)
	}
	if got := next(t, m, &RaiseLevel{Epoch: 1, Level: LevelRTMRs}); got != (Raised{LevelRTMRs}) {
		t.Fatal(got)
	}
	if got, ok := next(t, m, td("b", 2, LevelRTMRs)).(Admitted); !ok || !bytes.Equal(got.Member.Measurement, whole) {
		t.Errorf("at its level: %+v", got)
	}
	if v := m.View(); !bytes.Equal(v.Members[0].Measurement, whole[:lenMRTD]) {
		t.Errorf("the member of before: %x", v.Members[0].Measurement)
	}
	again := New()
	if err := again.Restore(bytes.NewReader(snap(t, m))); err != nil || !reflect.DeepEqual(again.View(), m.View()) {
		t.Errorf("from its snapshot: %v", err)
	}
	var form rootsSnapshot
	if err := api.UnmarshalCanonical(snap(t, m), MaxState, &form); err != nil {
		t.Fatal(err)
	}
	form.State.Level--
	forged, err := api.MarshalCanonical(form)
	if err != nil {
		t.Fatal(err)
	}
	if err := New().Restore(bytes.NewReader(forged)); !errors.Is(err, ErrSnapshot) || !strings.Contains(err.Error(), "slot b") {
		t.Errorf("a snapshot of a lower level with registers: %v", err)
	}
}

func TestMeasurementLengths(t *testing.T) {
	t.Parallel()
	for tee, fits := range map[string][]int{"sgx": {lenMRENCLAVE}, "tdx": {lenMRTD, lenTD}, "sev": nil} {
		for _, n := range []int{0, lenMRENCLAVE, lenMRTD, 2 * lenMRTD, lenTD - 1, lenTD, lenTD + 1} {
			e := admit()
			e.TEE, e.CollateralKey.TEE, e.Measurement = tee, tee, make([]byte, n)
			if _, err := Encode(e); (err == nil) != slices.Contains(fits, n) {
				t.Errorf("%s with %d bytes: %v", tee, n, err)
			}
		}
	}
}
