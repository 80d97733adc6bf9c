package functions

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

// Limits of the protocol.
const (
	MaxCode     = 1 << 20 // bytes of a bundle
	MaxArgs     = 1 << 20 // bytes of a call's JSON arguments
	MaxName     = 128     // bytes of a project's or function's name
	MaxRuntime  = 4 << 10 // bytes of a runtime's constraint
	idSize      = 16      // bytes of session and invocation ids
	maxMessage  = MaxCode + 64<<10
	maxDocument = 6 << 20 // bytes of an HTTP body: the largest sealed message in Base64
)

// ProjectID is the identity of a project: a hash that only the owner's key and
// the project's name have. It prints as 64 hexadecimal digits.
type ProjectID [32]byte

// CodeHash is the identity of a bundle. It prints as 64 hexadecimal digits.
type CodeHash [32]byte

// ProjectIDOf returns SHA-256 over the framed label, the owner's public key and
// the project's name, 1 to MaxName bytes.
func ProjectIDOf(owner ed25519.PublicKey, name string) (ProjectID, error) {
	if len(owner) != ed25519.PublicKeySize {
		return ProjectID{}, fmt.Errorf("%w: the owner's key has %d bytes", ErrFormat, len(owner))
	}
	if len(name) == 0 || len(name) > MaxName {
		return ProjectID{}, fmt.Errorf("%w: a project's name has 1 to %d bytes", ErrFormat, MaxName)
	}
	return sha256.Sum256(fields("claviger/functions/project/v1", owner, []byte(name))), nil
}

// HashCode returns the identity of a bundle: SHA-256 over the framed label and
// the code.
func HashCode(code []byte) CodeHash {
	return sha256.Sum256(fields("claviger/functions/code/v1", code))
}

func (id ProjectID) String() string { return hex.EncodeToString(id[:]) }
func (h CodeHash) String() string   { return hex.EncodeToString(h[:]) }

// ParseProjectID is the strict inverse of String.
func ParseProjectID(text string) (ProjectID, error) {
	id, err := parseHash(text)
	if err != nil {
		return ProjectID{}, fmt.Errorf("%w: a project id has 64 lower-case hexadecimal digits", ErrFormat)
	}
	return ProjectID(id), nil
}

// ParseCodeHash is the strict inverse of String.
func ParseCodeHash(text string) (CodeHash, error) {
	h, err := parseHash(text)
	if err != nil {
		return CodeHash{}, fmt.Errorf("%w: a code hash has 64 lower-case hexadecimal digits", ErrFormat)
	}
	return CodeHash(h), nil
}

func parseHash(text string) (h [32]byte, err error) {
	if len(text) != 64 {
		return h, ErrFormat
	}
	raw, err := hex.DecodeString(text)
	if err != nil || hex.EncodeToString(raw) != text {
		return h, ErrFormat
	}
	copy(h[:], raw)
	return h, nil
}

// checkFunction admits the names that a URL path carries as they are.
func checkFunction(name string) error {
	ok := len(name) > 0 && len(name) <= MaxName
	for _, c := range []byte(name) {
		ok = ok && ('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '_' || c == '$')
	}
	if !ok {
		return fmt.Errorf("%w: a function's name has 1 to %d of A-Z, a-z, 0-9, _ and $", ErrFormat, MaxName)
	}
	return nil
}

// fields frames values under a versioned label, each preceded by its length, so
// that no two lists share an encoding.
func fields(label string, values ...[]byte) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(label)))
	b = append(b, label...)
	for _, v := range values {
		b = binary.BigEndian.AppendUint32(b, uint32(len(v)))
		b = append(b, v...)
	}
	return b
}

// callInfo is what a sealed call is for.
func callInfo(runtime string, project ProjectID, function string, code CodeHash) []byte {
	return fields("claviger/functions/call/v1", []byte(runtime), project[:], []byte(function), code[:])
}

// deployInfo is what a sealed deployment is for.
func deployInfo(runtime string, project ProjectID) []byte {
	return fields("claviger/functions/deploy/v1", []byte(runtime), project[:])
}
