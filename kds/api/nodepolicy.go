package api

import (
	"cmp"
	"fmt"
)

// SignedAdmin is an admin statement with the approvals that carry it.
type SignedAdmin struct {
	_         struct{}   `cbor:",toarray"`
	Statement []byte     `json:"statement"` // AdminStatement, encoded
	Approvals []Approval `json:"approvals"`
}

// Verify checks that the operators have signed the statement and that it is of
// this cluster, and opens it. Epoch and sequence are the caller's to compare:
// this says that it was signed, not that it is in force.
func (s *SignedAdmin) Verify(operators *Operators, clusterID ID) (*AdminStatement, AdminBody, error) {
	st, err := ParseAdmin(s.Statement)
	if err != nil {
		return nil, nil, err
	}
	if st.ClusterID != clusterID {
		return nil, nil, fmt.Errorf("%w: it is of cluster %s, this is %s", ErrAdmin, st.ClusterID, clusterID)
	}
	body, err := st.Open()
	if err != nil {
		return nil, nil, err
	}
	if err := operators.Check(s.Statement, s.Approvals); err != nil {
		return nil, nil, err
	}
	return st, body, nil
}

// Marshal returns the canonical encoding, at most MaxSignedAdmin bytes.
func (s *SignedAdmin) Marshal() ([]byte, error) {
	raw, err := MarshalCanonical(s)
	if err == nil && len(raw) > MaxSignedAdmin {
		return nil, fmt.Errorf("%w: %d bytes, limit %d", ErrTooLarge, len(raw), MaxSignedAdmin)
	}
	return raw, err
}

// ParseSignedAdmin reads what Marshal wrote. It proves nothing.
func ParseSignedAdmin(raw []byte) (*SignedAdmin, error) {
	var s SignedAdmin
	if err := UnmarshalCanonical(raw, MaxSignedAdmin, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAdmin, err)
	}
	return &s, nil
}

// NodePolicy is a node policy as the operators signed it: with the manifest,
// which is version 1, or by a statement.
type NodePolicy struct {
	Epoch       uint64 // of the statement; 0 for the manifest's own
	Version     uint64
	Sequence    uint64 // of the statement; 0 for the manifest's own
	Constraints []string
}

// Newer reports whether p replaces q. A recovery may fall back behind versions
// of the epoch before it; what is signed in a later epoch replaces those. Of two
// that were signed to replace the same version one was carried out at most; whoever
// holds the state knows which, and others go by the place in the order.
func (p NodePolicy) Newer(q NodePolicy) bool {
	return cmp.Or(cmp.Compare(p.Epoch, q.Epoch), cmp.Compare(p.Version, q.Version), cmp.Compare(p.Sequence, q.Sequence)) > 0
}

// FirstNodePolicy is the node policy of a cluster's genesis: version 1.
func (m *Manifest) FirstNodePolicy() NodePolicy {
	return NodePolicy{Version: 1, Constraints: m.NodePolicy}
}

// ParseNodePolicy proves a signed change of the node policy under the manifest
// of the cluster; nothing at all is the manifest's own policy.
func ParseNodePolicy(m *Manifest, clusterID ID, signed []byte) (NodePolicy, error) {
	if len(signed) == 0 {
		return m.FirstNodePolicy(), nil
	}
	s, err := ParseSignedAdmin(signed)
	if err != nil {
		return NodePolicy{}, err
	}
	st, body, err := s.Verify(&m.Operators, clusterID)
	if err != nil {
		return NodePolicy{}, err
	}
	change, ok := body.(*NodePolicyChange)
	if !ok {
		return NodePolicy{}, fmt.Errorf("%w: a statement of kind %s is no node policy", ErrAdmin, st.Kind)
	}
	return NodePolicy{Epoch: st.Epoch, Version: change.Parent + 1, Sequence: st.Sequence, Constraints: change.Constraints}, nil
}

// NodePolicy proves the node policy that a verified statement shows, under the
// manifest that Verify returned. It is the newest that the node knew of: an
// older one is the policy of another day, and a verifier keeps the newest it saw.
func (s *NodeStatement) NodePolicy(m *Manifest) (NodePolicy, error) {
	p, err := ParseNodePolicy(m, s.Membership.ClusterID, s.Policy)
	if err != nil {
		return NodePolicy{}, err
	}
	if p.Epoch > s.Membership.Epoch {
		return NodePolicy{}, fmt.Errorf("%w: a node policy of epoch %d in a statement of epoch %d", ErrMembership, p.Epoch, s.Membership.Epoch)
	}
	return p, nil
}
