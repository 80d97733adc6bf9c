// Command claviger-fn-sim is the function runtime on the simulator: claviger-fn in all but the machine and the root of trust.
// It protects nothing.
package main

import (
	"context"
	"io"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/cmd/internal/fnd"
	"github.com/claviger/claviger/cmd/internal/simworld"
)

// config is a runtime's configuration and where it is simulated.
type config struct {
	fnd.Config `yaml:",inline"`
	Sim        simworld.Config `yaml:"sim"`

	dir string
}

func (c *config) Resolve(dir string) error {
	c.dir = dir
	return c.Config.Resolve(dir)
}

func main() { cli.Main(run) }

func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := &cli.Streams{Env: env, In: stdin, Out: stdout, Err: stderr}
	cmd := daemon.Command("claviger-fn-sim CONFIG", "A function runtime on the simulator",
		"Runs functions on a simulated machine, with keys from the cluster in the configuration's cluster file.",
		"  claviger sim init tour\n  claviger-fn-sim tour/fn.yaml",
		func(ctx context.Context, file string) error { return start(ctx, s, file) })
	return cli.Run(ctx, cmd, s, args)
}

func start(ctx context.Context, s *cli.Streams, file string) error {
	c, err := daemon.Load[config](file)
	if err != nil {
		return err
	}
	log, err := c.Log.Logger(s)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	place, err := c.Sim.Open(c.dir)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	tee, err := c.Sim.Launch(place, simworld.RuntimeImage)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	log.Warn("simulated: this runtime protects nothing", "machine", place.Machine.Name())
	p := fnd.Platform{TEE: tee, Root: place.World.Root(), Attest: simworld.Attest(place.World, tee)}
	return fnd.Run(ctx, &c.Config, p, log)
}
