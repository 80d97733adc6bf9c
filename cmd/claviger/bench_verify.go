package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"runtime"
	"time"

	"github.com/spf13/cobra"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
	"github.com/claviger/claviger/cmd/internal/cli"
)

// benchPlatforms is how many platforms the scenes with a new one go through: more than their caches hold.
const benchPlatforms = 16

// benchTime is when the simulated evidence is verified.
var benchTime = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

// verifyBench is the result of bench verify.
type verifyBench struct {
	Go      string        `json:"go"`
	OS      string        `json:"os"`
	Arch    string        `json:"arch"`
	Cores   int           `json:"cores"`
	Rounds  int           `json:"rounds"`
	Rows    []measurement `json:"rows"`
	Scaling []scaling     `json:"scaling"`
}

func benchVerifyCommand(s *cli.Streams) *cobra.Command {
	budget := 10 * time.Second
	cmd := &cobra.Command{
		Use: "verify", Short: "Measure the verification of quotes against raw signature checks",
		Long: `Verifies simulated SGX and TDX quotes, whose formats and sizes are Intel's, and shows how long that takes in units of the
signature checks that cannot be avoided: one ecdsa.VerifyASN1 on P-256, measured in the same rounds.

  cold             a verifier that has seen nothing: nine checks
  warm-collateral  the collateral is known and the platform is new: three
  warm-platform    a further quote of a known platform: one

The scenes take turns in many short rounds; shown are the medians of the rounds' ratios with their quartiles, so that other load
on the machine matters little. "reach" is what the design wants at most. Times alone say more about the machine than about
the verifier. Scaling needs idle cores: compare it with that of the raw check. A comparison with go-tdx-guest is in the benchmarks of package attest: go test -bench Ratios ./attest`,
		Example: "  claviger bench verify\n  claviger bench verify --budget 60s --json",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if budget <= 0 {
				return cli.Usagef("--budget %s: write a duration above zero, such as 10s", budget)
			}
			b, err := benchVerify(cmd.Context(), budget)
			if err != nil {
				return err
			}
			return s.Print(b, b.write)
		},
	}
	cmd.Flags().DurationVar(&budget, "budget", budget, "measure for about this long")
	return cmd
}

func benchVerify(ctx context.Context, budget time.Duration) (*verifyBench, error) {
	scenes, err := verifyScenes()
	if err != nil {
		return nil, err
	}
	b := &verifyBench{Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH, Cores: runtime.GOMAXPROCS(0)}
	if b.Rows, b.Rounds, err = measure(ctx, scenes, budget*3/4); err != nil {
		return nil, err
	}
	for i := range scenes {
		if scenes[i].allocs == 0 && i > 0 {
			continue // several cores share what they know: only the warm scenes may run on all at once
		}
		row, err := scale(ctx, &scenes[i], budget/12)
		if err != nil {
			return nil, err
		}
		if i > 0 && b.Cores == 2 {
			row.Reach = 1.8
		}
		b.Scaling = append(b.Scaling, row)
	}
	return b, nil
}

// verifyScenes makes what is measured. The first scene is the floor.
func verifyScenes() ([]scene, error) {
	floor, err := signatureCheck()
	if err != nil {
		return nil, err
	}
	scenes := []scene{{name: "ecdsa.VerifyASN1", checks: 1, run: floor}}
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{'b'}, Now: benchTime})
	if err != nil {
		return nil, err
	}
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		e, err := newBenchEvidence(pki, tee)
		if err != nil {
			return nil, err
		}
		fresh, err := e.newPlatforms()
		if err != nil {
			return nil, err
		}
		warm, err := e.warm()
		if err != nil {
			return nil, err
		}
		scenes = append(scenes,
			scene{name: string(tee) + "/cold", checks: 9, reach: 1.4, run: e.cold()},
			scene{name: string(tee) + "/warm-collateral", checks: 3, reach: 1.3, run: fresh},
			scene{name: string(tee) + "/warm-platform", checks: 1, reach: 1.25, allocs: 40, run: warm},
		)
	}
	return scenes, nil
}

// signatureCheck is the floor: one check of a signature over a hash.
func signatureCheck() (func() error, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	digest := sha256.Sum256(nil)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	return func() error {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			return errBenchSignature
		}
		return nil
	}, err
}

var (
	errBenchSignature = errors.New("bench: a good signature was refused")
	errBenchWarm      = errors.New("bench: a platform was known that should be new")
)

