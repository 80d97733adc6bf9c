package api

import (
	"crypto/ed25519"
	"errors"
	"fmt"
)

// Errors of statements.
var (
	ErrSignature  = errors.New("api: signature does not verify")
	ErrMembership = errors.New("api: membership refused")
)

// Signer is the cluster identity key as its holder shows it: it signs, and
// its private half has no accessor.
type Signer interface {
	Public() ed25519.PublicKey
	Sign(message []byte) ([]byte, error) // ed25519 over message itself
}

// Membership says that a boot of a node belongs to a cluster. The identity
// key signs it when the node has been admitted; it is bound to the TLS key of
// that boot through ServerID.
type Membership struct {
	_           struct{} `cbor:",toarray"`
	ClusterID   [32]byte
	Epoch       uint64   // from 1
	Slot        string   // 1..32 bytes of a-z, 0-9 and '-'
	Incarnation uint64   // from 1, the boot of this slot
	ServerID    [32]byte // SHA-256 of the boot key's SubjectPublicKeyInfo
}

// Check reports the first field out of range.
func (m *Membership) Check() error {
	switch {
	case m.ClusterID == [32]byte{} || m.ServerID == [32]byte{}:
		return fmt.Errorf("%w: zero cluster or server id", ErrMembership)
	case m.Epoch == 0 || m.Incarnation == 0:
		return fmt.Errorf("%w: epoch and incarnation count from 1", ErrMembership)
	case !ValidSlot(m.Slot):
		return fmt.Errorf("%w: slot %q: use 1 to %d of a-z, 0-9 and '-'", ErrMembership, m.Slot, MaxSlot)
	}
	return nil
}

// ValidSlot reports whether s may name a slot.
func ValidSlot(s string) bool {
	if s == "" || len(s) > MaxSlot {
		return false
	}
	for i := 0; i < len(s); i++ {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// ValidAddress reports whether s may be a network address in a record: 1 to
// 256 visible ASCII bytes. Addresses are hints from a host, never identities.
func ValidAddress(s string) bool { return visible(s, MaxAddress) }

// ValidName reports whether s may name a key: 1 to 256 visible ASCII bytes.
func ValidName(s string) bool { return visible(s, MaxName) }

func (m *Membership) message() ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	return MarshalCanonical([]any{"claviger/member/v1", m.ClusterID, m.Epoch, m.Slot, m.Incarnation, m.ServerID})
}

// SignMembership signs m with the cluster identity key.
func SignMembership(s Signer, m Membership) ([]byte, error) {
	msg, err := m.message()
	if err != nil {
		return nil, err
	}
	return s.Sign(msg)
}

// VerifyMembership checks that the identity key signed m. The caller still
// compares cluster id, epoch and server id with what it expects.
func VerifyMembership(identityKey ed25519.PublicKey, m Membership, signature []byte) error {
	msg, err := m.message()
	if err != nil {
		return err
	}
	return verify(identityKey, msg, signature)
}

func verify(key ed25519.PublicKey, msg, signature []byte) error {
	if len(key) != ed25519.PublicKeySize || len(signature) != ed25519.SignatureSize {
		return fmt.Errorf("%w: key of %d bytes, signature of %d", ErrSignature, len(key), len(signature))
	}
	if !ed25519.Verify(key, msg, signature) {
		return ErrSignature
	}
	return nil
}

// NodeStatement is what a node shows beside its evidence: all that a client
// which pins only the cluster id needs to know the peer as a member. It
// travels as the attachment of channel evidence.
type NodeStatement struct {
	_           struct{} `cbor:",toarray"`
	Manifest    []byte
	IdentityKey []byte
	Membership  Membership
	Signature   []byte
	Policy      []byte // SignedAdmin, encoded: the newest node policy that the node knows of; empty while it is the manifest's
}

// Marshal returns the canonical encoding.
func (s *NodeStatement) Marshal() ([]byte, error) {
	raw, err := MarshalCanonical(s)
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxStatement {
		return nil, fmt.Errorf("%w: statement of %d bytes, limit %d", ErrTooLarge, len(raw), MaxStatement)
	}
	return raw, nil
}

// ParseNodeStatement reads a statement; Verify proves it.
func ParseNodeStatement(raw []byte) (*NodeStatement, error) {
	var s NodeStatement
	if err := UnmarshalCanonical(raw, MaxStatement, &s); err != nil {
		return nil, err
	}
	return &s, nil
}

// Verify checks the statement against what the verifier knows for itself: the
// pinned cluster id, the lowest epoch it accepts and the SHA-256 of the key
// that the peer proved on this channel. It returns the manifest, whose node
// policy the peer's evidence must then satisfy.
func (s *NodeStatement) Verify(clusterID ID, minEpoch uint64, peer [32]byte) (*Manifest, error) {
	id, err := ClusterID(s.Manifest, s.IdentityKey)
	if err != nil {
		return nil, err
	}
	switch {
	case id != clusterID || s.Membership.ClusterID != [32]byte(clusterID):
		return nil, fmt.Errorf("%w: the peer belongs to cluster %s, the pinned id is %s", ErrMembership, id, clusterID)
	case s.Membership.Epoch < minEpoch:
		return nil, fmt.Errorf("%w: epoch %d is below %d, which was seen before", ErrMembership, s.Membership.Epoch, minEpoch)
	case s.Membership.ServerID != peer:
		return nil, fmt.Errorf("%w: the statement names another server's key", ErrMembership)
	}
	if err := VerifyMembership(s.IdentityKey, s.Membership, s.Signature); err != nil {
		return nil, err
	}
	return ParseManifest(s.Manifest)
}
