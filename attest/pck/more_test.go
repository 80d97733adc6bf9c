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
	"errors"
	"math/big"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/pck"
)

// TestIssuerChain verifies revocation lists before any quote is at hand.
func TestIssuerChain(t *testing.T) {
	t.Parallel()
	p, foreign := newPKI(t), newPKI(t)
	parse := func(raw []byte) *pck.IssuerChain {
		t.Helper()
		c, err := pck.ParseIssuerChain(raw)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	list := func(p *pki, issuer int, serials ...int64) *pck.CRL {
		return parseCRL(t, p.crl(t, issuer, nil, serials...))
	}
	c := parse(p.pem(ca, root))
	if err := c.Verify(p.trusted(), list(p, root), now, 0); err != nil {
		t.Fatal(err)
	}
	if c.CA() != pck.ProcessorCA || !c.NotAfter().Equal(notAfter) || !bytes.Equal(c.PEM(), p.pem(ca, root)) {
		t.Errorf("CA %s to %v", c.CA(), c.NotAfter())
	}
	if got := p.chain(t).Issuer().PEM(); !bytes.Equal(got, p.pem(ca, root)) {
		t.Error("the chain's issuer is another")
	}
	pckList := list(p, ca, 1, 2)
	if pckList.Signed() {
		t.Error("a list counts as signed that nobody verified")
	}
	if err := c.CheckCRL(pckList, now, 0); err != nil || !pckList.Signed() {
		t.Errorf("its own list: %v", err)
	}
	for name, tc := range map[string]struct {
		err  error
		want error
	}{
		"revoked":              {c.Verify(p.trusted(), list(p, root, 101), now, 0), pck.ErrRevoked},
		"no list":              {c.Verify(p.trusted(), nil, now, 0), pck.ErrCRL},
		"CA's list as root's":  {c.Verify(p.trusted(), list(p, ca), now, 0), pck.ErrCRLIssuer},
		"root's list as CA's":  {c.CheckCRL(list(p, root), now, 0), pck.ErrCRLIssuer},
		"foreign list":         {c.CheckCRL(list(foreign, ca), now, 0), pck.ErrSignature},
		"list of the future":   {c.CheckCRL(list(p, ca), notBefore.Add(-time.Second), time.Hour), pck.ErrValidity},
		"foreign root":         {c.Verify(foreign.trusted(), list(p, root), now, 0), pck.ErrUntrusted},
		"no key to trust":      {c.Verify(nil, list(p, root), now, 0), pck.ErrUntrusted},
		"expired":              {c.Verify(p.trusted(), list(p, root), notAfter.Add(time.Second), time.Hour), pck.ErrValidity},
		"too early":            {c.Verify(p.trusted(), list(p, root), notBefore.Add(-time.Second), time.Hour), pck.ErrValidity},
		"foreign CA":           {parse(append(foreign.pem(ca), p.pem(root)...)).Verify(p.trusted(), list(p, root), now, 0), pck.ErrSignature},
		"CA that signs itself": {parse(p.pem(ca, ca)).Verify(p.trusted(), list(p, root), now, 0), pck.ErrName},
	} {
		if !errors.Is(tc.err, tc.want) {
			t.Errorf("%s: %v", name, tc.err)
		}
	}
	for name, raw := range map[string][]byte{
		"empty": nil, "signer": p.pem(signing, root), "leaf": p.pem(leaf, root), "reversed": p.pem(root, ca), "one": p.pem(ca), "three": p.pem(leaf, ca, root),
	} {
		if c, err := pck.ParseIssuerChain(raw); err == nil || c != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	platform := newPKI(t, func(role int, template *x509.Certificate) {
		if role == ca {
			template.Subject.CommonName = pck.PlatformCN
		}
	})
	if got := parse(platform.pem(ca, root)).CA(); got != pck.PlatformCA {
		t.Errorf("platform CA told as %s", got)
	}
	noCA := newPKI(t, func(role int, template *x509.Certificate) {
		if role == ca {
			template.KeyUsage = x509.KeyUsageCertSign
		}
	})
	if err := parse(noCA.pem(ca, root)).Verify(noCA.trusted(), list(noCA, root), now, 0); !errors.Is(err, pck.ErrUsage) {
		t.Errorf("CA that may not sign lists: %v", err)
	}
}

// TestPlatformExtensions reads the two parts that only the platform CA's certificates have.
func TestPlatformExtensions(t *testing.T) {
	t.Parallel()
	instance := bytes.Repeat([]byte{0xdd}, 16)
	configuration := []part{{sub(7, 1), true}, {sub(7, 2), false}}
	for name, tc := range map[string]struct {
		instance, configuration any
		ok                      bool
	}{
		"both":                    {instance, configuration, true},
		"short instance":          {instance[1:], configuration, false},
		"instance is a number":    {7, configuration, false},
		"configuration a string":  {instance, []byte{1}, false},
		"configuration is a flag": {instance, true, false},
	} {
		p := newPKI(t, func(role int, template *x509.Certificate) {
			if role == leaf {
				template.ExtraExtensions[0].Value = sgxExtension(t, func(p, tcb []part) ([]part, []part) {
					return append(p, part{sub(6), tc.instance}, part{sub(7), tc.configuration}), tcb
				})
			}
		})
		c, err := pck.ParseChain(p.pem(leaf, ca, root))
		if (err == nil) != tc.ok || err != nil && !errors.Is(err, pck.ErrExtensions) {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			continue
		}
		if e := c.Extensions(); e.InstanceID == nil || !bytes.Equal(e.InstanceID[:], instance) || len(e.Configuration) == 0 {
			t.Errorf("%s: %+v", name, e)
		}
	}
}

// TestExtensionTypes: parts of the right number and the wrong ASN.1 type.
func TestExtensionTypes(t *testing.T) {
	t.Parallel()
	type edit = func(parts, tcb []part) ([]part, []part)
	for name, e := range map[string]edit{
		"TCB is a number":    func(p, tcb []part) ([]part, []part) { p[1].Value = 7; return p, tcb },
		"CPUSVN is a number": func(p, tcb []part) ([]part, []part) { tcb[17].Value = 7; return p, tcb },
		"CPUSVN too short":   func(p, tcb []part) ([]part, []part) { tcb[17].Value = []byte{1}; return p, tcb },
		"SVN is a string":    func(p, tcb []part) ([]part, []part) { tcb[3].Value = []byte{1}; return p, tcb },
		"type is a number":   func(p, tcb []part) ([]part, []part) { p[4].Value = 1; return p, tcb },
		"part is a number":   func(p, tcb []part) ([]part, []part) { p[0].Value = []byte{1}; return p, tcb },
		"part of the TCB":    func(p, tcb []part) ([]part, []part) { return append(p, part{sub(2, 1), 1}), tcb },
	} {
		p := newPKI(t, func(role int, template *x509.Certificate) {
			if role == leaf {
				template.ExtraExtensions[0].Value = sgxExtension(t, e)
			}
		})
		if c, err := pck.ParseChain(p.pem(leaf, ca, root)); !errors.Is(err, pck.ErrExtensions) || c != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestForeignAlgorithms: certificates and lists under keys and signatures that Intel's PKI does not have.
func TestForeignAlgorithms(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := func() *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: pck.RootCN}, NotBefore: notBefore, NotAfter: notAfter,
			BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, SubjectKeyId: []byte{1},
		}
	}
	p := newPKI(t)
	encode := func(template *x509.Certificate, key, signer *ecdsa.PrivateKey) []byte {
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, signer)
		if err != nil {
			t.Fatal(err)
		}
		return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	}
	sha512 := template()
	sha512.SignatureAlgorithm = x509.ECDSAWithSHA512
	for name, raw := range map[string][]byte{
		"P-384 key": encode(template(), p384, p384),
		"SHA-512":   encode(sha512, p.keys[root], p.keys[root]),
	} {
		if c, err := pck.ParseChain(append(p.pem(leaf, ca), raw...)); !errors.Is(err, pck.ErrFormat) || c != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if c, err := pck.ParseChain(append(p.pem(leaf, ca), version1(t, p)...)); !errors.Is(err, pck.ErrFormat) || c != nil {
		t.Errorf("version 1: %v", err)
	}
	for name, change := range map[string]func(c *x509.RevocationList){
		"SHA-512":           func(c *x509.RevocationList) { c.SignatureAlgorithm = x509.ECDSAWithSHA512 },
		"ends before it is": func(c *x509.RevocationList) { c.ThisUpdate, c.NextUpdate = notAfter, notAfter.Add(time.Second) },
	} {
		der := p.crl(t, root, change)
		if name == "ends before it is" { // the library does not write such a list: exchange the dates in the encoding
			later := []byte(notAfter.Add(time.Second).UTC().Format("060102150405Z"))
			der = bytes.Replace(der, later, []byte(notBefore.UTC().Format("060102150405Z")), 1)
		}
		if c, err := pck.ParseCRL(der); !errors.Is(err, pck.ErrCRL) || c != nil {
			t.Errorf("list, %s: %v", name, err)
		}
	}
}

// version1 returns the root certificate as one of X.509 version 1, without extensions.
func version1(t *testing.T, p *pki) []byte {
	t.Helper()
	cert := p.certs[root]
	tbs, err := asn1.Marshal(struct {
		Serial    *big.Int
		Algorithm pkix.AlgorithmIdentifier
		Issuer    asn1.RawValue
		Validity  struct{ From, To time.Time }
		Subject   asn1.RawValue
		Key       asn1.RawValue
	}{
		big.NewInt(1), pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, asn1.RawValue{FullBytes: cert.RawSubject},
		struct{ From, To time.Time }{notBefore.UTC(), notAfter.UTC()}, asn1.RawValue{FullBytes: cert.RawSubject},
		asn1.RawValue{FullBytes: cert.RawSubjectPublicKeyInfo},
	})
	if err != nil {
		t.Fatal(err)
	}
	der, err := asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{
		asn1.RawValue{FullBytes: tbs}, pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}},
		asn1.BitString{Bytes: cert.Signature, BitLength: 8 * len(cert.Signature)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if v1, err := x509.ParseCertificate(der); err != nil || v1.Version != 1 {
		t.Fatalf("no version 1 certificate: %v", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// TestChainEnds: a chain ends when the first of its certificates does.
func TestChainEnds(t *testing.T) {
	t.Parallel()
	for role, name := range map[int]string{root: "root", ca: "CA", leaf: "leaf"} {
		sooner := notAfter.Add(-time.Hour)
		p := newPKI(t, func(r int, template *x509.Certificate) {
			if r == role {
				template.NotAfter = sooner
			}
		})
		if got := p.chain(t).NotAfter(); !got.Equal(sooner) {
			t.Errorf("%s ends at %v, the chain at %v", name, sooner, got)
		}
	}
}

// TestExtensionTrailing: bytes after the SGX extension's sequence.
func TestExtensionTrailing(t *testing.T) {
	t.Parallel()
	p := newPKI(t, func(role int, template *x509.Certificate) {
		if role == leaf {
			template.ExtraExtensions[0].Value = append(sgxExtension(t, nil), 5, 0)
		}
	})
	if c, err := pck.ParseChain(p.pem(leaf, ca, root)); !errors.Is(err, pck.ErrExtensions) || c != nil {
		t.Error(err)
	}
}

// TestExtensionOfNumbers: a sequence of something other than parts.
func TestExtensionOfNumbers(t *testing.T) {
	t.Parallel()
	value, err := asn1.Marshal([]int{1, 2, 3})
	if err != nil {
		t.Fatal(err)
	}
	p := newPKI(t, func(role int, template *x509.Certificate) {
		if role == leaf {
			template.ExtraExtensions[0].Value = value
		}
	})
	if c, err := pck.ParseChain(p.pem(leaf, ca, root)); !errors.Is(err, pck.ErrExtensions) || c != nil {
		t.Error(err)
	}
}

// TestIssuerNames: a certificate under the right key and the wrong name of the issuer.
func TestIssuerNames(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	other := *p
	// The same keys; the root's certificate has one more attribute, so the names of its issue are not the root's of p.
	other.issue(t, root, pck.RootCN, func(_ int, template *x509.Certificate) { template.Subject.Country = []string{"US"} })
	other.issue(t, signing, pck.TCBSigningCN)
	other.issue(t, ca, pck.ProcessorCN)
	for name, raw := range map[string][]byte{
		"signer of another name's issue": append(other.pem(signing), p.pem(root)...),
	} {
		c, err := pck.ParseSigningChain(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Verify(p.trusted(), parseCRL(t, p.crl(t, root, nil)), now, 0); !errors.Is(err, pck.ErrName) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := pck.ParseIssuerChain(append(other.pem(ca), p.pem(root)...))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Verify(p.trusted(), parseCRL(t, p.crl(t, root, nil)), now, 0); !errors.Is(err, pck.ErrName) {
		t.Errorf("CA of another name's issue: %v", err)
	}
}
