package pck

import (
	"crypto/ecdsa"
	"fmt"
	"time"
)

// CA says which of Intel's two certificate authorities issued a PCK certificate; each has its own revocation list.
type CA string

// The PCK certificate authorities.
const (
	ProcessorCA CA = "processor"
	PlatformCA  CA = "platform"
)

// Chain is a parsed PCK certificate chain. It is not trusted before Verify.
type Chain struct {
	leaf, intermediate, root *certificate
	extensions               Extensions
	ca                       CA
}

// ParseChain decodes the certification data of a quote (type 5): three PEM certificates, the PCK certificate, its CA and the
// root, in any order (real quotes carry them in more than one), at most 64 KiB. Each is told by its common name. The SGX
// extensions are decoded; nothing is verified.
func ParseChain(raw []byte) (*Chain, error) { return parseChain(raw, nil) }

func parseChain(raw []byte, known *Store) (*Chain, error) {
	certs, err := parsePEM(raw, 3, known)
	if err != nil {
		return nil, err
	}
	c := new(Chain)
	for _, cert := range certs {
		var place **certificate
		switch cn := cert.Subject.CommonName; cn {
		case LeafCN:
			place = &c.leaf
		case ProcessorCN:
			place, c.ca = &c.intermediate, ProcessorCA
		case PlatformCN:
			place, c.ca = &c.intermediate, PlatformCA
		case RootCN:
			place = &c.root
		default:
			return nil, fmt.Errorf("%w: %q does not belong in a PCK chain", ErrName, cn)
		}
		if *place != nil {
			return nil, fmt.Errorf("%w: two certificates where one belongs: %q", ErrName, cert.Subject.CommonName)
		}
		*place = cert
	}
	// Three certificates in three places, none twice: each place is taken.
	if c.extensions, err = parseExtensions(c.leaf.Certificate); err != nil {
		return nil, err
	}
	return c, nil
}

// Verify checks names, issuers, uses, signatures and validity at now, up to a root certificate that holds the trusted key.
// Revocation is separate: see CheckRevocation.
func (c *Chain) Verify(trusted *ecdsa.PublicKey, now time.Time) error {
	if err := c.verify(NewStore(trusted)); err != nil {
		return err
	}
	return c.CheckValidity(now)
}

// verify checks all that does not depend on the time.
func (c *Chain) verify(known *Store) error {
	if err := verifyIssuer(c.intermediate, c.root, known); err != nil {
		return err
	}
	const what = "PCK certificate"
	if err := checkIssuerName(what, c.leaf, c.intermediate); err != nil {
		return err
	}
	if !checkSigned(c.intermediate.key, c.leaf.RawTBSCertificate, c.leaf.Signature) {
		return fmt.Errorf("%w: %s", ErrSignature, what)
	}
	return checkEnd(c.leaf.Certificate)
}

// verifyIssuer checks all of a PCK CA and its root that does not depend on the time.
func verifyIssuer(intermediate, root *certificate, known *Store) error {
	if err := checkRoot(root, known); err != nil {
		return err
	}
	if err := checkIssuedByRoot("PCK CA certificate", intermediate, root, known); err != nil {
		return err
	}
	return checkCA(intermediate.Certificate)
}

// CheckValidity checks only the validity periods, for a chain whose Verify has succeeded at another time.
func (c *Chain) CheckValidity(now time.Time) error {
	return checkAll(now, c.root, c.intermediate, c.leaf)
}

// CheckRevocation verifies both revocation lists, see CRL, and looks up the PCK CA in the root's and the PCK
// certificate in the PCK CA's. The chain must have been verified.
func (c *Chain) CheckRevocation(rootCRL, pckCRL *CRL, now time.Time, grace time.Duration) error {
	if err := rootCRL.verify("root revocation list", c.root, now, grace); err != nil {
		return err
	}
	if err := pckCRL.verify("PCK revocation list", c.intermediate, now, grace); err != nil {
		return err
	}
	if rootCRL.revokes(c.intermediate) {
		return fmt.Errorf("%w: PCK CA certificate %x", ErrRevoked, c.intermediate.SerialNumber)
	}
	if pckCRL.revokes(c.leaf) {
		return fmt.Errorf("%w: PCK certificate %x", ErrRevoked, c.leaf.SerialNumber)
	}
	return nil
}

