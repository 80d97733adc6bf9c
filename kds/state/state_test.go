package state

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/claviger/claviger/kds/api"
)

var identity = ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)).Public().(ed25519.PublicKey)

func manifest(t testing.TB) []byte { return manifestOf(t, func(*api.Manifest) {}) }

func manifestOf(t testing.TB, change func(*api.Manifest)) []byte {
	t.Helper()
	m := api.Manifest{
		Version: 1, Name: "test", Root: api.RootOfTrust{ID: [32]byte{1}, Simulated: true}, NodePolicy: []string{"C:aa"},
		Operators: api.Operators{Threshold: 1, Keys: [][]byte{operatorKeys[0].Public().(ed25519.PublicKey)}}, Nonce: [32]byte{1}, OpenSlots: api.MaxOpenSlots,
	}
	change(&m)
	raw, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func genesis(t testing.TB) *Genesis { return genesisOf(t, func(*api.Manifest) {}) }

func genesisOf(t testing.TB, change func(*api.Manifest)) *Genesis {
	return &Genesis{Level: Level, Manifest: manifestOf(t, change), IdentityKey: identity, Epoch: 1, Generation: 1}
}

var key = CollateralKey{TEE: "sgx", FMSPC: [6]byte{1}, CA: "platform"}

func admit() *Admit {
	return &Admit{Epoch: 1, NodePolicy: 1, CollateralKey: key, CollateralVersion: 1, Slot: "a", Incarnation: 1, ServerID: [32]byte{1}, PlatformID: [32]byte{9}, RaftAddr: "h:1", APIAddr: "h:2",
		Level: Level, TEE: "sgx", Measurement: make([]byte, 32), TCBStatus: "UpToDate"}
}

func put(step uint64) *PutCollateral {
	return &PutCollateral{Epoch: 1, Key: key, Bundle: fmt.Appendf(nil, "bundle %d", step), Meta: CollateralMeta{
		TCBEvaluation: step, QEEvaluation: 1, TCBInfoIssue: 1000 + int64(step), QEIdentityIssue: 1000, PCKCRLIssue: 1000, RootCRLIssue: 1000,
		RootCRLNumber: []byte{1}, PCKCRLNumber: []byte{1}, LatestIssue: 1000 + int64(step), CollateralSHA256: [32]byte{byte(step), 1}}}
}

func release(version uint64) *Release {
	return &Release{Epoch: 1, Generation: 1, NodePolicy: 1, CollateralKey: key, CollateralVersion: version, Leaf: [32]byte{byte(version), 7}}
}

func encode(t testing.TB, e Entry) []byte {
	t.Helper()
	raw, err := Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// run applies entries in order and fails on a rejection. Genesis is followed by
// the commitment to its root, where its level has one.
func run(t testing.TB, entries ...Entry) *Machine {
	t.Helper()
	m := New()
	for i, e := range entries {
		if err, bad := next(t, m, e).(error); bad {
			t.Fatalf("entry %d: %v", i, err)
		}
		if g, ok := e.(*Genesis); ok && g.Level >= LevelRoots {
			if err, bad := next(t, m, commit(1, 1)).(error); bad {
				t.Fatal(err)
			}
		}
	}
	return m
}

// next applies an entry at the next index.
func next(t testing.TB, m *Machine, e Entry) any {
	t.Helper()
	return m.Apply(m.View().Applied+1, encode(t, e))
}

// commit is the commitment to the roots of some generations.
func commit(epoch uint64, generations ...byte) *CommitRoots {
	e := &CommitRoots{Epoch: epoch}
	for _, g := range generations {
		e.IDs = append(e.IDs, [32]byte{0xc0, g})
	}
	return e
}

func snap(t testing.TB, m *Machine) []byte {
	t.Helper()
	w, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if _, err := w.WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestResults(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t))
	id, err := api.ClusterID(manifest(t), identity)
	if err != nil {
		t.Fatal(err)
	}
	if v := m.View(); v.ClusterID != id || v.Epoch != 1 || v.NodePolicy != 1 || v.Log.Size != 1 || !v.TimeFloor.IsZero() {
		t.Errorf("after genesis: %+v", v)
	}
	if got := next(t, m, put(1)); got != (Put{1}) {
		t.Errorf("put: %v", got)
	}
	if got := next(t, m, admit()); got.(Admitted).Member.Slot != "a" {
		t.Errorf("admit: %v", got)
	}
	if got := next(t, m, put(1)); got != (Put{1}) {
		t.Errorf("the same set again: %v", got)
	}
	if got := next(t, m, put(2)); got != (Put{2}) {
		t.Errorf("a newer set: %v", got)
	}
	got, ok := next(t, m, release(2)).(Released)
	if !ok || got.Index != 1 || got.Size != 2 {
		t.Errorf("release: %+v", got)
	}
	if v := m.View(); v.Log != (Head{2, got.Root}) || v.Applied != 7 || !v.TimeFloor.Equal(time.Unix(1002, 0)) || len(v.Members) != 1 {
		t.Errorf("at the end: %+v", v)
	}
	if c, ok := m.Collateral(key); !ok || c.Version != 2 || string(c.Bundle) != "bundle 2" {
		t.Errorf("collateral: %+v", c)
	}
}

func TestRejections(t *testing.T) {
	t.Parallel()
	full := []Entry{genesis(t), put(5), admit()}
	with := func(e *Admit, f func(*Admit)) Entry { f(e); return e }
	withRelease := func(f func(*Release)) Entry { e := release(1); f(e); return e }
	withPut := func(f func(*PutCollateral)) Entry { e := put(6); f(e); return e }
	second := func(f func(*Admit)) Entry {
		e := admit()
		e.Incarnation, e.ServerID = 2, [32]byte{2}
		f(e)
		return e
	}
	cases := map[string]struct {
		before []Entry
		e      Entry
		want   error
	}{
		"admit before genesis":    {nil, admit(), ErrNoCluster},
		"release before genesis":  {nil, release(1), ErrNoCluster},
		"second genesis":          {full, genesis(t), ErrFounded},
		"admit of another epoch":  {full, second(func(e *Admit) { e.Epoch = 2 }), ErrEpoch},
		"admit, node policy":      {full, second(func(e *Admit) { e.NodePolicy = 2 }), ErrNodePolicy},
		"admit, other platform":   {full, second(func(e *Admit) { e.PlatformID = [32]byte{8} }), ErrPlatform},
		"admit, same incarnation": {full, second(func(e *Admit) { e.Incarnation = 1 }), ErrIncarnation},
		"admit, skipped":          {full, second(func(e *Admit) { e.Incarnation = 3 }), ErrIncarnation},
		"admit, the holder again": {full, second(func(e *Admit) { e.ServerID = [32]byte{1} }), ErrIncarnation},
		"admit, another's id":     {full, with(admit(), func(e *Admit) { e.Slot, e.PlatformID = "b", [32]byte{8} }), ErrServerID},
		"admit, a second slot":    {full, second(func(e *Admit) { e.Slot, e.Incarnation = "b", 1 }), ErrOneSlot},
		"admit, former holder":    {append(full[:3:3], second(func(*Admit) {})), with(admit(), func(e *Admit) { e.Incarnation = 3 }), ErrSuperseded},
		"admit, former elsewhere": {append(full[:3:3], second(func(*Admit) {})), with(admit(), func(e *Admit) { e.Slot, e.PlatformID = "b", [32]byte{8} }), ErrServerID},
		"admit, old collateral":   {append(full[:3:3], put(6)), second(func(*Admit) {}), ErrCollateral},
		"again, old collateral":   {append(full[:3:3], put(6)), admit(), ErrCollateral},
		"admit, no collateral":    {full, second(func(e *Admit) { e.CollateralKey.CA = "processor" }), ErrCollateral},
		"admit, version 0":        {full, second(func(e *Admit) { e.CollateralKey.CA, e.CollateralVersion = "processor", 0 }), ErrCollateral},
		"admit, future version":   {full, second(func(e *Admit) { e.CollateralVersion = 2 }), ErrCollateral},
		"new slot, incarnation":   {full, second(func(e *Admit) { e.Slot, e.PlatformID = "b", [32]byte{8} }), ErrIncarnation},
		"put, another epoch":      {full, withPut(func(e *PutCollateral) { e.Epoch = 2 }), ErrEpoch},
		"put, older":              {full, put(4), ErrNotNewer},
		"put, falling TCB number": {full, withPut(func(e *PutCollateral) { e.Meta.TCBEvaluation = 4 }), ErrNotNewer},
		"put, falling QE number":  {full, withPut(func(e *PutCollateral) { e.Meta.QEEvaluation = 0 }), ErrNotNewer},
		"put, falling TCB date":   {full, withPut(func(e *PutCollateral) { e.Meta.TCBInfoIssue = 1 }), ErrNotNewer},
		"put, falling QE date":    {full, withPut(func(e *PutCollateral) { e.Meta.QEIdentityIssue = 1 }), ErrNotNewer},
		"put, falling root CRL":   {full, withPut(func(e *PutCollateral) { e.Meta.RootCRLNumber = nil }), ErrNotNewer},
		"put, falling PCK CRL":    {full, withPut(func(e *PutCollateral) { e.Meta.PCKCRLNumber = nil }), ErrNotNewer},
		"put, equal but other":    {full, func() Entry { e := put(5); e.Meta.CollateralSHA256 = [32]byte{99}; return e }(), ErrNotNewer},
		"release, epoch":          {full, withRelease(func(e *Release) { e.Epoch = 2 }), ErrEpoch},
		"release, node policy":    {full, withRelease(func(e *Release) { e.NodePolicy = 0 }), ErrNodePolicy},
		"release, generation 0":   {full, withRelease(func(e *Release) { e.Generation = 0 }), ErrGeneration},
		"release, generation 2":   {full, withRelease(func(e *Release) { e.Generation = 2 }), ErrGeneration},
		"release, version 0":      {full, withRelease(func(e *Release) { e.CollateralVersion = 0 }), ErrCollateral},
		"release, old collateral": {append(full[:3:3], put(6)), release(1), ErrCollateral},
		"release, no collateral":  {full, withRelease(func(e *Release) { e.CollateralKey.TEE = "tdx" }), ErrCollateral},
		"release, no version":     {full, withRelease(func(e *Release) { e.CollateralKey.TEE = "tdx"; e.CollateralVersion = 0 }), ErrCollateral},
		"release, other CA":       {full, withRelease(func(e *Release) { e.CollateralKey.CA = "processor" }), ErrCollateral},
		"release, future version": {full, release(2), ErrCollateral},
	}
	for name, c := range cases {
		m := run(t, c.before...)
		before := m.View()
		err, ok := m.Apply(100, encode(t, c.e)).(error)
		if _, rejected := errors.AsType[*Rejected](err); !ok || !rejected || !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if m.Halted() != nil {
			t.Errorf("%s: a rejection halted the machine", name)
		}
		after := m.View()
		before.Applied = 100
		if !reflect.DeepEqual(before, after) {
			t.Errorf("%s: a rejected entry changed the state:\n%+v\n%+v", name, before, after)
		}
	}
}

// An entry of a later build, or damage, stops the node for good, and keeps
// what it had.
func TestHalt(t *testing.T) {
	t.Parallel()
	unknown, err := api.MarshalCanonical([]any{99, []byte{}})
	if err != nil {
		t.Fatal(err)
	}
	level, err := api.MarshalCanonical([]any{kindGenesis, []any{Level + 1, manifest(t), []byte(identity), 1, 1, []byte{}}})
	if err != nil {
		t.Fatal(err)
	}
	good := encode(t, put(1))
	wrong := put(1)
	wrong.Meta.CollateralSHA256 = [32]byte{}
	body, err := api.MarshalCanonical(wrong)
	if err != nil {
		t.Fatal(err)
	}
	outOfBounds, err := api.MarshalCanonical(envelope{Kind: kindPutCollateral, Body: body})
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		raw  []byte
		want error
	}{
		"unknown kind":  {unknown, ErrKind},
		"later level":   {level, ErrKind},
		"empty":         {nil, ErrEntry},
		"truncated":     {good[:len(good)-1], ErrEntry},
		"trailing":      {append(bytes.Clone(good), 0), ErrEntry},
		"oversized":     {make([]byte, MaxEntry+1), ErrEntry},
		"out of bounds": {outOfBounds, ErrEntry},
	}
	for name, c := range cases {
		m := run(t, genesis(t), put(1), admit())
		before := m.View()
		got, _ := m.Apply(before.Applied+1, c.raw).(error)
		if !errors.Is(got, ErrHalted) || !errors.Is(got, c.want) || !errors.Is(m.Halted(), ErrHalted) {
			t.Errorf("%s: %v", name, got)
		}
		if again, _ := m.Apply(before.Applied+2, good).(error); !errors.Is(again, ErrHalted) {
			t.Errorf("%s: applied on: %v", name, again)
		}
		if !reflect.DeepEqual(before, m.View()) {
			t.Errorf("%s: state changed", name)
		}
		if _, err := m.Snapshot(); !errors.Is(err, ErrHalted) {
			t.Errorf("%s: snapshot of a halted machine: %v", name, err)
		}
		if err := m.Restore(bytes.NewReader(snap(t, run(t, genesis(t))))); !errors.Is(err, ErrHalted) {
			t.Errorf("%s: restored a halted machine: %v", name, err)
		}
	}
	m := run(t, genesis(t))
	if err, _ := m.Apply(1, good).(error); !errors.Is(err, ErrHalted) {
		t.Errorf("an index applied twice: %v", err)
	}
}

