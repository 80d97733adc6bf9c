package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// Errors of a verdict that neither attest nor policy raises, because no constraint was given to judge the status.
var errStatus = errors.New("genuine, but no policy accepts this TCB status: the platform is revoked or too old to have one")

// verdict is one line of batch output, and the JSON of a single verification.
type verdict struct {
	ID         string         `json:"id,omitempty"`
	OK         bool           `json:"ok"`
	Stage      string         `json:"stage,omitempty"` // where it was refused: input, one of attest's stages, or policy
	Error      string         `json:"error,omitempty"`
	Status     attest.Status  `json:"status,omitempty"`
	Advisories []string       `json:"advisories,omitempty"`
	TCBDate    *time.Time     `json:"tcb_date,omitempty"`
	Failures   []api.Failure  `json:"failures,omitempty"`
	Claims     *attest.Claims `json:"claims,omitempty"`

	err error
}

// judge holds what all verifications of one command share.
type judge struct {
	s          *cli.Streams
	base       string
	verifier   *attest.Verifier
	constraint *policy.Constraint // nil: only Revoked and NotSupported are refused
}

type verifyFlags struct {
	files      evidenceFiles
	bundle     string
	dir        string
	at         string
	base       string
	root       string
	constraint string
	batch      string
}

func quoteVerifyCommand(s *cli.Streams) *cobra.Command {
	var f verifyFlags
	cmd := &cobra.Command{
		Use: "verify", Short: "Verify a quote offline against collateral files",
		Long: `Verifies a quote exactly as the service does, from files and at a given time, without any network.

The collateral is a one-file bundle (--bundle), a directory that 'claviger collateral fetch' or 'import' keeps
(--collateral-dir: the quote says which set), or its five parts in single files.

The root of trust is Intel's, pinned by its public key; --root names another one (a PEM certificate or public key), whose
evidence counts as simulated. Without --constraint every genuine quote passes whose TCB status is not Revoked or
NotSupported; with it, the claims must satisfy the constraint as well.

--batch - reads JSON lines {"id", "quote", "tcb_info", "qe_identity", "pck_crl", "root_crl", "tcb_chain", "at"} from
standard input, each value but id and at a file name, and writes one JSON line {"id", "ok", "stage", "error", "status",
"advisories", "tcb_date", "claims"} for each. A refused quote is an answer: the exit code is 1 only if a line could not
be judged at all.`,
		Example: `  claviger quote verify --quote q.bin --bundle bundle.json
  claviger quote verify --quote q.bin --collateral-dir collateral --constraint "TD:91eb… SEC:STALE"
  claviger quote verify --quote q.bin --tcb-info tcb.json --qe-identity qe.json --pck-crl pck.der \
    --root-crl root.der --tcb-chain chain.pem --at 2025-06-20T00:00:00Z
  claviger quote verify --batch - --base vectors <cases.jsonl`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd.Context(), s) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.files.Quote, "quote", "", "raw quote `file`")
	flags.StringVar(&f.bundle, "bundle", "", "one-file bundle with the collateral")
	flags.StringVar(&f.dir, "collateral-dir", "", "`directory` with sets of collateral, one of them for the quote")
	f.files.registerCollateral(flags)
	flags.StringVar(&f.at, "at", "", "verify as of this `time`, RFC 3339; default now")
	flags.StringVar(&f.base, "base", "", "`directory` that relative file names start from")
	flags.StringVar(&f.root, "root", "", "PEM `file` with another root of trust than Intel's")
	flags.StringVar(&f.constraint, "constraint", "", "`text` of a policy constraint that the claims must satisfy")
	flags.StringVar(&f.batch, "batch", "", "read JSON lines from this `file`; - is standard input")
	return cmd
}

func (f *verifyFlags) run(ctx context.Context, s *cli.Streams) error {
	j, err := f.judge(s)
	if err != nil {
		return err
	}
	if f.batch != "" {
		if f.files != (evidenceFiles{}) || f.bundle != "" || f.dir != "" || f.at != "" {
			return cli.Usagef("--batch takes its files and times from the lines; leave out the flags for single files")
		}
		return j.batch(f.batch)
	}
	at := time.Now().UTC()
	if f.at != "" {
		if at, err = parseInstant(f.at); err != nil {
			return err
		}
	}
	quote, collateral, err := f.evidence(ctx, j, at)
	if err != nil {
		return reasoned(err)
	}
	v := j.decide(quote, collateral, at)
	if !v.OK && v.Claims == nil {
		return v.err
	}
	if err := s.Print(v, v.write); err != nil {
		return err
	}
	return v.err
}

