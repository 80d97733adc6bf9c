package attest_test

import (
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// A relying party verifies a quote. Here a simulated Intel made the evidence; with genuine evidence only the root differs:
// attest.IntelRoot().
func Example() {
	now := time.Date(2026, time.March, 14, 12, 0, 0, 0, time.UTC)
	intel, err := simpki.New(simpki.Config{Seed: [32]byte{1}, Now: now})
	if err != nil {
		panic(err)
	}
	machine, err := intel.Platform(simpki.PlatformConfig{Name: "machine-1"})
	if err != nil {
		panic(err)
	}
	evidence, err := machine.QuoteSGX(sgx.Report{MREnclave: [32]byte{0xc0, 0xff, 0xee}, ISVSVN: 2})
	if err != nil {
		panic(err)
	}

	verifier, err := attest.NewVerifier(attest.Config{Root: intel.Root()})
	if err != nil {
		panic(err)
	}
	quote, err := attest.Parse(evidence)
	if err != nil {
		panic(err)
	}
	platform, err := attest.PlatformOf(quote) // unverified: it only chooses the collateral
	if err != nil {
		panic(err)
	}
	collateral, err := intel.Collateral(quote.TEE(), platform.FMSPC, now)
	if err != nil {
		panic(err)
	}
	verified, err := verifier.Verify(quote, collateral, now)
	if err != nil {
		panic(err)
	}
	claims := verified.Claims()
	fmt.Println(claims.TCB.Status, claims.Debug, claims.Root.Simulated)
	fmt.Printf("%x %d\n", claims.SGX.MREnclave[:3], claims.SGX.ISVSVN)

	// The same evidence under Intel's root proves nothing.
	genuine, err := attest.NewVerifier(attest.Config{Root: attest.IntelRoot()})
	if err != nil {
		panic(err)
	}
	_, err = genuine.Verify(quote, collateral, now)
	fmt.Println(err)
	// Output:
	// UpToDate false true
	// c0ffee 2
	// attest: stage chain: pck: chain does not end in the trusted root key: root certificate has another key; the quote must carry the PCK chain of a platform under the configured root, valid at the given time
}

// A server keeps one verifier: the second quote of a platform costs one signature check. Its counters are for metrics.
func ExampleVerifier_Stats() {
	now := time.Date(2026, time.March, 14, 12, 0, 0, 0, time.UTC)
	intel, err := simpki.New(simpki.Config{Seed: [32]byte{1}, Now: now})
	if err != nil {
		panic(err)
	}
	machine, err := intel.Platform(simpki.PlatformConfig{Name: "machine-1"})
	if err != nil {
		panic(err)
	}
	collateral, err := intel.Collateral(attest.TDX, machine.FMSPC(), now)
	if err != nil {
		panic(err)
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: intel.Root(), Caches: attest.Caches{Chains: 10_000, QE: 20_000}})
	if err != nil {
		panic(err)
	}
	for challenge := range 3 {
		evidence, err := machine.QuoteTDX(tdx.Body{ReportData: [64]byte{byte(challenge)}})
		if err != nil {
			panic(err)
		}
		quote, err := attest.Parse(evidence)
		if err != nil {
			panic(err)
		}
		if _, err := verifier.Verify(quote, collateral, now); err != nil {
			panic(err)
		}
	}
	stats := verifier.Stats()
	fmt.Println(stats.Collateral.Hits, stats.Chains.Hits, stats.QE.Hits, stats.Chains.Entries)
	// Output: 2 2 2 1
}

// Collateral past its next update is refused, unless the caller grants a grace for this one call. The claims say when it
// expired, so that policy and alarms can see it.
func ExampleWithGrace() {
	now := time.Date(2026, time.March, 14, 12, 0, 0, 0, time.UTC)
	intel, err := simpki.New(simpki.Config{Seed: [32]byte{1}, Now: now})
	if err != nil {
		panic(err)
	}
	machine, err := intel.Platform(simpki.PlatformConfig{Name: "machine-1"})
	if err != nil {
		panic(err)
	}
	evidence, err := machine.QuoteSGX5(sgx.Report{})
	if err != nil {
		panic(err)
	}
	collateral, err := intel.Collateral(attest.SGX, machine.FMSPC(), now)
	if err != nil {
		panic(err)
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: intel.Root()})
	if err != nil {
		panic(err)
	}
	quote, err := attest.Parse(evidence)
	if err != nil {
		panic(err)
	}
	later := now.AddDate(0, 0, 35)
	_, err = verifier.Verify(quote, collateral, later)
	fmt.Println(errors.Is(err, pck.ErrValidity))
	verified, err := verifier.Verify(quote, collateral, later, attest.WithGrace(14*24*time.Hour))
	if err != nil {
		panic(err)
	}
	fmt.Println(verified.Claims().Collateral.EarliestExpiry.Format(time.DateOnly))
	// Output:
	// true
	// 2026-04-13
}
