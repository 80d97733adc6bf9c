package pck_test

import (
	"bytes"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/pem"
	"errors"
	"math/big"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/pck"
)

func TestChain(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	c := p.chain(t)
	if err := c.Verify(p.trusted(), now); err != nil {
		t.Fatal(err)
	}
	e := c.Extensions()
	want := [16]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16}
	if e.Components != want || e.PCESVN != 13 || e.FMSPC != [6]byte{1, 2, 3, 4, 5, 6} || e.PCEID != [2]byte{0, 1} ||
		e.PPID[0] != 0xaa || e.CPUSVN[0] != 0xcc || e.Type != pck.TypeScalable || c.CA() != pck.ProcessorCA {
		t.Fatalf("extensions %+v, CA %s", e, c.CA())
	}
	if !c.Key().Equal(&p.keys[leaf].PublicKey) || !c.NotAfter().Equal(notAfter) {
		t.Fatal("wrong key or expiry")
	}
}

// TestPEM covers the forms that occur in real quotes, and refuses the rest.
func TestPEM(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	good := p.pem(leaf, ca, root)
	for name, raw := range map[string][]byte{
		"trailing NUL":     append(slices.Clone(good), 0),
		"no last newline":  bytes.TrimRight(good, "\n"),
		"windows newlines": bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")),
		"no newline between certificates": bytes.ReplaceAll(good, []byte("-----END CERTIFICATE-----\n-----BEGIN"),
			[]byte("-----END CERTIFICATE----------BEGIN")),
		"another order":   p.pem(root, leaf, ca),
		"leaf, root, CA":  p.pem(leaf, root, ca),
		"newlines around": append([]byte("\n\n"), append(slices.Clone(good), '\n')...),
	} {
		c, err := pck.ParseChain(raw)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if err := c.Verify(p.trusted(), now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want error
	}{
		"empty":             {nil, pck.ErrFormat},
		"two certificates":  {p.pem(leaf, ca), pck.ErrFormat},
		"four certificates": {p.pem(leaf, ca, root, root), pck.ErrFormat},
		"two leaves":        {p.pem(leaf, leaf, root), pck.ErrName},
		"two roots":         {p.pem(leaf, root, root), pck.ErrName},
		"foreign name":      {p.pem(leaf, signing, root), pck.ErrName},
		"text before":       {append([]byte("x\n"), good...), pck.ErrFormat},
		"text after":        {append(slices.Clone(good), 'x'), pck.ErrFormat},
		"NUL between":       {bytes.Replace(good, []byte("-----END CERTIFICATE-----\n"), []byte("-----END CERTIFICATE-----\x00"), 1), pck.ErrFormat},
		"key in the file":   {bytes.ReplaceAll(good, []byte("CERTIFICATE"), []byte("PUBLIC KEY")), pck.ErrFormat},
		"headers":           {bytes.Replace(good, []byte("CERTIFICATE-----\n"), []byte("CERTIFICATE-----\nA: b\n\n"), 1), pck.ErrFormat},
		"bad base64":        {bytes.Replace(good, []byte("\nMII"), []byte("\n!II"), 1), pck.ErrFormat},
		"bad DER":           {bytes.Replace(good, []byte("\nMII"), []byte("\nMIJ"), 1), pck.ErrFormat},
		"oversized":         {append(slices.Clone(good), bytes.Repeat([]byte("\n"), 64<<10)...), pck.ErrFormat},
	} {
		if c, err := pck.ParseChain(tc.raw); !errors.Is(err, tc.want) || c != nil {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	for n := range len(good) - 1 {
		if c, err := pck.ParseChain(good[:n]); err == nil || c != nil {
			t.Fatalf("accepted %d of %d bytes", n, len(good))
		}
	}
}

// TestRootByKey is the difference between pinning a root key and pinning a root certificate: Intel reissued its root.
func TestRootByKey(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	old := p.certs[root].Raw
	p.issue(t, root, pck.RootCN, func(_ int, template *x509.Certificate) {
		template.SerialNumber, template.NotAfter = big.NewInt(999), notAfter.AddDate(10, 0, 0)
	})
	if bytes.Equal(old, p.certs[root].Raw) {
		t.Fatal("the root certificate was not reissued")
	}
	if err := p.chain(t).Verify(p.trusted(), now); err != nil {
		t.Errorf("reissued root certificate refused: %v", err)
	}
	// The attack: a whole PKI of the same names under another key.
	if err := newPKI(t).chain(t).Verify(p.trusted(), now); !errors.Is(err, pck.ErrUntrusted) {
		t.Errorf("foreign root: %v", err)
	}
	if err := p.chain(t).Verify(nil, now); !errors.Is(err, pck.ErrUntrusted) {
		t.Errorf("no trusted key: %v", err)
	}
	// A root certificate for the trusted key that the trusted key did not sign: the last byte of its signature changed.
	der := slices.Clone(p.certs[root].Raw)
	der[len(der)-1] ^= 1
	var err error
	if p.certs[root], err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	if err := p.chain(t).Verify(p.trusted(), now); !errors.Is(err, pck.ErrSignature) {
		t.Errorf("root certificate with a forged signature: %v", err)
	}
}

func TestChainRefused(t *testing.T) {
	t.Parallel()
	on := func(role int, edit func(*x509.Certificate)) change {
		return func(r int, template *x509.Certificate) {
			if r == role {
				edit(template)
			}
		}
	}
	expired := func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Second) }
	early := func(c *x509.Certificate) { c.NotBefore = now.Add(time.Second) }
	noCA := func(c *x509.Certificate) { c.IsCA, c.MaxPathLen = false, 0 }
	for name, tc := range map[string]struct {
		change change
		want   error
	}{
		"root expired":              {on(root, expired), pck.ErrValidity},
		"CA expired":                {on(ca, expired), pck.ErrValidity},
		"leaf expired":              {on(leaf, expired), pck.ErrValidity},
		"root not yet valid":        {on(root, early), pck.ErrValidity},
		"CA not yet valid":          {on(ca, early), pck.ErrValidity},
		"leaf not yet valid":        {on(leaf, early), pck.ErrValidity},
		"CA is no CA":               {on(ca, noCA), pck.ErrUsage},
		"CA without key usage":      {on(ca, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }), pck.ErrUsage},
		"root is no CA":             {on(root, noCA), pck.ErrUsage},
		"leaf is a CA":              {on(leaf, func(c *x509.Certificate) { c.IsCA = true }), pck.ErrUsage},
		"leaf may sign":             {on(leaf, func(c *x509.Certificate) { c.KeyUsage |= x509.KeyUsageCertSign; c.IsCA = false }), pck.ErrUsage},
		"leaf has no digital usage": {on(leaf, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageKeyAgreement }), pck.ErrUsage},
	} {
		p := newPKI(t, tc.change)
		if err := p.chain(t).Verify(p.trusted(), now); !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	// Splices: certificates of another PKI with the same names.
	p, q := newPKI(t), newPKI(t)
	for name, role := range map[string]int{"foreign CA": ca, "foreign leaf": leaf} {
		spliced := *p
		spliced.certs[role] = q.certs[role]
		if err := spliced.chain(t).Verify(p.trusted(), now); !errors.Is(err, pck.ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A leaf that the right key signed under another issuer name.
	renamed := newPKI(t)
	renamed.issue(t, ca, pck.PlatformCN)
	if err := renamed.chain(t).Verify(renamed.trusted(), now); !errors.Is(err, pck.ErrName) {
		t.Errorf("leaf of another issuer name: %v", err)
	}
}

// TestBoundaries: both ends of a validity period belong to it, as in Intel's library.
func TestBoundaries(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	c := p.chain(t)
	for at, ok := range map[time.Time]bool{
		notBefore: true, notAfter: true, notBefore.Add(-time.Second): false, notAfter.Add(time.Second): false,
	} {
		if err := c.Verify(p.trusted(), at); (err == nil) != ok {
			t.Errorf("at %v: %v", at, err)
		}
	}
}

func TestExtensionsRefused(t *testing.T) {
	t.Parallel()
	type edit = func(parts, tcb []part) ([]part, []part)
	for name, e := range map[string]edit{
		"no PPID":        func(p, tcb []part) ([]part, []part) { return p[1:], tcb },
		"no FMSPC":       func(p, tcb []part) ([]part, []part) { return slices.Delete(p, 3, 4), tcb },
		"FMSPC twice":    func(p, tcb []part) ([]part, []part) { return append(p, p[3]), tcb },
		"unknown part":   func(p, tcb []part) ([]part, []part) { return append(p, part{sub(9), 1}), tcb },
		"foreign OID":    func(p, tcb []part) ([]part, []part) { return append(p, part{asn1.ObjectIdentifier{1, 2, 3}, 1}), tcb },
		"short FMSPC":    func(p, tcb []part) ([]part, []part) { p[3].Value = []byte{1, 2, 3}; return p, tcb },
		"FMSPC integer":  func(p, tcb []part) ([]part, []part) { p[3].Value = 7; return p, tcb },
		"SGX type 3":     func(p, tcb []part) ([]part, []part) { p[4].Value = asn1.Enumerated(3); return p, tcb },
		"SVN 256":        func(p, tcb []part) ([]part, []part) { tcb[0].Value = 256; return p, tcb },
		"SVN negative":   func(p, tcb []part) ([]part, []part) { tcb[0].Value = -1; return p, tcb },
		"PCESVN 65536":   func(p, tcb []part) ([]part, []part) { tcb[16].Value = 65536; return p, tcb },
		"component lost": func(p, tcb []part) ([]part, []part) { return p, slices.Delete(tcb, 4, 5) },
		"component twice": func(p, tcb []part) ([]part, []part) {
			tcb[5].ID = tcb[4].ID
			return p, tcb
		},
		"component 19": func(p, tcb []part) ([]part, []part) { return p, append(tcb, part{sub(2, 19), 1}) },
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
	whole := sgxExtension(t, nil)
	for n := 0; n < len(whole); n += 5 {
		p := newPKI(t, func(role int, template *x509.Certificate) {
			if role == leaf {
				template.ExtraExtensions[0].Value = whole[:n]
			}
		})
		if _, err := pck.ParseChain(p.pem(leaf, ca, root)); !errors.Is(err, pck.ErrExtensions) {
			t.Errorf("truncated to %d: %v", n, err)
		}
	}
	p := newPKI(t, func(_ int, template *x509.Certificate) { template.ExtraExtensions = nil })
	if _, err := pck.ParseChain(p.pem(leaf, ca, root)); !errors.Is(err, pck.ErrExtensions) {
		t.Errorf("no extension: %v", err)
	}
}

func TestUnknownCriticalExtension(t *testing.T) {
	t.Parallel()
	p := newPKI(t, func(role int, template *x509.Certificate) {
		if role == ca {
			template.ExtraExtensions = []pkix.Extension{{Id: asn1.ObjectIdentifier{1, 2, 3}, Critical: true, Value: []byte{5, 0}}}
		}
	})
	if _, err := pck.ParseChain(p.pem(leaf, ca, root)); !errors.Is(err, pck.ErrFormat) {
		t.Errorf("accepted: %v", err)
	}
}

func TestRevocation(t *testing.T) {
	t.Parallel()
	p, other := newPKI(t), newPKI(t)
	goodRoot, goodPCK := p.crl(t, root, nil, 5), p.crl(t, ca, nil, 5)
	late := func(c *x509.RevocationList) { c.NextUpdate = now.Add(-time.Hour) }
	early := func(c *x509.RevocationList) { c.ThisUpdate = now.Add(time.Hour) }
	for name, tc := range map[string]struct {
		root, pck []byte
		grace     time.Duration
		want      error
	}{
		"good":                      {goodRoot, goodPCK, 0, nil},
		"leaf revoked":              {goodRoot, p.crl(t, ca, nil, 5, 102), 0, pck.ErrRevoked},
		"CA revoked":                {p.crl(t, root, nil, 101), goodPCK, 0, pck.ErrRevoked},
		"leaf in the root's list":   {p.crl(t, root, nil, 102), goodPCK, 0, nil},
		"lists exchanged":           {goodPCK, goodRoot, 0, pck.ErrCRLIssuer},
		"root list twice":           {goodRoot, goodRoot, 0, pck.ErrCRLIssuer},
		"root list by another key":  {other.crl(t, root, nil), goodPCK, 0, pck.ErrSignature},
		"PCK list by another key":   {goodRoot, other.crl(t, ca, nil), 0, pck.ErrSignature},
		"root list expired":         {p.crl(t, root, late), goodPCK, 0, pck.ErrValidity},
		"PCK list expired":          {goodRoot, p.crl(t, ca, late), 0, pck.ErrValidity},
		"root list in the future":   {p.crl(t, root, early), goodPCK, 0, pck.ErrValidity},
		"PCK list in the future":    {goodRoot, p.crl(t, ca, early), time.Hour * 2, pck.ErrValidity},
		"expired within grace":      {p.crl(t, root, late), p.crl(t, ca, late), time.Hour, nil},
		"expired beyond grace":      {p.crl(t, root, late), goodPCK, time.Hour - time.Second, pck.ErrValidity},
		"revoked and within grace":  {goodRoot, p.crl(t, ca, late, 102), time.Hour, pck.ErrRevoked},
		"revoked by an early entry": {goodRoot, p.crl(t, ca, nil, 102, 5), 0, pck.ErrRevoked},
	} {
		err := p.chain(t).CheckRevocation(parseCRL(t, tc.root), parseCRL(t, tc.pck), now, tc.grace)
		if !errors.Is(err, tc.want) {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	if err := p.chain(t).CheckRevocation(nil, parseCRL(t, goodPCK), now, 0); !errors.Is(err, pck.ErrCRL) {
		t.Errorf("no root list: %v", err)
	}
	if err := p.chain(t).CheckRevocation(parseCRL(t, goodRoot), nil, now, 0); !errors.Is(err, pck.ErrCRL) {
		t.Errorf("no PCK list: %v", err)
	}
}

// TestCRLForgetsNothing: a list that was verified under one PKI is still refused under another, and after its time.
func TestCRLForgetsNothing(t *testing.T) {
	t.Parallel()
	p, other := newPKI(t), newPKI(t)
	rootList, pckList := parseCRL(t, p.crl(t, root, nil)), parseCRL(t, p.crl(t, ca, nil))
	for range 2 {
		if err := p.chain(t).CheckRevocation(rootList, pckList, now, 0); err != nil {
			t.Fatal(err)
		}
		if err := other.chain(t).CheckRevocation(rootList, pckList, now, 0); !errors.Is(err, pck.ErrSignature) {
			t.Fatalf("under another PKI: %v", err)
		}
		if err := p.chain(t).CheckRevocation(rootList, pckList, notAfter.Add(1), 0); !errors.Is(err, pck.ErrValidity) {
			t.Fatalf("after its time: %v", err)
		}
	}
}

func TestParseCRL(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	der := p.crl(t, root, nil, 1, 2, 3)
	inPEM := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	for name, raw := range map[string][]byte{"DER": der, "PEM": inPEM, "PEM and NUL": append(slices.Clone(inPEM), 0)} {
		c := parseCRL(t, raw)
		if c.Len() != 3 || c.Number().Int64() != 7 || !c.ThisUpdate().Equal(notBefore) || !c.NextUpdate().Equal(notAfter) {
			t.Errorf("%s: %d entries, number %v, %v to %v", name, c.Len(), c.Number(), c.ThisUpdate(), c.NextUpdate())
		}
	}
	extension := func(id ...int) func(*x509.RevocationList) {
		return func(c *x509.RevocationList) {
			c.ExtraExtensions = []pkix.Extension{{Id: id, Critical: true, Value: []byte{2, 1, 1}}}
		}
	}
	for name, raw := range map[string][]byte{
		"empty":                      nil,
		"trailing byte":              append(slices.Clone(der), 0),
		"delta list":                 p.crl(t, root, extension(2, 5, 29, 27)),
		"partitioned list":           p.crl(t, root, extension(2, 5, 29, 28)),
		"a certificate":              p.certs[root].Raw,
		"PEM of another type":        []byte(strings.ReplaceAll(string(inPEM), "X509 CRL", "CERTIFICATE")),
		"two PEM lists":              append(slices.Clone(inPEM), inPEM...),
		"oversized":                  make([]byte, 64<<10+1),
		"hexadecimal instead of DER": []byte("3082011b"),
	} {
		if c, err := pck.ParseCRL(raw); !errors.Is(err, pck.ErrCRL) || c != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range der {
		if c, err := pck.ParseCRL(der[:n]); err == nil || c != nil {
			t.Fatalf("accepted %d of %d bytes", n, len(der))
		}
	}
}

func TestSigningChain(t *testing.T) {
	t.Parallel()
	p := newPKI(t)
	list := func(serials ...int64) *pck.CRL { return parseCRL(t, p.crl(t, root, nil, serials...)) }
	parse := func(p *pki) *pck.SigningChain {
		c, err := pck.ParseSigningChain(p.pem(signing, root))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	c := parse(p)
	if err := c.Verify(p.trusted(), list(5), now, 0); err != nil {
		t.Fatal(err)
	}
	if !c.Key().Equal(&p.keys[signing].PublicKey) || !c.NotAfter().Equal(notAfter) {
		t.Error("wrong key or expiry")
	}
	if err := c.Verify(p.trusted(), list(103), now, 0); !errors.Is(err, pck.ErrRevoked) {
		t.Errorf("revoked: %v", err)
	}
	if err := c.Verify(p.trusted(), nil, now, 0); !errors.Is(err, pck.ErrCRL) {
		t.Errorf("no list: %v", err)
	}
	if err := c.Verify(p.trusted(), list(), notAfter.Add(time.Second), 24*time.Hour); !errors.Is(err, pck.ErrValidity) {
		t.Errorf("grace extends a certificate: %v", err)
	}
	if err := c.Verify(&newKey(t).PublicKey, list(), now, 0); !errors.Is(err, pck.ErrUntrusted) {
		t.Errorf("foreign root: %v", err)
	}
	spliced := *p
	spliced.certs[signing] = newPKI(t).certs[signing]
	if err := parse(&spliced).Verify(p.trusted(), list(), now, 0); !errors.Is(err, pck.ErrSignature) {
		t.Errorf("foreign signing certificate: %v", err)
	}
	// A PCK certificate's key must not sign collateral, whatever its chain.
	for name, raw := range map[string][]byte{
		"leaf": p.pem(leaf, root), "three": p.pem(signing, ca, root), "reversed": p.pem(root, signing), "empty": nil,
	} {
		if c, err := pck.ParseSigningChain(raw); err == nil || c != nil {
			t.Errorf("%s accepted", name)
		}
	}
}

func FuzzParseChain(f *testing.F) {
	p := newPKI(f)
	f.Add(p.pem(leaf, ca, root))
	f.Add(p.pem(root, ca))
	f.Add([]byte("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := pck.ParseChain(raw)
		if (c == nil) != (err != nil) {
			t.Fatal("a chain beside an error")
		}
		if err == nil && c.Verify(&newKey(t).PublicKey, now) == nil {
			t.Fatal("verified under a fresh key")
		}
	})
}

func FuzzParseCRL(f *testing.F) {
	p := newPKI(f)
	f.Add(p.crl(f, root, nil, 1, 2, 3))
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := pck.ParseCRL(raw)
		if (c == nil) != (err != nil) {
			t.Fatal("a list beside an error")
		}
		if err == nil && (c.Number() == nil || c.NextUpdate().IsZero()) {
			t.Fatal("accepted a list without number or end")
		}
	})
}
