// Package kdsd is the key node as a process: a configuration file on one side, kds/node on the other. What differs between
// hardware and simulator comes in as a Platform, so that the production binary and the simulated one run the same code.
package kdsd

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
)

// Platform is the machine that a node runs on.
type Platform struct {
	TEE  enclave.TEE
	Root attest.Root
	// Collateral is what Intel, or the simulated Intel, publishes for the platform of a quote.
	Collateral func(ctx context.Context, quote []byte) (*attest.Collateral, error)
	// Approve gets the operators' signatures for a genesis.
	Approve func(ctx context.Context, s *node.Statement) ([]node.Approval, error)
	// Clock is the host's clock; nil means time.Now.
	Clock func() time.Time
	// Shares takes the shares of a new cluster's recovery key; nil founds it without one.
	Shares func([]kds.Share) error
	// Records reads archives of the kinds that the binary offers besides "file".
	Records map[string]node.Records
	// Pinned is the cluster id in the measured binary. If it is set, the cluster file must agree.
	Pinned api.ID
}

// Mode is how a node becomes a member.
type Mode int

const (
	Join    Mode = iota // the cluster in the cluster file, which is running
	Found               // a new cluster, and write the cluster file
	Recover             // the cluster in the cluster file, from survivors and archives, in a new epoch
)

// ModeOf turns the flags of a daemon into a mode.
func ModeOf(genesis, recovery bool) (Mode, error) {
	switch {
	case genesis && recovery:
		return Join, cli.Usagef("--genesis founds a new cluster and --recover brings an old one back: give one of them")
	case genesis:
		return Found, nil
	case recovery:
		return Recover, nil
	}
	return Join, nil
}

// Run runs the node until ctx ends.
func Run(ctx context.Context, c *Config, p Platform, mode Mode, log *slog.Logger) error {
	nc := node.Config{
		TEE: p.TEE, Root: p.Root, Collateral: p.Collateral, Slot: c.Slot, Join: c.Join,
		PeerListen: c.Listen.Peer, APIListen: c.Listen.API, AdminListen: c.Listen.Admin,
		PeerAdvertise: c.Advertise.Peer, APIAdvertise: c.Advertise.API,
		DataDir: c.Data, Archive: c.makeArchive(), NoFsyncUnsafe: c.Fsync == fsyncRelaxed, Clock: p.Clock, Logger: log,
	}
	if nc.NoFsyncUnsafe {
		log.Warn("fsync is relaxed: if a majority of the nodes is lost at once, recovery may miss what clients were told is done")
	}
	var err error
	switch mode {
	case Found:
		nc.Join = nil
		nc.Genesis, err = c.found(p, log)
	case Recover:
		nc.Join = nil
		nc.Recovery, nc.ClusterID, err = c.recover(p, log)
		nc.MinEpoch, nc.MinNodePolicy = c.MinEpoch, c.MinNodePolicy // of survivors, and of what is recovered
	default:
		nc.ClusterID, err = c.pin(p.Pinned)
		nc.MinEpoch, nc.MinNodePolicy = c.MinEpoch, c.MinNodePolicy
	}
	if err != nil {
		return err
	}
	n, err := node.New(nc)
	if errors.Is(err, node.ErrConfig) {
		return &cli.UsageError{Err: err}
	}
	if err != nil {
		return err
	}
	return n.Run(ctx)
}

// pin reads the id of the cluster to join.
func (c *Config) pin(pinned api.ID) (api.ID, error) {
	file, err := clusterfile.ReadPinned(c.Cluster, pinned)
	if errors.Is(err, fs.ErrNotExist) && !pinned.IsZero() {
		return pinned, nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return api.ID{}, cli.Usagef("%s does not exist; start the first node with --genesis, or copy the cluster file here", c.Cluster)
	}
	if err != nil {
		return api.ID{}, err
	}
	return file.ClusterID, nil
}

// found describes the cluster to found, once: an existing cluster file means that it has been founded.
func (c *Config) found(p Platform, log *slog.Logger) (*node.Genesis, error) {
	if c.Genesis == nil {
		return nil, cli.Usagef("--genesis needs a genesis section in the configuration")
	}
	if _, err := clusterfile.Read(c.Cluster); !errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("%s exists: this cluster has been founded; start without --genesis to join it, or move the file away", c.Cluster)
	}
	operators, err := c.Genesis.operators()
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return &node.Genesis{
		Name: c.Genesis.Name, NodePolicy: c.Genesis.NodePolicy, Operators: operators, OpenSlots: c.Genesis.OpenSlots, Approve: p.Approve, Shares: p.Shares,
		Founded: func(pins node.Pins) error {
			endpoints := append([]string{pins.APIAddr}, c.Genesis.Endpoints...)
			slices.Sort(endpoints)
			file := &clusterfile.File{
				ClusterID: pins.ClusterID, Manifest: pins.Manifest, IdentityKey: pins.IdentityKey, Endpoints: slices.Compact(endpoints),
			}
			if err := file.Create(c.Cluster); err != nil {
				return err
			}
			log.Info("founded a cluster; clients pin its id", "cluster", pins.ClusterID, "file", c.Cluster)
			return nil
		},
	}, nil
}
