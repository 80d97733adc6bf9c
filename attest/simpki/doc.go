// Package simpki is a simulated Intel: it mints SGX quotes (version 3, version 5 with
// body type 1), TDX quotes (version 4, version 5 with body types 2, 3 and 4) and the whole collateral set that verifies them, in the formats that
// Intel's services and processors use, under a root of its own.
//
// Verification of what it mints is the production path; only the root of trust
// differs. Whoever has the seed can mint any evidence, so a simulated root is for
// simulators, tests and demonstrations, and no production binary links this
// package.
//
// Everything is a function of the seed, the PKI's birth and the script: keys come
// from c2sp.org/det-keygen, signatures are RFC 6979, and collateral is issued at
// the start of a UTC day, so that several processes which open one PKI agree byte
// for byte on the collateral of a day.
//
// A PKI can be scripted: a platform is made to evaluate to any TCB status, a PCK
// certificate or a PCK CA is revoked, a TCB recovery raises the evaluation number
// and leaves unpatched platforms out of date. Scripts are events in time:
// Collateral for an earlier instant is what Intel would have served then, and
// asking for an instant more than 30 days back gives expired collateral.
//
// Formats: Intel SGX PCK Certificate and Certificate Revocation List Profile
// Specification 1.5; Intel SGX and TDX Provisioning Certification Service API
// version 4 (TCB info version 3, enclave identity version 2); Intel SGX ECDSA
// QuoteLibReference DCAP API, appendix A; Intel TDX DCAP Quoting Library API,
// appendix A.
package simpki
