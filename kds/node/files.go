package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/claviger/claviger/raftstore/archive/file"
)

// pollInterval is how often a file is looked for that people bring.
const pollInterval = 500 * time.Millisecond

// ceremonyDir makes the directory of a ceremony and removes what an earlier one
// has left there: it was for another enclave.
func ceremonyDir(dir string, stale ...string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for _, name := range stale {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	return nil
}

// awaitFile polls until read succeeds: an enclave has no other way to hear of a
// file. One that does not parse may still be on its way.
func awaitFile(ctx context.Context, read func() error) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		err := read()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), err)
		case <-tick.C:
		}
	}
}

// writeJSON replaces a file that people read.
func writeJSON(name string, v any) error {
	raw, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return writeDurably(name, append(raw, '\n'))
}

// writeDurably replaces a file as a whole. It is there after a loss of power.
func writeDurably(name string, raw []byte) error {
	f, err := os.OpenFile(name+".new", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(name+".new", name); err != nil {
		return err
	}
	return file.SyncDir(filepath.Dir(name))
}

// readBounded reads a file of at most limit bytes.
func readBounded(name string, limit int64) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	raw, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: more than %d bytes", name, limit)
	}
	return raw, nil
}
