package attest_test

import (
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
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
