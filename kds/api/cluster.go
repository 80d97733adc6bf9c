package api

import (
	"crypto/ed25519"
	"fmt"
)

// Member is one member of the cluster as this node knows it.
type Member struct {
	Slot        string `json:"slot"`
	Incarnation uint64 `json:"incarnation"`
	ServerID    ID     `json:"server_id"`
	APIAddr     string `json:"api_addr"`
	Voter       bool   `json:"voter"`
	Leader      bool   `json:"leader"`
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
