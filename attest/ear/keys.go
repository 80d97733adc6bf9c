package ear

import (
	"crypto"
	"crypto/ed25519"
	_ "crypto/sha256" // for the thumbprint
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// Keys are the keys that a relying party trusts, by their RFC 7638 thumbprints. The zero Keys trust nobody.
type Keys struct {
	keys []trusted
}

// trusted is one key with the only header that its tokens may have.
type trusted struct {
	id     string
	key    ed25519.PublicKey
	header string // first part of a token
}

// JWK is a public key of a key set (RFC 7517, RFC 8037), always Ed25519 and for signatures.
type JWK struct {
	KeyType   string `json:"kty"` // "OKP"
	Curve     string `json:"crv"` // "Ed25519"
	X         string `json:"x"`   // 32 bytes, base64url
	KeyID     string `json:"kid"` // RFC 7638 thumbprint, SHA-256, base64url
	Algorithm string `json:"alg"` // "EdDSA"
	Use       string `json:"use"` // "sig"
}

// NewKeys returns the set of keys that a caller has pinned: 1 to MaxKeys distinct Ed25519 keys. Anything else is
// ErrInput.
func NewKeys(keys ...ed25519.PublicKey) (Keys, error) {
	if len(keys) == 0 || len(keys) > MaxKeys {
		return Keys{}, fmt.Errorf("%w: %d keys, want 1 to %d", ErrInput, len(keys), MaxKeys)
	}
	var out Keys
	for _, key := range keys {
		t, err := trust(key)
		if err != nil {
			return Keys{}, err
		}
		if _, known := out.find(t.id); known {
			return Keys{}, fmt.Errorf("%w: a key stands twice", ErrInput)
		}
		out.keys = append(out.keys, t)
	}
	return out, nil
}

func trust(key ed25519.PublicKey) (trusted, error) {
	if len(key) != ed25519.PublicKeySize {
		return trusted{}, fmt.Errorf("%w: key of %d bytes, want %d", ErrInput, len(key), ed25519.PublicKeySize)
	}
	t := trusted{key: slices.Clone(key)}
	jwk := jose.JSONWebKey{Key: t.key}
	sum, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return trusted{}, fmt.Errorf("%w: %w", ErrInput, err)
	}
	t.id = base64.RawURLEncoding.EncodeToString(sum)
	raw, err := json.Marshal(map[string]string{"alg": algorithm, "kid": t.id, "typ": tokenType})
	if err != nil {
		return trusted{}, err
	}
	t.header = base64.RawURLEncoding.EncodeToString(raw)
	return t, nil
}

// KeyID returns the RFC 7638 thumbprint of a key: what kid says in tokens and key sets.
func KeyID(key ed25519.PublicKey) (string, error) {
	t, err := trust(key)
	return t.id, err
}

// IsZero reports whether the set trusts nobody.
func (k Keys) IsZero() bool { return len(k.keys) == 0 }

func (k Keys) find(id string) (trusted, bool) {
	for _, t := range k.keys {
		if t.id == id {
			return t, true
		}
	}
	return trusted{}, false
}

// JWKs returns the set in the form of RFC 7517, for generic JWT libraries.
func (k Keys) JWKs() []JWK {
	out := make([]JWK, len(k.keys))
	for i, t := range k.keys {
		out[i] = JWK{"OKP", "Ed25519", base64.RawURLEncoding.EncodeToString(t.key), t.id, algorithm, "sig"}
	}
	return out
}

// ParseKeys reads a JWKS document as KeySet services serve it. It proves nothing about where the document came from:
// pin it, or compare its keys with a verified cluster. Keys of other kinds, unknown members and trailing data are
// ErrMalformed.
func ParseKeys(raw []byte) (Keys, error) {
	if len(raw) > MaxKeySet {
		return Keys{}, fmt.Errorf("%w: key set of %d bytes, limit %d", ErrTooLarge, len(raw), MaxKeySet)
	}
	var set struct {
		Keys []JWK `json:"keys"`
	}
	if err := decodeExact(raw, &set); err != nil {
		return Keys{}, err
	}
	var keys []ed25519.PublicKey
	for _, jwk := range set.Keys {
		key, err := base64.RawURLEncoding.Strict().DecodeString(jwk.X)
		if err != nil || len(key) != ed25519.PublicKeySize {
			return Keys{}, fmt.Errorf("%w: a key is not 32 bytes of base64url", ErrMalformed)
		}
		t, err := trust(key)
		if err != nil {
			return Keys{}, err
		}
		if jwk.KeyType != "OKP" || jwk.Curve != "Ed25519" || jwk.Algorithm != algorithm || jwk.Use != "sig" || jwk.KeyID != t.id {
			return Keys{}, fmt.Errorf("%w: want Ed25519 signature keys that are named by their thumbprint", ErrMalformed)
		}
		keys = append(keys, key)
	}
	return NewKeys(keys...)
}
