package attest

import "github.com/claviger/claviger/attest/sgx"

// Limits on untrusted input, in bytes. Each is checked before the first byte is interpreted.
const (
	// MaxQuote bounds a quote; real ones are under 8 KiB.
	MaxQuote = sgx.MaxQuoteSize
	// MaxCollateral bounds a collateral bundle as Collateral.Marshal writes it; real ones are under 32 KiB.
	MaxCollateral = 256 << 10
	// MaxTCBInfo and MaxQEIdentity bound the signed JSON documents; real ones are under 16 KiB and 2 KiB.
	MaxTCBInfo    = 64 << 10
	MaxQEIdentity = 16 << 10
	// MaxCRL bounds one revocation list; real ones are under 4 KiB, and grow by some 40 bytes per revoked platform.
	MaxCRL = 64 << 10
	// MaxSigningChain bounds the PEM of the two certificates that sign collateral.
	MaxSigningChain = 16 << 10
)
