package main

import (
	"encoding/hex"
	"errors"
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

type importFlags struct {
	trust             trustFlags
	choice            choiceFlags
	files             evidenceFiles // its quote is only where the chain of the PCK CA comes from
	dir, bundle, base string
	issuer            string
}

func collateralImportCommand(s *cli.Streams) *cobra.Command {
	var f importFlags
	cmd := &cobra.Command{
		Use: "import", Short: "Verify a bundle and keep it in a directory of a site without a network",
		Long: `Verifies collateral that was carried here, under the root of trust, and keeps it in a directory, which serves nodes
('collateral: {dir: …, offline: true}') and 'quote verify --collateral-dir'. What is older than the set that lies there, has expired,
or is not genuine is refused, and the directory stays as it is. The collateral is a one-file bundle, or its five parts in files.

The revocation list is verified with the chain of the PCK CA: from --pck-issuer, from a quote of the site, from ` + issuerName("platform") + `
or ` + issuerName("processor") + ` beside the bundle, or from the directory, in this order. It is untrusted too.`,
		Example: `  claviger collateral import --dir collateral --bundle usb/bundle.json
  claviger collateral import --dir collateral --bundle usb/bundle.json --quote quote.bin
  claviger collateral import --dir collateral --base parts --tcb-info tcb.json --qe-identity qe.json --pck-crl pck.der \
    --root-crl root.der --tcb-chain chain.pem --quote quote.bin`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error { return reasoned(f.run(s)) },
	}
	flags := cmd.Flags()
	f.trust.register(flags)
	f.choice.register(flags)
	f.files.registerCollateral(flags)
	flags.StringVar(&f.dir, "dir", "", "`directory` to keep the set in; made if it does not exist")
	flags.StringVar(&f.bundle, "bundle", "", "`file` that was exported")
	flags.StringVar(&f.issuer, "pck-issuer", "", "PEM `file` with the chain of the PCK CA")
	flags.StringVar(&f.files.Quote, "quote", "", "`file` with a raw quote: take the chain of the PCK CA from it")
	flags.StringVar(&f.base, "base", "", "`directory` that the names of all files but --dir start from")
	return cmd
}

func (f *importFlags) run(s *cli.Streams) error {
	parts := f.files
	parts.Quote = ""
	switch {
	case f.dir == "" || (f.bundle == "") == (parts == evidenceFiles{}):
		return cli.Usagef("--dir, and either --bundle or the five parts of collateral, are needed: where to keep the set and what to read")
	case f.issuer != "" && f.files.Quote != "":
		return cli.Usagef("--pck-issuer and --quote exclude each other")
	}
	t, err := f.trust.open(s)
	if err != nil {
		return err
	}
	raw, err := f.read(s)
	if err != nil {
		return err
	}
	issuers, err := f.issuers(s)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return err
	}
	d, err := t.directory(f.dir, f.choice)
	if err != nil {
		return err
	}
	set, err := importWith(d, raw, issuers)
	if err != nil {
		return err
	}
	report := t.report(set)
	report.Bundle, report.PCKIssuer = filepath.Join(f.dir, set.Request.String()+".json"), filepath.Join(f.dir, issuerName(set.Request.CA))
	return s.Print(report, func(w io.Writer) { report.write(w) })
}

// read returns the bundle, or makes one of the parts.
func (f *importFlags) read(s *cli.Streams) ([]byte, error) {
	if f.bundle != "" {
		return s.ReadFile(cli.Below(f.base, f.bundle), attest.MaxCollateral)
	}
	parts := f.files
	parts.Quote = "-" // not one of them
	if err := parts.missing(flagName); err != nil {
		return nil, err
	}
	c, err := parts.collateral(s, f.base)
	if err != nil {
		return nil, err
	}
	return c.Marshal()
}

// issuers returns the chains to try, in the order of the help; a nil one stands for those in the directory.
func (f *importFlags) issuers(s *cli.Streams) ([][]byte, error) {
	switch {
	case f.issuer != "":
		raw, err := s.ReadFile(cli.Below(f.base, f.issuer), attest.MaxSigningChain)
		return [][]byte{raw}, err
	case f.files.Quote != "":
		raw, err := s.ReadFile(cli.Below(f.base, f.files.Quote), attest.MaxQuote)
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
		beside := filepath.Join(filepath.Dir(cli.Below(f.base, f.bundle)), issuerName(ca))
		raw, err := s.ReadFile(beside, attest.MaxSigningChain)
		if _, absent := errors.AsType[*cli.UsageError](err); absent || f.bundle == "" {
			continue
		}
		if err != nil {
			return nil, err
		}
		list = append(list, raw)
	}
	return append(list, nil), nil
}

// importWith imports with the first chain that verifies.
func importWith(d *pcs.Directory, raw []byte, issuers [][]byte) (*pcs.Set, error) {
	var first error
	for _, issuer := range issuers {
		set, err := d.Import(raw, issuer)
		if err == nil {
			return set, nil
		}
		// What a later chain says matters only if it gets further: the directory may have none at all.
		if first == nil || errors.Is(first, pcs.ErrVerify) && !errors.Is(err, pcs.ErrVerify) && !errors.Is(err, pcs.ErrNoIssuer) {
			first = err
		}
	}
	return nil, first
}
