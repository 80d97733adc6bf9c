package persist_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/persist/persisttest"
)

func render(model map[string]string) string {
	var list []string
	for _, k := range slices.Sorted(maps.Keys(model)) {
		list = append(list, k+"="+model[k])
	}
	return strings.Join(list, " ")
}

// script runs a fixed life of a store: creation, commits, compaction, reopening.
// It returns the states that a reader may find afterwards: the last acknowledged
// one, and the one of an operation whose outcome is unknown. created is false
// while Create has not been acknowledged.
func script(ctx context.Context, o persist.Options) (sure, maybe string, created bool, err error) {
	model := map[string]string{}
	m, err := persist.Create(ctx, o)
	if err != nil {
		return "", "", false, err
	}
	defer func() { m.Close() }()
	for i := range 6 {
		before := render(model)
		model[fmt.Sprint("k", i%4)] = strings.Repeat(fmt.Sprint(i), 300*i)
		delete(model, fmt.Sprint("k", (i+2)%4))
		err := m.Update(ctx, func(tx *persist.Tx) error {
			return errors.Join(
				tx.Put([]byte(fmt.Sprint("k", i%4)), []byte(strings.Repeat(fmt.Sprint(i), 300*i))),
				tx.Delete([]byte(fmt.Sprint("k", (i+2)%4))))
		})
		if err != nil {
			return before, render(model), true, err
		}
		switch i {
		case 1, 4:
			err = m.Compact(ctx)
		case 3:
			if err = m.Close(); err == nil {
				var again *persist.Map
				if again, err = persist.Open(ctx, o); err == nil {
					m = again
				}
			}
		}
		if err != nil {
			return render(model), render(model), true, err
		}
	}
	return render(model), render(model), true, nil
}

// TestCrashAtEveryStep stops the store's life at each changing operation, as by
// power loss, and opens what several disks could hold.
func TestCrashAtEveryStep(t *testing.T) {
	t.Parallel()
	for _, registered := range []bool{false, true} {
		options := func(f persist.Files, r persist.Register) persist.Options {
			if registered {
				return freshOptions(t, f, r)
			}
			return unsafeOptions(t, f)
		}
		files := persisttest.NewFiles()
		if _, _, _, err := script(t.Context(), options(files, new(persisttest.Register))); err != nil {
			t.Fatal(err)
		}
		steps := files.Ops()
		if steps < 30 {
			t.Fatalf("only %d steps", steps)
		}
		for step := 1; step <= steps; step++ {
			files, register := persisttest.NewFiles(), new(persisttest.Register)
			files.FailAt(step, true)
			sure, maybe, created, _ := script(t.Context(), options(files, register))
			for seed := range uint64(12) {
				rng := rand.New(rand.NewPCG(uint64(step), seed))
				disk := files.Crash(rng.IntN)
				m, err := persist.Open(t.Context(), options(disk, register))
				if !created && errors.Is(err, persist.ErrNotFound) {
					m, err = persist.Create(t.Context(), options(disk, register))
				}
				if err != nil {
					t.Fatalf("step %d, disk %d (register %v): %v", step, seed, registered, err)
				}
				if got := contents(t, m); got != sure && got != maybe {
					t.Fatalf("step %d, disk %d: %.80q\nwant %.80q\n  or %.80q", step, seed, got, sure, maybe)
				}
				if !registered { // a register serves one disk only
					mustPut(t, m, "alive", "yes")
				}
				m.Close()
				if registered {
					break
				}
			}
		}
	}
}

// TestFailedOperationAtEveryStep fails one operation and lets the process live:
// what it then reports must agree with what a reader finds.
func TestFailedOperationAtEveryStep(t *testing.T) {
	t.Parallel()
	failed := 0
	for step := 1; step <= 60; step++ {
		files := persisttest.NewFiles()
		files.FailAt(step, false)
		o := unsafeOptions(t, files)
		sure, maybe, created, err := script(t.Context(), o)
		if err != nil {
			failed++
		}
		if !created {
			continue
		}
		m, err := persist.Open(t.Context(), o)
		if err != nil {
			t.Fatalf("step %d: %v", step, err)
		}
		if got := contents(t, m); got != sure && got != maybe {
			t.Fatalf("step %d: %.80q, want %.80q or %.80q", step, got, sure, maybe)
		}
		m.Close()
	}
	if failed < 20 {
		t.Fatalf("only %d of the faults were felt", failed)
	}
}

