package main

import (
	"context"
	"io"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/cmd/internal/cli"
)

func main() { cli.Main(run) }

func run(ctx context.Context, args, env []string, stdin io.Reader, stdout, stderr io.Writer) int {
	s := &cli.Streams{Env: env, In: stdin, Out: stdout, Err: stderr}
	return cli.Run(ctx, tree(s), s, args)
}

func tree(s *cli.Streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "claviger",
		Short: "Keys for enclaves, verdicts on quotes, functions that run in secret",
		Long: `claviger works with quotes, collateral, keys and functions.

Start with 'claviger demo': it tells the whole story on the simulator in half a minute. 'claviger dev' keeps a
simulated cluster running for you to try things on.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.AddCommand(
		demoCommand(s),
		devCommand(s),
		quoteCommand(s),
		collateralCommand(s),
		simCommand(s),
		clusterCommand(s),
		keyCommand(s),
		attestCommand(s),
		fnCommand(s),
		benchCommand(s),
		versionCommand(s),
	)
	return root
}
