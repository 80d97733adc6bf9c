package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
)

func clusterStatusCommand(s *cli.Streams) *cobra.Command {
	var cluster clusterFlags
	cmd := &cobra.Command{
		Use: "status", Short: "Show the cluster's id, epoch, policy, log and members",
		Long: `Asks a node of the pinned cluster, which must prove to be one. Manifest, identity key, log head and node policy are verified; the
list of members is what the answering node believes. How far members are behind is what the leader says, which is asked, too.`,
		Example: "  claviger cluster status --sim tour/world.json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cluster.look(cmd.Context(), func(ctx context.Context, v *sight) error {
				reply := v.fromLeader(ctx)
				return s.Print(reply, func(w io.Writer) { writeCluster(w, reply) })
			})
		},
	}
	cluster.register(cmd.Flags())
	return cmd
}

// fromLeader asks the leader, who knows more, if it can be reached; else the first answer does.
func (v *sight) fromLeader(ctx context.Context) api.Cluster {
	i := slices.IndexFunc(v.now.Members, func(m api.Member) bool { return m.Leader })
	if i < 0 || v.now.Members[i].Lag != nil {
		return v.now
	}
	ctx, cancel := context.WithTimeout(ctx, leaderPatience)
	defer cancel()
	c, err := v.ask(v.client.NodePolicy(), v.now.Members[i].APIAddr)
	if err != nil {
		return v.now
	}
	defer c.Close()
	if reply, err := c.Cluster(ctx); err == nil {
		return reply
	}
	return v.now
}

func writeCluster(w io.Writer, c api.Cluster) {
	table := rows{w}
	table.add("cluster", "%s", c.ClusterID)
	ended := ""
	if c.Ended {
		ended = "; ENDED by the operators: nothing is written any more"
	}
	table.add("epoch", "%d, root generation %d, feature level %d%s", c.Epoch, c.Generation, c.Level, ended)
	if n := len(c.GenerationIDs); n > 0 {
		table.add("", "the root has id %s", c.GenerationIDs[n-1])
	}
	table.add("operators", "%d statements so far", c.AdminSequence)
	table.add("node policy", "version %d", c.NodePolicy)
	for _, text := range c.NodePolicyNow {
		table.add("", "%q", text)
	}
	table.add("log", "%d releases, head %s", c.LogSize, c.LogRoot)
	voters := 0
	for _, m := range c.Members {
		if m.Voter {
			voters++
		}
	}
	table.add("voters", "%d of %d slots, which survive the loss of %d", voters, len(c.Members), max(0, (voters-1)/2))
	for _, m := range c.Members {
		writeMember(table, m)
	}
	for _, t := range c.Tickets {
		table.add("ticket "+t.Slot, "server %s on platform %.16s…, not used yet", fmt.Sprintf("%.16s…", t.ServerID), t.PlatformID)
	}
}

func writeMember(table rows, m api.Member) {
	role := "nonvoter"
	switch {
	case m.Leader:
		role = "leader"
	case m.Voter:
		role = "voter"
	}
	lag := "unknown"
	if m.Lag != nil {
		lag = fmt.Sprint(*m.Lag)
	}
	admitted := fmt.Sprintf("admitted at index %d", m.Admitted)
	if m.Admitted == 0 {
		admitted = "of the epoch before"
	}
	table.add("member "+m.Slot, "%-8s  incarnation %d, lag %s, %s, API %s, server %s", role, m.Incarnation, lag, admitted, m.APIAddr, fmt.Sprintf("%.16s…", m.ServerID))
	table.add("", "          %s", codeOf(m))
	table.add("", "          TCB %s at its admission, feature level %d", m.TCBStatus, m.Level)
}

// codeOf tells builds of the node apart: in a TDX guest MRTD is that of the firmware, RTMR1 and RTMR2 are those of what it started.
func codeOf(m api.Member) string {
	switch {
	case m.TEE == "sgx":
		return fmt.Sprintf("sgx MRENCLAVE %.16s…", m.Measurement)
	case len(m.RTMR) > 2:
		return fmt.Sprintf("%.8s MRTD %.16s…, RTMR1 %.16s…, RTMR2 %.16s…", m.TEE, m.Measurement, m.RTMR[1], m.RTMR[2])
	}
	return fmt.Sprintf("%.8s MRTD %.16s…", m.TEE, m.Measurement)
}
