// Command clavigerd is a key node: it runs in an SGX enclave (build tag ego, started by ego run) or in a TDX guest, trusts
// Intel's root and nothing else, and cannot be told otherwise. clavigerd-sim is the same on the simulator.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/cmd/internal/kdsd"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
)

// clusterID may pin a cluster in the measured binary: go build -ldflags "-X main.clusterID=<64 hex digits>".
var clusterID string

func main() { cli.Main(run) }

func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := &cli.Streams{Env: env, In: stdin, Out: stdout, Err: stderr}
	var genesis, recovery bool
	cmd := daemon.Command("clavigerd CONFIG", "A key node in an enclave",
		`Runs a key node inside an SGX enclave or a TDX guest. It joins the cluster in the configuration's cluster file; with
--genesis, once, it founds one: it writes `+node.StatementFile+` below data/genesis and waits until the
operators' signatures lie beside it in `+node.ApprovalsFile+`. There is no ceremony yet that hands out shares of a recovery key on
hardware, so a cluster founded now has none: once all of its nodes are lost at a time, all its keys are lost with them.

With --recover it brings back a cluster that has lost its majority, from a node that still lives or, if there are such shares, from
archives, with the operators: see the configuration's recovery section and 'claviger cluster recover'.

Outside an enclave it refuses to start. To try things without hardware use clavigerd-sim or 'claviger dev'.`,
		"  clavigerd /etc/claviger/node.yaml\n  clavigerd --genesis /etc/claviger/node.yaml",
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
	c, err := daemon.Load[kdsd.Config](file)
	if err != nil {
		return err
	}
	log, err := c.Log.Logger(s)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	p := kdsd.Platform{Root: attest.IntelRoot()}
	if clusterID != "" {
		if p.Pinned, err = api.ParseID(clusterID); err != nil {
			return fmt.Errorf("this binary was built with a malformed cluster id: %w", err)
		}
	}
	if p.TEE, err = openTEE(); err != nil {
		return fmt.Errorf("%w; on a machine without SGX or TDX use clavigerd-sim", err)
	}
	source, stop, err := c.Collateral.Open(p.Root, log)
	if errors.Is(err, daemon.ErrConfig) {
		return cli.Usagef("%s: %w", file, err)
	}
	if err != nil {
		return err
	}
	p.Collateral = source
	p.Approve = node.ApproveByFile(filepath.Join(c.Data, "genesis"), func(path string) {
		log.Info("waiting for the operators: verify and sign the statement", "statement", path, "approvals", node.ApprovalsFile)
	})
	return errors.Join(kdsd.Run(ctx, c, p, mode, log), stop())
}
