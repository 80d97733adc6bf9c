package main

import (
	"encoding/hex"
	"io"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/enclave/sim"
)

func simQuoteCommand(s *cli.Streams) *cobra.Command {
	var image imageFlags
	var world, out, reportData, rootOut string
	cmd := &cobra.Command{
		Use: "quote", Short: "Write a quote of a simulated enclave, to try verification on",
		Long: `Launches a simulated enclave and writes its quote to a file, in Intel's format and genuine under the world's own root.
It proves nothing to anybody who does not trust that root.`,
		Example: "  claviger sim quote --sim tour/world.json --machine laptop --image orders --out quote.bin --root-out root.pem",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if world == "" || out == "" {
				return cli.Usagef("--sim and --out are needed: the world file and the file to write")
			}
			data, err := parseReportData(reportData)
			if err != nil {
				return err
			}
			w, err := sim.OpenWorld(world)
			if err != nil {
				return &cli.UsageError{Err: err}
			}
			tee, err := image.launch(&target{world: w, root: w.Root()})
			if err != nil {
				return err
			}
			var bound [64]byte
			if data != nil {
				copy(bound[:], data[:])
			}
			quote, err := tee.Quote(cmd.Context(), bound)
			if err != nil {
				return err
			}
			if err := replaceFile(out, quote); err != nil {
				return err
			}
			if rootOut != "" {
				if err := writeRoot(rootOut, w.Root()); err != nil {
					return err
				}
			}
			return printQuote(s, tee, quote, out)
		},
	}
	image.register(cmd.Flags())
	cmd.Flags().StringVar(&world, "sim", "", "world `file` of the simulator")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write the quote to")
	cmd.Flags().StringVar(&rootOut, "root-out", "", "write the world's root key to this `file`, PEM, for --root")
	cmd.Flags().StringVar(&reportData, "report-data", "", "128 `hex` digits for the enclave to put into the quote; default zeros")
	return cmd
}

func printQuote(s *cli.Streams, tee *sim.Enclave, quote []byte, name string) error {
	q, err := attest.Parse(quote)
	if err != nil {
		return err
	}
	p, err := attest.PlatformOf(q)
	if err != nil {
		return err
	}
	out := struct {
		Quote      string     `json:"quote"`
		TEE        attest.TEE `json:"tee"`
		FMSPC      string     `json:"fmspc"`
		CA         string     `json:"ca"`
		Constraint string     `json:"constraint"` // matches exactly the image
	}{name, q.TEE(), hex.EncodeToString(p.FMSPC[:]), p.CA, tee.Image().Constraint()}
	return s.Print(out, func(w io.Writer) {
		table := rows{w}
		table.add("quote", "%s, SIMULATED %s", name, out.TEE)
		table.add("platform", "FMSPC %s, %s CA", out.FMSPC, out.CA)
		table.add("constraint", "%s", out.Constraint)
	})
}
