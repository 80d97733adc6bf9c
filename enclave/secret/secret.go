package secret

import (
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
)

const (
	// MaxSize is the largest key in bytes; the smallest has one byte.
	MaxSize = 64

	// MinDeriveSize is the size in bytes that a key needs to derive others:
	// below 128 bits a derived key would only look strong.
	MinDeriveSize = 16

	// MaxLabel is the longest derivation label in bytes.
	MaxLabel = 1024

	// deriveLabel separates these derivations from every other use of HKDF.
	deriveLabel = "claviger/secret/derive/v1"
)

var (
	// ErrSize is returned for key material outside 1..MaxSize bytes, and by
	// Derive for a key shorter than MinDeriveSize.
	ErrSize = errors.New("secret: key size out of range")

	// ErrZero is returned when a zero or destroyed key is used.
	ErrZero = errors.New("secret: the key is zero or was destroyed")

	// ErrLabel is returned for a derivation label that is empty or longer than
	// MaxLabel bytes.
	ErrLabel = errors.New("secret: derivation label size out of range")
)

// Key is a handle to secret bytes. The zero Key is invalid. A Key is safe for
// concurrent use, is not comparable with ==, and cannot be a map key.
type Key struct {
	_ [0]func() // not comparable: == would compare handles, in variable time
	p *buf
}

// buf is what all copies of one Key share. The bytes live in a closure: fmt
// follows a pointer in an unexported field when it reports a bad verb, where no
// method of Key is asked, and other printers follow any pointer; none enters a
// function. reflect.DeepEqual cannot compare it either.
type buf struct {
	mu   sync.RWMutex
	view func() []byte // the bytes themselves, never a copy; nil once destroyed
}

// own returns a Key that takes b over.
func own(b []byte) Key { return Key{p: &buf{view: func() []byte { return b }}} }

// read calls f with the key's own bytes, none for a zero or destroyed key. f
// must not keep or change them.
func (k Key) read(f func(b []byte)) {
	if k.p == nil {
		f(nil)
		return
	}
	k.p.mu.RLock()
	defer k.p.mu.RUnlock()
	if k.p.view == nil {
		f(nil)
		return
	}
	f(k.p.view())
}

// New returns a Key holding a copy of b, 1 to MaxSize bytes, else ErrSize. The
// caller still owns b and should clear it.
func New(b []byte) (Key, error) {
	if len(b) < 1 || len(b) > MaxSize {
		return Key{}, fmt.Errorf("%w: %d bytes, want 1 to %d", ErrSize, len(b), MaxSize)
	}
	return own(append(make([]byte, 0, len(b)), b...)), nil
}

// Random returns a fresh key of n bytes, 1 to MaxSize, else ErrSize, from the
// operating system's (in an enclave: the processor's) generator.
func Random(n int) (Key, error) {
	if n < 1 || n > MaxSize {
		return Key{}, fmt.Errorf("%w: %d bytes, want 1 to %d", ErrSize, n, MaxSize)
	}
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return Key{}, fmt.Errorf("secret: random generator: %w", err)
	}
	return own(b), nil
}

// IsZero reports whether k holds no key: the zero Key, or one destroyed.
func (k Key) IsZero() bool { return k.Len() == 0 }

// Len returns the size of the key in bytes, 0 for a zero or destroyed key.
func (k Key) Len() (n int) {
	k.read(func(b []byte) { n = len(b) })
	return n
}

// Reveal returns a copy of the secret bytes, nil for a zero or destroyed key.
// It is the only way out: hand the copy to a cipher and clear it.
func (k Key) Reveal() (out []byte) {
	k.read(func(b []byte) {
		if len(b) != 0 {
			out = append(make([]byte, 0, len(b)), b...)
		}
	})
	return out
}

// Equal reports in constant time for keys of one size whether k and other hold
// the same bytes. A zero or destroyed key equals nothing, itself included, so
// that a missing key never matches a missing key.
func (k Key) Equal(other Key) bool {
	a, b := k.Reveal(), other.Reveal()
	defer clear(a)
	defer clear(b)
	return len(a) != 0 && subtle.ConstantTimeCompare(a, b) == 1
}

// Derive returns the n-byte key (1..MaxSize) that k and label determine:
// HKDF-Expand(SHA-512, PRK = k, info, n) of RFC 5869 with
//
//	info = len16(deriveLabel) ‖ deriveLabel ‖ len16(label) ‖ label ‖ uint16(n)
//
// in big-endian. The length is part of info, so a shorter key is not the prefix
// of a longer one. k must be uniformly random, as Random and Derive make it. It
// fails with ErrZero, ErrSize or ErrLabel.
func (k Key) Derive(label string, n int) (Key, error) {
	if len(label) < 1 || len(label) > MaxLabel {
		return Key{}, fmt.Errorf("%w: %d bytes, want 1 to %d", ErrLabel, len(label), MaxLabel)
	}
	if n < 1 || n > MaxSize {
		return Key{}, fmt.Errorf("%w: %d bytes asked for, want 1 to %d", ErrSize, n, MaxSize)
	}
	prk := k.Reveal()
	defer clear(prk)
	if len(prk) == 0 {
		return Key{}, ErrZero
	}
	if len(prk) < MinDeriveSize {
		return Key{}, fmt.Errorf("%w: deriving needs a key of at least %d bytes", ErrSize, MinDeriveSize)
	}
	info := make([]byte, 0, 6+len(deriveLabel)+len(label))
	info = binary.BigEndian.AppendUint16(info, uint16(len(deriveLabel)))
	info = append(info, deriveLabel...)
	info = binary.BigEndian.AppendUint16(info, uint16(len(label)))
	info = append(info, label...)
	info = binary.BigEndian.AppendUint16(info, uint16(n))
	out, err := hkdf.Expand(sha512.New, prk, string(info), n)
	if err != nil {
		return Key{}, fmt.Errorf("secret: derive: %w", err)
	}
	return own(out), nil
}

// Destroy overwrites the secret with zeroes; every copy of k is zero afterwards.
// Destroying a zero Key does nothing.
func (k Key) Destroy() {
	if k.p == nil {
		return
	}
	k.p.mu.Lock()
	defer k.p.mu.Unlock()
	if k.p.view != nil {
		clear(k.p.view())
		k.p.view = nil
	}
}
