package main

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// attestFlags say what to send to the attestation service.
type attestFlags struct {
	cluster    clusterFlags
	image      imageFlags
	quote      string
	collateral string
	constraint string
	reportData string
	nonce      string
	tokenOut   string
}

func attestCommand(s *cli.Streams) *cobra.Command {
	var f attestFlags
	cmd := &cobra.Command{
		Use: "attest", Short: "Have a cluster judge a quote and sign the result",
		Long: `Sends a quote to a cluster, which must prove to be the pinned one, and prints its verdict. The quote is a raw one or an
Open Enclave report in a file, or that of a simulated enclave which this command plays.

The cluster signs the verdict as an EAT Attestation Result, a JWT that others can check later without the cluster:
--token-out writes it to a file, 'claviger attest verify' checks it. Name the code that you want with --constraint: without
one the result says that the evidence is genuine and never "affirming". The nonce proves that the result is newer than the
nonce; that the evidence is fresh is proved by --report-data, if the enclave put your challenge there.

Exit code 1 means that the evidence was refused; the result is printed and written all the same.`,
		Example: `  claviger attest --cluster cluster.json --quote quote.bin --constraint "C:$MRENCLAVE" --token-out result.jwt
  claviger attest --sim tour/world.json --machine laptop --image orders --token-out result.jwt
  claviger attest verify result.jwt --cluster cluster.json --constraint "C:$MRENCLAVE" --nonce "$NONCE"`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return fmt.Errorf("unknown command %q; '%s --help' lists the commands", args[0], cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return f.run(cmd, s) },
	}
	flags := cmd.Flags()
	f.cluster.register(flags)
	f.image.register(flags)
	flags.StringVar(&f.quote, "quote", "", "`file` with a raw quote or an Open Enclave report; - is standard input")
	flags.StringVar(&f.collateral, "collateral", "", "one-file bundle with the quote's collateral; default the cluster's own")
	flags.StringVar(&f.constraint, "constraint", "", "`text` of a policy constraint that the evidence must satisfy")
	flags.StringVar(&f.reportData, "report-data", "", "128 `hex` digits that the evidence must carry; a played enclave puts them there")
	flags.StringVar(&f.nonce, "nonce", "", "8 to 64 bytes in `base64url` with padding, for the result to answer; default random")
	flags.StringVar(&f.tokenOut, "token-out", "", "write the signed result to this `file`")
	cmd.AddCommand(attestVerifyCommand(s), attestKeysCommand(s))
	return cmd
}

// attested is the verdict with the nonce that its token answers.
type attested struct {
	api.Verdict
	Nonce api.Nonce `json:"nonce"`
}

func (f *attestFlags) run(cmd *cobra.Command, s *cli.Streams) error {
	req, err := f.request()
	if err != nil {
		return err
	}
	t, err := f.cluster.open()
	if err != nil {
		return err
	}
	ctx, cancel, err := f.cluster.bounded(cmd.Context())
	if err != nil {
		return err
	}
	defer cancel()
	if req.Quote, req.Collateral, err = f.evidence(ctx, s, t, req); err != nil {
		return err
	}
	c, err := t.client(nil)
	if err != nil {
		return err
	}
	defer c.Close()
	verdict, err := c.Attest(ctx, req)
	if err != nil {
		return err
	}
	if f.tokenOut != "" {
		if err := os.WriteFile(f.tokenOut, []byte(verdict.Token+"\n"), 0o644); err != nil {
			return err
		}
	}
	if err := f.print(s, t, req, verdict); err != nil {
		return err
	}
	return refusalOf(verdict)
}

// print shows the verdict by its token: what others will see.
func (f *attestFlags) print(s *cli.Streams, t *target, req api.AttestRequest, verdict api.Verdict) error {
	keys, err := ear.NewKeys(t.file.IdentityKey)
	if err != nil {
		return err
	}
	result, err := ear.Verify(verdict.Token, keys, verdict.Time, req.Nonce)
	if err != nil {
		return err
	}
	return s.Print(attested{verdict, req.Nonce}, func(w io.Writer) {
		writeResult(w, result)
		rows{w}.add("nonce", "%s", nonceText(req.Nonce))
		if f.tokenOut != "" {
			rows{w}.add("token", "%s; check it with 'claviger attest verify %s'", f.tokenOut, f.tokenOut)
		}
	})
}

// refusalOf is the error of a negative verdict.
func refusalOf(v api.Verdict) error {
	if v.OK {
		return nil
	}
	p := api.NewProblem(v.Code, v.Error)
	p.Stage, p.Failures = v.Stage, v.Failures
	return p
}

// request is what the flags say without the evidence.
func (f *attestFlags) request() (api.AttestRequest, error) {
	req := api.AttestRequest{Constraint: f.constraint}
	if (f.quote != "") == (f.image.machine != "" || f.image.image.Name != "") {
		return req, cli.Usagef("name either a quote with --quote, or an enclave to play with --sim, --machine and --image")
	}
	if f.constraint != "" {
		if _, err := policy.ParseConstraint(f.constraint); err != nil {
			return req, &cli.UsageError{Err: err}
		}
	}
	var err error
	if req.ReportData, err = parseReportData(f.reportData); err != nil {
		return req, err
	}
	if f.nonce == "" {
		req.Nonce = make(api.Nonce, 32)
		rand.Read(req.Nonce) // never fails
		return req, nil
	}
	req.Nonce, err = parseNonce(f.nonce)
	return req, err
}

