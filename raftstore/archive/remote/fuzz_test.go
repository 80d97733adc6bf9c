package remote

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"iter"
	"net"
	"testing"
	"time"

	"github.com/claviger/claviger/raftstore"
)

// memory is a backend that keeps what it is given while it is bounded.
type memory struct{ records [][]byte }

func (m *memory) Create(n Name) (raftstore.Archive, error) {
	if n.Server[0] == 0xee {
		return nil, fs.ErrExist
	}
	return m, nil
}
func (m *memory) Append(r []byte) error {
	if len(r) == 0 || len(r) > MaxRecord {
		panic("the server handed on a record out of bounds")
	}
	m.records = append(m.records, bytes.Clone(r))
	return nil
}
func (m *memory) Sync() error           { return nil }
func (m *memory) Cut() error            { return nil }
func (m *memory) Drop() error           { return errors.New("stuck") }
func (m *memory) Close() error          { return nil }
func (m *memory) List() ([]Name, error) { return []Name{{Attempt: 1, Server: [32]byte{1}}}, nil }
func (m *memory) Records(context.Context, Name) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for _, r := range m.records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// script is a connection whose other side has said all it will ever say.
type script struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (s *script) Read(p []byte) (int, error)       { return s.in.Read(p) }
func (s *script) Write(p []byte) (int, error)      { return s.out.Write(p) }
func (s *script) Close() error                     { return nil }
func (s *script) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (s *script) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (s *script) SetDeadline(time.Time) error      { return nil }
func (s *script) SetReadDeadline(time.Time) error  { return nil }
func (s *script) SetWriteDeadline(time.Time) error { return nil }

func frames(parts ...[]byte) []byte { return bytes.Join(parts, nil) }

var seedName = Name{Attempt: 1, Server: [32]byte{1}}

// trickle fails the test when room is made for more than arrived so far, and some.
type trickle struct {
	t     *testing.T
	r     *bytes.Reader
	given int
}

func (r *trickle) Read(p []byte) (int, error) {
	if len(p) > max(r.given, growth) {
		r.t.Fatalf("room for %d bytes was made when %d had arrived", len(p), r.given)
	}
	n, err := r.r.Read(p)
	r.given += n
	return n, err
}

// FuzzFrame: whatever arrives, on either side, a frame takes memory as its bytes arrive, has a payload within the bounds of
// its type and one encoding; and so has what is in it.
func FuzzFrame(f *testing.F) {
	batch := appendRecord(appendRecord(nil, []byte("one")), []byte("two"))
	f.Add(frames(appendFrame(nil, frameCreate, hello(&seedName)), appendFrame(nil, frameList, hello(nil))))
	f.Add(frames(appendFrame(nil, frameBatch, batch), appendCount(nil, frameEnd, 2), appendFrame(nil, frameNames, seedName.append(nil))))
	f.Add(frames(appendCount(nil, frameDone, 1<<63), appendFrame(nil, frameFault, fault(ErrBusy))))
	f.Add(appendFrame(nil, frameAppend, make([]byte, 3*growth)))
	f.Add([]byte{0x00, 0x07, 0xff, 0xff, byte(frameAppend), 1, 2, 3})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, byte(frameNames)})
	all := []frameType{frameCreate, frameAppend, frameSync, frameCut, frameDrop, frameClose, frameRecords, frameList,
		frameDone, frameFault, frameBatch, frameNames, frameEnd}
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, again := &trickle{t: t, r: bytes.NewReader(raw)}, []byte(nil)
		for {
			kind, payload, err := readFrame(r, nil, all...)
			if errors.Is(err, io.EOF) && len(again) != len(raw) || err != nil && payload != nil {
				t.Fatalf("%d bytes of %d, %d of a payload, then %v", len(again), len(raw), len(payload), err)
			}
			if err != nil {
				return
			}
			if again = appendFrame(again, kind, payload); !bytes.HasPrefix(raw, again) {
				t.Fatalf("a frame of type %d has two encodings", kind)
			}
			inside(t, kind, payload)
		}
	})
}

