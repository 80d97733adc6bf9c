package main

import (
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
)

func quoteCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("quote", "Look into quotes and verify them offline", quoteInspectCommand(s), quoteVerifyCommand(s))
}

// evidenceFiles names the files of one verification. The JSON names are those of a line of quote verify --batch.
type evidenceFiles struct {
	Quote      string `json:"quote"`
	TCBInfo    string `json:"tcb_info"`
	QEIdentity string `json:"qe_identity"`
	PCKCRL     string `json:"pck_crl"`
	RootCRL    string `json:"root_crl"`
	TCBChain   string `json:"tcb_chain"`
}

// registerCollateral makes the flags for the five parts of collateral.
func (f *evidenceFiles) registerCollateral(flags *pflag.FlagSet) {
	flags.StringVar(&f.TCBInfo, "tcb-info", "", "TCB info `file`: the signed JSON envelope")
	flags.StringVar(&f.QEIdentity, "qe-identity", "", "QE identity `file`: the signed JSON envelope")
	flags.StringVar(&f.PCKCRL, "pck-crl", "", "PCK CA revocation list `file`, DER or PEM")
	flags.StringVar(&f.RootCRL, "root-crl", "", "root CA revocation list `file`, DER or PEM")
	flags.StringVar(&f.TCBChain, "tcb-chain", "", "TCB signing chain `file`, PEM, leaf first")
}

// flagName is what a user writes for a key of evidenceFiles.
func flagName(key string) string { return "--" + strings.ReplaceAll(key, "_", "-") }

// missing names the first file that is not given, as the flag or key the user would write.
func (f *evidenceFiles) missing(name func(string) string) error {
	for _, part := range []struct{ value, key string }{
		{f.Quote, "quote"}, {f.TCBInfo, "tcb_info"}, {f.QEIdentity, "qe_identity"},
		{f.PCKCRL, "pck_crl"}, {f.RootCRL, "root_crl"}, {f.TCBChain, "tcb_chain"},
	} {
		if part.value == "" {
			return cli.Usagef("%s is missing; name the file it is in", name(part.key))
		}
	}
	return nil
}

// read loads quote and collateral.
func (f *evidenceFiles) read(s *cli.Streams, base string) ([]byte, *attest.Collateral, error) {
	quote, err := s.ReadFile(cli.Below(base, f.Quote), attest.MaxQuote)
	if err != nil {
		return nil, nil, err
	}
	c, err := f.collateral(s, base)
	return quote, c, err
}

// collateral loads the parts that are named; the others stay empty. Each file is bounded before it is read, and named in
// the error.
func (f *evidenceFiles) collateral(s *cli.Streams, base string) (*attest.Collateral, error) {
	c := &attest.Collateral{}
	for _, part := range []struct {
		name  string
		limit int64
		into  *[]byte
	}{
		{f.TCBInfo, attest.MaxTCBInfo, &c.TCBInfo},
		{f.QEIdentity, attest.MaxQEIdentity, &c.QEIdentity},
		{f.PCKCRL, attest.MaxCRL, &c.PCKCRL},
		{f.RootCRL, attest.MaxCRL, &c.RootCRL},
		{f.TCBChain, attest.MaxSigningChain, &c.TCBSigningChain},
	} {
		if part.name == "" {
			continue
		}
		raw, err := s.ReadFile(cli.Below(base, part.name), part.limit)
		if err != nil {
			return nil, err
		}
		*part.into = raw
	}
	return c, nil
}

var errRoot = errors.New("want one PEM block: a CERTIFICATE or a PUBLIC KEY on P-256")

// readRoot returns the root of trust in a PEM file, or Intel's when no file is named. Any key but Intel's own counts as
// simulated: claims then say that the evidence proves nothing about hardware.
func readRoot(s *cli.Streams, name string) (attest.Root, error) {
	intel := attest.IntelRoot()
	if name == "" {
		return intel, nil
	}
	raw, err := s.ReadFile(name, attest.MaxSigningChain)
	if err != nil {
		return attest.Root{}, err
	}
	key, err := parseRoot(raw)
	if err != nil {
		return attest.Root{}, fmt.Errorf("%s: %w", name, err)
	}
	if key.Equal(intel.Key) {
		return intel, nil
	}
	return attest.SimulatedRoot(key), nil
}

func parseRoot(raw []byte) (*ecdsa.PublicKey, error) {
	block, rest := pem.Decode(raw)
	if block == nil {
		return nil, errRoot
	}
	if more, _ := pem.Decode(rest); more != nil {
		return nil, errRoot
	}
	var key any
	switch block.Type {
	case "CERTIFICATE":
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errRoot, err)
		}
		key = cert.PublicKey
	case "PUBLIC KEY":
		parsed, err := x509.ParsePKIXPublicKey(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errRoot, err)
		}
		key = parsed
	}
	ec, ok := key.(*ecdsa.PublicKey)
	if !ok {
		return nil, errRoot
	}
	return ec, nil
}

// parseInstant reads RFC 3339 or, as the reference vectors have it, whole seconds since 1970.
func parseInstant(text string) (time.Time, error) {
	if sec, err := strconv.ParseInt(text, 10, 64); err == nil && sec > 0 {
		return time.Unix(sec, 0).UTC(), nil
	}
	at, err := time.Parse(time.RFC3339, text)
	if err != nil {
		return time.Time{}, cli.Usagef("%q is not a time; write RFC 3339, as in 2026-01-31T12:00:00Z", text)
	}
	return at.UTC(), nil
}
