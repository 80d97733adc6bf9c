package main

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/enclave/functions"
	"github.com/claviger/claviger/kds/api"
)

// maxOwnerFile and maxDeploymentFile bound two small files, in bytes.
const (
	maxOwnerFile      = 4 << 10
	maxDeploymentFile = 16 << 10
)

func fnDeployCommand(s *cli.Streams) *cobra.Command {
	var f fnFlags
	var sequence uint64
	cmd := &cobra.Command{
		Use: "deploy", Short: "Sign the project's code and deploy it, sealed to the runtime",
		Long: `Signs the bundle with the owner's key, seals it to the runtime's key, which it gets from the cluster, and sends it to the
function host. What callers pin, the code hash among it, is written to ` + deploymentFile + `.`,
		Example: "  claviger fn deploy --dir passwords --sim tour/world.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel, err := f.cluster.bounded(cmd.Context())
			if err != nil {
				return err
			}
			defer cancel()
			return fnDeploy(ctx, s, &f, sequence)
		},
	}
	f.register(cmd)
	cmd.Flags().Uint64Var(&sequence, "sequence", 0, "sequence number, above the one in force; default the next one")
	return cmd
}

func fnDeploy(ctx context.Context, s *cli.Streams, f *fnFlags, sequence uint64) error {
	p, err := f.project()
	if err != nil {
		return err
	}
	code, err := s.ReadFile(cli.Below(f.dir, p.Bundle), functions.MaxCode)
	if err != nil {
		return err
	}
	owner, err := readOwner(s, cli.Below(f.dir, p.Owner))
	if err != nil {
		return err
	}
	id, err := functions.ProjectIDOf(owner.Public().(ed25519.PublicKey), p.Project)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	c, err := f.client(ctx, p, id, functions.HashCode(code))
	if err != nil {
		return err
	}
	inForce, err := deployNext(ctx, c, owner, p.Project, code, sequence)
	if err != nil {
		return err
	}
	d := fnDeployment{
		Project: p.Project, ProjectID: id.String(), CodeHash: c.Target.Code.String(), Runtime: p.Runtime, Sequence: inForce,
	}
	if err := d.write(filepath.Join(f.dir, deploymentFile)); err != nil {
		return err
	}
	return s.Print(d, func(w io.Writer) {
		table := rows{w}
		table.add("deployed", "%s, sequence %d, %d bytes", d.Project, d.Sequence, len(code))
		table.add("project", "%s", d.ProjectID)
		table.add("code hash", "%s", d.CodeHash)
	})
}

// deployNext deploys under the given number, or under the next one when it is zero: the runtime says, sealed, which number
// is in force.
func deployNext(ctx context.Context, c *functions.Client, owner ed25519.PrivateKey, project string, code []byte, sequence uint64) (uint64, error) {
	if sequence != 0 {
		return c.Deploy(ctx, owner, project, code, sequence)
	}
	inForce, err := c.Deploy(ctx, owner, project, code, 1)
	if errors.Is(err, functions.ErrStaleSequence) {
		return c.Deploy(ctx, owner, project, code, inForce+1)
	}
	return inForce, err
}

func readOwner(s *cli.Streams, name string) (ed25519.PrivateKey, error) {
	raw, err := s.ReadFile(name, maxOwnerFile)
	if err != nil {
		return nil, err
	}
	seed, err := hex.DecodeString(strings.TrimSpace(string(raw)))
	if err != nil || len(seed) != ed25519.SeedSize {
		return nil, cli.Usagef("%s is no owner key: want 64 hex digits, as 'claviger fn init' writes them", name)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// write replaces deployment.json as a whole.
func (d *fnDeployment) write(name string) error {
	raw, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return err
	}
	tmp := name + ".new"
	if err := os.WriteFile(tmp, append(raw, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, name)
}

// readDeployment reads what callers pin.
func readDeployment(s *cli.Streams, name string) (id functions.ProjectID, code functions.CodeHash, err error) {
	if _, err := os.Stat(name); errors.Is(err, fs.ErrNotExist) {
		return id, code, cli.Usagef("%s does not exist; deploy first, or take the file from whoever deployed", name)
	}
	raw, err := s.ReadFile(name, maxDeploymentFile)
	if err != nil {
		return id, code, err
	}
	var d fnDeployment
	if err := api.DecodeJSON(raw, maxDeploymentFile, &d); err != nil {
		return id, code, fmt.Errorf("%s: %w", name, err)
	}
	if id, err = functions.ParseProjectID(d.ProjectID); err != nil {
		return id, code, fmt.Errorf("%s: %w", name, err)
	}
	code, err = functions.ParseCodeHash(d.CodeHash)
	if err != nil {
		return id, code, fmt.Errorf("%s: %w", name, err)
	}
	return id, code, nil
}
