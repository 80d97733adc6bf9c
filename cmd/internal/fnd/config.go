package fnd

import (
	"crypto/ed25519"
	"encoding/hex"
	"fmt"

	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/enclave/functions/engine"
)

// Config is the YAML file of a function host. Paths are relative to the file's directory. Every key is listed here; others
// are refused.
type Config struct {
	// Listen has the two addresses, each host:port, both plain HTTP: everything secret is sealed inside the bodies, and the
	// machine's host could read TLS outside the enclave as well.
	Listen struct {
		API   string `yaml:"api"`   // owners and callers
		Admin string `yaml:"admin"` // /healthz, /readyz, /metrics
	} `yaml:"listen"`
	// Data is the directory of the projects' encrypted stores. Moving a project to another machine is moving its files.
	Data string `yaml:"data"`
	// Cluster is the cluster file: which cluster to ask for keys, and where to start looking for it.
	Cluster string `yaml:"cluster"`
	// Collateral says where the collateral for this machine comes from, to send along with the runtime's evidence. Not used
	// by simulated runtimes.
	Collateral daemon.Collateral `yaml:"collateral"`
	// Engine is "compiler" (the default) or "interpreter", which needs no executable memory: the choice inside EGo.
	Engine string `yaml:"engine"`
	// MaxCalls bounds the calls in flight; others are refused as busy. Default 64.
	MaxCalls int `yaml:"max_calls"`
	// Owners lists the Ed25519 public keys, 64 hex digits each, whose deployments are taken: 'claviger fn' keeps an owner's key
	// in owner.key and a refusal names its public half. Nobody may deploy when it is empty. The machine's host writes this
	// list, so it protects the machine from strangers and nothing else: what keeps projects apart is the enclave.
	Owners []string `yaml:"owners"`
	// OpenToAnyOwner takes deployments of anybody, up to the limits. Owners must be empty.
	OpenToAnyOwner bool `yaml:"open_to_any_owner"`
	// Limits bound what all projects together may take.
	Limits Limits `yaml:"limits"`
	// Log says how to log.
	Log daemon.Log `yaml:"log"`
}

// Limits bound what projects take of the machine. Zero means the default. Running calls need memory beside memory_mib: two
// for each processor, 64 MiB each.
type Limits struct {
	MemoryMiB   int `yaml:"memory_mib"`   // kept between calls: snapshots, open stores, idle instances; default 512
	SnapshotMiB int `yaml:"snapshot_mib"` // what one bundle may leave in memory once it is evaluated; default 8
	ProjectMiB  int `yaml:"project_mib"`  // data of one project; default 64
	DiskMiB     int `yaml:"disk_mib"`     // files of all projects; default 8192
	Projects    int `yaml:"projects"`     // how many there may be; default 256
}

func (l *Limits) check() error {
	for _, f := range []struct {
		key              string
		value            *int
		least, most, def int
	}{
		{"memory_mib", &l.MemoryMiB, 32, 1 << 20, 512},
		{"snapshot_mib", &l.SnapshotMiB, 1, 64, 8},
		{"project_mib", &l.ProjectMiB, 1, 256, 64},
		{"disk_mib", &l.DiskMiB, 1, 1 << 24, 8192},
		{"projects", &l.Projects, 1, 1 << 20, 256},
	} {
		if *f.value == 0 {
			*f.value = f.def
		}
		if *f.value < f.least || *f.value > f.most {
			return fmt.Errorf("%w: limits.%s %d: write %d to %d", daemon.ErrConfig, f.key, *f.value, f.least, f.most)
		}
	}
	if least := l.ProjectMiB + 2*l.SnapshotMiB + 1; l.MemoryMiB < least {
		return fmt.Errorf("%w: limits.memory_mib %d does not hold one project: write at least %d, or lower project_mib or snapshot_mib",
			daemon.ErrConfig, l.MemoryMiB, least)
	}
	return nil
}

// Access says whose deployments are taken: the listed owners', or anybody's. The zero Access is nobody's.
type Access struct {
	Owners []ed25519.PublicKey
	Anyone bool
}

func (c *Config) access() (Access, error) {
	if c.OpenToAnyOwner && len(c.Owners) > 0 {
		return Access{}, fmt.Errorf("%w: owners goes without open_to_any_owner", daemon.ErrConfig)
	}
	a := Access{Anyone: c.OpenToAnyOwner}
	for _, text := range c.Owners {
		key, err := hex.DecodeString(text)
		if err != nil || len(key) != ed25519.PublicKeySize {
			return Access{}, fmt.Errorf("%w: owners: %q is not the 64 hex digits of an Ed25519 public key", daemon.ErrConfig, text)
		}
		a.Owners = append(a.Owners, key)
	}
	return a, nil
}

// Resolve implements daemon.Config.
func (c *Config) Resolve(dir string) error {
	if err := daemon.Address("listen.api", c.Listen.API); err != nil {
		return err
	}
	if err := daemon.Address("listen.admin", c.Listen.Admin); err != nil {
		return err
	}
	if c.MaxCalls < 0 || c.MaxCalls > 4096 {
		return fmt.Errorf("%w: max_calls %d: write 1 to 4096", daemon.ErrConfig, c.MaxCalls)
	}
	if _, err := c.mode(); err != nil {
		return err
	}
	if _, err := c.access(); err != nil {
		return err
	}
	if err := c.Limits.check(); err != nil {
		return err
	}
	for _, p := range []struct {
		key  string
		path *string
	}{{"data", &c.Data}, {"cluster", &c.Cluster}} {
		var err error
		if *p.path, err = daemon.Path(p.key, *p.path, dir); err != nil {
			return err
		}
	}
	return c.Collateral.Resolve(dir)
}

func (c *Config) mode() (engine.Mode, error) {
	switch c.Engine {
	case "", "compiler":
		return engine.Compiler, nil
	case "interpreter":
		return engine.Interpreter, nil
	}
	return 0, fmt.Errorf("%w: engine %q: write compiler or interpreter", daemon.ErrConfig, c.Engine)
}
