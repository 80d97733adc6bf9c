package api

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/fxamacker/cbor/v2"
)

// Errors of decoding. ErrTooLarge is checked before any parsing.
var (
	ErrTooLarge     = errors.New("api: value exceeds its size limit")
	ErrMalformed    = errors.New("api: malformed encoding")
	ErrNotCanonical = errors.New("api: encoding is not the canonical one")
)

// The CBOR modes are fixed: core deterministic out; no duplicates, unknown
// fields, indefinite lengths, tags or invalid UTF-8 in.
var (
	encMode = must(encOptions().EncMode())
	decMode = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		UTF8:              cbor.UTF8RejectInvalid,
		MaxNestedLevels:   8,
		MaxArrayElements:  1024,
		MaxMapPairs:       16,
	}.DecMode())
)

// encOptions are core deterministic, with one encoding of an empty list
// whether or not it is nil.
func encOptions() cbor.EncOptions {
	o := cbor.CoreDetEncOptions()
	o.NilContainers = cbor.NilContainerAsEmpty
	return o
}

// must turns a mistake in the constant options above into a failure of every
// test at start-up; it never sees input.
func must[T any](mode T, err error) T {
	if err != nil {
		panic(err)
	}
	return mode
}

// MarshalCanonical returns the core deterministic CBOR of v (RFC 8949 section
// 4.2.1), the encoding of everything that is hashed, signed or replicated.
func MarshalCanonical(v any) ([]byte, error) {
	raw, err := encMode.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return raw, nil
}

// UnmarshalCanonical reads exactly one canonical value of at most limit bytes
// into v, a pointer, and refuses anything that would not encode to the same
// bytes again: ErrTooLarge, ErrMalformed or ErrNotCanonical. Arrays have at
// most 1024 elements. What v holds after an error is not to be used.
func UnmarshalCanonical(raw []byte, limit int, v any) error {
	if len(raw) > limit {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, len(raw), limit)
	}
	if err := decMode.Unmarshal(raw, v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	again, err := MarshalCanonical(v)
	if err != nil {
		return err
	}
	if !bytes.Equal(raw, again) {
		return ErrNotCanonical
	}
	return nil
}

// DecodeJSON reads one JSON value of at most limit bytes into v. Unknown and
// duplicate keys, keys other than a-z, 0-9 and '_' (encoding/json would match
// other cases, too), nesting beyond a bound and trailing data are refused: a
// proxy and the server must never read two meanings out of one body.
func DecodeJSON(raw []byte, limit int, v any) error {
	if len(raw) > limit {
		return fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, len(raw), limit)
	}
	if err := checkKeys(json.NewDecoder(bytes.NewReader(raw)), 0); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: data after the JSON value", ErrMalformed)
	}
	return nil
}

// plainKey reports whether s is spelled as the keys of this package are.
func plainKey(s string) bool {
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '_' {
			return false
		}
	}
	return s != ""
}

// checkKeys walks one value and refuses duplicate keys and deep nesting.
func checkKeys(dec *json.Decoder, depth int) error {
	if depth > maxJSONDepth {
		return fmt.Errorf("%w: JSON nested deeper than %d", ErrMalformed, maxJSONDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	delim, open := token.(json.Delim)
	if !open {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			key, err := dec.Token()
			if err != nil {
				return fmt.Errorf("%w: %w", ErrMalformed, err)
			}
			name := fmt.Sprint(key)
			if seen[name] || !plainKey(name) {
				return fmt.Errorf("%w: duplicate or unknown key %.40q", ErrMalformed, name)
			}
			seen[name] = true
		}
		if err := checkKeys(dec, depth+1); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}
