package simpki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tdx"
)

var now = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

func newPKI(t *testing.T) *PKI {
	t.Helper()
	p, err := New(Config{Seed: [32]byte{1}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func newPlatform(t *testing.T, p *PKI, config PlatformConfig) *Platform {
	t.Helper()
	if config.Name == "" {
		config.Name = "machine"
	}
	m, err := p.Platform(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func collateral(t *testing.T, p *PKI, tee attest.TEE, at time.Time) *attest.Collateral {
	t.Helper()
	c, err := p.Collateral(tee, DefaultFMSPC, at)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func certificates(t *testing.T, raw []byte) (list []*x509.Certificate) {
	t.Helper()
	for block, rest := pem.Decode(raw); block != nil; block, rest = pem.Decode(rest) {
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, c)
	}
	return list
}

// Two processes that open one PKI must agree byte for byte, or nodes of one cluster would hold different collateral.
func TestDeterministic(t *testing.T) {
	a := newPKI(t)
	b, err := New(Config{Seed: [32]byte{1}, Now: now.Add(6 * time.Hour)}) // same UTC day
	if err != nil {
		t.Fatal(err)
	}
	if a.Root().ID() != b.Root().ID() || !bytes.Equal(a.RootCertificate(), b.RootCertificate()) {
		t.Error("roots differ")
	}
	qa, err := newPlatform(t, a, PlatformConfig{}).QuoteSGX(sgx.Report{ISVSVN: 3})
	if err != nil {
		t.Fatal(err)
	}
	qb, err := newPlatform(t, b, PlatformConfig{}).QuoteSGX(sgx.Report{ISVSVN: 3})
	if err != nil || !bytes.Equal(qa, qb) {
		t.Errorf("quotes differ (%v)", err)
	}
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		morning, evening := now.Truncate(day), now.Truncate(day).Add(day-time.Second)
		first := collateral(t, a, tee, morning).Hash()
		if collateral(t, b, tee, evening).Hash() != first {
			t.Errorf("%s collateral of one day differs", tee)
		}
		if collateral(t, b, tee, morning.Add(day)).Hash() == first {
			t.Errorf("%s collateral does not change from day to day", tee)
		}
	}
}

// The seed mints evidence: no formatting of the PKI may show it. And collateral once served must not change under a
// caller's hands.
func TestNoSeedAndNoAliasing(t *testing.T) {
	p, err := New(Config{Seed: [32]byte(bytes.Repeat([]byte{0xab}, 32)), Now: now})
	if err != nil {
		t.Fatal(err)
	}
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%q"} {
		text := fmt.Sprintf(format, p)
		if strings.Contains(text, "171") || strings.Contains(text, "abab") || strings.Contains(text, "0xab") {
			t.Errorf("%s shows the seed", format)
		}
	}
	first := collateral(t, p, attest.SGX, now)
	want := first.Hash()
	for _, part := range [][]byte{first.TCBInfo, first.QEIdentity, first.TCBSigningChain, first.PCKCRL, first.RootCRL} {
		clear(part)
	}
	second := collateral(t, p, attest.SGX, now)
	clear(second.TCBInfo)
	if collateral(t, p, attest.SGX, now).Hash() != want {
		t.Error("a caller changed what others are served")
	}
	for i := range 3 * maxServed {
		if _, err := p.Collateral(attest.SGX, [6]byte{byte(i)}, now); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.served) > maxServed {
		t.Errorf("%d answers remembered", len(p.served))
	}
}

func TestSeedAndNameSeparate(t *testing.T) {
	a := newPKI(t)
	b, err := New(Config{Seed: [32]byte{2}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	if a.Root().ID() == b.Root().ID() {
		t.Error("two seeds share a root")
	}
	m, other := newPlatform(t, a, PlatformConfig{Name: "a"}), newPlatform(t, a, PlatformConfig{Name: "b"})
	if m.PPID() == other.PPID() || bytes.Equal(m.pck.cert.Raw, other.pck.cert.Raw) {
		t.Error("two machines share an identity")
	}
	old := newPlatform(t, a, PlatformConfig{Name: "a", TCB: attest.StatusOutOfDate})
	if m.PPID() != old.PPID() {
		t.Error("an update changes the machine's PPID")
	}
	if m.pck.key.Equal(old.pck.key) {
		t.Error("two TCB levels of one machine share a PCK key")
	}
}

func TestConfigRefused(t *testing.T) {
	if _, err := New(Config{}); !errors.Is(err, ErrConfig) {
		t.Errorf("zero Config: %v, want ErrConfig", err)
	}
	p := newPKI(t)
	for name, c := range map[string]PlatformConfig{
		"no name":   {},
		"long name": {Name: strings.Repeat("x", MaxName+1)},
		"CA":        {Name: "m", CA: "root"},
		"TCB":       {Name: "m", TCB: attest.StatusTDRelaunchAdvised},
		"QE":        {Name: "m", QE: attest.StatusConfigurationNeeded},
		"module":    {Name: "m", Module: "uptodate"},
	} {
		if m, err := p.Platform(c); !errors.Is(err, ErrConfig) || m != nil {
			t.Errorf("%s: %v, want ErrConfig and no platform", name, err)
		}
	}
	if _, err := p.Collateral("", DefaultFMSPC, now); !errors.Is(err, ErrConfig) {
		t.Errorf("collateral without a TEE: %v", err)
	}
	if _, err := p.CollateralFor(attest.SGX, DefaultFMSPC, "x", now); !errors.Is(err, ErrConfig) {
		t.Errorf("collateral of an unknown CA: %v", err)
	}
	for _, at := range []time.Time{{}, now.Add(-past - 2*day), now.Add(signLife)} {
		if _, err := p.Collateral(attest.SGX, DefaultFMSPC, at); !errors.Is(err, ErrTime) {
			t.Errorf("collateral of %v: %v, want ErrTime", at, err)
		}
	}
	if err := p.RevokeCA("x", now); !errors.Is(err, ErrConfig) {
		t.Errorf("revoking an unknown CA: %v", err)
	}
	if err := errors.Join(p.Recover(now), p.Recover(now.Add(-time.Second))); !errors.Is(err, ErrConfig) {
		t.Errorf("a recovery before the last one: %v", err)
	}
}

// The chains hold under the standard library's own rules, which are not ours.
func TestChains(t *testing.T) {
	p := newPKI(t)
	for ca, name := range map[CA]string{PlatformCA: platformName, ProcessorCA: processorName} {
		chain := certificates(t, newPlatform(t, p, PlatformConfig{CA: ca}).Chain())
		names := []string{leafName, name, rootName}
		if len(chain) != 3 {
			t.Fatalf("%d certificates", len(chain))
		}
		for i, c := range chain {
			issuer := chain[min(i+1, 2)]
			if err := c.CheckSignatureFrom(issuer); err != nil {
				t.Errorf("%s: %v", names[i], err)
			}
			if c.Subject.CommonName != names[i] || !bytes.Equal(c.RawIssuer, issuer.RawSubject) {
				t.Errorf("certificate %d is %q by %q", i, c.Subject, c.Issuer)
			}
			if c.SerialNumber.BitLen() != 159 || new(big.Int).SetBytes(c.SubjectKeyId).Cmp(c.SerialNumber) != 0 {
				t.Errorf("%s: serial %x", names[i], c.SerialNumber)
			}
		}
		if chain[0].IsCA || chain[1].MaxPathLen != 0 || !chain[1].MaxPathLenZero || chain[2].MaxPathLen != 1 {
			t.Error("basic constraints are not Intel's")
		}
	}
	signing := certificates(t, collateral(t, p, attest.SGX, now).TCBSigningChain)
	if len(signing) != 2 || signing[0].Subject.CommonName != signingName || signing[0].IsCA {
		t.Fatalf("signing chain of %d", len(signing))
	}
	if err := signing[0].CheckSignatureFrom(signing[1]); err != nil {
		t.Error(err)
	}
	if key, ok := signing[1].PublicKey.(*ecdsa.PublicKey); !ok || !key.Equal(p.Root().Key) {
		t.Error("the chain does not end in the root")
	}
}

func TestRevocationLists(t *testing.T) {
	p := newPKI(t)
	m := newPlatform(t, p, PlatformConfig{})
	p.Revoke(m, now)
	if err := p.RevokeCA(ProcessorCA, now); err != nil {
		t.Fatal(err)
	}
	list := func(raw []byte, issuer authority) *x509.RevocationList {
		l, err := x509.ParseRevocationList(raw)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.CheckSignatureFrom(issuer.cert); err != nil {
			t.Fatal(err)
		}
		return l
	}
	before, after := collateral(t, p, attest.SGX, now.Add(-time.Second)), collateral(t, p, attest.SGX, now)
	for name, c := range map[string]struct {
		old, new *x509.RevocationList
		serial   *big.Int
	}{
		"PCK":  {list(before.PCKCRL, p.ca[PlatformCA]), list(after.PCKCRL, p.ca[PlatformCA]), m.pck.cert.SerialNumber},
		"root": {list(before.RootCRL, p.root), list(after.RootCRL, p.root), p.ca[ProcessorCA].cert.SerialNumber},
	} {
		if len(c.old.RevokedCertificateEntries) != 0 {
			t.Errorf("%s: revoked before its time", name)
		}
		if e := c.new.RevokedCertificateEntries; len(e) != 1 || e[0].SerialNumber.Cmp(c.serial) != 0 || e[0].ReasonCode != 1 {
			t.Errorf("%s: entries %v", name, e)
		}
		// As Intel's: the number says nothing, the date does.
		if c.new.Number.Cmp(c.old.Number) != 0 || !c.new.ThisUpdate.After(c.old.ThisUpdate) {
			t.Errorf("%s: number %v after %v, of %v after %v", name, c.new.Number, c.old.Number, c.new.ThisUpdate, c.old.ThisUpdate)
		}
	}
	next := list(collateral(t, p, attest.SGX, now.Add(day)).PCKCRL, p.ca[PlatformCA])
	if !next.ThisUpdate.After(list(after.PCKCRL, p.ca[PlatformCA]).ThisUpdate) {
		t.Error("the next day's list is not newer")
	}
}

// Answers are remembered; a script that reaches behind one that was already served must still show.
func TestScriptOutOfOrder(t *testing.T) {
	p := newPKI(t)
	late, early := newPlatform(t, p, PlatformConfig{Name: "late"}), newPlatform(t, p, PlatformConfig{Name: "early"})
	revoked := func(at time.Time) (names string) {
		l, err := x509.ParseRevocationList(collateral(t, p, attest.SGX, at).PCKCRL)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range l.RevokedCertificateEntries {
			for _, m := range []*Platform{late, early} {
				if m.pck.cert.SerialNumber.Cmp(e.SerialNumber) == 0 {
					names += m.name + " "
				}
			}
		}
		return names
	}
	p.Revoke(late, now.Add(time.Hour))
	if got := revoked(now.Add(time.Hour)); got != "late " {
		t.Fatalf("revoked: %q", got)
	}
	p.Revoke(early, now)
	if got := revoked(now); got != "early " {
		t.Errorf("revoked an hour before: %q", got)
	}
	if got := revoked(now.Add(time.Hour)); got != "late early " {
		t.Errorf("revoked then: %q", got)
	}
}

func TestExtension(t *testing.T) {
	m := newPlatform(t, newPKI(t), PlatformConfig{TCB: attest.StatusSWHardeningNeeded})
	var raw []byte
	for _, e := range m.pck.cert.Extensions {
		if e.Id.Equal(oid()) {
			raw = e.Value
		}
	}
	var list []struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(raw, &list); err != nil || len(rest) != 0 || len(list) != 7 {
		t.Fatalf("%d entries, %d bytes left, %v", len(list), len(rest), err)
	}
	ppid, fmspc := m.PPID(), m.FMSPC()
	if !list[0].ID.Equal(oid(1)) || !bytes.Equal(list[0].Value.Bytes, ppid[:]) {
		t.Error("PPID")
	}
	if !list[3].ID.Equal(oid(4)) || !bytes.Equal(list[3].Value.Bytes, fmspc[:]) {
		t.Error("FMSPC")
	}
	var tcb []struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}
	if rest, err := asn1.Unmarshal(list[1].Value.FullBytes, &tcb); err != nil || len(rest) != 0 || len(tcb) != 18 {
		t.Fatalf("TCB: %d entries, %v", len(tcb), err)
	}
	comps := m.dials.sgx()
	if !bytes.Equal(tcb[17].Value.Bytes, comps[:]) || tcb[17].Value.Tag != asn1.TagOctetString {
		t.Error("CPUSVN")
	}
	for i := range 16 {
		if b := tcb[i].Value.Bytes; b[len(b)-1] != comps[i] || tcb[i].Value.Tag != asn1.TagInteger {
			t.Errorf("component %d is %x", i, b)
		}
	}
}

// verify checks an r ‖ s signature with the standard library.
func verify(t *testing.T, key, message, signature []byte) bool {
	t.Helper()
	pub, err := ecdsa.ParseUncompressedPublicKey(elliptic.P256(), append([]byte{4}, key...))
	if err != nil {
		t.Fatal(err)
	}
	digest := sha256.Sum256(message)
	return ecdsa.Verify(pub, digest[:], new(big.Int).SetBytes(signature[:32]), new(big.Int).SetBytes(signature[32:]))
}

func TestQuoteSignatures(t *testing.T) {
	p := newPKI(t)
	m := newPlatform(t, p, PlatformConfig{})
	pck, err := point(&m.pck.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := m.QuoteSGX(sgx.Report{ISVProdID: 7, ReportData: [64]byte{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	raw, err = m.QuoteTDX(tdx.Body{MRTD: [48]byte{9}, ReportData: [64]byte{1, 2, 3}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := tdx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		signed, key, signature, report, reportSignature, auth []byte
	}{
		"sgx": {s.AppendSigned(nil), s.Auth.AttestationKey[:], s.Auth.Signature[:], s.Auth.QEReport[:],
			s.Auth.QEReportSignature[:], s.Auth.QEAuthData},
		"tdx": {d.AppendSigned(nil), d.Auth.AttestationKey[:], d.Auth.Signature[:], d.Auth.QEReport[:],
			d.Auth.QEReportSignature[:], d.Auth.QEAuthData},
	} {
		if !verify(t, c.key, c.signed, c.signature) || !verify(t, pck[:], c.report, c.reportSignature) {
			t.Errorf("%s: a signature does not hold", name)
		}
		bound := sha256.Sum256(append(bytes.Clone(c.key), c.auth...))
		if !bytes.Equal(c.report[320:352], bound[:]) || !bytes.Equal(c.report[352:], make([]byte, 32)) {
			t.Errorf("%s: the QE report does not bind the attestation key", name)
		}
	}
	if s.Report.ISVProdID != 7 || s.Report.CPUSVN != m.dials.sgx() || d.Body.MRTD[0] != 9 || d.Body.TEETCBSVN[1] != 1 {
		t.Error("report fields")
	}
	if s.Auth.AttestationKey == d.Auth.AttestationKey {
		t.Error("the two quoting enclaves share a key")
	}
}

// The envelopes are signed over the inner object exactly as it stands.
func TestEnvelopes(t *testing.T) {
	p := newPKI(t)
	key, err := point(&p.signer.key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	ran := 0
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		c := collateral(t, p, tee, now)
		for name, raw := range map[string][]byte{"tcbInfo": c.TCBInfo, "enclaveIdentity": c.QEIdentity} {
			var e map[string]json.RawMessage
			if err := json.Unmarshal(raw, &e); err != nil || len(e) != 2 {
				t.Fatalf("%s: %v", name, err)
			}
			signature, err := hex.DecodeString(strings.Trim(string(e["signature"]), `"`))
			if err != nil || len(signature) != 64 || !verify(t, key[:], e[name], signature) {
				t.Errorf("%s %s: signature does not hold", tee, name)
			}
			ran++
		}
	}
	if ran != 4 {
		t.Fatalf("%d envelopes checked", ran)
	}
}

// keysOf lists the keys of a JSON document in order, of an array only those of its first element.
func keysOf(t *testing.T, raw []byte) (keys []string) {
	t.Helper()
	d := json.NewDecoder(bytes.NewReader(raw))
	var walk func(path string, keep bool)
	walk = func(path string, keep bool) {
		tok, err := d.Token()
		if err != nil {
			t.Fatal(err)
		}
		switch tok {
		case json.Delim('{'):
			for d.More() {
				k, _ := d.Token()
				if keep && k != "advisoryIDs" {
					keys = append(keys, path+"."+k.(string))
				}
				walk(path+"."+k.(string), keep)
			}
			_, _ = d.Token()
		case json.Delim('['):
			for i := 0; d.More(); i++ {
				walk(path+"[]", keep && i == 0)
			}
			_, _ = d.Token()
		}
	}
	walk("", true)
	return keys
}

// Real collateral has the same keys in the same order.
func TestKeysAreIntels(t *testing.T) {
	dir := os.Getenv("CLAVIGER_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	if _, err := os.Stat(dir); err != nil {
		t.Skip("reference vectors not found: set CLAVIGER_VECTORS to compare with Intel's collateral")
	}
	p := newPKI(t)
	s, d := collateral(t, p, attest.SGX, now), collateral(t, p, attest.TDX, now)
	for pattern, ours := range map[string][]byte{
		"SGX_*_2026-06-05_*.json": s.TCBInfo, "TDX_*_2026-08-13_*.json": d.TCBInfo,
		"QE_*_2026-06-05_*.json": s.QEIdentity, "TD_QE_*_2026-08-12_*.json": d.QEIdentity,
	} {
		files, _ := filepath.Glob(filepath.Join(dir, "collateral", pattern))
		if len(files) == 0 {
			t.Errorf("no vector matches %s", pattern)
			continue
		}
		real, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		if want, got := keysOf(t, real), keysOf(t, ours); strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("%s: keys\n got %v\nwant %v", pattern, got, want)
		}
	}
}

func TestRecoveryRaisesEvaluation(t *testing.T) {
	p := newPKI(t)
	evaluation := func(at time.Time) (n int) {
		var e struct {
			TCBInfo tcbInfo `json:"tcbInfo"`
		}
		if err := json.Unmarshal(collateral(t, p, attest.SGX, at).TCBInfo, &e); err != nil {
			t.Fatal(err)
		}
		return e.TCBInfo.EvaluationNumber
	}
	if err := p.Recover(now.Add(day)); err != nil {
		t.Fatal(err)
	}
	if got := evaluation(now); got != evaluationBase {
		t.Errorf("before the recovery: %d", got)
	}
	if got := evaluation(now.Add(day)); got != evaluationBase+1 {
		t.Errorf("after the recovery: %d", got)
	}
}

// Levels must stand in descending order, as in Intel's files: verifiers take the first that matches.
func TestLadderDescends(t *testing.T) {
	p := newPKI(t)
	recoveries := []time.Time{now, now.Add(day), now.Add(2 * day)}
	for n := range len(recoveries) + 1 {
		levels := p.ladder(recoveries[:n])
		for i := 1; i < len(levels); i++ {
			a, b := levels[i-1].dials.sgx(), levels[i].dials.sgx()
			if binary.BigEndian.Uint64(a[:]) <= binary.BigEndian.Uint64(b[:]) {
				t.Errorf("after %d recoveries level %d is not below level %d", n, i, i-1)
			}
			if levels[i].date.After(levels[i-1].date) {
				t.Errorf("after %d recoveries level %d is newer than level %d", n, i, i-1)
			}
		}
	}
}
