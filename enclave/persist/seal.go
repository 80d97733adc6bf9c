package persist

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/claviger/claviger/enclave/secret"
)

// sealer seals and opens the records of one store. Its keys are derived from the
// caller's key and the random store id, so records of two stores never open under
// each other even when the caller reuses a key.
type sealer struct {
	name    string
	storeID [32]byte
	keyID   [16]byte
	mac     []byte // authenticates headers and frames
	aead    cipher.AEAD
}

func newSealer(key secret.Key, name string, storeID [32]byte) (*sealer, error) {
	s := &sealer{name: name, storeID: storeID}
	suffix := "/" + hex.EncodeToString(storeID[:])
	data, err := key.Derive("claviger/persist/data/v1"+suffix, chacha20poly1305.KeySize)
	if err != nil {
		return nil, fmt.Errorf("persist: deriving the data key: %w", err)
	}
	defer data.Destroy()
	mac, err := key.Derive("claviger/persist/mac/v1"+suffix, sha256.Size)
	if err != nil {
		return nil, fmt.Errorf("persist: deriving the frame key: %w", err)
	}
	defer mac.Destroy()
	id, err := key.Derive("claviger/persist/key-id/v1"+suffix, len(s.keyID))
	if err != nil {
		return nil, fmt.Errorf("persist: deriving the key id: %w", err)
	}
	defer id.Destroy()
	copy(s.keyID[:], id.Reveal())
	s.mac = mac.Reveal()
	raw := data.Reveal()
	s.aead, err = chacha20poly1305.NewX(raw)
	clear(raw)
	return s, err
}

// fields frames values under a versioned label: each is preceded by its length,
// so no two lists share an encoding.
func fields(label string, values ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(label)))
	b = append(b, label...)
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

func u64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

func (s *sealer) hmac(message []byte) []byte {
	m := hmac.New(sha256.New, s.mac)
	m.Write(message)
	return m.Sum(nil)
}

// header makes the authenticated header of one generation.
func (s *sealer) header(generation uint64) header {
	h := header{storeID: s.storeID, generation: generation, keyID: s.keyID}
	copy(h.tag[:], s.headerTag(&h))
	return h
}

func (s *sealer) headerTag(h *header) []byte {
	return s.hmac(fields("claviger/persist/header/v1", []byte(s.name), h.fields(nil)))
}

// check authenticates a parsed header for this key and name.
func (s *sealer) check(h *header) error {
	if !hmac.Equal(h.keyID[:], s.keyID[:]) {
		return ErrWrongKey
	}
	if !hmac.Equal(h.tag[:], s.headerTag(h)) {
		return fmt.Errorf("%w: the header is not that of %q", ErrCorrupt, s.name)
	}
	return nil
}

// place is where a record belongs: all of it is associated data, so a record
// opens nowhere else.
type place struct {
	generation uint64
	kind       kind
	seq        uint64   // of the commit; of the chunk within its checkpoint
	prev       [32]byte // hash of the record before
}

func (s *sealer) bind(label string, p place) []byte {
	return fields(label, []byte(s.name), s.storeID[:], u64(p.generation), []byte{byte(p.kind)}, u64(p.seq), p.prev[:])
}

// seal returns the whole record: frame (length, kind, tag) and sealed body.
func (s *sealer) seal(p place, body []byte) ([]byte, error) {
	n := nonceSize + len(body) + tagSize
	b := make([]byte, 0, frameSize+n)
	b = binary.BigEndian.AppendUint32(b, uint32(n))
	b = append(b, byte(p.kind))
	b = append(b, s.frameTag(p, uint32(n))...)
	b = b[:frameSize+nonceSize]
	nonce := b[frameSize:]
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	return s.aead.Seal(b, nonce, body, s.bind("claviger/persist/record/v1", p)), nil
}

// frameTag authenticates the length of a record before the record is read. With
// it a record that reaches past the end of the file is known to be torn, and not
// a damaged length that would hide every later record. It leaves the previous hash
// to the record's own seal, so that a frame can be recognised behind a gap.
func (s *sealer) frameTag(p place, sealed uint32) []byte {
	p.prev = [32]byte{}
	return s.hmac(fields("claviger/persist/frame/v1", s.bind("place", p), u64(uint64(sealed))))[:16]
}

// parseFrame checks a frame for its place and returns the length of what follows.
func (s *sealer) parseFrame(p place, frame []byte) (int, error) {
	n := binary.BigEndian.Uint32(frame)
	if n > maxSealed || n < nonceSize+tagSize || kind(frame[4]) != p.kind {
		return 0, ErrCorrupt
	}
	if !hmac.Equal(frame[5:frameSize], s.frameTag(p, n)) {
		return 0, ErrCorrupt
	}
	return int(n), nil
}

// open authenticates a sealed body for its place and parses it.
func (s *sealer) open(p place, sealed []byte) ([]change, error) {
	nonce, ct := sealed[:nonceSize], sealed[nonceSize:]
	body, err := s.aead.Open(nil, nonce, ct, s.bind("claviger/persist/record/v1", p))
	if err != nil {
		return nil, fmt.Errorf("%w: a record does not authenticate", ErrCorrupt)
	}
	changes, err := parseBody(body)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrCorrupt, err)
	}
	return changes, nil
}

// The hash chain. A commit's hash covers its whole record, tag included, and the
// hash before; the register pins it.

func (s *sealer) genesisHash() [32]byte {
	return sha256.Sum256(fields("claviger/persist/genesis/v1", []byte(s.name), s.storeID[:]))
}

func nextHash(prev [32]byte, record []byte) [32]byte {
	return sha256.Sum256(fields("claviger/persist/chain/v1", prev[:], record))
}

// checkpointHash starts the chain of a checkpoint's own records.
func checkpointHash(h *header) [32]byte {
	return sha256.Sum256(fields("claviger/persist/checkpoint/v1", h.append(nil)))
}
