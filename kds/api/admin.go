package api

import (
	"errors"
	"fmt"
)

// AdminLabel begins every statement by which operators change a cluster.
const AdminLabel = "claviger/admin/v1"

// The kinds of admin statements.
const (
	AdminNodePolicy = "node-policy"
	AdminTicket     = "ticket"
	AdminRemove     = "remove"
	AdminStop       = "stop"
)

// ErrAdmin says that an admin statement is not one that operators should sign
// or a cluster accepts.
var ErrAdmin = errors.New("api: admin statement refused")

// AdminStatement is one change that a threshold of the operators signs. What
// they sign is its canonical encoding, which names cluster, epoch and place in
// the order of such statements: it takes effect once, there, or never.
type AdminStatement struct {
	_         struct{} `cbor:",toarray"`
	Label     string   `json:"label"` // AdminLabel
	ClusterID ID       `json:"cluster_id"`
	Epoch     uint64   `json:"epoch"`
	Sequence  uint64   `json:"sequence"` // one more than the last that was accepted, from 1
	Kind      string   `json:"kind"`
	Body      []byte   `json:"body"` // canonical CBOR of the kind's type
}

// AdminBody is what a statement does: *NodePolicyChange, *Ticket, *RemoveSlot
// or *Stop.
type AdminBody interface {
	AdminKind() string
	Check() error // bounds, as far as they can be seen without the state
}

// NodePolicyChange replaces the node policy: a node must satisfy one of the
// constraints. Whether each is canonical, and safe, is for who signs it.
type NodePolicyChange struct {
	_           struct{} `cbor:",toarray"`
	Parent      uint64   `json:"parent"`      // the version that it replaces
	Constraints []string `json:"constraints"` // canonical, sorted ascending, distinct
}

// Ticket lets one boot on one platform take one slot, new or not, once.
type Ticket struct {
	_          struct{} `cbor:",toarray"`
	Slot       string   `json:"slot"`
	ServerID   ID       `json:"server_id"`
	PlatformID ID       `json:"platform_id"`
}

// RemoveSlot gives a slot up. The boots that held it never return.
type RemoveSlot struct {
	_    struct{} `cbor:",toarray"`
	Slot string   `json:"slot"`
}

// Stop ends the epoch: nothing is written after it.
type Stop struct {
	_ struct{} `cbor:",toarray"`
}

// AdminKind returns AdminNodePolicy.
func (*NodePolicyChange) AdminKind() string { return AdminNodePolicy }

// AdminKind returns AdminTicket.
func (*Ticket) AdminKind() string { return AdminTicket }

// AdminKind returns AdminRemove.
func (*RemoveSlot) AdminKind() string { return AdminRemove }

// AdminKind returns AdminStop.
func (*Stop) AdminKind() string { return AdminStop }

// Check reports the first thing wrong.
func (c *NodePolicyChange) Check() error {
	if c.Parent == 0 {
		return fmt.Errorf("%w: node policies count from version 1", ErrAdmin)
	}
	if err := CheckNodePolicy(c.Constraints); err != nil {
		return fmt.Errorf("%w: %w", ErrAdmin, err)
	}
	return nil
}

// Check reports the first thing wrong.
func (t *Ticket) Check() error {
	if !ValidSlot(t.Slot) || t.ServerID.IsZero() || t.PlatformID.IsZero() {
		return fmt.Errorf("%w: a ticket names a slot, the boot and the platform", ErrAdmin)
	}
	return nil
}

// Check reports the first thing wrong.
func (r *RemoveSlot) Check() error {
	if !ValidSlot(r.Slot) {
		return fmt.Errorf("%w: slot %.40q", ErrAdmin, r.Slot)
	}
	return nil
}

// Check returns nil.
func (*Stop) Check() error { return nil }

// NewAdmin returns the encoded statement for operators to sign: the sequence
// is one more than the last that the cluster accepted.
func NewAdmin(clusterID ID, epoch, sequence uint64, body AdminBody) ([]byte, error) {
	if err := body.Check(); err != nil {
		return nil, err
	}
	raw, err := MarshalCanonical(body)
	if err != nil {
		return nil, err
	}
	s := AdminStatement{Label: AdminLabel, ClusterID: clusterID, Epoch: epoch, Sequence: sequence, Kind: body.AdminKind(), Body: raw}
	return s.Marshal()
}

func (s *AdminStatement) check() error {
	switch {
	case s.Label != AdminLabel:
		return fmt.Errorf("%w: label %.40q", ErrAdmin, s.Label)
	case s.ClusterID.IsZero() || s.Epoch == 0 || s.Sequence == 0:
		return fmt.Errorf("%w: zero cluster id, epoch or sequence", ErrAdmin)
	}
	return nil
}

// Marshal returns the canonical encoding, at most MaxAdmin bytes, which is
// what operators sign.
func (s *AdminStatement) Marshal() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	raw, err := MarshalCanonical(s)
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxAdmin {
		return nil, fmt.Errorf("%w: statement of %d bytes, limit %d", ErrTooLarge, len(raw), MaxAdmin)
	}
	return raw, nil
}

// ParseAdmin reads an encoded statement. It proves nothing about who signed it.
func ParseAdmin(raw []byte) (*AdminStatement, error) {
	var s AdminStatement
	if err := UnmarshalCanonical(raw, MaxAdmin, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAdmin, err)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return &s, nil
}

// Open reads the body. A kind that this build does not know is refused.
func (s *AdminStatement) Open() (AdminBody, error) {
	var body AdminBody
	switch s.Kind {
	case AdminNodePolicy:
		body = new(NodePolicyChange)
	case AdminTicket:
		body = new(Ticket)
	case AdminRemove:
		body = new(RemoveSlot)
	case AdminStop:
		body = new(Stop)
	default:
		return nil, fmt.Errorf("%w: unknown kind %.40q", ErrAdmin, s.Kind)
	}
	if err := UnmarshalCanonical(s.Body, MaxAdmin, body); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrAdmin, err)
	}
	return body, body.Check()
}
