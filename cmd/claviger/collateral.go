package main

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
)

func collateralCommand(s *cli.Streams) *cobra.Command {
	return cli.Group("collateral", "Fetch, carry and look into collateral: TCB info, QE identity, revocation lists",
		collateralFetchCommand(s), collateralExportCommand(s), collateralImportCommand(s), collateralShowCommand(s))
}

// part describes one piece of collateral. Nothing in it is verified.
type part struct {
	Kind       string     `json:"kind"` // tcb_info, qe_identity, pck_crl, root_crl, tcb_signing_certificate
	ID         string     `json:"id,omitempty"`
	Version    int        `json:"version,omitempty"`
	FMSPC      string     `json:"fmspc,omitempty"`
	IssueDate  time.Time  `json:"issue_date"`
	NextUpdate time.Time  `json:"next_update"`
	DaysLeft   int        `json:"days_left"` // whole days until NextUpdate, negative once it has passed
	Evaluation *int       `json:"tcb_evaluation_data_number,omitempty"`
	CRLNumber  string     `json:"crl_number,omitempty"`
	Revoked    *int       `json:"revoked,omitempty"` // entries on the list
	Issuer     string     `json:"issuer,omitempty"`
	Levels     int        `json:"tcb_levels,omitempty"`
	Newest     *time.Time `json:"newest_tcb_date,omitempty"`
}

func collateralShowCommand(s *cli.Streams) *cobra.Command {
	var f evidenceFiles
	var t trustFlags
	var bundle, dir, base string
	cmd := &cobra.Command{
		Use: "show", Short: "Show dates, evaluation numbers and CRL numbers of collateral",
		Long: `Shows what collateral says: when it was issued, when it runs out and how many days are left, the TCB evaluation data
numbers and the CRL numbers.

A bundle or single files are described part by part. Signatures are not verified then; 'claviger quote verify' and
'collateral import' do that. Of a directory, as 'collateral fetch', 'import' and nodes keep it, every set is verified under the
root of trust. Exit code 1 means that something has run out, or that a set does not verify.`,
		Example: `  claviger collateral show --dir collateral
  claviger collateral show --bundle collateral.json --json
  claviger collateral show --tcb-info tcb.json --qe-identity qe.json --pck-crl pck.der`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			trust, err := t.open(s)
			if err != nil {
				return err
			}
			if dir != "" && bundle == "" && f == (evidenceFiles{}) {
				return reasoned(showDirectory(s, trust, cli.Below(base, dir)))
			}
			if dir != "" || t.root != "" {
				return cli.Usagef("--dir goes without a bundle and single files, and --root with --dir only: nothing else is verified here")
			}
			c, err := readParts(s, f, bundle, base)
			if err != nil {
				return err
			}
			return showCollateral(s, c, trust.now())
		},
	}
	flags := cmd.Flags()
	t.register(flags)
	flags.StringVar(&dir, "dir", "", "`directory` with sets of collateral, which are verified")
	flags.StringVar(&bundle, "bundle", "", "one-file bundle")
	f.registerCollateral(flags)
	flags.StringVar(&base, "base", "", "`directory` that relative file names start from")
	return cmd
}

// readParts reads the bundle or the single files, whichever the user named. Absent parts stay empty.
func readParts(s *cli.Streams, f evidenceFiles, bundle, base string) (*attest.Collateral, error) {
	if (bundle != "") == (f != evidenceFiles{}) {
		return nil, cli.Usagef("name either --bundle or single files, as in --tcb-info FILE, or a directory with --dir")
	}
	if bundle != "" {
		raw, err := s.ReadFile(cli.Below(base, bundle), attest.MaxCollateral)
		if err != nil {
			return nil, err
		}
		return attest.ParseCollateral(raw)
	}
	return f.collateral(s, base)
}

var errRunOut = errors.New("collateral has run out; fetch it again")

func showCollateral(s *cli.Streams, c *attest.Collateral, now time.Time) error {
	parts, err := describeCollateral(c)
	if err != nil {
		return err
	}
	runOut := false
	for i := range parts {
		parts[i].DaysLeft = daysLeft(parts[i].NextUpdate, now)
		runOut = runOut || now.After(parts[i].NextUpdate)
	}
	out := struct {
		Verified bool   `json:"verified"` // always false
		Parts    []part `json:"parts"`
	}{Parts: parts}
	err = s.Print(out, func(w io.Writer) {
		for i := range parts {
			parts[i].write(w)
		}
	})
	if err == nil && runOut {
		err = errRunOut
	}
	return err
}

