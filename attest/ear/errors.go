package ear

import "errors"

// Errors of this package, matched with errors.Is. A value beside an error is never usable.
var (
	// ErrInput says that an argument is missing or outside what this package can express: no key, no time, a nonce of
	// the wrong length, claims that no verification produced.
	ErrInput = errors.New("ear: missing or unusable input")
	// ErrTooLarge says that a token or key set exceeds its limit; nothing of it was read.
	ErrTooLarge = errors.New("ear: larger than the limit")
	// ErrMalformed says that a token or key set is not of the form this package accepts.
	ErrMalformed = errors.New("ear: malformed")
	// ErrAlgorithm says that a token names another algorithm than EdDSA, "none" included.
	ErrAlgorithm = errors.New("ear: algorithm is not EdDSA")
	// ErrType says that a token's header is not exactly that of an EAR: another type, or more parameters.
	ErrType = errors.New("ear: header is not that of an attestation result")
	// ErrKey says that a token names a key that is not among the trusted ones.
	ErrKey = errors.New("ear: signed with a key that is not trusted")
	// ErrSignature says that the signature does not verify under the key the token names.
	ErrSignature = errors.New("ear: signature does not verify")
	// ErrExpired says that the time of the token is over.
	ErrExpired = errors.New("ear: expired")
	// ErrNotYetValid says that the token was issued later than the given time, by more than Leeway.
	ErrNotYetValid = errors.New("ear: not yet valid")
	// ErrNonce says that the token does not answer the expected nonce.
	ErrNonce = errors.New("ear: nonce does not match")
	// ErrInconsistent says that the parts of a result contradict each other, such as a status better than its vector.
	ErrInconsistent = errors.New("ear: result contradicts itself")
)