// The frontier agrees with the reference implementation for every size, and
// its proofs verify.
func TestFrontierAgainstReference(t *testing.T) {
	t.Parallel()
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(at))
		for i, n := range at {
			out[i] = hashes[n]
		}
		return out, nil
	})
	var f frontier
	const n = 70
	for i := range int64(n) {
		leaf := [32]byte{byte(i), 1}
		stored, err := tlog.StoredHashes(i, leaf[:], reader)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, stored...)
		var proof [][32]byte
		f, proof = f.append(leaf)
		want, err := tlog.TreeHash(i+1, reader)
		if err != nil {
			t.Fatal(err)
		}
		if !f.valid() || f.size != uint64(i+1) || f.root() != [32]byte(want) {
			t.Fatalf("size %d: root %x, want %x", i+1, f.root(), want)
		}
		record := make(tlog.RecordProof, len(proof))
		for j, h := range proof {
			record[j] = h
		}
		if err := tlog.CheckRecord(record, i+1, want, i, tlog.RecordHash(leaf[:])); err != nil {
			t.Fatalf("size %d: %v", i+1, err)
		}
	}
}

// A snapshot that was cut, extended, reordered or changed in what can be
// checked is refused and changes nothing.
func TestRestoreRefusals(t *testing.T) {
	t.Parallel()
	other := put(1)
	other.Key.TEE = "tdx"
	b := admit()
	b.Slot, b.ServerID, b.PlatformID = "b", [32]byte{2}, [32]byte{8}
	newer := admit()
	newer.Incarnation, newer.ServerID = 2, [32]byte{3}
	good := snap(t, run(t, genesis(t), put(1), admit(), b, newer, other, release(1)))
	wait := api.Ticket{Slot: "c", ServerID: [32]byte{7}, PlatformID: [32]byte{7}}
	whole := func(f func(*rootsSnapshot) any) []byte {
		var s rootsSnapshot
		if err := api.UnmarshalCanonical(good, MaxSnapshot, &s); err != nil {
			t.Fatal(err)
		}
		raw, err := api.MarshalCanonical(f(&s))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	change := func(f func(*snapshot)) []byte {
		return whole(func(s *rootsSnapshot) any {
			f(&s.State)
			if s.State.Sequence > 0 { // so that each case fails for its own reason
				s.State.LastStatement = [32]byte{1}
			}
			return s
		})
	}
	roots := func(ids ...[32]byte) []byte {
		return whole(func(s *rootsSnapshot) any { s.Roots = ids; return s })
	}
	cases := map[string][]byte{
		"empty":               nil,
		"cut":                 good[:len(good)-1],
		"trailing":            append(bytes.Clone(good), 0),
		"label":               change(func(s *snapshot) { s.Label = "claviger/state/v1" }),
		"outer label":         whole(func(s *rootsSnapshot) any { s.Label = snapshotLabel; return s }),
		"form of before":      whole(func(s *rootsSnapshot) any { return &s.State }),
		"level of before":     change(func(s *snapshot) { s.Level = LevelRoots - 1 }),
		"too many roots":      roots([32]byte{1}, [32]byte{2}),
		"no id":               roots([32]byte{}),
		"level":               change(func(s *snapshot) { s.Level = Level + 1 }),
		"no cluster":          change(func(s *snapshot) { s.Level = 0 }),
		"manifest":            change(func(s *snapshot) { s.Manifest = s.Manifest[1:] }),
		"epoch":               change(func(s *snapshot) { s.Epoch = 0 }),
		"node policy":         change(func(s *snapshot) { s.NodePolicy = 0 }),
		"frontier":            change(func(s *snapshot) { s.LogSize++ }),
		"huge log":            change(func(s *snapshot) { s.LogSize = 1 << 63 }),
		"unsorted members":    change(func(s *snapshot) { s.Members[0], s.Members[1] = s.Members[1], s.Members[0] }),
		"bad member":          change(func(s *snapshot) { s.Members[0].Slot = "A" }),
		"lost former boot":    change(func(s *snapshot) { s.Members[0].Former = nil }),
		"former and present":  change(func(s *snapshot) { s.Members[0].Former[0] = s.Members[0].ServerID }),
		"two slots, one id":   change(func(s *snapshot) { s.Members[1].ServerID = s.Members[0].ServerID }),
		"two slots, platform": change(func(s *snapshot) { s.Members[1].PlatformID = s.Members[0].PlatformID }),
		"list without a date": change(func(s *snapshot) { s.Collateral[0].Meta.PCKCRLIssue = 0 }),
		"unsorted collateral": change(func(s *snapshot) { s.Collateral[0], s.Collateral[1] = s.Collateral[1], s.Collateral[0] }),
		"no version":          change(func(s *snapshot) { s.Collateral[0].Version = 0 }),
		"fallen floor":        change(func(s *snapshot) { s.TimeFloor = 0 }),
		"collateral version":  change(func(s *snapshot) { s.Collateral[0].Version = 0 }),
		"ended, unsigned":     change(func(s *snapshot) { s.Ended = true }),
		"policy, unsigned":    change(func(s *snapshot) { s.Policy = []string{"C:zz"} }),
		"policy version":      change(func(s *snapshot) { s.NodePolicy, s.Policy = 3, []string{"C:zz"} }),
		"policy, none":        change(func(s *snapshot) { s.NodePolicy, s.Sequence, s.Policy = 2, 9, nil }),
		"ticket, unsigned":    change(func(s *snapshot) { s.Tickets = []api.Ticket{wait} }),
		"ticket, twice":       change(func(s *snapshot) { s.Tickets, s.Sequence = []api.Ticket{wait, wait}, 9 }),
		"ticket, empty":       change(func(s *snapshot) { s.Tickets, s.Sequence = []api.Ticket{{}}, 9 }),
		"ticket of a member": change(func(s *snapshot) {
			s.Tickets, s.Sequence = []api.Ticket{{Slot: "b", ServerID: s.Members[0].ServerID, PlatformID: [32]byte{9}}}, 9
		}),
		"tickets, too many": change(func(s *snapshot) { s.Tickets, s.Sequence = make([]api.Ticket, MaxTickets+1), 99 }),
		"a removed member":  change(func(s *snapshot) { s.Removed, s.Sequence = [][32]byte{s.Members[0].ServerID}, 9 }),
		"removed twice":     change(func(s *snapshot) { s.Removed, s.Sequence = [][32]byte{{5}, {5}}, 9 }),
		"expelled member":   change(func(s *snapshot) { s.Expelled, s.Sequence = [][32]byte{s.Members[0].PlatformID}, 9 }),
		"expelled twice":    change(func(s *snapshot) { s.Expelled, s.Sequence = [][32]byte{{5}, {5}}, 9 }),
		"open slots":        change(func(s *snapshot) { s.Opened = api.MaxOpenSlots + 1 }),
		"nobody":            change(func(s *snapshot) { s.Members = nil }),
		"future admission":  change(func(s *snapshot) { s.Members[0].Admitted = s.Applied + 1 }),
		"member's level":    change(func(s *snapshot) { s.Members[0].Level = 0 }),
		"member's code":     change(func(s *snapshot) { s.Members[0].Measurement = nil }),
		"received, unasked": change(func(s *snapshot) { s.Received = []byte{1} }),
		"empty bundle":      change(func(s *snapshot) { s.Collateral[0].Bundle = nil }),
	}
	for name, raw := range cases {
		m := run(t, genesis(t))
		before := snap(t, m)
		if err := m.Restore(bytes.NewReader(raw)); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v, want ErrSnapshot", name, err)
		}
		if !bytes.Equal(before, snap(t, m)) {
			t.Errorf("%s: state changed", name)
		}
	}
	m := New()
	if err := m.Restore(bytes.NewReader(good)); err != nil || !bytes.Equal(good, snap(t, m)) {
		t.Errorf("the good snapshot: %v", err)
	}
}

