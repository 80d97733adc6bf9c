package main

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/cmd/internal/story"
	"github.com/claviger/claviger/policy"
)

var projectName = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,63}$`)

func fnInitCommand(s *cli.Streams) *cobra.Command {
	var runtime, host string
	cmd := &cobra.Command{
		Use: "init DIR", Short: "Start a project: a password manager to change into your own",
		Long: `Creates DIR with project.yaml, index.js (a small password manager), a fresh owner key and a .gitignore that keeps
the key out of version control. Existing files are never overwritten.

Without --runtime the project is for the runtime of the simulator.`,
		Example: "  claviger fn init passwords\n  claviger fn init orders --runtime \"C:$MRENCLAVE\" --host https://fn.example",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			c, err := policy.ParseConstraint(runtime)
			if err != nil {
				return cli.Usagef("--runtime: %w", err)
			}
			return fnInit(s, args[0], c.String(), host)
		},
	}
	cmd.Flags().StringVar(&runtime, "runtime", simworld.RuntimeImage.Constraint(), "`constraint` of the function runtime that may run the project")
	cmd.Flags().StringVar(&host, "host", "http://127.0.0.1:7401", "`URL` of the function host")
	return cmd
}

func fnInit(s *cli.Streams, dir, runtime, host string) error {
	name := filepath.Base(filepath.Clean(dir))
	if !projectName.MatchString(name) {
		return cli.Usagef("the project is called like its directory, and %q is no name: use up to 64 of a-z, 0-9 and '-'", name)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	public, owner, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return err
	}
	files := []struct{ name, content string }{
		{projectFile, fmt.Sprintf(`# A project of confidential functions. Paths are relative to this file.
project: %s
bundle: index.js                 # one file of JavaScript; exported functions can be called
owner: owner.key                 # whoever has this key can deploy; keep it out of version control
runtime: "%s"
host: %s       # carries sealed messages; not trusted
`, name, runtime, host)},
		{"index.js", string(story.PasswordManager)},
		{"owner.key", hex.EncodeToString(owner.Seed()) + "\n"},
		{".gitignore", "owner.key\n"},
	}
	var written []string
	for _, f := range files {
		if err := writeNew(filepath.Join(dir, f.name), []byte(f.content)); err != nil {
			return err
		}
		written = append(written, f.name)
	}
	out := struct {
		Dir     string   `json:"dir"`
		Project string   `json:"project"`
		Owner   string   `json:"owner"` // public key, hexadecimal
		Files   []string `json:"files"`
	}{dir, name, hex.EncodeToString(public), written}
	return s.Print(out, func(w io.Writer) {
		fmt.Fprintf(w, "Wrote %s to %s. The owner's public key, for a function host that lists its owners:\n\n", strings.Join(written, ", "), dir)
		fmt.Fprintf(w, "  %s\n\nNext:\n\n", out.Owner)
		fmt.Fprintf(w, "  claviger fn deploy --dir %s --sim tour/world.json\n", dir)
		fmt.Fprintf(w, "  claviger fn call --dir %s --sim tour/world.json add '\"my long token\"' '\"example.org\"' '\"ada\"' '\"hunter2\"'\n", dir)
	})
}
