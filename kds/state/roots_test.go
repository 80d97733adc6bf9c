package state

import (
	"bytes"
	"errors"
	"reflect"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// A cluster says once which root each generation is. Nobody is admitted and nothing is released before, and no later entry
// makes a generation another root.
func TestRootsAreCommittedOnce(t *testing.T) {
	t.Parallel()
	m := New()
	rejected(t, "before there is a cluster", m, commit(1, 1), ErrNoCluster)
	if got := next(t, m, genesis(t)); got != (Founded{m.View().ClusterID}) {
		t.Fatal(got)
	}
	next(t, m, put(1))
	rejected(t, "an admission", m, admit(), ErrUncommitted)
	rejected(t, "a release", m, release(1), ErrUncommitted)
	rejected(t, "another epoch", m, commit(2, 1), ErrEpoch)
	rejected(t, "more than there are", m, commit(1, 1, 2), ErrGeneration)
	for range 2 {
		if got := next(t, m, commit(1, 1)); got != (Committed{1}) {
			t.Fatal(got)
		}
		if ids := m.View().GenerationIDs; !reflect.DeepEqual(ids, commit(1, 1).IDs) {
			t.Fatalf("%x", ids)
		}
	}
	rejected(t, "another root", m, commit(1, 7), ErrRoots)
	if got, ok := next(t, m, admit()).(Admitted); !ok {
		t.Fatal(got)
	}
	many := &CommitRoots{Epoch: 1}
	for i := range MaxGenerations + 1 {
		many.IDs = append(many.IDs, [32]byte{1, byte(i), byte(i >> 8)})
	}
	for name, e := range map[string]*CommitRoots{"none": commit(1), "no epoch": commit(0, 1), "a zero": {Epoch: 1, IDs: [][32]byte{{}}}, "one twice": commit(1, 2, 2), "too many": many} {
		if _, err := Encode(e); !errors.Is(err, ErrEntry) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Two recoveries go on from before an epoch that is lost, and make the same generation: by its id it is two.
func TestTwoRecoveriesMakeTwoRoots(t *testing.T) {
	t.Parallel()
	source := run(t, genesis(t), put(1), admit(), release(1))
	var ids [][32]byte
	for _, epoch := range []uint64{2, 3} {
		m := New()
		p := recovery(t, source)
		p.statement.Epoch, p.statement.Enclave = epoch, [32]byte{0xee, byte(epoch)}
		if got := p.open(m, MaxPart); got != (Recovered{m.View().ClusterID, epoch, 2}) {
			t.Fatal(got)
		}
		rejected(t, "without the old root", m, commit(epoch, 9, byte(epoch)), ErrRoots)
		rejected(t, "the old root alone", m, commit(epoch, 1), ErrGeneration)
		if got := next(t, m, commit(epoch, 1, byte(epoch))); got != (Committed{2}) {
			t.Fatal(got)
		}
		v := m.View()
		if v.Generation != 2 || v.GenerationIDs[0] != source.View().GenerationIDs[0] {
			t.Errorf("epoch %d: %x", epoch, v.GenerationIDs)
		}
		ids = append(ids, v.GenerationIDs[1])
		again := New()
		if err := again.Restore(bytes.NewReader(snap(t, m))); err != nil || !reflect.DeepEqual(again.View(), v) {
			t.Errorf("epoch %d from its snapshot: %v", epoch, err)
		}
	}
	if ids[0] == ids[1] {
		t.Error("the two roots of generation 2 have one id")
	}
}

// A cluster of before goes on without ids, in the form that builds of before read; once its level is raised, it commits to its
// roots before anything else is released. A build of before halts there.
func TestRaisedClusterCommits(t *testing.T) {
	t.Parallel()
	low := genesis(t)
	low.Level = LevelRoots - 1
	m := run(t, low, put(1), admit(), release(1))
	rejected(t, "below its level", m, commit(1, 1), ErrLevel)
	old := snap(t, m)
	var form snapshot
	if err := api.UnmarshalCanonical(old, MaxState, &form); err != nil || form.Label != snapshotLabel {
		t.Fatalf("the form of before: %v", err)
	}
	before := NewAt(LevelRoots - 1)
	if err := before.Restore(bytes.NewReader(old)); err != nil {
		t.Fatal(err)
	}
	if err, _ := next(t, before, commit(1, 1)).(error); !errors.Is(err, ErrHalted) || !errors.Is(err, ErrKind) {
		t.Errorf("a build of before: %v", err)
	}
	if got := next(t, m, &RaiseLevel{Epoch: 1, Level: LevelRoots}); got != (Raised{LevelRoots}) {
		t.Fatal(got)
	}
	rejected(t, "a release", m, release(1), ErrUncommitted)
	between := New()
	if err := between.Restore(bytes.NewReader(snap(t, m))); err != nil || !reflect.DeepEqual(between.View(), m.View()) {
		t.Errorf("a snapshot between level and roots: %v", err)
	}
	if got := next(t, m, commit(1, 1)); got != (Committed{1}) {
		t.Fatal(got)
	}
	if got, ok := next(t, m, release(1)).(Released); !ok {
		t.Error(got)
	}
	if err := NewAt(LevelRoots - 1).Restore(bytes.NewReader(snap(t, m))); !errors.Is(err, ErrSnapshot) || !errors.Is(err, ErrKind) {
		t.Errorf("a build of before reads a state with roots: %v", err)
	}
}

// Words that builds of before do not know open no epoch that they could be in.
func TestLostEntriesNeedTheirLevel(t *testing.T) {
	t.Parallel()
	low := genesis(t)
	low.Level = LevelRoots - 1
	for _, level := range []uint64{LevelRoots - 1, LevelRoots} {
		p := recovery(t, run(t, low, put(1), admit()))
		p.level, p.statement.Accept = level, api.Accept(false, true)
		if err, bad := p.open(New(), MaxPart).(error); bad != (level < LevelRoots) || bad && !errors.Is(err, ErrRecovery) {
			t.Errorf("at level %d: %v", level, err)
		}
	}
}
