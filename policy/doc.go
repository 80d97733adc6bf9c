// Package policy decides whether genuine evidence is acceptable. It takes
// *attest.Verified, never a quote, so nothing unverified can pass it.
//
// This package holds the inline constraint: one line of text that travels in
// a key request and in the derivation of the key, so that nobody, not even an
// operator, can widen it afterwards. The language is a superset of the one of
// R3 Conclave's EnclaveConstraint; DESIGN.md beside this file lists every
// token. A constraint has exactly one canonical form, and everything that
// hashes, derives or signs uses that form.
//
//	c, err := policy.ParseConstraint("S:4924… PROD:1 REVOKE:2 SEC:SECURE")
//	err = c.Check(verified, now) // nil or *Denied, naming every failed clause
//
// The zero Constraint denies everything. The package is pure: the caller
// supplies the instant.
package policy
