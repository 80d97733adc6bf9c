// Package attest answers one question: is this evidence genuine? It verifies Intel DCAP quotes (SGX
// version 3, TDX version 4, version 5 of both) against Intel's collateral and returns claims.
//
//	verifier, err := attest.NewVerifier(attest.Config{Root: attest.IntelRoot()})
//	quote, err := attest.Parse(raw)
//	verified, err := verifier.Verify(quote, collateral, now)
//	claims := verified.Claims()
//
// It guarantees that every claim is covered by a chain of signatures that ends in the configured root key, that nothing
// in the chain is revoked or outside its validity at the given time, and that the TCB status is what Intel's own library
// reports for the same input. It does not decide whether a status, a measurement or a debug enclave is acceptable: that
// is for package policy, which takes a *Verified and nothing less.
//
// A Verifier is for many quotes and many goroutines: it remembers, in bounded caches, the signatures that it has verified, and
// asks for times and revocation every time. A quote of a known platform costs one signature check.
//
// The package is pure: it reads no clock, file, network or randomness. Callers fetch collateral and pass the time. Any
// refusal is an *Error that names its Stage and says what to do; a value beside a non-nil error is never usable.
// DESIGN.md beside this file explains the algorithm, its sources and its deliberate differences from Intel's library.
package attest
