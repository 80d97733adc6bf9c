package pck

import (
	"crypto/ecdsa"
	"encoding/pem"
	"fmt"
	"time"
)

// IssuerChain is the parsed chain of a PCK CA: its certificate and the root's, as PCS sends it beside a revocation list in
// the header SGX-PCK-CRL-Issuer-Chain. With it a revocation list can be verified before any quote is at hand. It is not
// trusted before Verify.
type IssuerChain struct {
	intermediate, root *certificate
	ca                 CA
}

// ParseIssuerChain decodes two PEM certificates, in the order PCK CA, root. Nothing is verified.
func ParseIssuerChain(raw []byte) (*IssuerChain, error) { return parseIssuerChain(raw, nil) }

func parseIssuerChain(raw []byte, known *Store) (*IssuerChain, error) {
	certs, err := parsePEM(raw, 2, known)
	if err != nil {
		return nil, err
	}
	c := &IssuerChain{intermediate: certs[0], root: certs[1]} // checkRoot looks at the root's name
	switch cn := certs[0].Subject.CommonName; cn {
	case ProcessorCN:
		c.ca = ProcessorCA
	case PlatformCN:
		c.ca = PlatformCA
	default:
		return nil, fmt.Errorf("%w: PCK CA is called %q", ErrName, cn)
	}
	return c, nil
}

// Issuer returns the part of the chain that issued the PCK certificate. It is as trusted as c is.
func (c *Chain) Issuer() *IssuerChain {
	return &IssuerChain{intermediate: c.intermediate, root: c.root, ca: c.ca}
}

// Verify checks names, issuer, uses, signatures and validity at now up to a root certificate that holds the trusted key,
// and that rootCRL is in force (see CRL) and does not revoke the PCK CA.
func (c *IssuerChain) Verify(trusted *ecdsa.PublicKey, rootCRL *CRL, now time.Time, grace time.Duration) error {
	if err := verifyIssuer(c.intermediate, c.root, NewStore(trusted)); err != nil {
		return err
	}
	return c.Check(rootCRL, now, grace)
}

// Check checks only validity at now and revocation by rootCRL, for a chain that is verified.
func (c *IssuerChain) Check(rootCRL *CRL, now time.Time, grace time.Duration) error {
	if err := checkAll(now, c.root, c.intermediate); err != nil {
		return err
	}
	if err := rootCRL.verify("root revocation list", c.root, now, grace); err != nil {
		return err
	}
	if rootCRL.revokes(c.intermediate) {
		return fmt.Errorf("%w: PCK CA certificate %x", ErrRevoked, c.intermediate.SerialNumber)
	}
	return nil
}

// CheckCRL verifies that the PCK CA issued the revocation list and that it is in force at now; see CRL. The chain must
// have been verified.
func (c *IssuerChain) CheckCRL(pckCRL *CRL, now time.Time, grace time.Duration) error {
	return pckCRL.verify("PCK revocation list", c.intermediate, now, grace)
}

// CA returns which authority the chain is of.
func (c *IssuerChain) CA() CA { return c.ca }

// NotAfter returns the earlier end of validity in the chain.
func (c *IssuerChain) NotAfter() time.Time { return earliest(c.intermediate, c.root) }

// PEM encodes the chain, PCK CA first.
func (c *IssuerChain) PEM() (out []byte) {
	for _, cert := range []*certificate{c.intermediate, c.root} {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})...)
	}
	return out
}