// A snapshot taken before further entries does not see them.
func TestSnapshotIsFrozen(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t), put(1), admit())
	want := snap(t, m)
	w, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	e := admit()
	e.Incarnation, e.ServerID = 2, [32]byte{2}
	next(t, m, e)
	next(t, m, put(2))
	next(t, m, release(2))
	var got bytes.Buffer
	if _, err := w.WriteTo(&got); err != nil || !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("the snapshot moved: %v", err)
	}
}

func TestStateIsBounded(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t))
	index := m.Applied()
	apply := func(e Entry) error {
		index++
		err, _ := m.Apply(index, encode(t, e)).(error)
		return err
	}
	for i := range MaxCollateralSets + 1 {
		e := put(1)
		e.Key.FMSPC[4], e.Key.FMSPC[5] = byte(i>>8), byte(i) // the first is the key of admit
		if err := apply(e); (err != nil) != (i == MaxCollateralSets) || err != nil && !errors.Is(err, ErrFull) {
			t.Fatalf("set %d: %v", i, err)
		}
	}
	for i := range maxSlots + 1 {
		e := admit()
		e.Slot, e.ServerID[1], e.PlatformID[1] = fmt.Sprintf("s%d", i), byte(i+1), byte(i+1)
		if i > api.MaxOpenSlots { // the founder's and the open ones need none
			operate(t, m, &api.Ticket{Slot: e.Slot, ServerID: e.ServerID, PlatformID: e.PlatformID})
			index++
		}
		if err := apply(e); (err != nil) != (i == maxSlots) || err != nil && !errors.Is(err, ErrFull) {
			t.Fatalf("slot %d: %v", i, err)
		}
	}
	if _, err := Encode(&PutCollateral{Epoch: 1, Key: key, Meta: put(1).Meta, Bundle: make([]byte, api.MaxCollateral+1)}); !errors.Is(err, ErrEntry) {
		t.Errorf("oversized bundle: %v", err)
	}
	restored := New()
	if err := restored.Restore(bytes.NewReader(snap(t, m))); err != nil {
		t.Errorf("a full state does not restore: %v", err)
	}
}