// evidence is the quote in a file, or that of the enclave that this command plays, and collateral for it if there is any.
func (f *attestFlags) evidence(ctx context.Context, s *cli.Streams, t *target, req api.AttestRequest) (quote, bundle []byte, err error) {
	if f.collateral != "" {
		if bundle, err = s.ReadFile(f.collateral, api.MaxCollateral); err != nil {
			return nil, nil, err
		}
	}
	if f.quote != "" {
		quote, err = s.ReadFile(f.quote, api.MaxQuote)
		return quote, bundle, err
	}
	tee, err := f.image.launch(t)
	if err != nil {
		return nil, nil, err
	}
	var reportData [64]byte
	if req.ReportData != nil {
		reportData = *req.ReportData
	}
	ev, err := simworld.Attest(t.world, tee)(ctx, reportData)
	if err != nil {
		return nil, nil, err
	}
	if bundle == nil {
		bundle = ev.Collateral
	}
	return ev.Quote, bundle, nil
}

func parseNonce(text string) (api.Nonce, error) {
	var n api.Nonce
	if err := n.UnmarshalText([]byte(text)); err != nil {
		return nil, cli.Usagef("--nonce: %w", err)
	}
	return n, nil
}

func nonceText(n api.Nonce) string {
	text, err := n.MarshalText()
	if err != nil || n == nil {
		return "none"
	}
	return string(text)
}

// parseReportData reads 128 hex digits; an empty text is no expectation.
func parseReportData(text string) (*api.ReportData, error) {
	if text == "" {
		return nil, nil
	}
	var r api.ReportData
	if err := r.UnmarshalText([]byte(text)); err != nil {
		return nil, cli.Usagef("--report-data: %w", err)
	}
	return &r, nil
}

// meaning says what a status is worth, in words.
func meaning(r *ear.Result) string {
	a := &r.Appraisal
	switch {
	case a.Label == ear.LabelUnverified:
		return "REFUSED: the evidence did not prove to be genuine"
	case !a.Verdict.OK:
		return "REFUSED: the evidence is genuine, and not what was asked for"
	case r.Evidence.Debug:
		return "DEBUG: genuine, but the host can read and change this enclave"
	case len(a.PolicyIDs) == 0:
		return "genuine; no constraint says whether this code is wanted"
	case a.Status == ear.Affirming:
		return "affirmed: genuine, and it satisfies the constraint"
	}
	return "genuine, and it satisfies the constraint; some claims warn"
}

// writeResult prints a verified result for people.
func writeResult(w io.Writer, r *ear.Result) {
	table, a := rows{w}, &r.Appraisal
	table.add("verdict", "%s", meaning(r))
	if r.Evidence != nil && r.Evidence.Simulated {
		table.add("root of trust", "SIMULATED: this says nothing about hardware")
	}
	if a.Verdict.Error != "" {
		table.add("reason", "%s", a.Verdict.Error)
	}
	for _, f := range a.Verdict.Failures {
		table.add("failed "+f.Clause, "want %s, got %s (%s)", f.Want, f.Got, f.Hint)
	}
	table.add("status", "%s", a.Status)
	for name, value := range a.Vector.All() {
		table.add(name, "%d (%s)", value, value.Tier())
	}
	writeEvidence(table, r.Evidence)
	if a.Verdict.Constraint != "" {
		table.add("constraint", "%s", a.Verdict.Constraint)
	}
	table.add("signed by", "%s, epoch %d", r.Issuer, a.Verdict.Epoch)
	table.add("verifier", "%s %s", r.Verifier.Developer, r.Verifier.Build)
	table.add("good", "from %s until %s", r.IssuedAt.Format(time.RFC3339), r.Expires.Format(time.RFC3339))
}

func writeEvidence(table rows, e *ear.Evidence) {
	if e == nil {
		return
	}
	table.add("TEE", "%s, TCB status %s", e.TEE, e.Status)
	if len(e.Advisories) > 0 {
		table.add("advisories", "%s", strings.Join(e.Advisories, " "))
	}
	if x := e.SGX; x != nil {
		table.add("MRENCLAVE", "%s", hex.EncodeToString(x.MREnclave[:]))
		table.add("MRSIGNER", "%s", hex.EncodeToString(x.MRSigner[:]))
		table.add("product, SVN", "%d, %d", x.ISVProdID, x.ISVSVN)
	}
	if x := e.TDX; x != nil {
		table.add("MRTD", "%s", hex.EncodeToString(x.MRTD[:]))
		for i := range x.RTMR {
			table.add(fmt.Sprintf("RTMR%d", i), "%s", hex.EncodeToString(x.RTMR[i][:]))
		}
	}
	if e.ReportData != [64]byte{} {
		table.add("report data", "%s", hex.EncodeToString(e.ReportData[:]))
	}
	if e.Status == attest.StatusRevoked || e.Status == attest.StatusNotSupported {
		table.add("attention", "no constraint accepts this TCB status")
	}
}
