package fnd

import (
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
	// Log says how to log.
	Log daemon.Log `yaml:"log"`
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
