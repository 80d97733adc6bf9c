package node

import (
	"crypto/ed25519"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

// membership is what this boot is in the cluster, once admitted.
type membership struct {
	api.Membership
	clusterID api.ID
	manifest  *api.Manifest
	raw       []byte // the manifest's canonical encoding
	identity  ed25519.PublicKey
	statement []byte // api.NodeStatement of this boot, encoded
}

// newMembership signs the statement that makes a boot a member.
func newMembership(s *kds.Secrets, rawManifest []byte, m api.Membership) ([]byte, error) {
	signer := s.Identity()
	sig, err := api.SignMembership(signer, m)
	if err != nil {
		return nil, err
	}
	st := api.NodeStatement{Manifest: rawManifest, IdentityKey: signer.Public(), Membership: m, Signature: sig}
	return st.Marshal()
}

// parseMembership verifies our own statement as anybody else would.
func parseMembership(raw []byte, clusterID api.ID, minEpoch uint64, id raftstore.ServerID) (*membership, error) {
	st, err := api.ParseNodeStatement(raw)
	if err != nil {
		return nil, err
	}
	manifest, err := st.Verify(clusterID, minEpoch, id)
	if err != nil {
		return nil, err
	}
	return &membership{Membership: st.Membership, clusterID: clusterID, manifest: manifest, raw: st.Manifest,
		identity: st.IdentityKey, statement: raw}, nil
}
