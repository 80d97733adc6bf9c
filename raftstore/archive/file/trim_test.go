package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

func add(t *testing.T, a *Archive, records ...string) {
	t.Helper()
	for _, r := range records {
		if err := a.Append([]byte(r)); err != nil {
			t.Fatal(err)
		}
	}
	if err := a.Sync(); err != nil {
		t.Fatal(err)
	}
}

func TestDropForgetsWhatWasBeforeTheCut(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	if err := a.Drop(); err != nil { // nothing was cut
		t.Fatal(err)
	}
	add(t, a, "one", "two")
	if err := a.Append([]byte("three, not synced yet")); err != nil {
		t.Fatal(err)
	}
	if err := a.Cut(); err != nil {
		t.Fatal(err)
	}
	add(t, a, "four")
	if got, err := collect(dir); err != nil || len(got) != 4 {
		t.Fatalf("before the drop: %q, %v", got, err)
	}
	for range 2 {
		if err := a.Drop(); err != nil {
			t.Fatal(err)
		}
		if got, err := collect(dir); err != nil || fmt.Sprintf("%s", got) != "[four]" {
			t.Fatalf("after the drop: %q, %v", got, err)
		}
	}
	add(t, a, "five")
	if got, err := collect(dir); err != nil || fmt.Sprintf("%s", got) != "[four five]" {
		t.Fatalf("after it: %q, %v", got, err)
	}
}

func TestTrimmedDirectoryIsBounded(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	record := bytes.Repeat([]byte("x"), 1000)
	for range 200 {
		for range 20 {
			if err := a.Append(record); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(a.Cut(), a.Append([]byte("checkpoint")), a.Sync(), a.Drop()); err != nil {
			t.Fatal(err)
		}
	}
	files, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	size := int64(0)
	for _, f := range files {
		info, err := f.Info()
		if err != nil {
			t.Fatal(err)
		}
		size += info.Size()
	}
	if len(files) > 2 || size > 2*20*1004 {
		t.Fatalf("4 MB were written: %d files with %d bytes are left", len(files), size)
	}
}

// A name that cannot be removed is tried again; nothing is lost meanwhile.
func TestDropTriesAgain(t *testing.T) {
	t.Parallel()
	a, dir := create(t)
	add(t, a, "one")
	if err := a.Cut(); err != nil {
		t.Fatal(err)
	}
	add(t, a, "two")
	name := filepath.Join(dir, segmentName(1))
	if err := errors.Join(os.Remove(name), os.Mkdir(name, 0o700), os.WriteFile(filepath.Join(name, "x"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := a.Drop(); err == nil {
		t.Fatal("a file that stays was dropped")
	}
	add(t, a, "three")
	if got, err := collect(dir); err != nil || fmt.Sprintf("%s", got) != "[two three]" {
		t.Fatalf("%q, %v", got, err)
	}
	if err := os.RemoveAll(name); err != nil {
		t.Fatal(err)
	}
	if err := a.Drop(); err != nil {
		t.Fatal(err)
	}
}

func TestHintOfTheHost(t *testing.T) {
	t.Parallel()
	for name, hint := range map[string]string{"empty": "", "zero": "00000000", "long": "000000011", "short": "1", "text": "abcdefgh", "negative": "-0000001"} {
		a, dir := create(t)
		add(t, a, "one")
		if err := os.WriteFile(filepath.Join(dir, firstName), []byte(hint), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := collect(dir); err != nil || fmt.Sprintf("%s", got) != "[one]" {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
	a, dir := create(t)
	add(t, a, "one")
	if err := os.WriteFile(filepath.Join(dir, firstName), []byte("00000007"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := collect(dir); !errors.Is(err, os.ErrNotExist) || len(got) != 0 {
		t.Errorf("a hint at a file that is not there: %q, %v", got, err)
	}
}

// On a full disk the archive fails for good, with the reason.
func TestFullDisk(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full here: ", err)
	}
	a, _ := create(t)
	a.f.Close()
	a.f = full
	if err := a.Append([]byte("x")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := a.Sync(); !errors.Is(err, syscall.ENOSPC) {
			t.Fatalf("sync to a full disk: %v", err)
		}
	}
	if err := a.Cut(); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("cut after it: %v", err)
	}
}
