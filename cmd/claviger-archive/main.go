// Command claviger-archive keeps the sealed archives of key nodes on the host's side of the boundary: nodes inside enclaves
// write to it over TCP, and it writes a raft-boltdb database, or plain files, for each boot. It is trusted with nothing.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

func main() { cli.Main(run) }

func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := &cli.Streams{Env: env, In: stdin, Out: stdout, Err: stderr}
	cmd := daemon.Command("claviger-archive CONFIG", "Keep the sealed archives of key nodes, outside their enclaves",
		`Serves key nodes that have 'archive: remote' in their configuration. Each boot of a node writes one archive, which is
never written again; a recovery reads it back. CONFIG is a YAML file:

  listen: 127.0.0.1:7400     # where nodes connect; plain TCP, so loopback or a network of the hosts' own
  data: /var/lib/claviger    # of one cluster, one directory for each boot; 'claviger cluster prune' deletes old ones
  archive: bolt              # bolt (the default): a raft-boltdb database each; file: append-only files
  log: {level: info}

What it stores is sealed by the nodes, and it is trusted with nothing: it can lose what it was given, as a disk can, and
neither read nor change it. Who reaches its port can fill its disk. A node whose server goes away stops serving and keeps
its root secrets in memory: stop the nodes first, and do not let a majority depend on one server.`,
		"  claviger-archive /etc/claviger/archive.yaml\n  claviger-archive list 127.0.0.1:7400",
		func(ctx context.Context, file string) error { return serve(ctx, s, file) })
	cmd.AddCommand(listCommand(s), readCommand(s))
	return cli.Run(ctx, cmd, s, args)
}

func serve(ctx context.Context, s *cli.Streams, file string) error {
	c, err := daemon.Load[Config](file)
	if err != nil {
		return err
	}
	log, err := c.Log.Logger(s)
	if err != nil {
		return &cli.UsageError{Err: err}
	}
	if err := os.MkdirAll(c.Data, 0o700); err != nil {
		return err
	}
	l, err := net.Listen("tcp", c.Listen)
	if err != nil {
		return err
	}
	log.Info("ready", "listen", l.Addr().String(), "archive", c.Archive, "data", c.Data)
	return remote.NewServer(c.backend(), log).Serve(ctx, l)
}

// listed is one line of the list, for programs.
type listed struct {
	Server  string `json:"server"`
	Attempt uint16 `json:"attempt"`
}

func listCommand(s *cli.Streams) *cobra.Command {
	timeout := 10 * time.Second
	cmd := &cobra.Command{
		Use: "list HOST:PORT", Short: "List the archives that a server says it has",
		Long: `Prints the server id of each archive, one for each boot of a node. A boot that opened its store again has more than one
attempt. What the server says is only its word; whether an archive is genuine shows when a recovery opens it.`,
		Example: "  claviger-archive list 127.0.0.1:7400\n  claviger-archive list --json 127.0.0.1:7400",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := daemon.Address("the argument", args[0]); err != nil {
				return &cli.UsageError{Err: err}
			}
			names, err := remote.List(cmd.Context(), args[0], remote.Options{Timeout: timeout})
			if err != nil {
				return err
			}
			out := make([]listed, len(names))
			for i, n := range names {
				out[i] = listed{n.Server.String(), n.Attempt}
			}
			return s.Print(out, func(w io.Writer) {
				for _, n := range names {
					fmt.Fprintln(w, n)
				}
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "for the connection and for each answer")
	return cmd
}

// readCommand is how the server reads a database: in a process that may crash. See isolated.
func readCommand(s *cli.Streams) *cobra.Command {
	return &cobra.Command{
		Use: "read-bolt DIR", Short: "Print the records of one database, framed", Hidden: true, Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			if err := limitMemory(maxReaderMemory); err != nil {
				return err
			}
			if err := printRecords(s.Out, args[0]); err != nil && !errors.Is(err, syscall.EPIPE) {
				return err
			}
			return nil
		},
	}
}
