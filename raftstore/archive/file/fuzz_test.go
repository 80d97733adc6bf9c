package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// stingy fails the test when more is asked of it at once than one record may have.
type stingy struct {
	t *testing.T
	r io.Reader
}

func (s stingy) Read(p []byte) (int, error) {
	if len(p) > MaxRecord {
		s.t.Fatalf("room for %d bytes was made", len(p))
	}
	return s.r.Read(p)
}

// FuzzFrames: whatever a file holds, or the process that reads a database for claviger-archive prints, reading ends, takes
// no more records than there are bytes, gives back what was there, and says ErrTorn or nothing.
func FuzzFrames(f *testing.F) {
	one := append(binary.BigEndian.AppendUint32(nil, 3), "one"...)
	f.Add([]byte(nil))
	f.Add(one)
	f.Add(append(bytes.Clone(one), 0, 0, 0, 0))
	f.Add(append(bytes.Clone(one), 0xff, 0xff, 0xff, 0xff))
	f.Add(one[:5])
	f.Add(one[:2])
	f.Fuzz(func(t *testing.T, raw []byte) {
		var again []byte
		var last error
		for r, err := range Frames(stingy{t, bytes.NewReader(raw)}) {
			if last != nil {
				t.Fatal("reading goes on after an error")
			}
			if last = err; err != nil {
				if !errors.Is(err, ErrTorn) || r != nil {
					t.Fatalf("%d bytes and %v", len(r), err)
				}
				continue
			}
			if len(r) == 0 || len(r) > MaxRecord {
				t.Fatalf("a record of %d bytes", len(r))
			}
			again = append(binary.BigEndian.AppendUint32(again, uint32(len(r))), r...)
		}
		if !bytes.HasPrefix(raw, again) || last == nil && len(again) != len(raw) {
			t.Fatalf("%d bytes came from %d, then %v", len(again), len(raw), last)
		}
	})
}
