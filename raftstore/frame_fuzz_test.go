package raftstore

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"testing"
)

// frugal is the bytes of a peer, and says when more memory is held out for them than has been earned by what came.
type frugal struct {
	t    *testing.T
	rest []byte
	came int
}

func (r *frugal) Read(p []byte) (int, error) {
	if len(p) > max(r.came, chunkSize) {
		r.t.Errorf("%d bytes were taken for what is to come after %d had come", len(p), r.came)
	}
	n := copy(p, r.rest)
	r.rest, r.came = r.rest[n:], r.came+n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

// FuzzReadFrame: whatever bytes arrive are frames one after the other, each of which written again gives the bytes it
// was read from, and then an end or a refusal. Memory is taken as bytes arrive, whatever length is claimed.
func FuzzReadFrame(f *testing.F) {
	frame := func(t frameType, claimed uint32, payload []byte) []byte {
		return append(append(binary.BigEndian.AppendUint32(nil, claimed), byte(t)), payload...)
	}
	f.Add([]byte{})
	f.Add(frame(frameVote, 3, []byte("abc")))
	f.Add(append(frame(frameChunk, chunkSize, make([]byte, chunkSize)), frame(frameRefusal, 1, []byte{1})...))
	f.Add(frame(frameAppend, maxAppendFrame, make([]byte, 100)))
	f.Add(frame(frameAppend, 3*chunkSize, make([]byte, 3*chunkSize)))
	f.Add(frame(frameForward, 1<<32-1, nil))
	f.Add(frame(0, 0, nil))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := bufio.NewReaderSize(&frugal{t: t, rest: in}, 16<<10)
		for done := 0; ; {
			claimed := -1
			ft, payload, err := readFrame(r, func(n int) { claimed = n })
			if err != nil {
				whole := len(in)-done == 0 && errors.Is(err, io.EOF)
				if short := errors.Is(err, io.ErrUnexpectedEOF); !whole && !short && !errors.Is(err, ErrPeer) || payload != nil {
					t.Fatalf("%d bytes left, payload %d: %v", len(in)-done, len(payload), err)
				}
				return
			}
			if len(payload) > maxPayload(ft) || len(payload) != claimed {
				t.Fatalf("a frame of type %d with %d bytes, of which the caller was told %d", ft, len(payload), claimed)
			}
			var again bytes.Buffer
			w := bufio.NewWriter(&again)
			if err := errors.Join(writeFrame(w, ft, payload), w.Flush()); err != nil {
				t.Fatal(err)
			}
			end := done + again.Len()
			if end > len(in) || !bytes.Equal(again.Bytes(), in[done:end]) {
				t.Fatalf("a frame of type %d is not what it was read from", ft)
			}
			done = end
		}
	})
}
