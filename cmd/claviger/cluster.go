package main

import (
	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
)

func clusterCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("cluster", "Look at a cluster, found one, change it, and recover it",
		clusterStatusCommand(s), clusterOperatorKeyCommand(s), clusterApproveCommand(s),
		clusterJoinCommand(s), clusterRemoveCommand(s), clusterPolicyCommand(s), clusterStopCommand(s), clusterPruneCommand(s),
		clusterRecoverCommand(s))
}