// benchEvidence is one quote of each of some platforms, and the collateral of all.
type benchEvidence struct {
	root       attest.Root
	quotes     [][]byte
	collateral *attest.Collateral
}

func newBenchEvidence(pki *simpki.PKI, tee attest.TEE) (*benchEvidence, error) {
	e := &benchEvidence{root: pki.Root()}
	for i := range benchPlatforms {
		m, err := pki.Platform(simpki.PlatformConfig{Name: fmt.Sprint("bench-", i)})
		if err != nil {
			return nil, err
		}
		var quote []byte
		if tee == attest.SGX {
			quote, err = m.QuoteSGX(sgx.Report{ISVProdID: 1, ISVSVN: 1, Attributes: [16]byte{0x05}})
		} else {
			quote, err = m.QuoteTDX(tdx.Body{MRTD: [48]byte{1}, TDAttributes: [8]byte{3: 0x10}})
		}
		if err != nil {
			return nil, err
		}
		e.quotes = append(e.quotes, quote)
		if e.collateral, err = pki.Collateral(tee, m.FMSPC(), benchTime); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// verify is what every scene but the floor does: parse and verify.
func (e *benchEvidence) verify(v *attest.Verifier, quote []byte) error {
	q, err := attest.Parse(quote)
	if err != nil {
		return err
	}
	_, err = v.Verify(q, e.collateral, benchTime)
	return err
}

// cold verifies with a verifier that has seen nothing, and makes it too.
func (e *benchEvidence) cold() func() error {
	i := 0
	return func() error {
		v, err := attest.NewVerifier(attest.Config{Root: e.root, Caches: attest.Caches{Collateral: 1, Lists: 1, Chains: 1, QE: 1}})
		if err != nil {
			return err
		}
		i++
		return e.verify(v, e.quotes[i%len(e.quotes)])
	}
}

// newPlatforms verifies quotes of platforms that are not known any more, with collateral that is.
func (e *benchEvidence) newPlatforms() (func() error, error) {
	v, err := attest.NewVerifier(attest.Config{Root: e.root, Caches: attest.Caches{Chains: 1, QE: 1}})
	if err != nil {
		return nil, err
	}
	i := 0
	return func() error {
		i++
		if err := e.verify(v, e.quotes[i%len(e.quotes)]); err != nil {
			return err
		}
		if s := v.Stats(); s.Chains.Hits+s.QE.Hits != 0 {
			return errBenchWarm
		}
		return nil
	}, nil
}

// warm verifies the quote of one platform again and again.
func (e *benchEvidence) warm() (func() error, error) {
	v, err := attest.NewVerifier(attest.Config{Root: e.root})
	if err != nil {
		return nil, err
	}
	return func() error { return e.verify(v, e.quotes[0]) }, e.verify(v, e.quotes[0])
}

func (b *verifyBench) write(w io.Writer) {
	fmt.Fprintf(w, "%s %s/%s, %d cores, %d rounds\n\n", b.Go, b.OS, b.Arch, b.Cores, b.Rounds)
	fmt.Fprintf(w, "%-20s %10s %8s  %-28s %-7s %8s\n", "", "median", "floors", "ratio (quartiles)", "reach", "allocs")
	for _, m := range b.Rows {
		reach, allocs := "", fmt.Sprintf("%8.0f", m.Allocs)
		if m.Reach != 0 {
			reach = fmt.Sprintf("≤ %.2f", m.Reach)
		}
		if m.AllocsReach != 0 {
			allocs += fmt.Sprintf(" ≤ %d", m.AllocsReach)
		}
		ratio := fmt.Sprintf("%.2f × %d (%.2f to %.2f)", m.Ratio, m.Checks, m.RatioLow, m.RatioHigh)
		fmt.Fprintf(w, "%-20s %10s %8.2f  %-28s %-7s %s\n", m.Name, time.Duration(m.Median).Round(100*time.Nanosecond), m.Floors, ratio, reach, allocs)
	}
	fmt.Fprintln(w)
	for _, s := range b.Scaling {
		reach := ""
		if s.Reach != 0 {
			reach = fmt.Sprintf(", reach ≥ %.1f", s.Reach)
		}
		fmt.Fprintf(w, "%-20s %d cores %.2f × one (best windows; median %.2f%s): %.0f/s and %.0f/s\n",
			s.Name, s.Cores, s.Best, s.Ratio, reach, s.All, s.One)
	}
}
