package main

import (
	"context"
	"crypto/x509"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/cmd/internal/cli"
)

// maxKeyFile and maxCAFile bound the files that fetch reads besides a quote, in bytes.
const (
	maxKeyFile = 1 << 10
	maxCAFile  = 256 << 10
)

type fetchFlags struct {
	set            setFlags
	trust          trustFlags
	url            string
	rootCRLURL     string
	plainHTTP      bool
	keyFile        string
	caFile         string
	timeout        time.Duration
	attemptTimeout time.Duration
	attempts       int
	dir, out       string
}

func collateralFetchCommand(s *cli.Streams) *cobra.Command {
	var f fetchFlags
	cmd := &cobra.Command{
		Use: "fetch", Short: "Fetch the collateral of a platform from Intel or a PCCS, and verify it",
		Long: `Fetches TCB info, QE identity and both revocation lists, verifies them under the root of trust (Intel's, pinned by its
public key), and keeps them as a one-file bundle with the chain of the PCK CA in ` + issuerName("platform") + ` or ` + issuerName("processor") + ` beside it.

The bundle goes into --dir, the current directory unless named, as <tee>-<fmspc>-<ca>.json: the same form that nodes and
'collateral import' keep. Whatever is older than what lies there is refused. --out writes a copy to another file; alone, it
keeps nothing and compares with nothing.

The service is not trusted: it can withhold, and no more. Exit code 1 means that nothing was written; the message says what
the service did and what to do, and with --json "reason" names it.`,
		Example: `  claviger collateral fetch --quote quote.bin --dir collateral
  claviger collateral fetch --tee tdx --fmspc 50806f000000 --pccs https://pccs.example:8081 --ca-file pccs.pem --out bundle.json
  claviger collateral fetch --tee sgx --fmspc 00606a000000 --update early --api-key-file key.txt`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return reasoned(f.run(cmd.Context(), s)) },
	}
	flags := cmd.Flags()
	f.set.register(flags)
	f.trust.register(flags)
	flags.StringVar(&f.url, "url", "", "base `URL` of a PCCS or another service with Intel's API; default Intel's own; --pccs is the same flag")
	flags.StringVar(&f.rootCRLURL, "root-crl-url", "", "`URL` of the root's revocation list; default Intel's, or what a PCCS has")
	flags.BoolVar(&f.plainHTTP, "plain-http-unsafe", false, "allow http:// beyond this machine: others can watch, withhold, and serve what is old")
	flags.StringVar(&f.keyFile, "api-key-file", "", "`file` with the subscription key of the service")
	flags.StringVar(&f.caFile, "ca-file", "", "PEM `file` with the CA of the service's TLS certificate; a PCCS often has its own")
	flags.DurationVar(&f.timeout, "timeout", pcs.DefaultTimeout, "give up after this long, repetitions included")
	flags.DurationVar(&f.attemptTimeout, "attempt-timeout", pcs.DefaultAttemptTimeout, "give up a single request after this long")
	flags.IntVar(&f.attempts, "attempts", pcs.DefaultAttempts, "make a request at most this often when a failure may pass")
	flags.StringVar(&f.dir, "dir", "", "`directory` to keep the set in; made if it does not exist")
	flags.StringVar(&f.out, "out", "", "write the bundle to this `file`, and the chain of the PCK CA beside it")
	flags.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		if name == "pccs" {
			name = "url"
		}
		return pflag.NormalizedName(name)
	})
	return cmd
}

func (f *fetchFlags) run(ctx context.Context, s *cli.Streams) error {
	if f.timeout <= 0 || f.attemptTimeout <= 0 || f.attempts <= 0 {
		return cli.Usagef("--timeout, --attempt-timeout and --attempts must be above zero")
	}
	r, err := f.set.request(s)
	if err != nil {
		return err
	}
	t, err := f.trust.open(s)
	if err != nil {
		return err
	}
	client, err := f.client(s, t)
	if err != nil {
		return err
	}
	d, err := f.directory(t)
	if err != nil {
		return err
	}
	set, err := client.Fetch(ctx, r)
	if err != nil {
		return orStill(err, d, r)
	}
	report := t.report(set)
	if d != nil {
		if err := d.Save(set); err != nil {
			return orStill(err, d, r)
		}
		report.Bundle, report.PCKIssuer = filepath.Join(f.dir, r.String()+".json"), filepath.Join(f.dir, issuerName(r.CA))
	}
	if f.out != "" {
		if report.Bundle, report.PCKIssuer, err = writeSet(set, f.out); err != nil {
			return err
		}
	}
	return s.Print(report, func(w io.Writer) { report.write(w) })
}

func (f *fetchFlags) client(s *cli.Streams, t *trust) (*pcs.Client, error) {
	config := pcs.Config{
		Verifier: t.verifier, BaseURL: f.url, RootCRLURL: f.rootCRLURL, PlainHTTPUnsafe: f.plainHTTP,
		Timeout: f.timeout, AttemptTimeout: f.attemptTimeout, Attempts: f.attempts, Clock: t.now, Logger: logger(s, false),
	}
	if f.keyFile != "" {
		raw, err := s.ReadFile(f.keyFile, maxKeyFile)
		if err != nil {
			return nil, err
		}
		if config.APIKey, err = pcs.NewAPIKey(strings.TrimSpace(string(raw))); err != nil {
			return nil, &cli.UsageError{Err: err}
		}
	}
	if f.caFile != "" {
		raw, err := s.ReadFile(f.caFile, maxCAFile)
		if err != nil {
			return nil, err
		}
		if config.RootCAs = x509.NewCertPool(); !config.RootCAs.AppendCertsFromPEM(raw) {
			return nil, cli.Usagef("--ca-file %s holds no PEM certificate", f.caFile)
		}
	}
	client, err := pcs.NewClient(config)
	if err != nil {
		return nil, &cli.UsageError{Err: err}
	}
	return client, nil
}

// directory opens the directory that keeps the set; nil if only a copy is wanted.
func (f *fetchFlags) directory(t *trust) (*pcs.Directory, error) {
	if f.dir == "" && f.out != "" {
		return nil, nil
	}
	if f.dir == "" {
		f.dir = "."
	}
	if err := os.MkdirAll(f.dir, 0o755); err != nil {
		return nil, err
	}
	return t.directory(f.dir, f.set.choice)
}
