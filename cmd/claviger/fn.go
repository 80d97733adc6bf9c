package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/config"
	"github.com/claviger/claviger/enclave/functions"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

func fnCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("fn", "Confidential functions: start a project, deploy it, call it",
		fnInitCommand(s), fnDeployCommand(s), fnCallCommand(s))
}

// The files of a project directory.
const (
	projectFile    = "project.yaml"
	deploymentFile = "deployment.json"
)

// fnProject is project.yaml: what the owner decides.
type fnProject struct {
	Project string `yaml:"project"` // name; with the owner's key it makes the project's id
	Bundle  string `yaml:"bundle"`  // JavaScript file
	Owner   string `yaml:"owner"`   // file with the owner's ed25519 seed, 64 hex digits; whoever has it can deploy
	Runtime string `yaml:"runtime"` // constraint of the function runtime that may run it
	Host    string `yaml:"host"`    // URL of the function host; not trusted
}

// fnDeployment is deployment.json: what callers pin.
type fnDeployment struct {
	Project   string `json:"project"`
	ProjectID string `json:"project_id"`
	CodeHash  string `json:"code_hash"`
	Runtime   string `json:"runtime"`
	Sequence  uint64 `json:"sequence"`
}

// fnFlags are what deploy and call share.
type fnFlags struct {
	cluster clusterFlags
	dir     string
	host    string
}

func (f *fnFlags) register(cmd *cobra.Command) {
	f.cluster.register(cmd.Flags())
	cmd.Flags().StringVar(&f.dir, "dir", ".", "project `directory`")
	cmd.Flags().StringVar(&f.host, "host", "", "`URL` of the function host; default from "+projectFile)
}

// project reads project.yaml.
func (f *fnFlags) project() (*fnProject, error) {
	name := filepath.Join(f.dir, projectFile)
	p, err := config.Load[fnProject](name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("%s does not exist; 'claviger fn init DIR' starts a project", name)
	}
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	c, err := policy.ParseConstraint(p.Runtime)
	if err != nil {
		return nil, cli.Usagef("%s: runtime: %w", name, err)
	}
	p.Runtime = c.String()
	if f.host != "" {
		p.Host = f.host
	}
	if p.Host == "" || p.Project == "" {
		return nil, cli.Usagef("%s: project and host are needed", name)
	}
	return &p, nil
}

// runtimeKey asks the cluster for the public key that sealed calls go to: only a runtime that satisfies the constraint can
// get the private half. It does not come from the function host, which could answer with a key of its own.
func (f *fnFlags) runtimeKey(ctx context.Context, runtime string) ([]byte, error) {
	t, err := f.cluster.open()
	if err != nil {
		return nil, err
	}
	c, err := t.client(nil)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	reply, err := c.PublicKey(ctx, api.PublicKeyRequest{Constraint: runtime, Name: "functions/invoke", Purpose: "x25519", Version: api.Version{Generation: api.FirstGeneration}})
	if err != nil {
		return nil, fmt.Errorf("the cluster did not name the runtime's key: %w", err)
	}
	return reply.PublicKey, nil
}

// client returns a client of the project's functions.
func (f *fnFlags) client(ctx context.Context, p *fnProject, id functions.ProjectID, code functions.CodeHash) (*functions.Client, error) {
	key, err := f.runtimeKey(ctx, p.Runtime)
	if err != nil {
		return nil, err
	}
	return &functions.Client{
		Endpoint: p.Host,
		Target:   functions.Target{RuntimeKey: key, Runtime: p.Runtime, Project: id, Code: code},
	}, nil
}
