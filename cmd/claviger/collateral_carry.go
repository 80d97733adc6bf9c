package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/cmd/internal/cli"
)

// maxSets bounds how many files of a directory are looked at; package pcs keeps at most 512.
const maxSets = 1024

// setsIn lists the sets that lie in a directory, by the names of their files, sorted.
func setsIn(dir string) ([]pcs.Request, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("%s does not exist; 'claviger collateral fetch --dir' or 'import' makes it", dir)
	}
	if err != nil {
		return nil, err
	}
	var list []pcs.Request
	for _, e := range entries {
		if r, ok := parseSetName(e.Name()); ok && len(list) < maxSets {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(a, b pcs.Request) int { return strings.Compare(a.String(), b.String()) })
	return list, nil
}

// parseSetName is the inverse of pcs.Request.String, with the suffix of a file.
func parseSetName(file string) (pcs.Request, bool) {
	name, isJSON := strings.CutSuffix(file, ".json")
	part := strings.Split(name, "-")
	if !isJSON || len(part) < 3 || len(part) > 4 || len(part[1]) != 12 {
		return pcs.Request{}, false
	}
	r := pcs.Request{TEE: attest.TEE(part[0]), CA: part[2]}
	if _, err := hex.Decode(r.FMSPC[:], []byte(part[1])); err != nil || r.TEE != attest.SGX && r.TEE != attest.TDX {
		return pcs.Request{}, false
	}
	if len(part) == 4 {
		number, isNumber := strings.CutPrefix(part[3], "e")
		if n, err := strconv.Atoi(number); isNumber && err == nil {
			r.Evaluation = n
		} else {
			r.Update = pcs.Update(part[3])
		}
	}
	// Names that mean the same in another spelling are not ours.
	return r, r.String() == name && (r.CA == pcs.PlatformCA || r.CA == pcs.ProcessorCA)
}

func collateralExportCommand(s *cli.Streams) *cobra.Command {
	var set setFlags
	var t trustFlags
	var dir, out string
	cmd := &cobra.Command{
		Use: "export", Short: "Write a set from a directory to a one-file bundle",
		Long: `Verifies a set that 'collateral fetch' or a node keeps in a directory, and writes it as a one-file bundle for a site without
a network, with the chain of the PCK CA beside it. What has expired is not exported.

A directory with one set needs no further flags. The bundle alone verifies quotes ('quote verify --bundle'), because a quote
carries the chain; 'collateral import' wants the chain too, or a quote.`,
		Example: "  claviger collateral export --dir collateral --tee tdx --fmspc 50806f000000 --out usb/bundle.json\n  claviger collateral export --dir collateral --quote quote.bin --out bundle.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" || out == "" {
				return cli.Usagef("--dir and --out are needed: the directory to take from and the file to write")
			}
			trust, err := t.open(s)
			if err != nil {
				return err
			}
			return reasoned(export(s, trust, dir, out, set))
		},
	}
	set.register(cmd.Flags())
	t.register(cmd.Flags())
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` to take the set from")
	cmd.Flags().StringVar(&out, "out", "", "`file` to write the bundle to")
	return cmd
}

func export(s *cli.Streams, t *trust, dir, out string, which setFlags) error {
	r, err := chooseSet(s, dir, which)
	if err != nil {
		return err
	}
	d, err := t.directory(dir, which.choice)
	if err != nil {
		return err
	}
	set, err := d.Load(r)
	if err != nil {
		return err
	}
	report := t.report(set)
	if report.Bundle, report.PCKIssuer, err = writeSet(set, out); err != nil {
		return err
	}
	return s.Print(report, func(w io.Writer) { report.write(w) })
}

// chooseSet returns the set that the flags name, or the only one there is.
func chooseSet(s *cli.Streams, dir string, which setFlags) (pcs.Request, error) {
	if which.named() {
		return which.request(s)
	}
	list, err := setsIn(dir)
	if err != nil {
		return pcs.Request{}, err
	}
	switch len(list) {
	case 0:
		return pcs.Request{}, cli.Usagef("%s holds no collateral; fetch or import some first", dir)
	case 1:
		return list[0], nil
	}
	return pcs.Request{}, cli.Usagef("%s holds %d sets: name one with --quote, or --tee and --fmspc; 'claviger collateral show --dir' lists them", dir, len(list))
}

func collateralImportCommand(s *cli.Streams) *cobra.Command {
	var t trustFlags
	var choice choiceFlags
	var dir, bundle, issuer, quote string
	cmd := &cobra.Command{
		Use: "import", Short: "Verify a one-file bundle and keep it in a directory of a site without a network",
		Long: `Verifies a bundle that was carried here, under the root of trust, and keeps it in a directory, which serves nodes
