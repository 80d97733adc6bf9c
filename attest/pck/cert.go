package pck

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"time"
)

// Common names of the certificates.
const (
	RootCN        = "Intel SGX Root CA"
	ProcessorCN   = "Intel SGX PCK Processor CA"
	PlatformCN    = "Intel SGX PCK Platform CA"
	LeafCN        = "Intel SGX PCK Certificate"
	TCBSigningCN  = "Intel SGX TCB Signing"
	maxChainBytes = 64 << 10
)

// Errors of this package, wrapped with particulars; match them with errors.Is.
var (
	ErrFormat     = errors.New("pck: malformed certificate chain")
	ErrName       = errors.New("pck: certificate has the wrong name or issuer")
	ErrUntrusted  = errors.New("pck: chain does not end in the trusted root key")
	ErrSignature  = errors.New("pck: signature does not verify")
	ErrUsage      = errors.New("pck: certificate may not be used for this")
	ErrValidity   = errors.New("pck: outside the validity period")
	ErrExtensions = errors.New("pck: malformed SGX extensions")
	ErrCRL        = errors.New("pck: malformed revocation list")
	ErrCRLIssuer  = errors.New("pck: revocation list is from another issuer")
	ErrRevoked    = errors.New("pck: certificate is revoked")
)

const (
	pemBegin = "-----BEGIN CERTIFICATE-----"
	pemEnd   = "-----END CERTIFICATE-----"
)

// base64Strict refuses encodings whose unused bits are not zero.
var base64Strict = base64.StdEncoding.Strict()

// parsePEM decodes exactly n PEM certificates and nothing else. White space may stand between them but need not: there are
// real quotes without a line break between one END and the next BEGIN. The NUL that C code appends may follow them. A
// certificate that known (may be nil) has is taken from there instead of being decoded again.
func parsePEM(raw []byte, n int, known *Store) ([]*certificate, error) {
	const blank = " \t\r\n"
	if len(raw) > maxChainBytes {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrFormat, len(raw), maxChainBytes)
	}
	certs := make([]*certificate, 0, n)
	rest := bytes.TrimRight(raw, blank+"\x00")
	for {
		if rest = bytes.TrimLeft(rest, blank); len(rest) == 0 {
			break
		}
		body, ok := bytes.CutPrefix(rest, []byte(pemBegin))
		if !ok || len(certs) == n {
			return nil, fmt.Errorf("%w: something other than %d certificates", ErrFormat, n)
		}
		if body, rest, ok = bytes.Cut(body, []byte(pemEnd)); !ok {
			return nil, fmt.Errorf("%w: certificate %d has no end", ErrFormat, len(certs)+1)
		}
		der, err := base64Strict.AppendDecode(nil, bytes.TrimSpace(body))
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d is not base64", ErrFormat, len(certs)+1)
		}
		cert := known.find(der)
		if cert == nil {
			if cert, err = parseCert(der); err != nil {
				return nil, fmt.Errorf("certificate %d: %w", len(certs)+1, err)
			}
		}
		certs = append(certs, cert)
	}
	if len(certs) != n {
		return nil, fmt.Errorf("%w: %d certificates instead of %d", ErrFormat, len(certs), n)
	}
	return certs, nil
}

// certificate is a decoded certificate. It does not change.
type certificate struct {
	*x509.Certificate
	key    *ecdsa.PublicKey // P-256
	serial string           // number, big endian, as revocation lists are searched for it
}

// parseCert decodes one certificate, of version 3, with a P-256 key, signed by ECDSA with SHA-256.
func parseCert(der []byte) (*certificate, error) {
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	key, ok := cert.PublicKey.(*ecdsa.PublicKey)
	switch {
	case cert.Version != 3:
		return nil, fmt.Errorf("%w: X.509 version %d", ErrFormat, cert.Version)
	case !ok || key.Curve != elliptic.P256():
		return nil, fmt.Errorf("%w: key is not P-256", ErrFormat)
	case cert.SignatureAlgorithm != x509.ECDSAWithSHA256:
		return nil, fmt.Errorf("%w: signed with %v", ErrFormat, cert.SignatureAlgorithm)
	case len(cert.UnhandledCriticalExtensions) != 0:
		return nil, fmt.Errorf("%w: unknown critical extension %v", ErrFormat, cert.UnhandledCriticalExtensions[0])
	}
	return &certificate{cert, key, string(cert.SerialNumber.Bytes())}, nil
}

