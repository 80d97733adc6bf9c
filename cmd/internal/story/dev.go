package story

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
)

// devMachine is where the function host of dev runs.
const devMachine = "fn-1"

// Dev is a simulated cluster with a function host that stays up. Its directory has the world and the cluster file that the
// other commands take.
type Dev struct {
	World     string   `json:"world"`   // file
	Cluster   string   `json:"cluster"` // file
	ClusterID api.ID   `json:"cluster_id"`
	Endpoints []string `json:"endpoints"`
	Functions string   `json:"functions"` // URL
	Runtime   string   `json:"runtime"`   // constraint of the function runtime

	cluster *Cluster
	host    *FunctionHost
}

// StartDev makes or opens the world in dir and starts a new cluster in it: root secrets live in memory only, so keys of an
// earlier run are gone. The cluster file is replaced. The function host listens on address.
func StartDev(ctx context.Context, dir, address string, log *slog.Logger) (*Dev, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	d := &Dev{World: filepath.Join(dir, "world.json"), Cluster: filepath.Join(dir, "cluster.json")}
	world, err := sim.CreateWorld(d.World)
	if errors.Is(err, fs.ErrExist) {
		world, err = sim.OpenWorld(d.World)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Remove(d.Cluster); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if d.cluster, err = StartCluster(ctx, world, filepath.Join(dir, "data"), log); err != nil {
		return nil, err
	}
	file := d.cluster.File()
	d.ClusterID, d.Endpoints = file.ClusterID, file.Endpoints
	if err := file.Create(d.Cluster); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	// The stores of another cluster's keys would not open: each cluster has its own directory.
	stores := filepath.Join(dir, "data", "fn-"+file.ClusterID.String()[:16])
	if d.host, err = StartFunctionHost(ctx, d.cluster, devMachine, stores, address, log); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	d.Functions, d.Runtime = d.host.URL, d.host.Constraint
	return d, nil
}

// Close stops everything gracefully.
func (d *Dev) Close() error {
	var errs []error
	if d.host != nil {
		errs = append(errs, d.host.Close())
	}
	return errors.Join(append(errs, d.cluster.Close())...)
}
