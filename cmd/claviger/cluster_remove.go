package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
)

func clusterRemoveCommand(s *cli.Streams) *cobra.Command {
	var f statementFlags
	cmd := &cobra.Command{
		Use: "remove SLOT", Short: "Take a node out of the cluster for good, as an operator",
		Long: `Gives up a slot. The boots that held it can never return, and their machine needs a ticket to come back. The leader takes the
server out of the configuration as soon as a majority of those who stay answer; a removed node that still runs ends by itself. The
last slot cannot be removed.

To replace a machine, let the new one join first, then remove the old one.` + howToSign,
		Example: `  claviger cluster remove a --cluster cluster.json
  claviger cluster remove a --cluster cluster.json --key alice.key --out remove-a.json
  claviger cluster remove a --cluster cluster.json --key bob.key --with remove-a.json`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return f.run(cmd, s, func(c api.Cluster, _ *api.Manifest) (api.AdminBody, []string, error) {
				m, err := memberIn(c, args[0])
				if err != nil {
					return nil, nil, err
				}
				voters := 0
				for _, m := range c.Members {
					if m.Voter {
						voters++
					}
				}
				says := []string{
					fmt.Sprintf("slot %s is given up", m.Slot),
					fmt.Sprintf("server %s, incarnation %d, leaves for good", m.ServerID, m.Incarnation),
				}
				if m.Voter {
					says = append(says, fmt.Sprintf("%d of %d voters stay, which survive the loss of %d", voters-1, voters, max(0, (voters-2)/2)))
				}
				return &api.RemoveSlot{Slot: m.Slot}, says, nil
			})
		},
	}
	f.register(cmd.Flags())
	return cmd
}
