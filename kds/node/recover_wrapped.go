package node

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
)

// WrappedPattern matches the names of WrappedFile, and no other file below DataDir.
const WrappedPattern = "roots-*.wrapped"

// WrappedFile is the name, below DataDir, of the roots up to a generation, wrapped
// to the cluster's recovery key. Id is the generation's: two recoveries may make
// the same number, and whoever was a member of both epochs keeps both roots.
func WrappedFile(generation uint64, id [32]byte) string {
	return fmt.Sprintf("roots-%d-%.16s.wrapped", generation, api.ID(id))
}

// writeWrapped writes the wrapped form of all roots. Without a recovery key there
// is none, and the cluster cannot outlive its majority.
func (n *Node) writeWrapped(s *kds.Secrets, recoveryKey []byte) error {
	if len(recoveryKey) == 0 {
		return nil
	}
	wrapped, err := kds.WrapSecrets(s, recoveryKey)
	if err != nil {
		return fmt.Errorf("node: wrapping the roots: %w", err)
	}
	if err := os.MkdirAll(n.cfg.DataDir, 0o700); err != nil {
		return fmt.Errorf("node: wrapped roots: %w", err)
	}
	ids := s.GenerationIDs()
	if err := writeDurably(filepath.Join(n.cfg.DataDir, WrappedFile(s.Generation(), ids[len(ids)-1])), wrapped); err != nil {
		return fmt.Errorf("node: wrapped roots: %w", err)
	}
	return nil
}

// shareRecovery makes the cluster's recovery key, whose private half leaves this
// enclave as shares only, and puts the wrapped roots on disk.
func (n *Node) shareRecovery(s *kds.Secrets) (public []byte, err error) {
	g := n.cfg.Genesis
	if g.Shares == nil {
		n.log.Warn("this cluster will have NO RECOVERY KEY: once a majority of its nodes is lost at a time, all its keys are lost with it")
		return nil, nil
	}
	public, shares, err := kds.NewRecoveryKey(g.Operators.Threshold, uint64(len(g.Operators.Keys)))
	if err != nil {
		return nil, fmt.Errorf("node: genesis: %w", err)
	}
	if err := g.Shares(shares); err != nil {
		return nil, fmt.Errorf("node: genesis: shares of the recovery key: %w", err)
	}
	return public, n.writeWrapped(s, public)
}

// keepWrapped writes the wrapped roots of a member beside its archives, so that
// whoever has one disk of the cluster has them. The host could remove them at
// any time, so a failure is told and stops nothing.
func (n *Node) keepWrapped() {
	if err := n.writeWrapped(n.secrets, n.machine.View().RecoveryKey); err != nil {
		n.log.Error("the wrapped roots are not on this disk; a recovery needs those of another node", "reason", err)
	}
}
