package main

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

type policyFlags struct {
	statementFlags
	add, remove []string
}

func clusterPolicyCommand(s *cli.Streams) *cobra.Command {
	var f policyFlags
	cmd := &cobra.Command{
		Use: "policy", Short: "Show which code may hold the roots, and change it, as an operator",
		Long: `Shows the node policy: a node must satisfy one of its constraints. The operators' signatures under it are verified.

With --add and --remove it makes a statement that changes it. A node of code that no constraint names any more is expelled, while
enough nodes of accepted code answer; it does not come back. Whoever signs a constraint answers for the code that it names:
compare every measurement with a build that you trust.

To move to a new version of the node: add its constraint, restart one node after the other with the new image, remove the old
constraint.` + howToSign,
		Example: `  claviger cluster policy --cluster cluster.json
  claviger cluster policy --cluster cluster.json --add "C:9f31… SEC:SECURE" --key alice.key --out policy.json
  claviger cluster policy --cluster cluster.json --add "C:9f31… SEC:SECURE" --key bob.key --with policy.json
  claviger cluster policy --cluster cluster.json --remove "C:40aa… SEC:SECURE" --key alice.key --key bob.key`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if len(f.add)+len(f.remove) == 0 {
				return f.show(cmd, s)
			}
			return f.run(cmd, s, f.change)
		},
	}
	flags := cmd.Flags()
	flags.StringArrayVar(&f.add, "add", nil, "`constraint` to add; may be repeated")
	flags.StringArrayVar(&f.remove, "remove", nil, "`constraint` to remove; may be repeated")
	f.register(flags)
	return cmd
}

// change makes the new list from the one in force, whose version the statement names.
func (f *policyFlags) change(c api.Cluster, m *api.Manifest) (api.AdminBody, []string, error) {
	now, err := c.Policy(m)
	if err != nil {
		return nil, nil, err
	}
	list := slices.Clone(now.Constraints)
	says := []string{fmt.Sprintf("the node policy becomes version %d:", now.Version+1)}
	for _, text := range f.add {
		constraint, err := policy.ParseConstraint(text)
		if err != nil {
			return nil, nil, cli.Usagef("--add: %w", err)
		}
		if constraint.Insecure() {
			return nil, nil, cli.Usagef("--add %q: it accepts debug enclaves, whose host reads their memory", text)
		}
		if slices.Contains(list, constraint.String()) {
			return nil, nil, cli.Usagef("--add %q: the policy has it already", text)
		}
		list = append(list, constraint.String())
	}
	for _, text := range f.remove {
		constraint, err := policy.ParseConstraint(text)
		if err != nil {
			return nil, nil, cli.Usagef("--remove: %w", err)
		}
		i := slices.Index(list, constraint.String())
		if i < 0 {
			return nil, nil, cli.Usagef("--remove %q: the policy does not have it; 'claviger cluster policy' shows what it has", text)
		}
		list = slices.Delete(list, i, i+1)
	}
	slices.Sort(list)
	for _, text := range list {
		mark := "keeps"
		if !slices.Contains(now.Constraints, text) {
			mark = "adds"
		}
		says = append(says, fmt.Sprintf("%-7s %q", mark, text))
	}
	for _, text := range now.Constraints {
		if !slices.Contains(list, text) {
			says = append(says, fmt.Sprintf("%-7s %q", "removes", text))
		}
	}
	if len(list) == 0 {
		return nil, nil, cli.Usagef("nothing would be left: add the constraint that replaces the last one")
	}
	return &api.NodePolicyChange{Parent: now.Version, Constraints: list}, says, nil
}

// policyView is the node policy as it was proved.
type policyView struct {
	ClusterID   string   `json:"cluster_id"`
	Version     uint64   `json:"version"`
	Epoch       uint64   `json:"epoch"` // of the statement; 0 for the manifest's own
	Constraints []string `json:"constraints"`
}

func (f *policyFlags) show(cmd *cobra.Command, s *cli.Streams) error {
	if len(f.keys)+len(f.with) > 0 || f.out != "" {
		return cli.Usagef("--key, --with and --out go with --add or --remove")
	}
	return f.cluster.look(cmd.Context(), func(_ context.Context, v *sight) error {
		p, err := v.now.Policy(v.manifest)
		if err != nil {
			return err
		}
		view := policyView{v.now.ClusterID.String(), p.Version, p.Epoch, p.Constraints}
		return s.Print(view, view.write)
	})
}

func (v policyView) write(w io.Writer) {
	table := rows{w}
	table.add("cluster", "%s", v.ClusterID)
	by := "the manifest"
	if v.Version > 1 {
		by = fmt.Sprintf("a statement of epoch %d, whose signatures are good", v.Epoch)
	}
	table.add("node policy", "version %d, by %s", v.Version, by)
	for _, text := range v.Constraints {
		table.add("", "%q", text)
	}
}
