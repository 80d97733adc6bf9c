// Command claviger-fn is the function runtime: it runs in an SGX enclave (build tag ego, started by ego run) or in a TDX
// guest, trusts Intel's root and the cluster it was built for, and cannot be told otherwise. claviger-fn-sim is the same on
// the simulator.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/cmd/internal/fnd"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/kds/api"
)

// clusterID pins the cluster in the measured binary: go build -ldflags "-X main.clusterID=<64 hex digits>". A host that
// could choose the cluster could choose one that answers with keys it knows.
var clusterID string

func main() { cli.Main(run) }

func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := &cli.Streams{Env: env, In: stdin, Out: stdout, Err: stderr}
	cmd := daemon.Command("claviger-fn CONFIG", "A function runtime in an enclave",
		`Runs functions inside an SGX enclave or a TDX guest, with keys that the cluster gives only to this very code.

The binary must be built with the id of its cluster in it. Outside an enclave it refuses to start. To try things without
hardware use claviger-fn-sim or 'claviger dev'.`,
		"  go build -ldflags \"-X main.clusterID=$(jq -r .cluster_id cluster.json)\" ./cmd/claviger-fn\n  claviger-fn /etc/claviger/fn.yaml",
		func(ctx context.Context, file string) error { return start(ctx, s, file) })
	return cli.Run(ctx, cmd, s, args)
}

func start(ctx context.Context, s *cli.Streams, file string) error {
	c, err := daemon.Load[fnd.Config](file)
	if err != nil {
		return err
	}
	log, err := c.Log.Logger(s)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	p := fnd.Platform{Root: attest.IntelRoot()}
	if p.Pinned, err = api.ParseID(clusterID); err != nil {
		return fmt.Errorf("this binary pins no cluster: build it with -ldflags \"-X main.clusterID=<64 hex digits>\": %w", err)
	}
	if p.TEE, err = openTEE(); err != nil {
		return fmt.Errorf("%w; on a machine without SGX or TDX use claviger-fn-sim", err)
	}
	source, stop, err := c.Collateral.Open(p.Root, log)
	if errors.Is(err, daemon.ErrConfig) {
		return cli.Usagef("%s: %w", file, err)
	}
	if err != nil {
		return err
	}
	p.Attest = evidence(p.TEE, source)
	return errors.Join(fnd.Run(ctx, c, p, log), stop())
}

// evidence attests with a quote and the collateral for it.
func evidence(tee enclave.TEE, collateral func(context.Context, []byte) (*attest.Collateral, error)) func(context.Context, [64]byte) (ratls.Evidence, error) {
	return func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
		quote, err := tee.Quote(ctx, reportData)
		if err != nil {
			return ratls.Evidence{}, err
		}
		c, err := collateral(ctx, quote)
		if err != nil {
			return ratls.Evidence{}, err
		}
		bundle, err := c.Marshal()
		return ratls.Evidence{Quote: quote, Collateral: bundle}, err
	}
}
