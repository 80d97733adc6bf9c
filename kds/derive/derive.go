package derive

import (
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/hpke"
	"crypto/sha512"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/claviger/claviger/enclave/secret"
)

const (
	label    = "claviger/derive/v1"
	minRoot  = 32      // bytes: a root below 256 bits is a mistake of the caller
	maxBound = 4 << 10 // bytes of a binding
	maxName  = 256     // bytes of a name
)

// bindingConstraint is the first element of a binding to an inline
// constraint. 1 is taken by governed policies.
const bindingConstraint = 0

// Binding is what a key belongs to. The zero Binding is refused.
type Binding struct {
	_    struct{} `cbor:",toarray"`
	Kind uint64
	Text string
}

// Constraint binds a key to an inline constraint, given in canonical form.
// This package does not know the language; giving another spelling of the
// same constraint gives another key.
func Constraint(canonical string) Binding {
	return Binding{Kind: bindingConstraint, Text: canonical}
}

// Params names one key under one root.
type Params struct {
	Realm   Realm
	Binding Binding
	Name    string // 1..256 bytes
	Purpose Purpose
	Counter uint64 // from 1
}

func (p Params) check(root secret.Key, clusterID [32]byte) error {
	if err := p.Realm.check(); err != nil {
		return err
	}
	if p.Purpose.size < 1 || p.Purpose.size > MaxRaw {
		return fmt.Errorf("%w: the zero purpose", ErrPurpose)
	}
	switch {
	case root.Len() < minRoot:
		return fmt.Errorf("%w: root of %d bytes, want at least %d", ErrParams, root.Len(), minRoot)
	case clusterID == [32]byte{}:
		return fmt.Errorf("%w: zero cluster id", ErrParams)
	case p.Binding.Kind != bindingConstraint || p.Binding.Text == "" || len(p.Binding.Text) > maxBound:
		return fmt.Errorf("%w: binding of kind %d with %d bytes", ErrParams, p.Binding.Kind, len(p.Binding.Text))
	case p.Name == "" || len(p.Name) > maxName:
		return fmt.Errorf("%w: name of %d bytes, want 1 to %d", ErrParams, len(p.Name), maxName)
	case p.Counter == 0:
		return fmt.Errorf("%w: counters begin at 1", ErrParams)
	}
	return nil
}

// coreDet is RFC 8949 core deterministic encoding. The options are constant,
// so an error here fails every test of the package.
var coreDet = func() cbor.EncMode {
	mode, err := cbor.CoreDetEncOptions().EncMode()
	if err != nil {
		panic(err)
	}
	return mode
}()

// info returns the framed derivation tuple.
func (p Params) info() ([]byte, error) {
	return coreDet.Marshal([]any{
		label, string(p.Realm), p.Binding, p.Name, p.Purpose.text, p.Counter, p.Purpose.size,
	})
}

// expand returns the L bytes of HKDF output, before any algorithm's own step.
func expand(root secret.Key, clusterID [32]byte, p Params) ([]byte, error) {
	if err := p.check(root, clusterID); err != nil {
		return nil, err
	}
	info, err := p.info()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrParams, err)
	}
	ikm := root.Reveal()
	defer clear(ikm)
	prk, err := hkdf.Extract(sha512.New, ikm, clusterID[:])
	if err != nil {
		return nil, fmt.Errorf("derive: extract: %w", err)
	}
	defer clear(prk)
	okm, err := hkdf.Expand(sha512.New, prk, string(info), p.Purpose.size)
	if err != nil {
		return nil, fmt.Errorf("derive: expand: %w", err)
	}
	return okm, nil
}

// Key derives the private or symmetric key that p names, in the standard raw
// form of its purpose: the bytes themselves for raw and aes-256, the RFC 8032
// seed for ed25519, the scalar for age, and for x25519 the private key that
// HPKE DeriveKeyPair makes of the derived bytes (RFC 9180 section 7.1.3), as
// SerializePrivateKey writes it. root is a root generation of at least 32
// bytes; p.Realm must come from verified evidence.
func Key(root secret.Key, clusterID [32]byte, p Params) (secret.Key, error) {
	okm, err := expand(root, clusterID, p)
	if err != nil {
		return secret.Key{}, err
	}
	defer clear(okm)
	if p.Purpose != X25519 {
		return secret.New(okm)
	}
	pair, err := hpke.DHKEM(ecdh.X25519()).DeriveKeyPair(okm)
	if err != nil {
		return secret.Key{}, fmt.Errorf("derive: x25519: %w", err)
	}
	scalar, err := pair.Bytes()
	if err != nil {
		return secret.Key{}, fmt.Errorf("derive: x25519: %w", err)
	}
	defer clear(scalar)
	return secret.New(scalar)
}

// Public derives the public half of the key that p names: 32 bytes for
// x25519, ed25519 and age. Other purposes are ErrNoHalf.
func Public(root secret.Key, clusterID [32]byte, p Params) ([]byte, error) {
	if !p.Purpose.Asymmetric() {
		return nil, fmt.Errorf("%w: %s", ErrNoHalf, p.Purpose)
	}
	key, err := Key(root, clusterID, p)
	if err != nil {
		return nil, err
	}
	defer key.Destroy()
	raw := key.Reveal()
	defer clear(raw)
	if p.Purpose == Ed25519 {
		private := ed25519.NewKeyFromSeed(raw)
		defer clear(private)
		return []byte(private.Public().(ed25519.PublicKey)), nil
	}
	private, err := ecdh.X25519().NewPrivateKey(raw)
	if err != nil {
		return nil, fmt.Errorf("derive: %s: %w", p.Purpose, err)
	}
	return private.PublicKey().Bytes(), nil
}
