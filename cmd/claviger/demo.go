package main

import (
	"fmt"
	"io"
	"log/slog"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/story"
)

func demoCommand(s *cli.Streams) *cobra.Command {
	var verbose bool
	cmd := &cobra.Command{
		Use: "demo", Short: "Tell the whole story on the simulator in under 30 seconds",
		Long: `Runs the whole system on the simulator and shows what it is for, step by step: real evidence verified, keys that
belong to code, sealed functions, a crashed leader, a move to another machine, and refusals with their reasons. Every step is
checked; the exit code is 1 if one does not hold. With --json every step is one JSON object.`,
		Example: "  claviger demo\n  claviger demo --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return story.Demo(cmd.Context(), s.Out, s.JSON, logger(s, verbose))
		},
	}
	cmd.Flags().BoolVar(&verbose, "verbose", false, "show the nodes' logs on standard error")
	return cmd
}

func devCommand(s *cli.Streams) *cobra.Command {
	var dir, address string
	var verbose bool
	cmd := &cobra.Command{
		Use: "dev", Short: "Run a simulated cluster with a function host until interrupted",
		Long: `Starts three simulated key nodes and a function host in this process, writes world.json and cluster.json for the other
commands, prints addresses and next steps, and runs until interrupted. Each start is a new cluster: its secrets live in memory
only.`,
		Example: "  claviger dev\n  claviger dev --dir play --functions 127.0.0.1:8080",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d, err := story.StartDev(cmd.Context(), dir, address, logger(s, verbose))
			if err != nil {
				return err
			}
			if err := s.Print(d, func(w io.Writer) { writeDev(w, d) }); err != nil {
				return err
			}
			<-cmd.Context().Done()
			return d.Close()
		},
	}
	cmd.Flags().StringVar(&dir, "dir", "claviger-dev", "`directory` for world.json, cluster.json and data")
	cmd.Flags().StringVar(&address, "functions", "127.0.0.1:7401", "`address` of the function host")
	cmd.Flags().BoolVar(&verbose, "verbose", false, "show the nodes' logs on standard error")
	return cmd
}

func writeDev(w io.Writer, d *story.Dev) {
	table := rows{w}
	table.add("cluster", "%s", d.ClusterID)
	for _, e := range d.Endpoints {
		table.add("node API", "%s", e)
	}
	table.add("functions", "%s", d.Functions)
	fmt.Fprintf(w, `
Simulated: this protects nothing. In another terminal:

  claviger key derive --sim %[1]s --machine laptop --image orders --name db --purpose aes-256
  claviger fn init passwords
  claviger fn deploy --dir passwords --sim %[1]s
  claviger fn call --dir passwords --sim %[1]s add '"my long token"' '"example.org"' '"ada"' '"hunter2"'
  claviger fn call --dir passwords --sim %[1]s get '"my long token"' '"example.org"'

Interrupt to stop.
`, d.World)
}

// logger writes to standard error, or nowhere.
func logger(s *cli.Streams, verbose bool) *slog.Logger {
	if !verbose {
		return slog.New(slog.DiscardHandler)
	}
	if s.JSON {
		return slog.New(slog.NewJSONHandler(s.Err, nil))
	}
	return slog.New(slog.NewTextHandler(s.Err, nil))
}
