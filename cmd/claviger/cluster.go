package main

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

func clusterCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("cluster", "Look at a cluster, and found one",
		clusterStatusCommand(s), clusterOperatorKeyCommand(s), clusterApproveCommand(s), clusterRecoverCommand(s))
}

func clusterStatusCommand(s *cli.Streams) *cobra.Command {
	var cluster clusterFlags
	cmd := &cobra.Command{
		Use: "status", Short: "Show the cluster's id, epoch, log and members",
		Long: `Asks a node of the pinned cluster, which must prove to be one. Manifest, identity key and log head are verified; the
list of members is what the answering node believes.`,
		Example: "  claviger cluster status --sim tour/world.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			t, err := cluster.open()
			if err != nil {
				return err
			}
			return cluster.call(cmd.Context(), t, nil, func(ctx context.Context, c *client.Client) error {
				reply, err := c.Cluster(ctx)
				if err != nil {
					return err
				}
				return s.Print(reply, func(w io.Writer) { writeCluster(w, reply) })
			})
		},
	}
	cluster.register(cmd.Flags())
	return cmd
}

func writeCluster(w io.Writer, c api.Cluster) {
	table := rows{w}
	table.add("cluster", "%s", c.ClusterID)
	table.add("epoch", "%d, root generation %d", c.Epoch, c.Generation)
	table.add("log", "%d releases, head %s", c.LogSize, c.LogRoot)
	for _, m := range c.Members {
		role := "nonvoter"
		switch {
		case m.Leader:
			role = "leader"
		case m.Voter:
			role = "voter"
		}
		table.add("member "+m.Slot, "%-8s  incarnation %d, API %s, server %s", role, m.Incarnation, m.APIAddr, fmt.Sprintf("%.16s…", m.ServerID))
	}
}
