package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// simulatedRoot is said wherever a root other than Intel's vouches for something.
const simulatedRoot = "SIMULATED: this says nothing about hardware"

// setFlags name one set of collateral: by a quote, or by TEE, platform family and CA.
type setFlags struct {
	quote, tee, fmspc, ca string
	choice                choiceFlags
}

// choiceFlags choose among the sets that Intel publishes for one platform family.
type choiceFlags struct {
	update     string
	evaluation int
}

func (f *choiceFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.update, "update", "", "early or standard: which TCB recoveries are included; default the service's choice")
	flags.IntVar(&f.evaluation, "evaluation", 0, "TCB evaluation data `number` to ask for, instead of --update")
}

func (f *setFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.quote, "quote", "", "`file` with a raw quote: take TEE, FMSPC and CA from it")
	flags.StringVar(&f.tee, "tee", "", "sgx or tdx, with --fmspc")
	flags.StringVar(&f.fmspc, "fmspc", "", "platform family, 12 `hex` digits; 'claviger quote inspect' prints it")
	flags.StringVar(&f.ca, "ca", pcs.PlatformCA, "CA of the PCK certificates: platform or processor")
	f.choice.register(flags)
}

// named says whether the flags name a set at all.
func (f *setFlags) named() bool { return f.quote != "" || f.tee != "" || f.fmspc != "" }

// request returns what the flags name. All of it is checked again by package pcs.
func (f *setFlags) request(s *cli.Streams) (pcs.Request, error) {
	r := pcs.Request{TEE: attest.TEE(f.tee), CA: f.ca}
	switch {
	case f.quote != "" && (f.tee != "" || f.fmspc != ""), f.quote == "" && (f.tee == "" || f.fmspc == ""):
		return r, cli.Usagef("name either a quote with --quote, or a platform family with --tee and --fmspc")
	case f.tee != "" && r.TEE != attest.SGX && r.TEE != attest.TDX:
		return r, cli.Usagef("--tee %q: write sgx or tdx", f.tee)
	case f.ca != pcs.PlatformCA && f.ca != pcs.ProcessorCA:
		return r, cli.Usagef("--ca %q: write platform or processor", f.ca)
	}
	if f.quote != "" {
		raw, err := s.ReadFile(f.quote, attest.MaxQuote)
		if err != nil {
			return r, err
		}
		if r, err = pcs.RequestFor(raw); err != nil {
			return r, err
		}
	} else if n, err := hex.Decode(r.FMSPC[:], []byte(f.fmspc)[:min(len(f.fmspc), 12)]); err != nil || n != len(r.FMSPC) || len(f.fmspc) != 12 {
		return r, cli.Usagef("--fmspc %q: write 12 hex digits, as in 50806f000000", f.fmspc)
	}
	return f.choice.apply(r)
}

// apply puts the choice into a request.
func (f *choiceFlags) apply(r pcs.Request) (pcs.Request, error) {
	r.Update, r.Evaluation = pcs.Update(f.update), f.evaluation
	switch {
	case f.update != "" && r.Update != pcs.Early && r.Update != pcs.Standard:
		return r, cli.Usagef("--update %q: write early or standard", f.update)
	case f.evaluation < 0 || f.evaluation > math.MaxInt32:
		return r, cli.Usagef("--evaluation %d: write a number above zero", f.evaluation)
	case f.update != "" && f.evaluation != 0:
		return r, cli.Usagef("--update and --evaluation exclude each other")
	}
	return r, nil
}

// trust is the root that collateral is verified under, and the time at which.
type trust struct {
	verifier *attest.Verifier
	now      func() time.Time
}

// trustFlags choose the root of trust.
type trustFlags struct{ root, at string }

func (f *trustFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.root, "root", "", "PEM `file` with another root of trust than Intel's: what it vouches for is SIMULATED")
	flags.StringVar(&f.at, "at", "", "verify as of this `time`, RFC 3339; default now")
}

