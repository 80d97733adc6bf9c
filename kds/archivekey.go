package kds

import (
	"encoding/hex"

	"github.com/claviger/claviger/enclave/secret"
)

// ArchiveKey returns the 32-byte key that seals the replication archive of one
// boot, named by its server id: derived from the first root, so that whoever
// recovers the roots can open every archive of the cluster, and distinct for
// each boot.
func (s *Secrets) ArchiveKey(serverID [32]byte) (secret.Key, error) {
	root, err := s.root(1)
	if err != nil {
		return secret.Key{}, err
	}
	return root.Derive("claviger/archive/v1/"+hex.EncodeToString(serverID[:]), 32)
}
