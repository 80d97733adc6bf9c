package api

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
)

// ManifestVersion is the only version of the genesis manifest.
const ManifestVersion = 1

// ErrManifest says that a manifest decodes but does not make sense.
var ErrManifest = errors.New("api: manifest refused")

// RootOfTrust names the one attestation root a cluster trusts, for ever.
type RootOfTrust struct {
	_         struct{} `cbor:",toarray"`
	ID        [32]byte // SHA-256 of the root key's SubjectPublicKeyInfo
	Simulated bool
}

// Operators are the people whose threshold signs at genesis and recovery.
type Operators struct {
	_         struct{} `cbor:",toarray"`
	Threshold uint64
	Keys      [][]byte // ed25519 public keys, 32 bytes each, sorted ascending, distinct
}

// Manifest is what a cluster is: fixed at genesis, hashed into the cluster id.
type Manifest struct {
	_          struct{} `cbor:",toarray"`
	Version    uint64
	Name       string // a label for people, 1..64 visible ASCII bytes; authorises nothing
	Root       RootOfTrust
	NodePolicy []string // canonical constraints, sorted ascending; a node must satisfy one of them
	Operators  Operators
	Nonce      [32]byte
	OpenSlots  uint64 // slots that any platform may take without a ticket, 0 to MaxOpenSlots; the founder's is not counted
}

// Check reports the first thing wrong with the manifest. Whether each node
// policy constraint is canonical is checked where constraints are known.
func (m *Manifest) Check() error {
	switch {
	case m.Version != ManifestVersion:
		return fmt.Errorf("%w: version %d, this build reads %d", ErrManifest, m.Version, ManifestVersion)
	case !visible(m.Name, maxLabelName):
		return fmt.Errorf("%w: the name must be 1 to %d visible ASCII bytes", ErrManifest, maxLabelName)
	case m.Root.ID == [32]byte{}:
		return fmt.Errorf("%w: no root of trust", ErrManifest)
	case m.Nonce == [32]byte{}:
		return fmt.Errorf("%w: the nonce is zero", ErrManifest)
	case m.OpenSlots > MaxOpenSlots:
		return fmt.Errorf("%w: %d open slots, at most %d", ErrManifest, m.OpenSlots, MaxOpenSlots)
	}
	if err := CheckNodePolicy(m.NodePolicy); err != nil {
		return fmt.Errorf("%w: %w", ErrManifest, err)
	}
	return m.Operators.check()
}

// ErrNodePolicy says that a list of constraints is no node policy.
var ErrNodePolicy = errors.New("api: node policy refused")

// CheckNodePolicy reports whether a list has the form of a node policy: 1 to
// MaxNodePolicy constraints, sorted and distinct. What they say, and whether
// they are canonical, is checked where constraints are known.
func CheckNodePolicy(list []string) error {
	if len(list) == 0 || len(list) > MaxNodePolicy {
		return fmt.Errorf("%w: %d constraints, want 1 to %d", ErrNodePolicy, len(list), MaxNodePolicy)
	}
	for i, c := range list {
		if c == "" || len(c) > MaxConstraint {
			return fmt.Errorf("%w: constraint %d has %d bytes, want 1 to %d", ErrNodePolicy, i, len(c), MaxConstraint)
		}
		if i > 0 && list[i-1] >= c {
			return fmt.Errorf("%w: constraints must be sorted and distinct", ErrNodePolicy)
		}
	}
	return nil
}

func (o *Operators) check() error {
	if len(o.Keys) == 0 || len(o.Keys) > MaxOperators {
		return fmt.Errorf("%w: %d operator keys, want 1 to %d", ErrManifest, len(o.Keys), MaxOperators)
	}
	if o.Threshold == 0 || o.Threshold > uint64(len(o.Keys)) {
		return fmt.Errorf("%w: threshold %d of %d operators", ErrManifest, o.Threshold, len(o.Keys))
	}
	for i, k := range o.Keys {
		if len(k) != ed25519.PublicKeySize {
			return fmt.Errorf("%w: operator key %d has %d bytes, want %d", ErrManifest, i, len(k), ed25519.PublicKeySize)
		}
		if i > 0 && bytes.Compare(o.Keys[i-1], k) >= 0 {
			return fmt.Errorf("%w: operator keys must be sorted and distinct", ErrManifest)
		}
	}
	return nil
}

// Marshal returns the canonical encoding; a manifest that Check refuses has
// none.
func (m *Manifest) Marshal() ([]byte, error) {
	if err := m.Check(); err != nil {
		return nil, err
	}
	raw, err := MarshalCanonical(m)
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxManifest {
		return nil, fmt.Errorf("%w: manifest of %d bytes, limit %d", ErrTooLarge, len(raw), MaxManifest)
	}
	return raw, nil
}

// ParseManifest reads a canonical manifest and checks it. It proves nothing
// about who made it: compare ClusterID with a pinned id.
func ParseManifest(raw []byte) (*Manifest, error) {
	var m Manifest
	if err := UnmarshalCanonical(raw, MaxManifest, &m); err != nil {
		return nil, err
	}
	if err := m.Check(); err != nil {
		return nil, err
	}
	return &m, nil
}

// ClusterID names a cluster: SHA-256 over the CBOR array ["claviger/cluster/v1",
// manifest, identity key]. The manifest is its canonical encoding.
func ClusterID(manifest []byte, identityKey ed25519.PublicKey) (ID, error) {
	if _, err := ParseManifest(manifest); err != nil {
		return ID{}, err
	}
	if len(identityKey) != ed25519.PublicKeySize {
		return ID{}, fmt.Errorf("%w: identity key of %d bytes", ErrMalformed, len(identityKey))
	}
	raw, err := MarshalCanonical([]any{"claviger/cluster/v1", manifest, []byte(identityKey)})
	if err != nil {
		return ID{}, err
	}
	return sha256.Sum256(raw), nil
}

// visible reports whether s is 1..limit bytes of visible ASCII (0x21..0x7e),
// the alphabet of names: no white space and no Unicode forms to confuse.
func visible(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := 0; i < len(s); i++ {
		if s[i] < 0x21 || s[i] > 0x7e {
			return false
		}
	}
	return true
}
