package sim

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

const (
	fileVersion = 1
	maxFile     = 4 << 10 // bytes of a world file; real ones have some 150
)

// ErrFile is returned for a file that is not a world.
var ErrFile = errors.New("sim: not a world file")

// worldFile is the file form of a World.
type worldFile struct {
	Version int    `json:"version"`
	Seed    string `json:"seed"`    // 32 bytes in lower-case hex
	Created string `json:"created"` // RFC 3339, UTC, whole seconds
}

// CreateWorld makes a world with a random seed and writes its file, readable by
// its owner only. An existing file is never touched: the error then matches
// fs.ErrExist.
func CreateWorld(path string) (*World, error) {
	var seed [32]byte
	if _, err := rand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("sim: create world: %w", err)
	}
	f := worldFile{fileVersion, hex.EncodeToString(seed[:]), time.Now().UTC().Format(time.RFC3339)}
	raw, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("sim: create world: %w", err)
	}
	if err := writeNew(path, append(raw, '\n')); err != nil {
		return nil, fmt.Errorf("sim: create world: %w", err)
	}
	return f.world()
}

// writeNew writes a file that must not exist yet, and removes it if that fails
// half-way.
func writeNew(path string, raw []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return nil
}

// OpenWorld opens the world of a file that CreateWorld wrote. Unknown, missing,
// repeated or reordered keys, trailing data and files over 4 KiB are refused with
// ErrFile. Its clock is time.Now.
func OpenWorld(path string) (*World, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("sim: open world (`claviger sim init` makes one): %w", err)
	}
	defer func() { _ = file.Close() }()
	raw, err := io.ReadAll(io.LimitReader(file, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("sim: open world: %w", err)
	}
	f, err := parseFile(raw)
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrFile, path, err)
	}
	return f.world()
}

// parseFile decodes a world file. White space apart, it must be what CreateWorld
// writes: encoding it again shows anything that the decoder forgave.
func parseFile(raw []byte) (f worldFile, err error) {
	if len(raw) > maxFile {
		return f, fmt.Errorf("more than %d bytes", maxFile)
	}
	if err := json.Unmarshal(raw, &f); err != nil {
		return f, redact(err)
	}
	again, err := json.Marshal(f)
	if err != nil {
		return f, err
	}
	var compact bytes.Buffer
	if err := json.Compact(&compact, raw); err != nil {
		return f, redact(err)
	}
	if !bytes.Equal(compact.Bytes(), again) {
		return f, errors.New("unknown, missing, repeated or reordered keys")
	}
	if f.Version != fileVersion {
		return f, fmt.Errorf("version %d, want %d", f.Version, fileVersion)
	}
	return f, nil
}

// redact keeps what a JSON error quotes of the file, which may be the seed, out of
// messages.
func redact(err error) error {
	if syntax, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fmt.Errorf("malformed JSON at byte %d", syntax.Offset)
	}
	return errors.New("JSON of another shape")
}

// world returns the world that the file describes, on the system's clock.
func (f worldFile) world() (*World, error) {
	seed, err := hex.DecodeString(f.Seed)
	if err != nil || len(seed) != 32 || hex.EncodeToString(seed) != f.Seed {
		return nil, fmt.Errorf("%w: the seed is not 32 bytes in lower-case hex", ErrFile)
	}
	created, err := time.Parse(time.RFC3339, f.Created)
	if err != nil || created.IsZero() || created.UTC().Format(time.RFC3339) != f.Created {
		return nil, fmt.Errorf("%w: created is not a time in UTC, such as 2026-01-31T12:00:00Z", ErrFile)
	}
	return newWorld([32]byte(seed), created, time.Now)
}
