package pck

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/asn1"
	"encoding/pem"
	"fmt"
	"math/big"
	"sync/atomic"
	"time"
)

// maxCRL bounds one revocation list in bytes; real ones are under 4 KiB.
const maxCRL = 64 << 10

var (
	oidAuthorityKeyID = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidCRLNumber      = asn1.ObjectIdentifier{2, 5, 29, 20}
)

// CRL is a parsed revocation list. It is not trusted before a Chain or SigningChain has been checked with it.
type CRL struct {
	list    *x509.RevocationList
	revoked map[string]struct{} // serial numbers, big endian

	// signer is the key that the signature was last seen to verify under. The root's list is looked at for two chains, and
	// a signature does not change with time or name.
	signer atomic.Pointer[ecdsa.PublicKey]
}

// ParseCRL decodes one revocation list, DER or a single PEM block, at most 64 KiB. It must be complete (version 2 with a
// CRL number, no delta, no partition) and say when the next one is due. Nothing is verified.
func ParseCRL(raw []byte) (*CRL, error) {
	if len(raw) > maxCRL {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrCRL, len(raw), maxCRL)
	}
	der := raw
	if trimmed := bytes.TrimSpace(raw); bytes.HasPrefix(trimmed, []byte("-----BEGIN ")) {
		block, rest := pem.Decode(trimmed)
		if block == nil || block.Type != "X509 CRL" || len(block.Headers) != 0 || len(bytes.Trim(rest, " \t\r\n\x00")) != 0 {
			return nil, fmt.Errorf("%w: not one PEM revocation list", ErrCRL)
		}
		der = block.Bytes
	}
	list, err := x509.ParseRevocationList(der)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrCRL, err)
	case len(list.Raw) != len(der): // the parser stops at the end of the list
		return nil, fmt.Errorf("%w: %d bytes after it", ErrCRL, len(der)-len(list.Raw))
	case list.SignatureAlgorithm != x509.ECDSAWithSHA256:
		return nil, fmt.Errorf("%w: signed with %v", ErrCRL, list.SignatureAlgorithm)
	case list.Number == nil || list.Number.Sign() < 0:
		return nil, fmt.Errorf("%w: no CRL number", ErrCRL)
	case list.NextUpdate.IsZero() || list.NextUpdate.Before(list.ThisUpdate):
		return nil, fmt.Errorf("%w: no end of validity", ErrCRL)
	}
	// Any other extension narrows what the list covers (delta, partition by reason or scope), so an empty answer would not
	// mean that nothing is revoked. Intel's lists have exactly these two.
	for _, ext := range list.Extensions {
		if !ext.Id.Equal(oidAuthorityKeyID) && !ext.Id.Equal(oidCRLNumber) {
			return nil, fmt.Errorf("%w: unknown extension %v", ErrCRL, ext.Id)
		}
	}
	c := &CRL{list: list, revoked: make(map[string]struct{}, len(list.RevokedCertificateEntries))}
	for _, entry := range list.RevokedCertificateEntries {
		c.revoked[string(entry.SerialNumber.Bytes())] = struct{}{}
	}
	return c, nil
}

// verify checks that issuer, which has been verified, issued the list, and that now lies within its update times, both ends
// included; grace extends the later one.
func (c *CRL) verify(what string, issuer *certificate, now time.Time, grace time.Duration) error {
	if c == nil {
		return fmt.Errorf("%w: %s is missing", ErrCRL, what)
	}
	if !bytes.Equal(c.list.RawIssuer, issuer.RawSubject) {
		return fmt.Errorf("%w: %s is issued by %q, not by %q", ErrCRLIssuer, what, c.list.Issuer.CommonName, issuer.Subject.CommonName)
	}
	key := issuer.key
	if !sameKey(c.signer.Load(), key) {
		if !checkSigned(key, c.list.RawTBSRevocationList, c.list.Signature) {
			return fmt.Errorf("%w: %s", ErrSignature, what)
		}
		c.signer.Store(key)
	}
	return checkValidity(what, "", c.list.ThisUpdate, c.list.NextUpdate.Add(grace), now)
}

// Signed reports whether the signature has been seen to verify under the key of an issuer that was verified. It says
// nothing about time.
func (c *CRL) Signed() bool { return c != nil && c.signer.Load() != nil }

func (c *CRL) revokes(cert *certificate) bool {
	_, found := c.revoked[cert.serial]
	return found
}

// Number returns the CRL number, which rises with each list of one issuer.
func (c *CRL) Number() *big.Int { return new(big.Int).Set(c.list.Number) }

// ThisUpdate returns when the list was issued.
func (c *CRL) ThisUpdate() time.Time { return c.list.ThisUpdate }

// NextUpdate returns when the next list is due at the latest.
func (c *CRL) NextUpdate() time.Time { return c.list.NextUpdate }

// Len returns how many certificates the list revokes.
func (c *CRL) Len() int { return len(c.revoked) }