// TestFullDiskRefusesAndGoesOn: a write that fails and can be undone costs one
// transaction, not the store.
func TestFullDiskRefusesAndGoesOn(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	o := unsafeOptions(t, files)
	m := mustCreate(t, o)
	mustPut(t, m, "a", "1")
	files.FailAt(1, false)
	err := put(t.Context(), m, "a", strings.Repeat("2", 5000))
	if !errors.Is(err, persisttest.ErrInjected) || errors.Is(err, persist.ErrFailed) {
		t.Fatalf("a failed write: %v", err)
	}
	mustPut(t, m, "b", "2")
	files.FailAt(2, false) // the fsync
	if err := put(t.Context(), m, "a", "3"); !errors.Is(err, persist.ErrFailed) {
		t.Fatalf("a failed fsync: %v, want ErrFailed", err)
	}
	if err := m.View(t.Context(), func(*persist.Tx) error { return nil }); !errors.Is(err, persist.ErrFailed) {
		t.Fatalf("reading after a failed fsync: %v", err)
	}
}

// TestFailedCompactionCostsNothing fails each step of a compaction; the store goes
// on in the old slot, and a reader finds every commit.
func TestFailedCompactionCostsNothing(t *testing.T) {
	t.Parallel()
	failed := 0
	for step := 1; step <= 5; step++ {
		files := persisttest.NewFiles()
		o := unsafeOptions(t, files)
		m := mustCreate(t, o)
		mustPut(t, m, "a", "1")
		files.FailAt(step, false)
		if err := m.Compact(t.Context()); err != nil {
			failed++
		}
		files.FailAt(0, false)
		for i := range 3 {
			disk := files.Crash(rand.New(rand.NewPCG(uint64(step), uint64(i))).IntN)
			if got := contents(t, mustOpen(t, unsafeOptions(t, disk))); got != "a=1" {
				t.Fatalf("step %d: %q", step, got)
			}
		}
		mustPut(t, m, "b", "2")
		m.Close()
		if got := contents(t, mustOpen(t, o)); got != "a=1 b=2" {
			t.Fatalf("step %d: %q", step, got)
		}
	}
	if failed < 4 {
		t.Fatalf("only %d compactions failed", failed)
	}
}

func TestCompactionByItself(t *testing.T) {
	t.Parallel()
	files, register := persisttest.NewFiles(), new(persisttest.Register)
	o := freshOptions(t, files, register)
	m := mustCreate(t, o)
	value, largest := strings.Repeat("v", 100<<10), 0
	for i := range 100 {
		mustPut(t, m, fmt.Sprint("k", i%3), value[:len(value)-i])
		largest = max(largest, len(files.Bytes("store.a"))+len(files.Bytes("store.b")))
	}
	if largest > 4<<20 {
		t.Fatalf("100 values of 100 KiB under 3 keys grew the files to %d bytes", largest)
	}
	before := contents(t, m)
	m.Close()
	if contents(t, mustOpen(t, o)) != before {
		t.Fatal("the compacted store differs")
	}
}

// TestModel compares the store with a map over random transactions, compactions,
// reopenings and crashes.
func TestModel(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		files, register := persisttest.NewFiles(), new(persisttest.Register)
		m, err := persist.Create(t.Context(), freshOptions(t, files, register))
		if err != nil {
			rt.Fatal(err)
		}
		model := map[string]string{}
		keys := rapid.SampledFrom([]string{"a", "b", "b/1", "b/2", "c", "\xff"})
		reopen := func(f *persisttest.Files) {
			files = f
			if m, err = persist.Open(t.Context(), freshOptions(t, files, register)); err != nil {
				rt.Fatal(err)
			}
		}
		rt.Repeat(map[string]func(*rapid.T){
			"update": func(rt *rapid.T) {
				next, abort := maps.Clone(model), rapid.Bool().Draw(rt, "abort")
				stop := errors.New("stop")
				err := m.Update(t.Context(), func(tx *persist.Tx) error {
					for range rapid.IntRange(1, 5).Draw(rt, "ops") {
						k := keys.Draw(rt, "key")
						if rapid.Bool().Draw(rt, "put") {
							v := strings.Repeat("v", rapid.IntRange(0, 1500).Draw(rt, "size"))
							next[k] = v
							if err := tx.Put([]byte(k), []byte(v)); err != nil {
								return err
							}
							continue
						}
						delete(next, k)
						if err := tx.Delete([]byte(k)); err != nil {
							return err
						}
					}
					if abort {
						return stop
					}
					return nil
				})
				if abort && errors.Is(err, stop) {
					return
				}
				if err != nil {
					rt.Fatal(err)
				}
				model = next
			},
			"compact": func(rt *rapid.T) {
				if err := m.Compact(t.Context()); err != nil {
					rt.Fatal(err)
				}
			},
			"reopen": func(rt *rapid.T) { m.Close(); reopen(files) },
			"crash": func(rt *rapid.T) {
				seed := rapid.Uint64().Draw(rt, "disk")
				reopen(files.Crash(rand.New(rand.NewPCG(seed, 0)).IntN))
			},
			"": func(rt *rapid.T) {
				if got, want := contents(t, m), render(model); got != want {
					rt.Fatalf("%q, want %q", got, want)
				}
			},
		})
	})
}
