package node

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// become makes this boot a member: store open, secrets and statement in place,
// peer listener serving. When a grant is repeated after an interrupted
// admission it finds them in place. Nothing is in place after an error, and a
// later grant may try again.
func (n *Node) become(s *kds.Secrets, m *membership) error {
	if n.store.Load() != nil {
		if had := n.membership(); had.Membership != m.Membership || had.clusterID != m.clusterID {
			return fmt.Errorf("%w: this boot has another place already", ErrJoin)
		}
		return nil
	}
	if err := n.checkRoot(m.manifest); err != nil {
		return err
	}
	key, err := s.ArchiveKey(n.boot.id)
	if err != nil {
		return err
	}
	store, err := n.newStore(m, key)
	if err != nil {
		return err
	}
	n.secrets = s
	n.member.Store(m) // before anybody can talk to the store: nothing is served yet
	n.showPolicy()
	n.store.Store(store)
	if n.ctx.Err() != nil { // Close ran before it could see the store
		store.Shutdown()
		return n.ctx.Err()
	}
	l := ratls.NewListener(n.peerPorch.open(), &ratls.Config{
		Protocols: []string{protocolJoin, protocolRaft, protocolRecover}, ClusterID: m.clusterID, Epoch: m.Epoch, Key: n.boot.key,
		Attest: n.prover.prove, Verify: n.verifyInbound, OnRefused: n.refused,
	})
	n.work.Go(func() { // waited for: the first who closes a listener is the one who knows when its address is free
		<-n.ctx.Done()
		l.Close()
	})
	n.work.Go(func() { n.ended("peer listener", n.servePeers(l)) })
	n.work.Go(n.sweeps)
	n.work.Go(n.reconciles)
	return nil
}

// newStore opens the store over a directory that no attempt has used before.
func (n *Node) newStore(m *membership, key secret.Key) (*raftstore.Store, error) {
	archive, err := n.openArchive()
	if err != nil {
		return nil, err
	}
	store, err := n.openStore(raftstore.Config{
		ID: n.boot.id, Address: n.peerAddr, ClusterID: m.clusterID, Epoch: m.Epoch,
		Machine: watched{n.machine, n}, Dialer: dialer{n}, Archive: archive, ArchiveKey: key, NoFsyncUnsafe: n.cfg.NoFsyncUnsafe,
		Timeouts: n.cfg.Timeouts, Logger: n.log, Registerer: n.registry,
	})
	if err != nil {
		return nil, errors.Join(err, archive.Close())
	}
	return store, nil
}

// openArchive makes a fresh directory: DataDir itself holds one for each boot,
// and a boot whose store failed to open takes another one below.
func (n *Node) openArchive() (raftstore.Archive, error) {
	dir := n.cfg.DataDir
	if n.archives++; n.archives > 1 {
		dir = filepath.Join(dir, fmt.Sprintf("attempt-%d", n.archives))
	}
	if n.cfg.Archive != nil {
		return n.cfg.Archive(dir, n.boot.id)
	}
	return file.Create(dir, n.boot.id)
}
