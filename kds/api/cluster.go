package api

import (
	"crypto/ed25519"
	"fmt"
	"slices"
)

// Member is one member of the cluster as this node knows it.
type Member struct {
	Slot        string `json:"slot"`
	Incarnation uint64 `json:"incarnation"`
	ServerID    ID     `json:"server_id"`
	APIAddr     string `json:"api_addr"`
	Voter       bool   `json:"voter"`
	Leader      bool   `json:"leader"`

	TEE         string   `json:"tee,omitempty"`         // sgx or tdx
	Measurement string   `json:"measurement,omitempty"` // MRENCLAVE or MRTD, hex
	RTMR        []string `json:"rtmr,omitempty"`        // RTMR0 to RTMR3 of a TD, hex; absent if it was admitted below level 4
	TCBStatus   string   `json:"tcb_status,omitempty"`  // when it was admitted
	Level       uint64   `json:"level"`                 // highest feature level that its build knows
	Admitted    uint64   `json:"admitted_index"`        // of the entry that admitted this boot
	Lag         *uint64  `json:"lag,omitempty"`         // entries that it is behind; only the leader knows
}

// PendingTicket is a ticket of the operators that no boot has used yet.
type PendingTicket struct {
	Slot       string `json:"slot"`
	ServerID   ID     `json:"server_id"`
	PlatformID ID     `json:"platform_id"`
}

// Cluster describes the cluster; GET /v1/cluster. Only manifest and identity
// key can be proved, by Verify; the rest helps to find the nodes.
type Cluster struct {
	ClusterID   ID       `json:"cluster_id"`
	Epoch       uint64   `json:"epoch"`
	Generation  uint64   `json:"generation"` // current root generation
	NodePolicy  uint64   `json:"node_policy_version"`
	Manifest    []byte   `json:"manifest"`     // canonical CBOR
	IdentityKey []byte   `json:"identity_key"` // ed25519, 32 bytes
	LogSize     uint64   `json:"log_size"`
	LogRoot     ID       `json:"log_root"`
	Checkpoint  []byte   `json:"checkpoint"` // identity key's signature of the log head
	Members     []Member `json:"members"`
	Voters      []ID     `json:"voters"` // of the last configuration that was committed; a server that has lost its slot may be among them for a while

	GenerationIDs []ID            `json:"generation_ids"`               // of the roots, by generation from 1; empty below level 3
	Level         uint64          `json:"level"`                        // feature level of the state
	Ended         bool            `json:"ended"`                        // by the operators: nothing is written in this epoch any more
	AdminSequence uint64          `json:"admin_sequence"`               // of the last statement of the operators; the next one is one more
	NodePolicyNow []string        `json:"node_policy"`                  // constraints in force; proved by PolicySigned
	PolicySigned  []byte          `json:"node_policy_signed,omitempty"` // SignedAdmin, encoded, that put them in force; absent while they are the manifest's
	Tickets       []PendingTicket `json:"tickets"`
}

// Policy proves the node policy that the reply shows under the manifest that
// Verify returned: the operators have signed it, and Version and NodePolicy are
// what they say. Whether there is a newer one the reply cannot prove.
func (c *Cluster) Policy(m *Manifest) (NodePolicy, error) {
	p, err := ParseNodePolicy(m, c.ClusterID, c.PolicySigned)
	if err != nil {
		return NodePolicy{}, err
	}
	if p.Version != c.NodePolicy || !slices.Equal(p.Constraints, c.NodePolicyNow) {
		return NodePolicy{}, fmt.Errorf("%w: the node policy shown is not the one that the operators have signed", ErrMembership)
	}
	return p, nil
}

// CheckForm reports whether what the reply says of members and tickets has the
// form that a node gives it. It proves nothing; it keeps a node whose code is not
// accepted any more from writing what it likes on the terminal of an operator.
func (c *Cluster) CheckForm() error {
	if len(c.Members) > MaxMembers || len(c.Voters) > MaxMembers || len(c.NodePolicyNow) > MaxNodePolicy {
		return fmt.Errorf("%w: %d members, %d voters, %d constraints", ErrMalformed, len(c.Members), len(c.Voters), len(c.NodePolicyNow))
	}
	for _, m := range c.Members {
		ok := ValidSlot(m.Slot) && ValidAddress(m.APIAddr) && (len(m.RTMR) == 0 || len(m.RTMR) == 4)
		for _, word := range append([]string{m.TEE, m.Measurement, m.TCBStatus}, m.RTMR...) {
			ok = ok && (word == "" || ValidName(word))
		}
		if !ok {
			return fmt.Errorf("%w: member %.40q", ErrMalformed, m.Slot)
		}
	}
	for _, t := range c.Tickets {
		if !ValidSlot(t.Slot) {
			return fmt.Errorf("%w: ticket for %.40q", ErrMalformed, t.Slot)
		}
	}
	return nil
}

// AdminRequest submits a statement of the operators; POST /v1/admin/statements.
type AdminRequest struct {
	Statement []byte     `json:"statement"` // AdminStatement, canonical CBOR
	Approvals []Approval `json:"approvals"` // of the operators, sorted by key
}

// Check reports the first bound that the request breaks.
func (r *AdminRequest) Check() error {
	switch {
	case len(r.Statement) == 0:
		return fmt.Errorf("%w: the statement is missing", ErrMalformed)
	case len(r.Statement) > MaxAdmin:
		return fmt.Errorf("%w: statement of %d bytes, limit %d", ErrTooLarge, len(r.Statement), MaxAdmin)
	case len(r.Approvals) > MaxOperators:
		return fmt.Errorf("%w: %d approvals, limit %d", ErrTooLarge, len(r.Approvals), MaxOperators)
	}
	return nil
}

// AdminReply says that the cluster has accepted a statement.
type AdminReply struct {
	ClusterID ID     `json:"cluster_id"`
	Epoch     uint64 `json:"epoch"`
	Sequence  uint64 `json:"sequence"`
	Kind      string `json:"kind"`
	Index     uint64 `json:"index"` // of the entry
}

// Verify checks that manifest and identity key hash to clusterID and that the
// identity key signed the log head, and returns the manifest.
func (c *Cluster) Verify(clusterID ID) (*Manifest, error) {
	id, err := ClusterID(c.Manifest, c.IdentityKey)
	if err != nil {
		return nil, err
	}
	if id != clusterID || c.ClusterID != clusterID {
		return nil, fmt.Errorf("%w: it describes cluster %s, the pinned id is %s", ErrMembership, id, clusterID)
	}
	msg, err := checkpointMessage(clusterID, c.Epoch, c.LogSize, c.LogRoot)
	if err != nil {
		return nil, err
	}
	if err := verify(ed25519.PublicKey(c.IdentityKey), msg, c.Checkpoint); err != nil {
		return nil, err
	}
	return ParseManifest(c.Manifest)
}
