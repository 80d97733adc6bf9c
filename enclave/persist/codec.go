package persist

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
)

// The layout of a slot file, in sectors of 512 bytes:
//
//	header sector │ checkpoint records … │ checkpoint end │ commit records …
//
// Every record fills whole sectors. That hides exact sizes, keeps a record's
// frame inside one sector, and makes the holes of a torn write recognisable: a
// sector of zeros never occurs in a sealed record.
const (
	magic      = "CLVPRST1"
	sector     = 512
	headerSize = len(magic) + 32 + 8 + 16 + 32 // magic, store id, generation, key id, tag

	frameSize = 4 + 1 + 16 // sealed length, kind, frame tag
	nonceSize = 24
	tagSize   = 16
	bodyHead  = 4 + 4 // entries, bytes of entries
	overhead  = frameSize + nonceSize + tagSize + bodyHead
	maxSealed = MaxTxn + MaxKey + MaxValue + overhead + sector
)

// kind says what a record is; it is authenticated.
type kind byte

const (
	kindChunk  kind = 1 // part of a checkpoint
	kindEnd    kind = 2 // its end: sequence, hash, number of entries
	kindCommit kind = 3 // one transaction
)

// header is the first sector of a slot.
type header struct {
	storeID    [32]byte
	generation uint64
	keyID      [16]byte // of the key, to tell a wrong key from damage
	tag        [32]byte // HMAC over everything before it and the name
}

func (h *header) fields(b []byte) []byte {
	b = append(b, magic...)
	b = append(b, h.storeID[:]...)
	b = binary.BigEndian.AppendUint64(b, h.generation)
	return append(b, h.keyID[:]...)
}

func (h *header) append(b []byte) []byte {
	start := len(b)
	b = append(h.fields(b), h.tag[:]...)
	return append(b, make([]byte, sector-(len(b)-start))...)
}

// parseHeader decodes a header sector; nothing is authenticated yet.
func parseHeader(raw []byte) (header, error) {
	var h header
	if len(raw) != sector || string(raw[:len(magic)]) != magic {
		return h, fmt.Errorf("%w: no header", ErrCorrupt)
	}
	if !allZero(raw[headerSize:]) {
		return h, fmt.Errorf("%w: header padding", ErrCorrupt)
	}
	rest := raw[len(magic):headerSize]
	copy(h.storeID[:], rest)
	h.generation = binary.BigEndian.Uint64(rest[32:])
	copy(h.keyID[:], rest[40:])
	copy(h.tag[:], rest[56:])
	return h, nil
}

// change is one entry of a record: value nil means delete.
type change struct {
	key   string
	value []byte
}

const (
	opPut    = 1
	opDelete = 2
)

func (c change) size() int { return 1 + 2 + 4 + len(c.key) + len(c.value) }

// encodeBody packs changes, in ascending order of keys, and pads with zeros so
// that the whole record fills sectors.
func encodeBody(changes []change) []byte {
	size := 0
	for _, c := range changes {
		size += c.size()
	}
	total := (overhead + size + sector - 1) / sector * sector
	b := make([]byte, 0, total-overhead+bodyHead)
	b = binary.BigEndian.AppendUint32(b, uint32(len(changes)))
	b = binary.BigEndian.AppendUint32(b, uint32(size))
	for _, c := range changes {
		op := byte(opPut)
		if c.value == nil {
			op = opDelete
		}
		b = append(b, op)
		b = binary.BigEndian.AppendUint16(b, uint16(len(c.key)))
		b = binary.BigEndian.AppendUint32(b, uint32(len(c.value)))
		b = append(b, c.key...)
		b = append(b, c.value...)
	}
	return b[:cap(b)]
}

// errBody is what is wrong with a body whatever its cause; a sealed body that
// parses badly was written by a faulty or foreign writer.
var errBody = errors.New("malformed record body")

// parseBody is the strict inverse of encodeBody: keys ascend, sizes are within
// the hard limits, padding is zero and nothing is left over. The values share
// raw's memory.
func parseBody(raw []byte) ([]change, error) {
	if len(raw) < bodyHead {
		return nil, errBody
	}
	count := binary.BigEndian.Uint32(raw)
	size := binary.BigEndian.Uint32(raw[4:])
	raw = raw[bodyHead:]
	if uint64(size) > uint64(len(raw)) || !allZero(raw[size:]) || len(raw)-int(size) >= sector {
		return nil, errBody
	}
	raw = raw[:size]
	if uint64(count)*(1+2+4+1) > uint64(size) {
		return nil, errBody
	}
	changes := make([]change, 0, count)
	for range count {
		c, rest, err := parseChange(raw)
		if err != nil {
			return nil, err
		}
		if n := len(changes); n > 0 && changes[n-1].key >= c.key {
			return nil, errBody
		}
		changes, raw = append(changes, c), rest
	}
	if len(raw) != 0 {
		return nil, errBody
	}
	return changes, nil
}

func parseChange(raw []byte) (change, []byte, error) {
	if len(raw) < 7 {
		return change{}, nil, errBody
	}
	op, keyLen := raw[0], int(binary.BigEndian.Uint16(raw[1:]))
	valueLen := int64(binary.BigEndian.Uint32(raw[3:]))
	raw = raw[7:]
	if keyLen == 0 || keyLen > MaxKey || valueLen > MaxValue || int64(keyLen)+valueLen > int64(len(raw)) {
		return change{}, nil, errBody
	}
	c := change{key: string(raw[:keyLen])}
	end := keyLen + int(valueLen)
	switch op {
	case opPut:
		c.value = raw[keyLen:end:end]
	case opDelete:
		if valueLen != 0 {
			return change{}, nil, errBody
		}
	default:
		return change{}, nil, errBody
	}
	return c, raw[end:], nil
}

// checkpointEnd closes a checkpoint: which commit it holds and how many entries
// it must have had.
type checkpointEnd struct {
	seq   uint64
	hash  [32]byte
	count uint64
}

// endKey names the single entry of a checkpoint's last record; the record kind
// keeps it apart from entries of the map.
const endKey = "end"

func (e checkpointEnd) changes() []change {
	v := binary.BigEndian.AppendUint64(nil, e.seq)
	v = append(v, e.hash[:]...)
	v = binary.BigEndian.AppendUint64(v, e.count)
	return []change{{key: endKey, value: v}}
}

func parseCheckpointEnd(changes []change) (checkpointEnd, error) {
	var e checkpointEnd
	if len(changes) != 1 || changes[0].key != endKey || len(changes[0].value) != 48 {
		return e, errBody
	}
	v := changes[0].value
	e.seq = binary.BigEndian.Uint64(v)
	copy(e.hash[:], v[8:])
	e.count = binary.BigEndian.Uint64(v[40:])
	if e.seq == 0 {
		return e, errBody
	}
	return e, nil
}

var zeros [4096]byte

func allZero(b []byte) bool {
	for len(b) > len(zeros) {
		if !bytes.Equal(b[:len(zeros)], zeros[:]) {
			return false
		}
		b = b[len(zeros):]
	}
	return bytes.Equal(b, zeros[:len(b)])
}
