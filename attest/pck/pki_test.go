package pck_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"math/big"
	"slices"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/pck"
)

var (
	now       = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	notBefore = now.AddDate(-1, 0, 0)
	notAfter  = now.AddDate(1, 0, 0)
	oidSGX    = asn1.ObjectIdentifier{1, 2, 840, 113741, 1, 13, 1}
)

const (
	root = iota
	ca
	leaf
	signing
)

// pki is a set of certificates in Intel's shape, under keys of the test. A change edits a template before it is signed.
type pki struct {
	keys  [4]*ecdsa.PrivateKey
	certs [4]*x509.Certificate
}

type change func(role int, template *x509.Certificate)

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newPKI(t testing.TB, changes ...change) *pki {
	t.Helper()
	p := &pki{}
	for i := range p.keys {
		p.keys[i] = newKey(t)
	}
	for role, cn := range []string{pck.RootCN, pck.ProcessorCN, pck.LeafCN, pck.TCBSigningCN} {
		p.issue(t, role, cn, changes...)
	}
	return p
}

// issue makes the certificate of a role again, for the same key.
func (p *pki) issue(t testing.TB, role int, cn string, changes ...change) {
	t.Helper()
	isCA := role == root || role == ca
	template := &x509.Certificate{
		SerialNumber: big.NewInt(int64(100 + role)),
		Subject:      pkix.Name{CommonName: cn, Organization: []string{"Intel Corporation"}},
		NotBefore:    notBefore, NotAfter: notAfter,
		BasicConstraintsValid: true, IsCA: isCA, KeyUsage: x509.KeyUsageDigitalSignature,
		SubjectKeyId: []byte{byte(role + 1)},
	}
	if isCA {
		template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	}
	if role == leaf {
		template.ExtraExtensions = []pkix.Extension{{Id: oidSGX, Value: sgxExtension(t, nil)}}
	}
	for _, c := range changes {
		c(role, template)
	}
	parent, by := template, p.keys[root]
	switch role {
	case ca, signing:
		parent = p.certs[root]
	case leaf:
		parent, by = p.certs[ca], p.keys[ca]
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &p.keys[role].PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	if p.certs[role], err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
}

func (p *pki) pem(roles ...int) (out []byte) {
	for _, role := range roles {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: p.certs[role].Raw})...)
	}
	return out
}

func (p *pki) chain(t testing.TB) *pck.Chain {
	t.Helper()
	c, err := pck.ParseChain(p.pem(leaf, ca, root))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func (p *pki) trusted() *ecdsa.PublicKey { return &p.keys[root].PublicKey }

// crl returns a revocation list of issuer with the given serial numbers.
func (p *pki) crl(t testing.TB, issuer int, change func(*x509.RevocationList), serials ...int64) []byte {
	t.Helper()
	template := &x509.RevocationList{Number: big.NewInt(7), ThisUpdate: notBefore, NextUpdate: notAfter}
	for _, s := range serials {
		template.RevokedCertificateEntries = append(template.RevokedCertificateEntries,
			x509.RevocationListEntry{SerialNumber: big.NewInt(s), RevocationTime: notBefore})
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateRevocationList(rand.Reader, template, p.certs[issuer], p.keys[issuer])
	if err != nil {
		t.Fatal(err)
	}
	return der
}

func parseCRL(t testing.TB, der []byte) *pck.CRL {
	t.Helper()
	c, err := pck.ParseCRL(der)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// part is one element of the SGX extension.
type part struct {
	ID    asn1.ObjectIdentifier
	Value any
}

func sub(numbers ...int) asn1.ObjectIdentifier { return append(slices.Clone(oidSGX), numbers...) }

// sgxExtension encodes the SGX extension of a platform whose component i has SVN i+1, after edit has changed it.
func sgxExtension(t testing.TB, edit func(parts, tcb []part) ([]part, []part)) []byte {
	t.Helper()
	var tcb []part
	for i := 1; i <= 16; i++ {
		tcb = append(tcb, part{sub(2, i), i})
	}
	tcb = append(tcb, part{sub(2, 17), 13}, part{sub(2, 18), bytes.Repeat([]byte{0xcc}, 16)})
	parts := []part{
		{sub(1), bytes.Repeat([]byte{0xaa}, 16)}, {sub(2), nil}, {sub(3), []byte{0, 1}},
		{sub(4), []byte{1, 2, 3, 4, 5, 6}}, {sub(5), asn1.Enumerated(1)},
	}
	if edit != nil {
		parts, tcb = edit(parts, tcb)
	}
	for i := range parts {
		if parts[i].Value == nil {
			parts[i].Value = tcb
		}
	}
	der, err := asn1.Marshal(parts)
	if err != nil {
		t.Fatal(err)
	}
	return der
}
