package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
)

func clusterJoinCommand(s *cli.Streams) *cobra.Command {
	var f statementFlags
	var slot, server, platform string
	cmd := &cobra.Command{
		Use: "join", Short: "Let a waiting node take a slot, as an operator",
		Long: `Makes a ticket: one boot of a node, on one machine, may take one slot, once. A node that needs one waits, and its log has this
command with the slot, the server id of the boot and the id of its platform. The leader has verified the evidence of that boot
before it says so. What it cannot know is whose machine it is: compare the platform with the one that you have set up, on
the machine's own console. A slot that another machine holds passes to the new one.

A node that restarts after a ticket was signed is another boot and needs another ticket, unless it had joined.` + howToSign,
		Example: `  claviger cluster join --cluster cluster.json --slot d --server 5b1d… --platform 90ac…
  claviger cluster join --cluster cluster.json --slot d --server 5b1d… --platform 90ac… --key alice.key --out d.json
  claviger cluster join --cluster cluster.json --slot d --server 5b1d… --platform 90ac… --key bob.key --with d.json`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ticket := &api.Ticket{Slot: slot}
			for _, id := range []struct {
				flag, text string
				to         *api.ID
			}{{"server", server, &ticket.ServerID}, {"platform", platform, &ticket.PlatformID}} {
				var err error
				if *id.to, err = api.ParseID(id.text); err != nil {
					return cli.Usagef("--%s: %w; copy it from the log of the waiting node", id.flag, err)
				}
			}
			if !api.ValidSlot(slot) {
				return cli.Usagef("--slot %q: use 1 to %d of a-z, 0-9 and '-', as in the waiting node's configuration", slot, api.MaxSlot)
			}
			return f.run(cmd, s, func(c api.Cluster, _ *api.Manifest) (api.AdminBody, []string, error) {
				says := []string{
					fmt.Sprintf("server %s", ticket.ServerID), fmt.Sprintf("on platform %s", ticket.PlatformID),
					fmt.Sprintf("may take slot %s, once", slot),
				}
				if m, err := memberIn(c, slot); err == nil {
					says = append(says, fmt.Sprintf("which server %s holds now, incarnation %d: it loses it", m.ServerID, m.Incarnation))
				}
				return ticket, says, nil
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&slot, "slot", "", "`name` of the slot")
	flags.StringVar(&server, "server", "", "server `id` of the waiting boot, 64 hex digits")
	flags.StringVar(&platform, "platform", "", "`id` of its platform, 64 hex digits")
	f.register(flags)
	return cmd
}
