package attest

import (
	"errors"
	"fmt"
)

// Stage names the step of verification that refused the evidence. Steps run in the order of the constants.
type Stage string

// The stages of verification.
const (
	StageParse      Stage = "parse"      // the quote or the bundle is malformed
	StageChain      Stage = "chain"      // PCK certificates: root, names, validity, signatures
	StageRevocation Stage = "revocation" // root and PCK revocation lists
	StageCollateral Stage = "collateral" // TCB info, QE identity and the certificate that signs them
	StageQE         Stage = "qe"         // the quoting enclave and its hold on the attestation key
	StageSignature  Stage = "signature"  // the attestation key's signature over the report
	StageTCB        Stage = "tcb"        // evaluation of the platform's TCB
)

// Errors that do not belong to one of the pure parts. Those of attest/sgx, attest/tdx, attest/pck and attest/tcb stay
// matchable through Error with errors.Is.
var (
	// ErrConfig says that a Verifier was configured without a usable root of trust.
	ErrConfig = errors.New("attest: configuration without a usable root of trust")
	// ErrUnsupported says that the bytes are a quote, of a kind this verifier does not take.
	ErrUnsupported = errors.New("attest: unsupported quote")
	// ErrNoPCKChain says that a quote names its platform without proving it: its certification data is no certificate chain.
	// It is an ErrUnsupported too.
	ErrNoPCKChain = fmt.Errorf("%w: it does not carry its PCK certificate chain", ErrUnsupported)
	// ErrInput says that an argument is missing: a nil quote or collateral, or a zero time.
	ErrInput = errors.New("attest: missing input")
	// ErrBundle says that a collateral bundle is malformed, oversized or incomplete.
	ErrBundle = errors.New("attest: malformed collateral bundle")
	// ErrQEMismatch says that the quoting enclave does not vouch for the attestation key, or is not the one that the QE
	// identity describes.
	ErrQEMismatch = errors.New("attest: quoting enclave does not match")
	// ErrSignature says that a signature inside the quote does not verify.
	ErrSignature = errors.New("attest: signature does not verify")
	// ErrMismatch says that the collateral is for another platform, TEE or CA than the quote.
	ErrMismatch = errors.New("attest: collateral does not belong to this quote")
)

// Error is a refusal. Stage says where, Err what (matchable with errors.Is), and the text ends in what to do about it.
type Error struct {
	Stage Stage
	Err   error
	Hint  string // one clause for the reader: what to do
}

// Error says the stage, what was wrong, and what to do.
func (e *Error) Error() string {
	text := "attest: stage " + string(e.Stage) + ": " + e.Err.Error()
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Unwrap returns what was wrong.
func (e *Error) Unwrap() error { return e.Err }

// refuse wraps err as a refusal.
func refuse(stage Stage, hint string, err error) error {
	return &Error{Stage: stage, Err: err, Hint: hint}
}
