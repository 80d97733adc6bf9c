package api

import (
	"encoding/hex"
	"errors"
	"fmt"
)

// ErrHex says that a text is not lower-case hexadecimal of the right length.
var ErrHex = errors.New("api: want lower-case hexadecimal of the exact length")

// ID is a 32-byte identifier or hash: a cluster id, a server id, a leaf, a
// root hash. Its text and JSON form is 64 lower-case hexadecimal digits, and
// no other form is accepted. It assigns to and from [32]byte.
type ID [32]byte

// String returns the 64 hexadecimal digits.
func (id ID) String() string { return hex.EncodeToString(id[:]) }

// IsZero reports whether all bytes are zero, which no real id is.
func (id ID) IsZero() bool { return id == ID{} }

// MarshalText implements encoding.TextMarshaler.
func (id ID) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, id[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler. The receiver changes
// only on success.
func (id *ID) UnmarshalText(text []byte) error {
	parsed, err := ParseID(string(text))
	if err != nil {
		return err
	}
	*id = parsed
	return nil
}

// ParseID reads 64 lower-case hexadecimal digits.
func ParseID(text string) (ID, error) {
	var id ID
	if len(text) != 2*len(id) {
		return ID{}, fmt.Errorf("%w: %d digits instead of %d", ErrHex, len(text), 2*len(id))
	}
	if err := decodeLowerHex(id[:], text); err != nil {
		return ID{}, err
	}
	return id, nil
}

// ReportData is the 64-byte field of a quote that binds it to something. Its
// text form is 128 lower-case hexadecimal digits.
type ReportData [64]byte

// MarshalText implements encoding.TextMarshaler.
func (r ReportData) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, r[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *ReportData) UnmarshalText(text []byte) error {
	var parsed ReportData
	if len(text) != 2*len(parsed) {
		return fmt.Errorf("%w: %d digits instead of %d", ErrHex, len(text), 2*len(parsed))
	}
	if err := decodeLowerHex(parsed[:], string(text)); err != nil {
		return err
	}
	*r = parsed
	return nil
}

// decodeLowerHex fills dst, whose length the caller has compared. Upper case
// is refused so that one value has one text.
func decodeLowerHex(dst []byte, text string) error {
	for i := 0; i < len(text); i++ {
		if c := text[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
			return fmt.Errorf("%w: byte %q at offset %d", ErrHex, c, i)
		}
	}
	if _, err := hex.Decode(dst, []byte(text)); err != nil {
		return fmt.Errorf("%w: %w", ErrHex, err)
	}
	return nil
}
