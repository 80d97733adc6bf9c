package main

import (
	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
)

func clusterStopCommand(s *cli.Streams) *cobra.Command {
	var f statementFlags
	cmd := &cobra.Command{
		Use: "stop", Short: "End the epoch of a cluster, as an operator",
		Long: `Ends the epoch: nothing is written after it, no key is released, and no node joins. There is no way back into the epoch; what comes
next is a recovery into a new one. Every node keeps its process, and the roots in its memory, until it is stopped: a recovery takes them
from one that still runs, or needs the operators' recovery shares. A cluster without shares is lost with its last process.` + howToSign,
		Example: `  claviger cluster stop --cluster cluster.json
  claviger cluster stop --cluster cluster.json --key alice.key --out stop.json
  claviger cluster stop --cluster cluster.json --key bob.key --with stop.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd, s, func(api.Cluster, *api.Manifest) (api.AdminBody, []string, error) {
				return &api.Stop{}, []string{"the epoch ends; nothing is written after this", "only a recovery opens another: from a node that still runs, or with the operators' shares"}, nil
			})
		},
	}
	f.register(cmd.Flags())
	return cmd
}
