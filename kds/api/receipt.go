package api

import (
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// ErrReceipt says that a receipt does not prove the release it comes with.
var ErrReceipt = errors.New("api: receipt refused")

// Record is what the log commits to for one release: who got which key, by
// which evidence, under which versions. It contains no key and no report data.
type Record struct {
	_           struct{} `cbor:",toarray"`
	Label       string   // RecordLabel
	ClusterID   [32]byte
	Epoch       uint64
	RequestID   [16]byte
	Realm       string
	Constraint  string // canonical
	Name        string
	Purpose     string
	Generation  uint64
	Counter     uint64
	Collateral  uint64 // version of the replicated collateral that decided
	NodePolicy  uint64 // version of the node policy in force
	TEE         string // "sgx" or "tdx"
	Measurement []byte // MRENCLAVE (32 bytes) or MRTD (48 bytes)
	Platform    [32]byte
	Status      string // TCB status, Intel's spelling
	Time        int64  // Unix seconds the decision was made for
}

// RecordLabel is the first field of every release record.
const RecordLabel = "claviger/record/v1"

// Marshal returns the canonical encoding, which the leaf commits to.
func (r *Record) Marshal() ([]byte, error) {
	if r.Label != RecordLabel {
		return nil, fmt.Errorf("%w: label %q", ErrMalformed, r.Label)
	}
	return MarshalCanonical(r)
}

// ParseRecord reads a canonical record.
func ParseRecord(raw []byte) (*Record, error) {
	var r Record
	if err := UnmarshalCanonical(raw, MaxRecord, &r); err != nil {
		return nil, err
	}
	if r.Label != RecordLabel {
		return nil, fmt.Errorf("%w: label %q", ErrMalformed, r.Label)
	}
	return &r, nil
}

// Commitment is the content of a leaf: HMAC-SHA256 under a key of its own,
// which only the receipt and auditors see, over the encoded record. Public
// leaves therefore reveal nothing, also not by guessing records.
func Commitment(opening [32]byte, record []byte) [32]byte {
	mac := hmac.New(sha256.New, opening[:])
	mac.Write(record)
	return [32]byte(mac.Sum(nil))
}

// Receipt proves that a release is in the log: it opens the leaf, shows its
// place under a root, and the cluster identity key has signed that root.
type Receipt struct {
	Record    []byte `json:"record"`     // canonical CBOR, see ParseRecord
	Opening   ID     `json:"opening"`    // key of the leaf's commitment
	Index     uint64 `json:"index"`      // of the leaf, from 0
	TreeSize  uint64 `json:"tree_size"`  // leaves under RootHash
	RootHash  ID     `json:"root_hash"`  // RFC 6962 tree head
	Proof     []ID   `json:"proof"`      // RFC 6962 inclusion proof
	Signature []byte `json:"signature"`  // of the checkpoint, by the identity key
	Epoch     uint64 `json:"epoch"`      // of the checkpoint
	ClusterID ID     `json:"cluster_id"` // of the checkpoint
}

// checkpointMessage is what the identity key signs for a tree head.
func checkpointMessage(clusterID ID, epoch, size uint64, root ID) ([]byte, error) {
	return MarshalCanonical([]any{"claviger/checkpoint/v1", [32]byte(clusterID), epoch, size, [32]byte(root)})
}

// SignCheckpoint signs a tree head. Call it only with a head that has been
// committed.
func SignCheckpoint(s Signer, clusterID ID, epoch, size uint64, root ID) ([]byte, error) {
	msg, err := checkpointMessage(clusterID, epoch, size, root)
	if err != nil {
		return nil, err
	}
	return s.Sign(msg)
}

// Verify checks signature, place and opening, and returns the record. The
// identity key and cluster id are those the caller has pinned; whether the
// record is the one it asked for is for the caller to compare.
func (r *Receipt) Verify(identityKey ed25519.PublicKey, clusterID ID) (*Record, error) {
	if r.ClusterID != clusterID {
		return nil, fmt.Errorf("%w: it is of cluster %s", ErrReceipt, r.ClusterID)
	}
	if r.TreeSize == 0 || r.TreeSize > maxTreeSize || r.Index >= r.TreeSize || len(r.Proof) > MaxProof {
		return nil, fmt.Errorf("%w: leaf %d of %d with %d proof hashes", ErrReceipt, r.Index, r.TreeSize, len(r.Proof))
	}
	msg, err := checkpointMessage(clusterID, r.Epoch, r.TreeSize, r.RootHash)
	if err != nil {
		return nil, err
	}
	if err := verify(identityKey, msg, r.Signature); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	record, err := ParseRecord(r.Record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	if record.ClusterID != [32]byte(clusterID) || record.Epoch != r.Epoch {
		return nil, fmt.Errorf("%w: the record is of another cluster or epoch than the checkpoint", ErrReceipt)
	}
	leaf := Commitment(r.Opening, r.Record)
	proof := make(tlog.RecordProof, len(r.Proof))
	for i, h := range r.Proof {
		proof[i] = tlog.Hash(h)
	}
	err = tlog.CheckRecord(proof, int64(r.TreeSize), tlog.Hash(r.RootHash), int64(r.Index), tlog.RecordHash(leaf[:]))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrReceipt, err)
	}
	return record, nil
}
