package tcb

import (
	"crypto/ecdsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
)

// Bounds on a document.
const (
	maxDocument   = 64 << 10 // bytes
	maxKeys       = 64       // of one object
	maxLevels     = 64
	maxIdentities = 64
	maxAdvisories = 256
)

// Errors of this package, wrapped with particulars; match them with errors.Is.
var (
	ErrFormat      = errors.New("tcb: malformed document")
	ErrSignature   = errors.New("tcb: document's signature does not verify")
	ErrUnsupported = errors.New("tcb: unsupported kind of document")
	ErrValidity    = errors.New("tcb: document is not in force")
	ErrModule      = errors.New("tcb: TDX module does not match its identity")
	ErrQE          = errors.New("tcb: quoting enclave does not match its identity")
)

// envelope splits a signed envelope {name: {…}, "signature": "…"} and verifies the signature by signer over the exact bytes of
// the inner object. What it returns was decoded from those bytes and nothing else: a JSON value is a slice of the text.
func (d *decoder) envelope(envelope []byte, name string, signer *ecdsa.PublicKey) (value, error) {
	inner, signature, err := d.split(envelope, name)
	if err != nil {
		return value{}, err
	}
	if len(d.open[0].members) != 2 {
		return value{}, fmt.Errorf("%w: envelope has keys beside %s and signature", ErrFormat, name)
	}
	if !signed(signer, inner.text, &signature) {
		return value{}, fmt.Errorf("%w: %s", ErrSignature, name)
	}
	return inner, nil
}

// split decodes an envelope, which then is the only open value. Nothing is verified.
func (d *decoder) split(envelope []byte, name string) (inner value, signature [64]byte, err error) {
	if len(envelope) > maxDocument {
		return value{}, signature, fmt.Errorf("%w: %d bytes, the limit is %d", ErrFormat, len(envelope), maxDocument)
	}
	outer, err := d.decode(envelope)
	if err != nil {
		return value{}, signature, err
	}
	r := newReader(outer, root("envelope"))
	inner, _ = r.get(name, '{')
	r.hex("signature", signature[:])
	return inner, signature, r.err
}

// signed verifies the raw signature r ‖ s by signer over the SHA-256 of text.
func signed(signer *ecdsa.PublicKey, text []byte, signature *[64]byte) bool {
	digest := sha256.Sum256(text)
	r, s := new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:])
	return signer != nil && ecdsa.Verify(signer, digest[:], r, s)
}

// hexID is the upper-case hexadecimal form of one byte.
func hexID(b byte) string {
	const digits = "0123456789ABCDEF"
	return string([]byte{digits[b>>4], digits[b&15]})
}