// sameKey compares two P-256 keys; the same key in the same place is the common case.
func sameKey(a, b *ecdsa.PublicKey) bool { return a != nil && b != nil && (a == b || a.Equal(b)) }

// checkSigned verifies an ASN.1 signature by key over the SHA-256 of signed.
func checkSigned(key *ecdsa.PublicKey, signed, signature []byte) bool {
	digest := sha256.Sum256(signed)
	return ecdsa.VerifyASN1(key, digest[:], signature)
}

// checkValidity says whether now lies within the certificate's validity, both ends included, as Intel's library compares.
func (c *certificate) checkValidity(now time.Time) error {
	return checkValidity("certificate ", c.Subject.CommonName, c.NotBefore, c.NotAfter, now)
}

// checkValidity says whether now lies within [from, to], both ends included. What is valid has a kind and a name.
func checkValidity(kind, name string, from, to, now time.Time) error {
	const layout = time.RFC3339
	switch {
	case now.Before(from):
		return fmt.Errorf("%w: %s%s is valid from %s, the time is %s", ErrValidity, kind, name, from.UTC().Format(layout), now.UTC().Format(layout))
	case now.After(to):
		return fmt.Errorf("%w: %s%s expired at %s, the time is %s", ErrValidity, kind, name, to.UTC().Format(layout), now.UTC().Format(layout))
	}
	return nil
}

// checkRoot verifies that cert is a root certificate for the trusted key. The certificate itself is not pinned: Intel
// issued two (valid to 2033 and to 2049) under one key.
func checkRoot(cert *certificate, known *Store) error {
	switch {
	case cert.Subject.CommonName != RootCN || !bytes.Equal(cert.RawSubject, cert.RawIssuer):
		return fmt.Errorf("%w: root is %q, issued by %q", ErrName, cert.Subject.CommonName, cert.Issuer.CommonName)
	case !sameKey(cert.key, known.trusted):
		return fmt.Errorf("%w: root certificate has another key", ErrUntrusted)
	case !known.signed(cert):
		return fmt.Errorf("%w: root certificate", ErrSignature)
	}
	return checkCA(cert.Certificate)
}

// checkIssuedByRoot verifies that root, which checkRoot has accepted, issued cert: name and signature.
func checkIssuedByRoot(what string, cert, root *certificate, known *Store) error {
	if err := checkIssuerName(what, cert, root); err != nil {
		return err
	}
	if !known.signed(cert) { // by the trusted key, which is the root's
		return fmt.Errorf("%w: %s", ErrSignature, what)
	}
	return nil
}

func checkIssuerName(what string, cert, issuer *certificate) error {
	if !bytes.Equal(cert.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("%w: %s is issued by %q, not by %q", ErrName, what, cert.Issuer.CommonName, issuer.Subject.CommonName)
	}
	return nil
}

// checkCA verifies that cert may sign certificates and revocation lists.
func checkCA(cert *x509.Certificate) error {
	const need = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	if !cert.BasicConstraintsValid || !cert.IsCA || cert.KeyUsage&need != need {
		return fmt.Errorf("%w: %q is not a certificate authority", ErrUsage, cert.Subject.CommonName)
	}
	return nil
}

// checkEnd verifies that cert may sign data and nothing else.
func checkEnd(cert *x509.Certificate) error {
	if !cert.BasicConstraintsValid || cert.IsCA || cert.KeyUsage&x509.KeyUsageDigitalSignature == 0 ||
		cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0 {
		return fmt.Errorf("%w: %q is not a plain signing certificate", ErrUsage, cert.Subject.CommonName)
	}
	return nil
}