func (f *trustFlags) open(s *cli.Streams) (*trust, error) {
	root, err := readRoot(s, f.root)
	if err != nil {
		return nil, err
	}
	t := &trust{now: func() time.Time { return time.Now().UTC() }}
	if f.at != "" {
		at, err := parseInstant(f.at)
		if err != nil {
			return nil, err
		}
		t.now = func() time.Time { return at }
	}
	t.verifier, err = attest.NewVerifier(attest.Config{Root: root})
	return t, err
}

func (t *trust) directory(path string, choice choiceFlags) (*pcs.Directory, error) {
	r, err := choice.apply(pcs.Request{})
	if err != nil {
		return nil, err
	}
	return pcs.OpenDirectory(pcs.DirectoryConfig{
		Path: path, Verifier: t.verifier, Update: r.Update, Evaluation: r.Evaluation, Clock: t.now,
	})
}

// daysLeft is the number of whole days until an instant, negative once it has passed.
func daysLeft(until, now time.Time) int { return int(math.Floor(until.Sub(now).Hours() / 24)) }

// setReport is what fetch, export, import and show say about a verified set.
type setReport struct {
	Set              string     `json:"set"` // its name, also that of its file in a directory
	TEE              attest.TEE `json:"tee"`
	FMSPC            string     `json:"fmspc"`
	CA               string     `json:"ca"`
	Root             string     `json:"root"`
	Simulated        bool       `json:"simulated"`
	TCBEvaluation    int        `json:"tcb_evaluation_data_number"`
	QEEvaluation     int        `json:"qe_evaluation_data_number"`
	TCBInfoIssued    time.Time  `json:"tcb_info_issue_date"`
	QEIdentityIssued time.Time  `json:"qe_identity_issue_date"`
	PCKCRLNumber     string     `json:"pck_crl_number"`
	RootCRLNumber    string     `json:"root_crl_number"`
	Expires          time.Time  `json:"expires"` // the first of all its parts and certificates
	DaysLeft         int        `json:"days_left"`
	Fetched          time.Time  `json:"fetched"`
	Bundle           string     `json:"bundle,omitempty"`     // file that was written
	PCKIssuer        string     `json:"pck_issuer,omitempty"` // file with the chain of the PCK CA, PEM
}

func (t *trust) report(set *pcs.Set) setReport {
	c, root := &set.Report.Set, t.verifier.Root()
	return setReport{
		Set: set.Request.String(), TEE: set.Report.TEE, FMSPC: hex.EncodeToString(set.Report.FMSPC[:]), CA: set.Report.CA,
		Root: root.Name, Simulated: root.Simulated, TCBEvaluation: c.TCBEvaluation, QEEvaluation: c.QEEvaluation,
		TCBInfoIssued: c.TCBInfoIssueDate.UTC(), QEIdentityIssued: c.QEIdentityIssueDate.UTC(),
		PCKCRLNumber: c.PCKCRLNumber, RootCRLNumber: c.RootCRLNumber,
		Expires: c.EarliestExpiry, DaysLeft: daysLeft(c.EarliestExpiry, t.now()), Fetched: set.Fetched.UTC(),
	}
}

func (r *setReport) write(w io.Writer) {
	table := rows{w}
	table.add("set", "%s", r.Set)
	if r.Simulated {
		table.add("root", simulatedRoot)
	} else {
		table.add("root", "Intel's")
	}
	table.add("evaluation", "%d, QE identity %d", r.TCBEvaluation, r.QEEvaluation)
	table.add("issued", "TCB info %s, QE identity %s", r.TCBInfoIssued.Format(time.RFC3339), r.QEIdentityIssued.Format(time.RFC3339))
	table.add("CRL numbers", "PCK %s, root %s", r.PCKCRLNumber, r.RootCRLNumber)
	table.add("good until", "%s, %d days left", r.Expires.Format(time.RFC3339), r.DaysLeft)
	if r.Bundle != "" {
		table.add("bundle", "%s", r.Bundle)
		table.add("PCK issuer", "%s", r.PCKIssuer)
	}
}

// issuerName is the file that has the chain of a PCK CA, beside the bundles that need it.
func issuerName(ca string) string { return "pck-" + ca + ".pem" }