// inside parses a payload and encodes it again.
func inside(t *testing.T, kind frameType, payload []byte) {
	t.Helper()
	var again []byte
	switch kind {
	case frameAppend, frameBatch:
		for rest := payload; len(rest) > 0; {
			record, more, err := nextRecord(rest)
			if err != nil {
				return
			}
			if len(record) == 0 || len(record) > MaxRecord {
				t.Fatalf("a record of %d bytes", len(record))
			}
			again, rest = appendRecord(again, record), more
		}
	case frameNames:
		names, err := appendNames(nil, payload)
		if err != nil {
			return
		}
		for _, n := range names {
			again = n.append(again)
		}
	case frameCreate, frameRecords, frameList:
		name, err := parseHello(payload)
		if err != nil {
			return
		}
		if again = hello(nil); kind != frameList {
			again = hello(&name)
		}
	case frameFault:
		if text := parseFault(payload).Error(); len(text) > 2*maxText || printable(text) != text {
			t.Fatalf("a fault says %q", text)
		}
		return
	default:
		again = payload
	}
	if !bytes.Equal(again, payload) {
		t.Fatalf("a payload of type %d has two encodings", kind)
	}
}

// FuzzServer: whatever a client sends, the server answers in well-formed frames, keeps to its bounds and does not panic.
func FuzzServer(f *testing.F) {
	batch := appendRecord(appendRecord(nil, []byte("one")), []byte("two"))
	create := appendFrame(nil, frameCreate, hello(&seedName))
	f.Add(frames(create, appendFrame(nil, frameAppend, batch), appendCount(nil, frameSync, 2), appendCount(nil, frameCut, 2), appendCount(nil, frameDrop, 2), appendCount(nil, frameClose, 2)))
	f.Add(frames(create, appendFrame(nil, frameAppend, batch[:5])))
	f.Add(frames(create, appendCount(nil, frameSync, 3)))
	f.Add(frames(create, []byte{0xff, 0xff, 0xff, 0xff, byte(frameAppend)}))
	f.Add(appendFrame(nil, frameRecords, hello(&seedName)))
	f.Add(appendFrame(nil, frameList, hello(nil)))
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, conn := &memory{records: nil}, &script{in: bytes.NewReader(raw)}
		s := NewServer(m, nil)
		s.serve(t.Context(), conn)
		size := 0
		for _, r := range m.records {
			size += len(r)
		}
		if size > len(raw) {
			t.Fatalf("%d bytes were kept of %d that were sent", size, len(raw))
		}
		for r := bufio.NewReader(&conn.out); ; {
			_, _, err := readFrame(r, nil, frameDone, frameFault, frameBatch, frameNames, frameEnd)
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				t.Fatalf("the server answered with a malformed frame: %v", err)
			}
		}
	})
}

// FuzzClient: whatever a server answers, the client stays within its bounds,
// does not panic, fails for good when it fails, and never yields a record out of bounds.
func FuzzClient(f *testing.F) {
	batch := appendRecord(appendRecord(nil, []byte("one")), []byte("two"))
	f.Add(frames(appendCount(nil, frameDone, 0), appendCount(nil, frameDone, 1), appendFrame(nil, frameFault, fault(&keptError{})), appendCount(nil, frameDone, 1)))
	f.Add(frames(appendFrame(nil, frameBatch, batch), appendCount(nil, frameEnd, 2)))
	f.Add(frames(appendFrame(nil, frameNames, seedName.append(nil)), appendCount(nil, frameEnd, 1)))
	f.Add(appendFrame(nil, frameFault, fault(ErrExists)))
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, byte(frameBatch)})
	f.Fuzz(func(t *testing.T, raw []byte) {
		o := Options{Dial: func(context.Context, string) (net.Conn, error) {
			return &script{in: bytes.NewReader(raw)}, nil
		}}
		if a, err := Create(t.Context(), "server", seedName, o); err == nil {
			failed := false
			for _, call := range []func() error{func() error { return a.Append([]byte("x")) }, a.Sync, a.Cut, a.Drop, a.Sync, a.Close} {
				err := call()
				if failed && err == nil && a.link != nil {
					t.Fatal("the client goes on after a failure")
				}
				failed = failed || a.err != nil
			}
		}
		size := 0
		for r, err := range Records(t.Context(), "server", seedName, o) {
			if err == nil && (len(r) == 0 || len(r) > MaxRecord) {
				t.Fatalf("a record of %d bytes", len(r))
			}
			size += len(r)
		}
		if size > len(raw) {
			t.Fatalf("%d bytes came from %d", size, len(raw))
		}
		if names, err := List(t.Context(), "server", o); err == nil && len(names)*nameSize > len(raw) {
			t.Fatalf("%d names from %d bytes", len(names), len(raw))
		}
	})
}
