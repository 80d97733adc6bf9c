package api

import (
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
)

// Evidence is what came over an attested channel: a raw quote, the collateral
// bundle the peer's host fetched (may be empty: the replicated set is used),
// and the report data that the channel demands. Binding never comes from the
// request: the server computes it from its own view of the channel.
type Evidence struct {
	Quote      []byte
	Collateral []byte
	Binding    [64]byte
}

// Version names a derivation: the root generation, its id, and the counter. Zero
// in a request means the current one, or that of the rest; a reply names all.
//
// A number may be used twice: a recovery that goes on from before an epoch, whose
// roots are lost with it, makes the generation again. The id is the root's own, and
// the same number with another id means other keys. Whoever seals data for years
// keeps the id beside it, and asks for it.
type Version struct {
	Generation   uint64 `json:"generation"`
	Counter      uint64 `json:"counter"`
	GenerationID ID     `json:"generation_id,omitzero"` // zero in a reply only below feature level 3
}

// FirstGeneration is the root generation that every cluster has from its genesis
// on, whatever recoveries add: what asks for it gets the same key for ever.
const FirstGeneration = 1

// KeyRequest asks for a private or symmetric key; POST /v1/keys.
type KeyRequest struct {
	Constraint string  `json:"constraint"`
	Name       string  `json:"name"`
	Purpose    string  `json:"purpose"`
	Version    Version `json:"version,omitzero"`
}

// Check bounds the request before anything reads it.
func (r *KeyRequest) Check() error { return checkKey(r.Constraint, r.Name, r.Purpose) }

func checkKey(constraint, name, purpose string) error {
	switch {
	case len(constraint) > MaxConstraint:
		return fmt.Errorf("%w: constraint of %d bytes, limit %d", ErrTooLarge, len(constraint), MaxConstraint)
	case len(name) > MaxName:
		return fmt.Errorf("%w: name of %d bytes, limit %d", ErrTooLarge, len(name), MaxName)
	case len(purpose) > MaxPurpose:
		return fmt.Errorf("%w: purpose of %d bytes, limit %d", ErrTooLarge, len(purpose), MaxPurpose)
	case constraint == "":
		return fmt.Errorf("%w: the constraint is empty", ErrMalformed)
	case !ValidName(name):
		return fmt.Errorf("%w: a name is 1 to %d visible ASCII bytes without spaces", ErrMalformed, MaxName)
	}
	return nil
}

// KeyReply carries a key. Key holds raw bytes in the standard form of the
// purpose: the bytes themselves, a 32-byte X25519 scalar (x25519, age) or a
// 32-byte RFC 8032 seed. Formatting a reply never prints it.
type KeyReply struct {
	Key        []byte  `json:"key"`
	Purpose    string  `json:"purpose"`
	Constraint string  `json:"constraint"` // canonical: store this form
	Name       string  `json:"name"`
	Realm      string  `json:"realm"`
	Version    Version `json:"version"`
	ClusterID  ID      `json:"cluster_id"`
	Epoch      uint64  `json:"epoch"`
	Receipt    Receipt `json:"receipt"`
}

// Format implements fmt.Formatter for every verb and shows no key.
func (r KeyReply) Format(f fmt.State, _ rune) {
	fmt.Fprintf(f, "api.KeyReply{%s %s realm %s version %d.%d key redacted}",
		r.Purpose, r.Name, r.Realm, r.Version.Generation, r.Version.Counter)
}

// CheckReceipt verifies the receipt and that it is for this very reply to
// request: cluster, realm, constraint, name, purpose and version.
func (r *KeyReply) CheckReceipt(identityKey ed25519.PublicKey, clusterID ID) (*Record, error) {
	rec, err := r.Receipt.Verify(identityKey, clusterID)
	if err != nil {
		return nil, err
	}
	same := r.ClusterID == clusterID && rec.Epoch == r.Epoch && rec.Realm == r.Realm &&
		rec.Constraint == r.Constraint && rec.Name == r.Name && rec.Purpose == r.Purpose &&
		rec.Generation == r.Version.Generation && rec.Counter == r.Version.Counter
	if !same {
		return nil, fmt.Errorf("%w: it records another release than this reply", ErrReceipt)
	}
	return rec, nil
}

// PublicKeyRequest asks for the public half of an asymmetric key; POST
// /v1/keys/public. No evidence is needed, and no enclave that satisfies the
// constraint need exist.
type PublicKeyRequest struct {
	Constraint string  `json:"constraint"`
	Name       string  `json:"name"`
	Purpose    string  `json:"purpose"`
	Version    Version `json:"version,omitzero"`
}

// Check bounds the request before anything reads it.
func (r *PublicKeyRequest) Check() error { return checkKey(r.Constraint, r.Name, r.Purpose) }

// PublicKeyReply carries a public key, signed by the cluster identity key
// together with what it is bound to and whether that can change.
type PublicKeyReply struct {
	PublicKey  []byte  `json:"public_key"`          // 32 bytes, x25519 or ed25519
	Recipient  string  `json:"recipient,omitempty"` // age1…, for purpose age
	Purpose    string  `json:"purpose"`
	Constraint string  `json:"constraint"` // canonical
	Name       string  `json:"name"`
	Realm      string  `json:"realm"`
	Version    Version `json:"version"`
	ClusterID  ID      `json:"cluster_id"`
	Epoch      uint64  `json:"epoch"`
	PolicyHash ID      `json:"policy_hash"` // see PolicyHash
	Mutable    bool    `json:"mutable"`     // whether approvers can widen the policy; never for a constraint
	Signature  []byte  `json:"signature"`
}

// PolicyHash is the hash a public key reply is signed with for an inline
// constraint: SHA-256 over the CBOR array ["claviger/policy/v1", canonical].
func PolicyHash(canonical string) (ID, error) {
	raw, err := MarshalCanonical([]any{"claviger/policy/v1", canonical})
	if err != nil {
		return ID{}, err
	}
	return sha256.Sum256(raw), nil
}

func (r *PublicKeyReply) message() ([]byte, error) {
	fields := []any{
		"claviger/public-key/v1", [32]byte(r.ClusterID), r.Epoch, r.Realm, r.Constraint, [32]byte(r.PolicyHash), r.Mutable,
		r.Name, r.Purpose, r.Version.Generation, r.Version.Counter, r.PublicKey, r.Recipient,
	}
	if id := r.Version.GenerationID; !id.IsZero() {
		fields[0], fields = "claviger/public-key/v2", append(fields, [32]byte(id))
	}
	return MarshalCanonical(fields)
}

// Sign fills in the signature.
func (r *PublicKeyReply) Sign(s Signer) error {
	msg, err := r.message()
	if err != nil {
		return err
	}
	sig, err := s.Sign(msg)
	if err != nil {
		return err
	}
	r.Signature = sig
	return nil
}

// Verify checks that the identity key of cluster clusterID signed exactly
// these fields and that the policy hash is that of the constraint.
func (r *PublicKeyReply) Verify(identityKey ed25519.PublicKey, clusterID ID) error {
	if r.ClusterID != clusterID {
		return fmt.Errorf("%w: the reply is of cluster %s", ErrSignature, r.ClusterID)
	}
	hash, err := PolicyHash(r.Constraint)
	if err != nil {
		return err
	}
	if hash != r.PolicyHash {
		return fmt.Errorf("%w: the policy hash is not that of the constraint", ErrSignature)
	}
	msg, err := r.message()
	if err != nil {
		return err
	}
	return verify(identityKey, msg, r.Signature)
}
