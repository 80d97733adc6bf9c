package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
)

// FuzzSegment: whatever a file holds, reading ends, takes no more records than there are bytes, and says ErrTorn or nothing.
func FuzzSegment(f *testing.F) {
	one := append(binary.BigEndian.AppendUint32(nil, 3), "one"...)
	f.Add([]byte(nil))
	f.Add(one)
	f.Add(append(bytes.Clone(one), 0, 0, 0, 0))
	f.Add(append(bytes.Clone(one), 0xff, 0xff, 0xff, 0xff))
	f.Add(one[:5])
	f.Fuzz(func(t *testing.T, raw []byte) {
		size, ended := 0, false
		readSegment(bytes.NewReader(raw), func(r []byte, err error) bool {
			if ended {
				t.Fatal("reading goes on after an error")
			}
			if ended = err != nil; ended && !errors.Is(err, ErrTorn) {
				t.Fatalf("an error of another kind: %v", err)
			}
			if err == nil && (len(r) == 0 || len(r) > MaxRecord) {
				t.Fatalf("a record of %d bytes", len(r))
			}
			size += len(r)
			return true
		})
		if size > len(raw) {
			t.Fatalf("%d bytes came from %d", size, len(raw))
		}
	})
}