func describeCollateral(c *attest.Collateral) ([]part, error) {
	var parts []part
	for _, p := range []struct {
		kind string
		raw  []byte
		read func(kind string, raw []byte) (part, error)
	}{
		{"tcb_info", c.TCBInfo, describeJSON}, {"qe_identity", c.QEIdentity, describeJSON},
		{"pck_crl", c.PCKCRL, describeCRL}, {"root_crl", c.RootCRL, describeCRL},
		{"tcb_signing_certificate", c.TCBSigningChain, describeChain},
	} {
		if len(p.raw) == 0 {
			continue
		}
		described, err := p.read(p.kind, p.raw)
		if err != nil {
			return nil, fmt.Errorf("%s is malformed: %w", p.kind, err)
		}
		parts = append(parts, described)
	}
	return parts, nil
}

// signedDocument has the fields that TCB info and QE identity share, as Intel names them.
type signedDocument struct {
	ID         string    `json:"id"`
	Version    int       `json:"version"`
	IssueDate  time.Time `json:"issueDate"`
	NextUpdate time.Time `json:"nextUpdate"`
	FMSPC      string    `json:"fmspc"`
	Evaluation int       `json:"tcbEvaluationDataNumber"`
	Levels     []struct {
		Date time.Time `json:"tcbDate"`
	} `json:"tcbLevels"`
}

func describeJSON(kind string, raw []byte) (part, error) {
	var envelope struct {
		TCBInfo    *signedDocument `json:"tcbInfo"`
		QEIdentity *signedDocument `json:"enclaveIdentity"`
	}
	if err := json.Unmarshal(raw, &envelope); err != nil {
		return part{}, err
	}
	doc := envelope.TCBInfo
	if kind == "qe_identity" {
		doc = envelope.QEIdentity
	}
	if doc == nil || doc.IssueDate.IsZero() || doc.NextUpdate.IsZero() {
		return part{}, errors.New("want the signed envelope as the provisioning service serves it")
	}
	p := part{
		Kind: kind, ID: doc.ID, Version: doc.Version, FMSPC: doc.FMSPC, IssueDate: doc.IssueDate.UTC(),
		NextUpdate: doc.NextUpdate.UTC(), Evaluation: &doc.Evaluation, Levels: len(doc.Levels),
	}
	for _, l := range doc.Levels {
		if p.Newest == nil || l.Date.After(*p.Newest) {
			p.Newest = new(l.Date.UTC())
		}
	}
	return p, nil
}

func describeCRL(kind string, raw []byte) (part, error) {
	if block, _ := pem.Decode(raw); block != nil {
		raw = block.Bytes
	}
	list, err := x509.ParseRevocationList(raw)
	if err != nil {
		return part{}, err
	}
	p := part{
		Kind: kind, Issuer: list.Issuer.CommonName, IssueDate: list.ThisUpdate.UTC(), NextUpdate: list.NextUpdate.UTC(),
		Revoked: new(len(list.RevokedCertificateEntries)),
	}
	if list.Number != nil {
		p.CRLNumber = list.Number.String()
	}
	return p, nil
}

func describeChain(kind string, raw []byte) (part, error) {
	block, _ := pem.Decode(raw)
	if block == nil {
		return part{}, errors.New("want PEM certificates, leaf first")
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return part{}, err
	}
	return part{
		Kind: kind, ID: cert.Subject.CommonName, Issuer: cert.Issuer.CommonName,
		IssueDate: cert.NotBefore.UTC(), NextUpdate: cert.NotAfter.UTC(),
	}, nil
}

func (p *part) write(w io.Writer) {
	table := rows{w}
	name := p.Kind
	if p.ID != "" {
		name += " (" + p.ID + ")"
	}
	fmt.Fprintln(w, name)
	table.add("  issued", "%s", p.IssueDate.Format(time.RFC3339))
	table.add("  next update", "%s, %d days left", p.NextUpdate.Format(time.RFC3339), p.DaysLeft)
	if p.FMSPC != "" {
		table.add("  FMSPC", "%s", p.FMSPC)
	}
	if p.Evaluation != nil {
		table.add("  evaluation", "%d, %d levels", *p.Evaluation, p.Levels)
	}
	if p.Newest != nil {
		table.add("  newest TCB", "%s", p.Newest.Format(time.DateOnly))
	}
	if p.CRLNumber != "" {
		table.add("  CRL number", "%s, %d revoked", p.CRLNumber, *p.Revoked)
	}
	if p.Issuer != "" {
		table.add("  issuer", "%s", p.Issuer)
	}
}
