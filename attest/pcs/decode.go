package pcs

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/url"

	"github.com/claviger/claviger/attest"
)

// chainLength is how many certificates an issuer chain has: the signer and the root.
const chainLength = 2

// decodeChain decodes an issuer chain from a header: percent-encoded PEM, exactly two certificates and white space. The
// result is their canonical PEM, so that equal chains are equal bytes whoever encoded them. Nothing is verified.
func decodeChain(value string) ([]byte, error) {
	if len(value) > maxChainHeader {
		return nil, fmt.Errorf("%w: %d bytes of header, the limit is %d", ErrTooLarge, len(value), maxChainHeader)
	}
	// PathUnescape and not QueryUnescape: a plus sign belongs to base64 and is no space.
	plain, err := url.PathUnescape(value)
	if err != nil {
		return nil, fmt.Errorf("%w: not percent-encoded", ErrHeader)
	}
	return canonicalChain([]byte(plain))
}

// canonicalChain parses a chain of two PEM certificates and writes it again.
func canonicalChain(raw []byte) ([]byte, error) {
	var out []byte
	n, rest := 0, raw
	for rest = bytes.TrimSpace(rest); len(rest) != 0; rest = bytes.TrimSpace(rest) {
		// pem.Decode skips what stands before a block; nothing may.
		if !bytes.HasPrefix(rest, []byte("-----BEGIN CERTIFICATE-----")) {
			return nil, fmt.Errorf("%w: something else than PEM certificates", ErrHeader)
		}
		block, after := pem.Decode(rest)
		if block == nil || block.Type != "CERTIFICATE" || len(block.Headers) != 0 || len(block.Bytes) == 0 {
			return nil, fmt.Errorf("%w: malformed PEM certificate", ErrHeader)
		}
		// A malformed block makes pem.Decode look for the next one; then the rest is shorter than one block explains.
		if used := rest[:len(rest)-len(after)]; bytes.Count(used, []byte("-----BEGIN")) != 1 {
			return nil, fmt.Errorf("%w: malformed PEM certificate", ErrHeader)
		}
		if n++; n > chainLength {
			break
		}
		out = append(out, pem.EncodeToMemory(block)...)
		rest = after
	}
	switch {
	case n != chainLength:
		return nil, fmt.Errorf("%w: not two certificates", ErrHeader)
	case len(out) > attest.MaxSigningChain:
		return nil, fmt.Errorf("%w: chain of %d bytes, the limit is %d", ErrTooLarge, len(out), attest.MaxSigningChain)
	}
	return out, nil
}

// chainFrom takes the issuer chain from the first of the named headers that is there. A header that is there twice with
// different values is refused: which of them another reader takes is anyone's guess.
func chainFrom(header http.Header, names ...string) ([]byte, error) {
	for _, name := range names {
		values := header.Values(name)
		if len(values) == 0 {
			continue
		}
		for _, other := range values[1:] {
			if other != values[0] {
				return nil, fmt.Errorf("%w: %s is there twice", ErrHeader, name)
			}
		}
		return decodeChain(values[0])
	}
	return nil, fmt.Errorf("%w: %s is missing", ErrHeader, names[0])
}

// sameSigner checks that two canonical chains begin with certificates for one key: a set has room for one chain.
func sameSigner(a, b []byte) error {
	if bytes.Equal(a, b) {
		return nil
	}
	var keys [2][]byte
	for i, chain := range [][]byte{a, b} {
		block, _ := pem.Decode(chain)
		if block == nil {
			return fmt.Errorf("%w: malformed", ErrHeader)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return fmt.Errorf("%w: not a certificate", ErrHeader)
		}
		keys[i] = cert.RawSubjectPublicKeyInfo
	}
	if !bytes.Equal(keys[0], keys[1]) {
		return fmt.Errorf("%w: TCB info and QE identity", ErrSigners)
	}
	return nil
}

// decodeJSON checks that the body is one JSON object. Its bytes stay as they are, because a signature covers them.
func decodeJSON(body []byte) ([]byte, error) {
	if !bytes.HasPrefix(body, []byte("{")) || !json.Valid(body) {
		return nil, fmt.Errorf("%w: it does not hold a JSON object", ErrContent)
	}
	return body, nil
}

// decodeCRL returns the DER of a revocation list that came as DER, as PEM, or as hex, which is PCCS's way.
func decodeCRL(body []byte) ([]byte, error) {
	der := body
	switch text := bytes.TrimSpace(body); {
	case len(body) > 1 && body[0] == 0x30 && body[1] >= 0x80: // a DER sequence longer than 127 bytes
	case bytes.HasPrefix(text, []byte("-----BEGIN X509 CRL-----")):
		block, rest := pem.Decode(text)
		if block == nil || block.Type != "X509 CRL" || len(block.Headers) != 0 || len(bytes.TrimSpace(rest)) != 0 {
			return nil, fmt.Errorf("%w: malformed PEM revocation list", ErrContent)
		}
		der = block.Bytes
	default:
		raw, err := hex.DecodeString(string(text))
		if err != nil || len(raw) == 0 {
			return nil, fmt.Errorf("%w: neither DER, PEM nor hex of a revocation list", ErrContent)
		}
		der = raw
	}
	if len(der) > attest.MaxCRL {
		return nil, fmt.Errorf("%w: revocation list of %d bytes, the limit is %d", ErrTooLarge, len(der), attest.MaxCRL)
	}
	return der, nil
}
