package node

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

const genesisLabel = "claviger/genesis/v1"

var (
	// ErrStatement says that a genesis statement is not what an operator may sign.
	ErrStatement = errors.New("node: genesis statement refused")
	// ErrApproval says that the operators' signatures do not reach the threshold.
	ErrApproval = errors.New("node: the operators have not approved")
)

// Statement is what operators sign at genesis: that the enclave which made
// Quote holds the identity key, under this manifest.
type Statement struct {
	Manifest    []byte `json:"manifest"`     // canonical CBOR
	IdentityKey []byte `json:"identity_key"` // ed25519, made in the enclave
	Quote       []byte `json:"quote"`        // over ReportData
	Collateral  []byte `json:"collateral"`   // bundle for the quote
}

// Approval is one operator's signature of Message.
type Approval = api.Approval

// tuple is what quote and signatures cover: (label, manifest hash, identity key).
func (s *Statement) tuple() ([]byte, error) {
	if _, err := api.ClusterID(s.Manifest, s.IdentityKey); err != nil {
		return nil, err
	}
	return api.MarshalCanonical([]any{genesisLabel, sha256.Sum256(s.Manifest), s.IdentityKey})
}

// ReportData is what the quote must carry: SHA-512 of the signed message.
func (s *Statement) ReportData() ([64]byte, error) {
	msg, err := s.Message()
	return sha512.Sum512(msg), err
}

// Message is what operators sign with ed25519: CBOR of
// ["claviger/genesis/v1", SHA-256 of the manifest, identity key].
func (s *Statement) Message() ([]byte, error) { return s.tuple() }

// ClusterID is the id the cluster will have.
func (s *Statement) ClusterID() (api.ID, error) { return api.ClusterID(s.Manifest, s.IdentityKey) }

// Verify is what an operator does before signing: the quote is genuine under
// the verifier's root, carries exactly this statement, and comes from an
// enclave that satisfies the node policy in the manifest. The operator still
// reads the manifest, which Verify returns: whether it is the one wanted is
// for people.
func (s *Statement) Verify(v *attest.Verifier, now time.Time) (*api.Manifest, error) {
	m, err := api.ParseManifest(s.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	if root := v.Root(); m.Root.ID != root.ID() || m.Root.Simulated != root.Simulated {
		return nil, fmt.Errorf("%w: the manifest names another root of trust than the verifier's", ErrStatement)
	}
	want, err := s.ReportData()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	verified, err := verifyWith(v, s.Quote, s.Collateral, now)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	if verified.Claims().ReportData != want {
		return nil, fmt.Errorf("%w: the quote is over something else", ErrStatement)
	}
	if err := checkRecent(verified, now); err != nil {
		return nil, fmt.Errorf("%w: %w; then start the founding node again, with that in its collateral directory", ErrStatement, err)
	}
	if err := checkNodePolicy(m, verified, now); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	return m, nil
}

// checkApprovals counts distinct operators with a valid signature.
func (s *Statement) checkApprovals(operators api.Operators, approvals []Approval) error {
	msg, err := s.Message()
	if err != nil {
		return err
	}
	valid := operators.Collect(msg, approvals)
	if operators.Threshold == 0 || uint64(len(valid)) < operators.Threshold {
		return fmt.Errorf("%w: %d valid signatures of distinct operators, %d are needed", ErrApproval, len(valid), operators.Threshold)
	}
	return nil
}

// Sign verifies the statement as an operator must and signs it.
func Sign(s *Statement, v *attest.Verifier, now time.Time, keys ...ed25519.PrivateKey) ([]Approval, error) {
	if _, err := s.Verify(v, now); err != nil {
		return nil, err
	}
	msg, err := s.Message()
	if err != nil {
		return nil, err
	}
	var out []Approval
	for _, k := range keys {
		out = append(out, Approval{Key: k.Public().(ed25519.PublicKey), Signature: ed25519.Sign(k, msg)})
	}
	return out, nil
}

// ApproveWith returns an Approve that verifies and signs with keys at hand, for
// simulated clusters. In production the keys are with people: see ApproveByFile.
func ApproveWith(root attest.Root, clock func() time.Time, keys ...ed25519.PrivateKey) func(context.Context, *Statement) ([]Approval, error) {
	return func(_ context.Context, s *Statement) ([]Approval, error) {
		v, err := attest.NewVerifier(attest.Config{Root: root})
		if err != nil {
			return nil, err
		}
		return Sign(s, v, clock(), keys...)
	}
}

// newManifest puts the operators' decisions into their one canonical form.
func newManifest(g *Genesis, root attest.Root) ([]byte, error) {
	m := api.Manifest{Version: api.ManifestVersion, Name: g.Name,
		Root:      api.RootOfTrust{ID: root.ID(), Simulated: root.Simulated},
		Operators: api.Operators{Threshold: g.Operators.Threshold, Keys: slices.Clone(g.Operators.Keys)}, OpenSlots: g.OpenSlots}
	for _, text := range g.NodePolicy {
		c, err := policy.ParseConstraint(text)
		if err != nil {
			return nil, fmt.Errorf("%w: node policy: %w", ErrConfig, err)
		}
		if c.Insecure() {
			return nil, fmt.Errorf("%w: a node policy cannot accept debug enclaves: their host reads the roots", ErrConfig)
		}
		m.NodePolicy = append(m.NodePolicy, c.String())
	}
	slices.Sort(m.NodePolicy)
	slices.SortFunc(m.Operators.Keys, slices.Compare)
	rand.Read(m.Nonce[:])
	raw, err := m.Marshal()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return raw, nil
}
