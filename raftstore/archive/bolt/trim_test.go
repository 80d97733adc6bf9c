package bolt

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
)

func TestDropForgetsWhatWasBeforeTheCut(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	add := func(records ...string) {
		t.Helper()
		for _, r := range records {
			if err := a.Append([]byte(r)); err != nil {
				t.Fatal(err)
			}
		}
	}
	add("one", "two", "three")
	if err := errors.Join(a.Drop(), a.Cut()); err != nil {
		t.Fatal(err)
	}
	add("four")
	if err := errors.Join(a.Sync(), a.Drop(), a.Drop()); err != nil {
		t.Fatal(err)
	}
	add("five")
	if err := errors.Join(a.Sync(), a.Close()); err != nil {
		t.Fatal(err)
	}
	var got []string
	for r, err := range Records(dir) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(r))
	}
	if fmt.Sprint(got) != "[four five]" {
		t.Fatalf("left: %q", got)
	}
	if a.Cut() == nil || a.Drop() == nil {
		t.Error("a closed archive was trimmed")
	}
}

func TestTrimmedFileIsBounded(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	record := bytes.Repeat([]byte("x"), 1000)
	size := func() int64 {
		info, err := os.Stat(filepath.Join(dir, fileName))
		if err != nil {
			t.Fatal(err)
		}
		return info.Size()
	}
	var early int64
	for i := range 40 {
		for range 50 {
			if err := a.Append(record); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(a.Cut(), a.Append([]byte("checkpoint")), a.Sync(), a.Drop()); err != nil {
			t.Fatal(err)
		}
		if i == 3 {
			early = size()
		}
	}
	if late := size(); late > 2*early {
		t.Fatalf("the file grew from %d to %d bytes", early, late)
	}
}
