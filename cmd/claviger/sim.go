package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"text/template"

	_ "embed"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/raftstore/archive/file"
)

//go:embed node.yaml.tmpl
var nodeTemplate string

//go:embed fn.yaml.tmpl
var fnTemplate string

func simCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("sim", "Prepare a simulated world to try things in, and play its Intel and its enclaves", simInitCommand(s), simPCSCommand(s), simQuoteCommand(s))
}

// simNode is what a node's configuration file is made from.
type simNode struct {
	Slot                     string
	PeerPort, APIPort, Admin int
	Join, Endpoints          []string
	NodePolicy, Operator     string
	FnAPI, FnAdmin           int
	Machine                  string
	Genesis                  bool
}

const (
	simSlots    = "abc"
	maxBasePort = 65000
)

func simInitCommand(s *cli.Streams) *cobra.Command {
	port := 7100
	cmd := &cobra.Command{
		Use: "init DIR", Short: "Write a simulated world and configurations for three key nodes and a function host",
		Long: `Creates DIR with world.json (the seed of a simulated Intel), a.yaml, b.yaml and c.yaml for three key nodes on
three simulated machines, and fn.yaml for a function host. Existing files are never overwritten.

The world protects nothing: whoever has world.json can mint any evidence in it.`,
		Example: "  claviger sim init tour\n  claviger sim init tour --port 9100",
		Args:    cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if port < 1 || port > maxBasePort {
				return cli.Usagef("--port %d: use 1 to %d; the ports up to 499 above it are taken from there", port, maxBasePort)
			}
			return simInit(s, args[0], port)
		},
	}
	cmd.Flags().IntVar(&port, "port", port, "base port: nodes listen 1 to 3, 101 to 103 and 201 to 203 above it, the function host 301 and 302")
	return cmd
}

func simInit(s *cli.Streams, dir string, port int) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if _, err := sim.CreateWorld(filepath.Join(dir, "world.json")); err != nil {
		return fmt.Errorf("%w; choose a directory without a world", err)
	}
	operator, err := writeOperator(filepath.Join(dir, "operator.key"))
	if err != nil {
		return err
	}
	files := []string{"world.json", "operator.key"}
	for i, slot := range strings.Split(simSlots, "") {
		node := simNode{
			Slot: slot, PeerPort: port + i + 1, APIPort: port + 100 + i + 1, Admin: port + 200 + i + 1,
			NodePolicy: simworld.NodeImage.Constraint(), Operator: operator, Machine: "kds-" + slot, Genesis: i == 0,
		}
		for j := range simSlots {
			if j != i {
				node.Join = append(node.Join, fmt.Sprintf("127.0.0.1:%d", port+j+1))
				node.Endpoints = append(node.Endpoints, fmt.Sprintf("127.0.0.1:%d", port+100+j+1))
			}
		}
		if err := writeTemplate(dir, slot+".yaml", nodeTemplate, node, &files); err != nil {
			return err
		}
	}
	fn := simNode{FnAPI: port + 301, FnAdmin: port + 302, Machine: "fn-1"}
	if err := writeTemplate(dir, "fn.yaml", fnTemplate, fn, &files); err != nil {
		return err
	}
	out := struct {
		Dir   string   `json:"dir"`
		Files []string `json:"files"`
	}{dir, files}
	return s.Print(out, func(w io.Writer) {
		fmt.Fprintf(w, "Wrote %s to %s. Next, each in a terminal of its own:\n\n", strings.Join(files, ", "), dir)
		fmt.Fprintf(w, "  go run ./cmd/clavigerd-sim --genesis %s\n", filepath.Join(dir, "a.yaml"))
		fmt.Fprintf(w, "  go run ./cmd/clavigerd-sim %s\n", filepath.Join(dir, "b.yaml"))
		fmt.Fprintf(w, "  go run ./cmd/clavigerd-sim %s\n", filepath.Join(dir, "c.yaml"))
		fmt.Fprintf(w, "  go run ./cmd/claviger-fn-sim %s\n", filepath.Join(dir, "fn.yaml"))
	})
}

// writeNew writes a file that must not exist yet, readable by its owner only. It is there as a whole, also after a loss of power,
// or not at all: half a key would be in the way of the next attempt.
func writeNew(name string, raw []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(raw)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return file.SyncDir(filepath.Dir(name))
}

func writeTemplate(dir, name, text string, data simNode, files *[]string) error {
	t, err := template.New(name).Parse(text)
	if err != nil {
		return err
	}
	var b strings.Builder
	if err := t.Execute(&b, data); err != nil {
		return err
	}
	*files = append(*files, name)
	return writeNew(filepath.Join(dir, name), []byte(b.String()))
}
