// Command clavigerd-sim is a key node on the simulator: clavigerd in all but the machine, the root of trust and the
// operators' signatures. It protects nothing.
package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/cmd/internal/kdsd"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/kds/node"
)

// config is a node's configuration and where it is simulated.
type config struct {
	kdsd.Config `yaml:",inline"`
	Sim         simworld.Config `yaml:"sim"`
	// OperatorKey is a file with the seed of the one simulated operator, 64 hex digits. Read only with --genesis; without it
	// operators approve by file, as they do for clavigerd.
	OperatorKey string `yaml:"operator_key"`

	dir string
}

func (c *config) Resolve(dir string) error {
	c.dir = dir
	c.OperatorKey = cli.Below(dir, c.OperatorKey)
	c.Archives = map[string]kdsd.Archive{"bolt": simworld.BoltArchive}
	return c.Config.Resolve(dir)
}

func main() { cli.Main(run) }

func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := &cli.Streams{Env: env, In: stdin, Out: stdout, Err: stderr}
	var genesis, recovery bool
	cmd := daemon.Command("clavigerd-sim CONFIG", "A key node on the simulator",
		`Runs a key node on a simulated machine. It joins the cluster in the configuration's cluster file; with --genesis, once,
it founds one and writes that file. The operator's signature is made with the key in the file operator_key; without one
the node waits for people, who sign with 'claviger cluster approve'. The shares of the recovery key, which belong into the hands
of as many people, lie below data/shares.

With --recover it brings the cluster back from what the configuration's recovery section names, nodes that still live and archives,
with the operators: see 'claviger cluster recover'.`,
		"  claviger sim init tour\n  clavigerd-sim --genesis tour/a.yaml\n  clavigerd-sim tour/b.yaml",
		func(ctx context.Context, file string) error { return start(ctx, s, file, genesis, recovery) })
	cmd.Flags().BoolVar(&genesis, "genesis", false, "found a new cluster; only ever once")
	cmd.Flags().BoolVar(&recovery, "recover", false, "bring back the cluster whose majority is lost, with the operators")
	return cli.Run(ctx, cmd, s, args)
}

func start(ctx context.Context, s *cli.Streams, file string, genesis, recovery bool) error {
	mode, err := kdsd.ModeOf(genesis, recovery)
	if err != nil {
		return err
	}
	c, err := daemon.Load[config](file)
	if err != nil {
		return err
	}
	log, err := c.Log.Logger(s)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	place, err := c.Sim.Open(filepath.Clean(c.dir))
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	tee, err := c.Sim.Launch(place, simworld.NodeImage)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	p := kdsd.Platform{TEE: tee, Root: place.World.Root(), Collateral: place.World.Collateral, Clock: place.Clock}
	p.Records = map[string]node.Records{"bolt": simworld.BoltRecords}
	if mode == kdsd.Found && c.Genesis != nil { // without the section kdsd refuses, and says so
		if p.Approve, err = approver(c, place.World.Root(), log); err != nil {
			return &cli.UsageError{Err: err}
		}
		p.Shares = kdsd.WriteShares(filepath.Join(c.Data, "shares"), log)
	}
	log.Warn("simulated: this node protects nothing", "machine", place.Machine.Name())
	return kdsd.Run(ctx, &c.Config, p, mode, log)
}

// approver signs with the key in the configuration or, without one, leaves the genesis to people and files as clavigerd does.
func approver(c *config, root attest.Root, log *slog.Logger) (func(context.Context, *node.Statement) ([]node.Approval, error), error) {
	if c.OperatorKey == "" {
		return node.ApproveByFile(filepath.Join(c.Data, "genesis"), func(path string) {
			log.Info("the genesis waits for the operators: claviger cluster approve", "statement", path)
		}), nil
	}
	key, err := readOperator(c.OperatorKey)
	if err != nil {
		return nil, err
	}
	return node.ApproveWith(root, time.Now, key), nil
}

var errOperator = errors.New("operator_key")

func readOperator(name string) (ed25519.PrivateKey, error) {
	raw, err := (&cli.Streams{}).ReadFile(name, 4096)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errOperator, err)
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, fmt.Errorf("%w: %s does not hold 64 hex digits", errOperator, name)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}
