package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/policy"
)

// errStatusLow says that a result is genuine and no approval.
var errStatusLow = errors.New("the result is genuine, and it is no approval")

// tokenFlags say what a relying party demands of a result.
type tokenFlags struct {
	cluster      string
	nonce        string
	reportData   string
	at           string
	allowWarning bool
	want         client.Expect
}

func attestVerifyCommand(s *cli.Streams) *cobra.Command {
	var f tokenFlags
	cmd := &cobra.Command{
		Use: "verify TOKEN", Short: "Check a signed result offline against a pinned cluster",
		Long: `Checks an attestation result, a file or - for standard input, without any network. The cluster file pins the key: the
cluster id in it is a hash of manifest and identity key. Whoever gave you the result may have chosen its nonce and its
constraint, so name the ones you want; the flags that take any are for looking, not for deciding.

Exit code 0 means that the cluster affirms the evidence. 1 means that the result is not genuine, not the one you want, or
anything else than affirming; --allow-warning lets warnings pass, such as firmware that has missed an update.`,
		Example: `  claviger attest verify result.jwt --cluster cluster.json --constraint "C:$MRENCLAVE" --nonce "$NONCE"
  claviger attest verify result.jwt --cluster cluster.json --any-constraint-unsafe --any-nonce-unsafe --json`,
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error { return f.run(s, args[0]) },
	}
	flags := cmd.Flags()
	flags.StringVar(&f.cluster, "cluster", "", "cluster `file` that pins the cluster")
	flags.StringVar(&f.want.Constraint, "constraint", "", "`text` of the constraint that must have been applied")
	flags.BoolVar(&f.want.AnyConstraintUnsafe, "any-constraint-unsafe", false, "take a result by any constraint or none")
	flags.StringVar(&f.nonce, "nonce", "", "nonce that the result must answer, in `base64url` with padding; default: it must answer none")
	flags.BoolVar(&f.want.AnyNonceUnsafe, "any-nonce-unsafe", false, "take a result for any nonce: it may be shown to you again")
	flags.StringVar(&f.reportData, "report-data", "", "128 `hex` digits that the evidence must carry")
	flags.Uint64Var(&f.want.MinEpoch, "min-epoch", 0, "lowest `epoch` of the cluster to accept")
	flags.StringVar(&f.at, "at", "", "check as of this `time`, RFC 3339; default now")
	flags.BoolVar(&f.allowWarning, "allow-warning", false, "exit with 0 for the status warning too")
	return cmd
}

// checked is the JSON of a verified result.
type checked struct {
	Status      ear.Status      `json:"status"`
	Vector      ear.Vector      `json:"vector"`
	Verdict     ear.Verdict     `json:"verdict"`
	PolicyIDs   []string        `json:"policy_ids"`
	Issuer      string          `json:"issuer"`
	KeyID       string          `json:"key_id"`
	IssuedAt    time.Time       `json:"issued_at"`
	Expires     time.Time       `json:"expires"`
	Nonce       api.Nonce       `json:"nonce,omitempty"`
	Claims      json.RawMessage `json:"claims,omitempty"`
	VerifierID  ear.VerifierID  `json:"verifier_id"`
	ReportBound bool            `json:"report_data_demanded"` // whoever asked demanded the report data
}

func (f *tokenFlags) run(s *cli.Streams, name string) error {
	v, err := pinnedVerifier(f.cluster)
	if err != nil {
		return err
	}
	now, err := f.expect()
	if err != nil {
		return err
	}
	raw, err := s.ReadFile(name, ear.MaxToken+1)
	if err != nil {
		return err
	}
	r, err := v.Verify(strings.TrimSuffix(string(raw), "\n"), now, f.want)
	if err != nil {
		return err
	}
	a := &r.Appraisal
	out := checked{
		Status: a.Status, Vector: a.Vector, Verdict: a.Verdict, PolicyIDs: append([]string{}, a.PolicyIDs...), Issuer: r.Issuer, KeyID: r.KeyID,
		IssuedAt: r.IssuedAt, Expires: r.Expires, Nonce: r.Nonce, Claims: a.Claims, VerifierID: r.Verifier, ReportBound: a.EvidenceNonce != nil,
	}
	err = s.Print(out, func(w io.Writer) {
		writeResult(w, r)
		rows{w}.add("nonce", "%s", nonceText(r.Nonce))
	})
	if err != nil || a.Status == ear.Affirming || f.allowWarning && a.Status == ear.Warning {
		return err
	}
	return fmt.Errorf("%w: status %s", errStatusLow, a.Status)
}

// expect completes what the flags say and returns the instant to check for.
func (f *tokenFlags) expect() (time.Time, error) {
	now := time.Now().UTC()
	var err error
	if f.at != "" {
		if now, err = parseInstant(f.at); err != nil {
			return time.Time{}, err
		}
	}
	if (f.want.Constraint != "") == f.want.AnyConstraintUnsafe {
		return time.Time{}, cli.Usagef("name the code you want with --constraint, or look at any result with --any-constraint-unsafe")
	}
	if f.want.Constraint != "" {
		if _, err := policy.ParseConstraint(f.want.Constraint); err != nil {
			return time.Time{}, &cli.UsageError{Err: err}
		}
	}
	if f.nonce != "" {
		if f.want.AnyNonceUnsafe {
			return time.Time{}, cli.Usagef("--nonce and --any-nonce-unsafe contradict each other; leave one out")
		}
		if f.want.Nonce, err = parseNonce(f.nonce); err != nil {
			return time.Time{}, err
		}
	}
	f.want.ReportData, err = parseReportData(f.reportData)
	return now, err
}

// pinnedVerifier pins the cluster in a cluster file.
func pinnedVerifier(name string) (*client.TokenVerifier, error) {
	if name == "" {
		return nil, cli.Usagef("--cluster is missing: name the file that pins the cluster")
	}
	file, err := clusterfile.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("%s does not exist", name)
	}
	if err != nil {
		return nil, err
	}
	return client.NewTokenVerifier(file.ClusterID, file.Manifest, file.IdentityKey)
}

func attestKeysCommand(s *cli.Streams) *cobra.Command {
	var cluster string
	cmd := &cobra.Command{
		Use: "jwks", Short: "Print the pinned cluster's key as a JWKS, for generic JWT libraries",
		Long: `Prints the key that signs a cluster's attestation results, as a JSON Web Key Set. It comes from the cluster file and is
proved by the cluster id in it, without any network. The nodes serve the same document at /.well-known/jwks.json.`,
		Example: "  claviger attest jwks --cluster cluster.json >jwks.json",
		Args:    cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			v, err := pinnedVerifier(cluster)
			if err != nil {
				return err
			}
			return s.PrintJSON(v.KeySet())
		},
	}
	cmd.Flags().StringVar(&cluster, "cluster", "", "cluster `file` that pins the cluster")
	return cmd
}
