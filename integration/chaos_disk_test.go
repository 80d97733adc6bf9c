//go:build linux

package integration

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// empty removes what is in a directory, and not the directory, which may be a disk.
func empty(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(dir, entry.Name())); err != nil {
			return err
		}
	}
	return nil
}

// copyData makes to hold what from holds, as far as that can be read while a process is writing there.
func copyData(to, from string) error {
	if err := os.MkdirAll(to, 0o700); err != nil {
		return err
	}
	if err := empty(to); err != nil {
		return err
	}
	return filepath.WalkDir(from, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil // gone meanwhile
		}
		rel, err := filepath.Rel(from, name)
		if err != nil {
			return err
		}
		at := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(at, 0o700)
		}
		raw, err := os.ReadFile(name)
		if err != nil || d.Name() == chaosFiller {
			return nil
		}
		return os.WriteFile(at, raw, 0o600)
	})
}

// chaosFiller takes all that is left of a disk.
const chaosFiller = "filler"

func (e *seat) fillDisk() error {
	f, err := os.Create(filepath.Join(e.data, chaosFiller))
	if err != nil {
		return err
	}
	defer f.Close()
	block := bytes.Repeat([]byte{1}, 64<<10)
	for len(block) > 0 {
		if _, err := f.Write(block); errors.Is(err, syscall.ENOSPC) {
			block = block[:len(block)/2]
		} else if err != nil {
			return err
		}
	}
	return nil
}

func (e *seat) freeDisk() error {
	err := os.Remove(filepath.Join(e.data, chaosFiller))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// tidy is what an operator does from time to time, here between two boots: archives of boots that are long gone make room.
func (e *seat) tidy() error {
	if _, err := os.Stat(filepath.Join(e.data, chaosFiller)); !e.disk || err == nil {
		return nil // nobody to tidy up, or full on purpose
	}
	var st syscall.Statfs_t
	if err := syscall.Statfs(e.data, &st); err != nil || st.Bavail > st.Blocks/2 {
		return err
	}
	return empty(e.data)
}
