package cli

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ErrTooLarge reports a file over its limit.
var ErrTooLarge = errors.New("file is too large")

// ReadFile reads at most limit bytes of a file; "-" is standard input. A longer file is ErrTooLarge: what is read here
// comes from outside and is bounded before anything looks at it. A missing file is wrong usage.
func (s *Streams) ReadFile(name string, limit int64) ([]byte, error) {
	in := s.In
	if name != "-" {
		f, err := os.Open(name)
		if errors.Is(err, fs.ErrNotExist) {
			return nil, Usagef("%s does not exist", name)
		}
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	raw, err := io.ReadAll(io.LimitReader(in, limit+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if int64(len(raw)) > limit {
		return nil, fmt.Errorf("%s: %w: at most %d bytes are read", name, ErrTooLarge, limit)
	}
	return raw, nil
}

// Below resolves name against base unless it is absolute, empty or "-".
func Below(base, name string) string {
	if name == "" || name == "-" || base == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(base, name)
}
