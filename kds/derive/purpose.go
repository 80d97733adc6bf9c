package derive

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// Errors of parameters. All of them come before any use of the root.
var (
	ErrPurpose = errors.New("derive: unknown purpose")
	ErrRealm   = errors.New("derive: unknown realm")
	ErrParams  = errors.New("derive: parameters refused")
	ErrNoHalf  = errors.New("derive: this purpose has no public half")
)

// MaxRaw is the largest raw key in bytes.
const MaxRaw = 64

// Purpose says what a derived key is for; it is part of the derivation, so
// the same bytes never serve two algorithms. The zero Purpose is refused.
type Purpose struct {
	text string
	size int // L, bytes taken from HKDF
}

// The purposes with a fixed size. Raw keys come from ParsePurpose("raw/32").
var (
	AES256  = Purpose{"aes-256", 32}
	X25519  = Purpose{"x25519", 32}  // 32-byte input of HPKE DeriveKeyPair, DHKEM(X25519, HKDF-SHA256)
	Ed25519 = Purpose{"ed25519", 32} // RFC 8032 seed
	Age     = Purpose{"age", 32}     // scalar of an age X25519 identity
)

// ParsePurpose reads "raw/1" to "raw/64", "aes-256", "x25519", "ed25519" or
// "age". There is one spelling of each.
func ParsePurpose(text string) (Purpose, error) {
	for _, p := range []Purpose{AES256, X25519, Ed25519, Age} {
		if text == p.text {
			return p, nil
		}
	}
	digits, ok := strings.CutPrefix(text, "raw/")
	if !ok {
		return Purpose{}, fmt.Errorf("%w %.40q: use raw/1 to raw/%d, aes-256, x25519, ed25519 or age", ErrPurpose, text, MaxRaw)
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > MaxRaw || strconv.Itoa(n) != digits {
		return Purpose{}, fmt.Errorf("%w %.40q: a raw key has 1 to %d bytes, in decimal without leading zeros", ErrPurpose, text, MaxRaw)
	}
	return Purpose{text, n}, nil
}

// String returns the one spelling of the purpose.
func (p Purpose) String() string { return p.text }

// Size returns L, the bytes taken from HKDF: also the size of the key.
func (p Purpose) Size() int { return p.size }

// Asymmetric reports whether the purpose has a public half.
func (p Purpose) Asymmetric() bool { return p == X25519 || p == Ed25519 || p == Age }

// Realm separates what hardware vouches for from simulation, and production
// from debug enclaves. It follows from the evidence; a request cannot choose.
type Realm string

// The realms.
const (
	Hardware       Realm = "hw"
	HardwareDebug  Realm = "hw-debug"
	Simulated      Realm = "sim"
	SimulatedDebug Realm = "sim-debug"
)

// RealmOf returns the realm of evidence under a simulated or real root of
// trust, from a debug or production enclave.
func RealmOf(simulated, debug bool) Realm {
	switch {
	case simulated && debug:
		return SimulatedDebug
	case simulated:
		return Simulated
	case debug:
		return HardwareDebug
	}
	return Hardware
}

func (r Realm) check() error {
	switch r {
	case Hardware, HardwareDebug, Simulated, SimulatedDebug:
		return nil
	}
	return fmt.Errorf("%w %.40q", ErrRealm, string(r))
}