// Key returns the public half of the provisioning certification key, which signs QE reports.
func (c *Chain) Key() *ecdsa.PublicKey { return c.leaf.key }

// KeyBytes returns the same key as the DER of its SubjectPublicKeyInfo: equal keys, equal bytes. Read only.
func (c *Chain) KeyBytes() []byte { return c.leaf.RawSubjectPublicKeyInfo }

// Extensions returns the SGX extensions of the PCK certificate.
func (c *Chain) Extensions() Extensions { return c.extensions }

// CA returns which authority issued the PCK certificate.
func (c *Chain) CA() CA { return c.ca }

// NotAfter returns the earliest end of validity in the chain.
func (c *Chain) NotAfter() time.Time { return earliest(c.leaf, c.intermediate, c.root) }

// SigningChain is the parsed chain of the certificate that signs TCB info and QE identities. It is not trusted before
// Verify.
type SigningChain struct {
	leaf, root *certificate
}

// ParseSigningChain decodes two PEM certificates, in the order TCB signing certificate, root. Nothing is verified.
func ParseSigningChain(raw []byte) (*SigningChain, error) { return parseSigningChain(raw, nil) }

func parseSigningChain(raw []byte, known *Store) (*SigningChain, error) {
	certs, err := parsePEM(raw, 2, known)
	if err != nil {
		return nil, err
	}
	if cn := certs[0].Subject.CommonName; cn != TCBSigningCN {
		return nil, fmt.Errorf("%w: signing certificate is called %q", ErrName, cn)
	}
	return &SigningChain{leaf: certs[0], root: certs[1]}, nil // checkRoot looks at the root's name
}

// Verify checks names, issuer, uses, signatures and validity at now up to a root certificate that holds the trusted key,
// and that rootCRL is in force (see CRL) and does not revoke the signing certificate.
func (c *SigningChain) Verify(trusted *ecdsa.PublicKey, rootCRL *CRL, now time.Time, grace time.Duration) error {
	if err := c.verify(NewStore(trusted)); err != nil {
		return err
	}
	return c.Check(rootCRL, now, grace)
}

// verify checks all that does not depend on the time.
func (c *SigningChain) verify(known *Store) error {
	if err := checkRoot(c.root, known); err != nil {
		return err
	}
	if err := checkIssuedByRoot("TCB signing certificate", c.leaf, c.root, known); err != nil {
		return err
	}
	return checkEnd(c.leaf.Certificate)
}

// Check checks only validity at now and revocation by rootCRL, for a chain that is verified.
func (c *SigningChain) Check(rootCRL *CRL, now time.Time, grace time.Duration) error {
	if err := checkAll(now, c.root, c.leaf); err != nil {
		return err
	}
	if err := rootCRL.verify("root revocation list", c.root, now, grace); err != nil {
		return err
	}
	if rootCRL.revokes(c.leaf) {
		return fmt.Errorf("%w: TCB signing certificate %x", ErrRevoked, c.leaf.SerialNumber)
	}
	return nil
}

// Key returns the public key that signs collateral.
func (c *SigningChain) Key() *ecdsa.PublicKey { return c.leaf.key }

// NotAfter returns the earlier end of validity in the chain.
func (c *SigningChain) NotAfter() time.Time { return earliest(c.leaf, c.root) }

// checkAll checks the validity of several certificates.
func checkAll(now time.Time, certs ...*certificate) error {
	for _, cert := range certs {
		if err := cert.checkValidity(now); err != nil {
			return err
		}
	}
	return nil
}

func earliest(certs ...*certificate) time.Time {
	first := certs[0].NotAfter
	for _, cert := range certs[1:] {
		if cert.NotAfter.Before(first) {
			first = cert.NotAfter
		}
	}
	return first
}
