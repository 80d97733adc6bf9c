package remote

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/claviger/claviger/raftstore"
)

const (
	// MaxRecord bounds one sealed record in bytes.
	MaxRecord = raftstore.MaxEntry + 4096
	// MaxList bounds the archives that one server lists.
	MaxList = 100_000

	magic      = "claviger-archive/1"
	nameSize   = 2 + 32
	batchSize  = 256 << 10                 // a batch is sent once it has this many bytes
	maxBatch   = batchSize + 4 + MaxRecord // so it never has more than these
	maxNames   = 1024                      // in one frame
	maxText    = 200                       // of a fault
	growth     = 64 << 10                  // memory taken ahead of the bytes that have arrived
	headerSize = 5                         // of a frame
	helloSize  = len(magic) + nameSize     // of create and records
	countSize  = 8                         // of a number of records
)

// ErrProtocol says that the other side broke the protocol: a malformed, oversized
// or unexpected frame, or a count that is not what was sent.
var ErrProtocol = errors.New("archive/remote: the other side does not keep to the protocol")

type frameType uint8

// Requests.
const (
	frameCreate  frameType = 1 // magic, attempt, server id
	frameAppend  frameType = 2 // batch
	frameSync    frameType = 3 // records sent so far
	frameCut     frameType = 4 // the same
	frameDrop    frameType = 5 // the same
	frameClose   frameType = 6 // the same
	frameRecords frameType = 7 // magic, attempt, server id
	frameList    frameType = 8 // magic
)

// Answers.
const (
	frameDone  frameType = 0x40 // records held
	frameFault frameType = 0x41 // code, text
	frameBatch frameType = 0x42 // batch
	frameNames frameType = 0x43 // attempt and server id, up to maxNames times
	frameEnd   frameType = 0x44 // records or names sent
)

// bounds are the least and the most bytes of a frame's payload.
func bounds(t frameType) (least, most int) {
	switch t {
	case frameCreate, frameRecords:
		return helloSize, helloSize
	case frameList:
		return len(magic), len(magic)
	case frameAppend, frameBatch:
		return 5, maxBatch
	case frameSync, frameCut, frameDrop, frameClose, frameDone, frameEnd:
		return countSize, countSize
	case frameFault:
		return 1, 1 + maxText
	case frameNames:
		return nameSize, maxNames * nameSize
	}
	return 0, -1
}

// appendFrame appends one frame to b.
func appendFrame(b []byte, t frameType, payload []byte) []byte {
	b = binary.BigEndian.AppendUint32(b, uint32(len(payload)))
	b = append(b, byte(t))
	return append(b, payload...)
}

func appendCount(b []byte, t frameType, count uint64) []byte {
	return appendFrame(b, t, binary.BigEndian.AppendUint64(nil, count))
}

// readFrame reads a frame of one of the types that are allowed here. Memory
// grows with the bytes that arrive, so that a length alone costs nothing. begun
// runs when the first byte is there, to set the deadline of the rest.
func readFrame(r io.Reader, begun func(), allowed ...frameType) (frameType, []byte, error) {
	var head [headerSize]byte
	if _, err := io.ReadFull(r, head[:1]); err != nil {
		return 0, nil, err
	}
	if begun != nil {
		begun()
	}
	if _, err := io.ReadFull(r, head[1:]); err != nil {
		return 0, nil, unexpected(err)
	}
	t, n := frameType(head[4]), int64(binary.BigEndian.Uint32(head[:4]))
	if !slices.Contains(allowed, t) {
		return 0, nil, fmt.Errorf("%w: a frame of type %d here", ErrProtocol, t)
	}
	if least, most := bounds(t); n < int64(least) || n > int64(most) {
		return 0, nil, fmt.Errorf("%w: a frame of type %d with %d bytes; it has %d to %d", ErrProtocol, t, n, least, most)
	}
	payload := make([]byte, 0, min(n, growth))
	for int64(len(payload)) < n {
		start, step := len(payload), min(n-int64(len(payload)), max(int64(len(payload)), growth))
		payload = append(payload, make([]byte, step)...)
		if _, err := io.ReadFull(r, payload[start:]); err != nil {
			return 0, nil, unexpected(err)
		}
	}
	return t, payload, nil
}

// unexpected makes the end of the stream inside a frame an error of its own.
func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// appendRecord appends one record to a batch.
func appendRecord(batch, record []byte) []byte {
	batch = binary.BigEndian.AppendUint32(batch, uint32(len(record)))
	return append(batch, record...)
}

// nextRecord takes the first record off a batch.
func nextRecord(batch []byte) (record, rest []byte, err error) {
	if len(batch) < 4 {
		return nil, nil, fmt.Errorf("%w: a batch is cut short", ErrProtocol)
	}
	n := int64(binary.BigEndian.Uint32(batch))
	if batch = batch[4:]; n == 0 || n > MaxRecord || n > int64(len(batch)) {
		return nil, nil, fmt.Errorf("%w: a record of %d bytes, with %d left in its batch", ErrProtocol, n, len(batch))
	}
	return batch[:n:n], batch[n:], nil
}

func count(payload []byte) uint64 { return binary.BigEndian.Uint64(payload) }

// Name is one archive of a server: a boot may need more than one attempt, and
// each has its own.
type Name struct {
	Attempt uint16 // from 1
	Server  raftstore.ServerID
}

// String is the server id, with the attempt behind it where it is not the first.
func (n Name) String() string {
	if n.Attempt == 1 {
		return n.Server.String()
	}
	return fmt.Sprintf("%s attempt %d", n.Server, n.Attempt)
}

func (n Name) check() error {
	if n.Attempt == 0 || n.Server.IsZero() {
		return fmt.Errorf("%w: attempts count from 1 and the zero server id has no archive", ErrProtocol)
	}
	return nil
}

func (n Name) append(b []byte) []byte {
	return append(binary.BigEndian.AppendUint16(b, n.Attempt), n.Server[:]...)
}

// parseName takes the first name off b, which has at least nameSize bytes.
func parseName(b []byte) (Name, []byte, error) {
	n := Name{Attempt: binary.BigEndian.Uint16(b), Server: raftstore.ServerID(b[2:nameSize])}
	return n, b[nameSize:], n.check()
}

// hello is the payload of the first frame of a connection.
func hello(n *Name) []byte {
	b := []byte(magic)
	if n != nil {
		b = n.append(b)
	}
	return b
}

// parseHello is the reverse; a list has no name.
func parseHello(payload []byte) (Name, error) {
	rest, ok := bytes.CutPrefix(payload, []byte(magic))
	if !ok {
		return Name{}, fmt.Errorf("%w: the connection does not begin with %q", ErrProtocol, magic)
	}
	if len(rest) == 0 {
		return Name{}, nil
	}
	n, _, err := parseName(rest)
	return n, err
}