('collateral: {dir: …, offline: true}') and 'quote verify --collateral-dir'. What is older than the set that lies there, has expired,
or is not genuine is refused, and the directory stays as it is.

The revocation list is verified with the chain of the PCK CA: from --pck-issuer, from a quote of the site, from ` + issuerName("platform") + `
or ` + issuerName("processor") + ` beside the bundle, or from the directory, in this order. It is untrusted too.`,
		Example: "  claviger collateral import --dir collateral --bundle usb/bundle.json\n  claviger collateral import --dir collateral --bundle usb/bundle.json --quote quote.bin",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			if dir == "" || bundle == "" {
				return cli.Usagef("--dir and --bundle are needed: the directory to keep the set in and the file to read")
			}
			if issuer != "" && quote != "" {
				return cli.Usagef("--pck-issuer and --quote exclude each other")
			}
			trust, err := t.open(s)
			if err != nil {
				return err
			}
			issuers, err := findIssuers(s, bundle, issuer, quote)
			if err != nil {
				return reasoned(err)
			}
			return reasoned(importBundle(s, trust, dir, bundle, choice, issuers))
		},
	}
	t.register(cmd.Flags())
	choice.register(cmd.Flags())
	cmd.Flags().StringVar(&dir, "dir", "", "`directory` to keep the set in; made if it does not exist")
	cmd.Flags().StringVar(&bundle, "bundle", "", "`file` that was exported")
	cmd.Flags().StringVar(&issuer, "pck-issuer", "", "PEM `file` with the chain of the PCK CA")
	cmd.Flags().StringVar(&quote, "quote", "", "`file` with a raw quote: take the chain of the PCK CA from it")
	return cmd
}

// findIssuers returns the chains to try, in the order of the help; a nil one stands for those in the directory.
func findIssuers(s *cli.Streams, bundle, issuer, quote string) ([][]byte, error) {
	switch {
	case issuer != "":
		raw, err := s.ReadFile(issuer, attest.MaxSigningChain)
		return [][]byte{raw}, err
	case quote != "":
		raw, err := s.ReadFile(quote, attest.MaxQuote)
		if err != nil {
			return nil, err
		}
		q, err := attest.Parse(raw)
		if err != nil {
			return nil, err
		}
		chain, err := attest.PCKIssuer(q)
		return [][]byte{chain}, err
	}
	var list [][]byte
	for _, ca := range []string{pcs.PlatformCA, pcs.ProcessorCA} {
		raw, err := s.ReadFile(filepath.Join(filepath.Dir(bundle), issuerName(ca)), attest.MaxSigningChain)
		if _, absent := errors.AsType[*cli.UsageError](err); absent {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, raw)
	}
	return append(list, nil), nil
}

func importBundle(s *cli.Streams, t *trust, dir, bundle string, choice choiceFlags, issuers [][]byte) error {
	raw, err := s.ReadFile(bundle, attest.MaxCollateral)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	d, err := t.directory(dir, choice)
	if err != nil {
		return err
	}
	var set *pcs.Set
	var first error
	for _, issuer := range issuers {
		if set, err = d.Import(raw, issuer); err == nil {
			break
		}
		// What a later chain says matters only if it gets further: the directory may have none at all.
		if first == nil || errors.Is(first, pcs.ErrVerify) && !errors.Is(err, pcs.ErrVerify) && !errors.Is(err, pcs.ErrNoIssuer) {
			first = err
		}
	}
	if set == nil {
		return fmt.Errorf("%s: %w", bundle, first)
	}
	report := t.report(set)
	report.Bundle, report.PCKIssuer = filepath.Join(dir, set.Request.String()+".json"), filepath.Join(dir, issuerName(set.Request.CA))
	return s.Print(report, func(w io.Writer) { report.write(w) })
}