// writeSet writes a set as a one-file bundle, with the chain of its PCK CA in a file beside it, and returns both names.
func writeSet(set *pcs.Set, name string) (bundle, issuer string, err error) {
	raw, err := set.Collateral.Marshal()
	if err != nil {
		return "", "", err
	}
	issuer = filepath.Join(filepath.Dir(name), issuerName(set.Request.CA))
	if err := replaceFile(issuer, set.PCKIssuer); err != nil {
		return "", "", err
	}
	return name, issuer, replaceFile(name, raw)
}

// replaceFile writes a public file as a whole: readers see the old one or the new one, and after a loss of power it is there.
func replaceFile(name string, raw []byte) (err error) {
	f, err := os.CreateTemp(filepath.Dir(name), ".tmp-*")
	if errors.Is(err, fs.ErrNotExist) {
		return cli.Usagef("%s: the directory does not exist; make it, or mount what should be there", name)
	}
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(f.Name())
		}
	}()
	_, err = f.Write(raw)
	if err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close()); err != nil {
		return err
	}
	if err = os.Rename(f.Name(), name); err != nil {
		return err
	}
	return file.SyncDir(filepath.Dir(name))
}

// keeps refuses to write to one of the files that a command reads and that cannot be made again: an operator's key, what is
// remembered beside it, a share of a recovery key. replaceFile would leave nothing of it.
func keeps(out string, precious []string) error {
	to, err := os.Stat(out)
	if err != nil {
		return nil // nothing is there to be lost
	}
	for _, name := range precious {
		if from, err := os.Stat(name); err == nil && os.SameFile(from, to) {
			return cli.Usagef("--out %s is a file that this command reads and that cannot be made again: name another one", out)
		}
	}
	return nil
}

// reasons names the failures of package pcs for programs.
var reasons = []struct {
	err  error
	name string
}{
	{pcs.ErrConfig, "configuration"}, {pcs.ErrRequest, "request"}, {pcs.ErrUnreachable, "unreachable"}, {pcs.ErrTLS, "tls"},
	{pcs.ErrTimeout, "timeout"}, {pcs.ErrRedirect, "redirect"}, {pcs.ErrRefused, "refused"}, {pcs.ErrUnauthorized, "unauthorized"},
	{pcs.ErrNotFound, "not_found"}, {pcs.ErrGone, "gone"}, {pcs.ErrRateLimited, "rate_limited"}, {pcs.ErrServer, "server"},
	{pcs.ErrStatus, "status"}, {pcs.ErrTruncated, "truncated"}, {pcs.ErrTooLarge, "too_large"}, {pcs.ErrHeader, "header"},
	{pcs.ErrContent, "content"}, {pcs.ErrSigners, "signers"}, {pcs.ErrExpired, "expired"}, {pcs.ErrVerify, "not_genuine"},
	{pcs.ErrMismatch, "mismatch"}, {pcs.ErrRollback, "rollback"}, {pcs.ErrNoBundle, "no_bundle"}, {pcs.ErrNoIssuer, "no_issuer"},
	{pcs.ErrCorrupt, "corrupt"}, {pcs.ErrDisk, "disk"},
}

// collateralError gives a failure of package pcs the name that --json prints as "reason".
type collateralError struct {
	err    error
	reason string
}

func (e *collateralError) Error() string  { return e.err.Error() }
func (e *collateralError) Unwrap() error  { return e.err }
func (e *collateralError) Reason() string { return e.reason }

// reasoned adds the reason to an error that has one.
func reasoned(err error) error {
	for _, r := range reasons {
		if errors.Is(err, r.err) {
			return &collateralError{err, r.name}
		}
	}
	return err
}

// orStill adds to a failure to fetch what the directory still holds.
func orStill(err error, d *pcs.Directory, r pcs.Request) error {
	if d == nil {
		return err
	}
	set, e := d.Load(r)
	if e != nil {
		return err
	}
	return fmt.Errorf("%w; the directory still holds a set that is good until %s", err, set.Report.Set.EarliestExpiry.Format(time.RFC3339))
}