// evidence reads the quote, and its collateral from where the flags say.
func (f *verifyFlags) evidence(ctx context.Context, j *judge, at time.Time) ([]byte, *attest.Collateral, error) {
	if f.bundle == "" && f.dir == "" {
		if err := f.files.missing(flagName); err != nil {
			return nil, nil, err
		}
		return f.files.read(j.s, f.base)
	}
	if single := (evidenceFiles{Quote: f.files.Quote}); f.files != single || f.files.Quote == "" || f.bundle != "" && f.dir != "" {
		return nil, nil, cli.Usagef("--quote goes with one of --bundle, --collateral-dir and the five single files")
	}
	quote, err := j.s.ReadFile(cli.Below(f.base, f.files.Quote), attest.MaxQuote)
	if err != nil {
		return nil, nil, err
	}
	if f.dir != "" {
		t := &trust{verifier: j.verifier, now: func() time.Time { return at }}
		d, err := t.directory(cli.Below(f.base, f.dir), choiceFlags{})
		if err != nil {
			return nil, nil, err
		}
		c, err := d.Collateral(ctx, quote)
		return quote, c, err
	}
	raw, err := j.s.ReadFile(cli.Below(f.base, f.bundle), attest.MaxCollateral)
	if err != nil {
		return nil, nil, err
	}
	c, err := attest.ParseCollateral(raw)
	return quote, c, err
}

func (f *verifyFlags) judge(s *cli.Streams) (*judge, error) {
	root, err := readRoot(s, f.root)
	if err != nil {
		return nil, err
	}
	j := &judge{s: s, base: f.base}
	if f.constraint != "" {
		c, err := policy.ParseConstraint(f.constraint)
		if err != nil {
			return nil, &cli.UsageError{Err: err}
		}
		j.constraint = &c
	}
	j.verifier, err = attest.NewVerifier(attest.Config{Root: root})
	return j, err
}

// decide verifies and checks. It always returns a verdict; claims are in it whenever the evidence is genuine.
func (j *judge) decide(quote []byte, collateral *attest.Collateral, at time.Time) *verdict {
	q, err := attest.Parse(quote)
	if err != nil {
		return refused(err)
	}
	verified, err := j.verifier.Verify(q, collateral, at)
	if err != nil {
		return refused(err)
	}
	claims := verified.Claims()
	v := &verdict{
		OK: true, Status: claims.TCB.Status, Advisories: claims.TCB.Advisories, Claims: &claims,
	}
	if !claims.TCB.Date.IsZero() {
		v.TCBDate = &claims.TCB.Date
	}
	switch {
	case j.constraint != nil:
		if err := j.constraint.Check(verified, at); err != nil {
			v.deny("policy", err)
		}
	case v.Status == attest.StatusRevoked, v.Status == attest.StatusNotSupported:
		v.deny(string(attest.StageTCB), fmt.Errorf("%w: %s", errStatus, v.Status))
	}
	return v
}

func refused(err error) *verdict {
	v := &verdict{}
	stage := "input"
	if e, ok := errors.AsType[*attest.Error](err); ok {
		stage = string(e.Stage)
	}
	v.deny(stage, err)
	return v
}

func (v *verdict) deny(stage string, err error) {
	v.OK, v.Stage, v.Error, v.err = false, stage, err.Error(), err
	if d, ok := errors.AsType[*policy.Denied](err); ok {
		v.Failures = cli.Clauses(d)
	}
}

func (v *verdict) write(w io.Writer) {
	c := v.Claims
	table := rows{w}
	switch {
	case !v.OK:
		table.add("verdict", "REFUSED at stage %s", v.Stage)
	case c.Root.Simulated:
		table.add("verdict", "genuine under a SIMULATED root: this says nothing about hardware")
	default:
		table.add("verdict", "genuine")
	}
	table.add("TEE", "%s, quote version %d", c.TEE, c.QuoteVersion)
	table.add("TCB status", "%v", v.Status)
	if len(v.Advisories) > 0 {
		table.add("advisories", "%v", strings.Join(v.Advisories, " "))
	}
	if v.TCBDate != nil {
		table.add("TCB date", "%v", v.TCBDate.Format(time.RFC3339))
	}
	if x := c.SGX; x != nil {
		table.add("MRENCLAVE", "%v", hex.EncodeToString(x.MREnclave[:]))
		table.add("MRSIGNER", "%v", hex.EncodeToString(x.MRSigner[:]))
		table.add("product, SVN", "%d, %d", x.ISVProdID, x.ISVSVN)
	}
	if x := c.TDX; x != nil {
		table.add("MRTD", "%v", hex.EncodeToString(x.MRTD[:]))
		for i := range x.RTMR {
			table.add(fmt.Sprintf("RTMR%d", i), "%v", hex.EncodeToString(x.RTMR[i][:]))
		}
	}
	table.add("debug", "%v", c.Debug)
	table.add("report data", "%v", hex.EncodeToString(c.ReportData[:]))
	table.add("platform", "FMSPC %x, %s CA", c.Platform.FMSPC, c.Platform.CA)
	table.add("collateral", "evaluation %d, good until %s", c.Collateral.TCBEvaluation,
		c.Collateral.EarliestExpiry.Format(time.RFC3339))
}
