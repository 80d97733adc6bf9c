package attest_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
)

// warmed returns a verifier that knows the platform of raw and the collateral.
func (w world) warmed(t testing.TB, raw []byte, c *attest.Collateral) *attest.Verifier {
	t.Helper()
	v, err := attest.NewVerifier(attest.Config{Root: w.pki.Root()})
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := verifyRaw(v, raw, c); err != nil {
			t.Fatal(err)
		}
	}
	if s := v.Stats(); s.Collateral.Hits != 1 || s.Chains.Hits != 1 || s.QE.Hits != 1 || s.Certificates != 3 {
		t.Fatalf("the verifier is not warm: %+v", s)
	}
	return v
}

// verdict is everything a caller sees of a verification.
func verdict(v *attest.Verifier, raw []byte, c *attest.Collateral, at time.Time, opts ...attest.Option) string {
	q, err := attest.Parse(raw)
	if err != nil {
		return err.Error()
	}
	verified, err := v.Verify(q, c, at, opts...)
	if err != nil {
		return err.Error()
	}
	claims := verified.Claims()
	claims.Root.Key = nil // a pointer
	text, err := claims.MarshalJSON()
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestWarmIsCold: whatever an attacker changes, a verifier that knows the genuine evidence says, word for word, what one says
// that knows nothing.
func TestWarmIsCold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	off := attest.Caches{Collateral: -1, Lists: -1, Chains: -1, QE: -1}
	cold, err := attest.NewVerifier(attest.Config{Root: w.pki.Root(), Caches: off})
	if err != nil {
		t.Fatal(err)
	}
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		c := w.collateral(t, tee, simpki.DefaultFMSPC)
		raw := quoteOf(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), tee)
		warm := w.warmed(t, raw, c)
		compared, refused := 0, 0
		compare := func(what string, raw []byte, c *attest.Collateral) {
			t.Helper()
			got, want := verdict(warm, raw, c, simNow), verdict(cold, raw, c, simNow)
			if got != want {
				t.Fatalf("%s %s: warm says\n%s\ncold says\n%s", tee, what, got, want)
			}
			compared++
			if got[0] != '{' {
				refused++
			}
		}
		compare("untouched", raw, c)
		for i := 0; i < len(raw); i += 29 {
			mutated := bytes.Clone(raw)
			mutated[i] ^= 1 << (i % 8)
			compare(fmt.Sprint("byte ", i), mutated, c)
		}
		for n, part := range []func(c *attest.Collateral) *[]byte{
			func(c *attest.Collateral) *[]byte { return &c.TCBInfo }, func(c *attest.Collateral) *[]byte { return &c.QEIdentity },
			func(c *attest.Collateral) *[]byte { return &c.TCBSigningChain }, func(c *attest.Collateral) *[]byte { return &c.PCKCRL },
			func(c *attest.Collateral) *[]byte { return &c.RootCRL },
		} {
			size := len(*part(c))
			for i := 0; i < size; i += 1 + size/12 {
				changed := *c
				*part(&changed) = bytes.Clone(*part(c))
				(*part(&changed))[i] ^= 1
				compare(fmt.Sprintf("part %d byte %d", n, i), raw, &changed)
			}
		}
		if compared-refused > 6 {
			t.Errorf("%d of %d changes were accepted", compared-refused, compared)
		}
	}
}

// TestWarmHalvesDoNotMix: pieces that are known, each from a genuine quote, do not make a quote together.
func TestWarmHalvesDoNotMix(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	c := w.collateral(t, attest.SGX, simpki.DefaultFMSPC)
	a := sgxQuote(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), report)
	b := sgxQuote(t, w.machine(t, simpki.PlatformConfig{Name: "b"}), report)
	v := w.warmed(t, a.Append(nil), c)
	if err := verifyRaw(v, b.Append(nil), c); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		mix   func(q *sgx.Quote)
		stage attest.Stage
	}{
		"chain of b":     {func(q *sgx.Quote) { q.Auth.CertData = b.Auth.CertData }, attest.StageQE},
		"QE report of b": {func(q *sgx.Quote) { q.Auth.QEReport = b.Auth.QEReport }, attest.StageQE},
		"signed QE report of b": {func(q *sgx.Quote) {
			q.Auth.QEReport, q.Auth.QEReportSignature = b.Auth.QEReport, b.Auth.QEReportSignature
		}, attest.StageQE},
		"attestation key of b":    {func(q *sgx.Quote) { q.Auth.AttestationKey = b.Auth.AttestationKey }, attest.StageQE},
		"QE half of b":            {func(q *sgx.Quote) { cert := q.Auth.CertData; q.Auth = b.Auth; q.Auth.CertData = cert }, attest.StageQE},
		"signature of b":          {func(q *sgx.Quote) { q.Auth.Signature = b.Auth.Signature }, attest.StageSignature},
		"all of b but the report": {func(q *sgx.Quote) { q.Header, q.Auth = b.Header, b.Auth; q.Report.MREnclave[0]++ }, attest.StageSignature},
		"other authentication":    {func(q *sgx.Quote) { q.Auth.QEAuthData = append([]byte{9}, q.Auth.QEAuthData[1:]...) }, attest.StageQE},
	} {
		q := *a
		tc.mix(&q)
		verified, err := v.Verify(mustParse(t, q.Append(nil)), c, simNow)
		checkStage(t, name, verified, err, tc.stage)
	}
}

// TestWarmInputsAreCopied: a caller that reuses its buffers cannot change what is known, nor pass as it.
func TestWarmInputsAreCopied(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	c := w.collateral(t, attest.SGX, simpki.DefaultFMSPC)
	raw := quoteOf(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), attest.SGX)
	v := w.warmed(t, raw, c)
	at := bytes.Index(c.TCBInfo, []byte(`"OutOfDate"`))
	copy(c.TCBInfo[at:], `"UpToDate" `)
	verified, err := v.Verify(mustParse(t, raw), c, simNow)
	checkStage(t, "TCB info changed in place", verified, err, attest.StageCollateral)
	q := mustParse(t, raw)
	q.SGX().Report.MREnclave[0]++
	verified, err = v.Verify(q, w.collateral(t, attest.SGX, simpki.DefaultFMSPC), simNow)
	checkStage(t, "report changed after parsing", verified, err, attest.StageSignature)
}

// TestWarmExpires: time passes between hits.
func TestWarmExpires(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	c := w.collateral(t, attest.TDX, simpki.DefaultFMSPC)
	raw := quoteOf(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), attest.TDX)
	v := w.warmed(t, raw, c)
	day := 24 * time.Hour
	for _, tc := range []struct {
		name  string
		at    time.Time
		grace time.Duration
		stage attest.Stage
	}{
		{"in force", simNow.Add(29 * day), 0, ""},
		{"expired", simNow.Add(31 * day), 0, attest.StageRevocation},
		{"in the grace", simNow.Add(31 * day), 5 * day, ""},
		{"expired again", simNow.Add(31 * day), 0, attest.StageRevocation},
		{"before its issue", simNow.Add(-2 * day), 0, attest.StageRevocation},
		{"before its issue, with grace", simNow.Add(-2 * day), 5 * day, attest.StageRevocation},
		{"certificates expired", simNow.Add(8 * 365 * day), 1 << 62, attest.StageChain},
		{"in force again", simNow, 0, ""},
	} {
		verified, err := v.Verify(mustParse(t, raw), c, tc.at, attest.WithGrace(tc.grace))
		checkStage(t, tc.name, verified, err, tc.stage)
	}
	if s := v.Stats(); s.Collateral.Misses != 1 || s.Chains.Misses != 1 {
		t.Errorf("the test is about hits: %+v", s)
	}
}

// TestWarmRevocation: a newer list revokes what a verifier knows: the platform, its CA, the signer of collateral.
func TestWarmRevocation(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		revoke func(p *simpki.PKI, m *simpki.Platform) error
		stage  attest.Stage
	}{
		"platform": {func(p *simpki.PKI, m *simpki.Platform) error { p.Revoke(m, simNow); return nil }, attest.StageRevocation},
		"PCK CA":   {func(p *simpki.PKI, _ *simpki.Platform) error { return p.RevokeCA(simpki.PlatformCA, simNow) }, attest.StageRevocation},
		"signer":   {func(p *simpki.PKI, _ *simpki.Platform) error { p.RevokeTCBSigning(simNow); return nil }, attest.StageCollateral},
	} {
		w := newWorld(t, 1)
		m := w.machine(t, simpki.PlatformConfig{Name: "a"})
		raw := quoteOf(t, m, attest.SGX)
		old := w.collateral(t, attest.SGX, m.FMSPC())
		v := w.warmed(t, raw, old)
		if err := tc.revoke(w.pki, m); err != nil {
			t.Fatal(err)
		}
		fresh := w.collateral(t, attest.SGX, m.FMSPC())
		if !bytes.Equal(fresh.TCBInfo, old.TCBInfo) || fresh.Hash() == old.Hash() {
			t.Fatalf("%s: the collateral should differ in its lists only", name)
		}
		for range 2 { // the second time the lists are known
			verified, err := v.Verify(mustParse(t, raw), fresh, simNow)
			checkStage(t, name, verified, err, tc.stage)
			if !errors.Is(err, pck.ErrRevoked) {
				t.Errorf("%s: %v", name, err)
			}
		}
		// With the list of before the verdict is that of before: which list counts is for the caller, who sees its number.
		verified, err := v.Verify(mustParse(t, raw), old, simNow)
		checkStage(t, name+", old list", verified, err, "")
	}
}

// TestOnlyVerifiedEnters: nothing that an attacker can make by himself takes room.
func TestOnlyVerifiedEnters(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t, 1), newWorld(t, 2)
	c, foreign := w.collateral(t, attest.SGX, simpki.DefaultFMSPC), other.collateral(t, attest.SGX, simpki.DefaultFMSPC)
	raw := quoteOf(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), attest.SGX)
	v, err := attest.NewVerifier(attest.Config{Root: w.pki.Root()})
	if err != nil {
		t.Fatal(err)
	}
	check := func(what string, want attest.Stats) {
		t.Helper()
		s := v.Stats()
		if s.Collateral.Entries != want.Collateral.Entries || s.Lists.Entries != want.Lists.Entries || s.Chains.Entries != want.Chains.Entries ||
			s.QE.Entries != want.QE.Entries || s.Certificates != want.Certificates {
			t.Errorf("%s: %+v", what, s)
		}
	}
	if err := verifyRaw(v, quoteOf(t, other.machine(t, simpki.PlatformConfig{Name: "a"}), attest.SGX), foreign); err == nil {
		t.Fatal("foreign quote accepted")
	}
	check("foreign quote", attest.Stats{})
	if err := verifyRaw(v, raw, foreign); err == nil {
		t.Fatal("foreign collateral accepted")
	}
	after := attest.Stats{Chains: attest.CacheStats{Entries: 1}, Certificates: 2}
	check("foreign collateral", after)
	mixed := *foreign
	mixed.RootCRL, mixed.PCKCRL = c.RootCRL, c.PCKCRL
	if err := verifyRaw(v, raw, &mixed); err == nil {
		t.Fatal("foreign documents accepted")
	}
	after.Lists.Entries = 2
	check("foreign documents", after)
	mixed = *c
	mixed.TCBInfo = bytes.Replace(c.TCBInfo, []byte(`"UpToDate"`), []byte(`"Revoked" `), 1)
	if err := verifyRaw(v, raw, &mixed); err == nil {
		t.Fatal("changed documents accepted")
	}
	after.Certificates = 3 // the signer of collateral
	check("changed documents", after)
	for i := range 300 {
		q := sgxQuote(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), report)
		q.Auth.QEAuthData[i%32]++
		q.Auth.CertData = append([]byte{'\n'}, q.Auth.CertData...)
		q.Auth.CertData[100+i]++
		if err := verifyRaw(v, q.Append(nil), c); err == nil {
			t.Fatal("changed quote accepted")
		}
	}
	check("changed quotes", after)
}

// TestHostileVariants: genuine content has many encodings that verify (white space around certificates, signatures with
// n − s). They take room, but never more than there is, and large ones none.
func TestHostileVariants(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	c := w.collateral(t, attest.SGX, simpki.DefaultFMSPC)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	v, err := attest.NewVerifier(attest.Config{Root: w.pki.Root(), Caches: attest.Caches{Collateral: 8, Lists: 8, Chains: 16, QE: 8}})
	if err != nil {
		t.Fatal(err)
	}
	genuine := sgxQuote(t, m, report)
	order, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
	for i := range 100 {
		q := *genuine
		q.Auth.CertData = append(bytes.Repeat([]byte{'\n'}, i), genuine.Auth.CertData...)
		if i%2 == 1 {
			s := new(big.Int).SetBytes(q.Auth.QEReportSignature[32:])
			s.Sub(order, s).FillBytes(q.Auth.QEReportSignature[32:])
		}
		changed := *c
		changed.TCBInfo = append(bytes.Repeat([]byte{' '}, i), c.TCBInfo...)
		changed.PCKCRL = append(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: c.PCKCRL}), bytes.Repeat([]byte{'\n'}, i)...)
		if err := verifyRaw(v, q.Append(nil), &changed); err != nil {
			t.Fatalf("variant %d: %v", i, err)
		}
	}
	s := v.Stats()
	for name, one := range map[string]attest.CacheStats{"collateral": s.Collateral, "lists": s.Lists, "chains": s.Chains, "QE": s.QE} {
		if one.Entries > one.Capacity || one.Capacity > 16 {
			t.Errorf("%s: %+v", name, one)
		}
	}
	if s.Chains.Evictions == 0 || s.Collateral.Evictions == 0 || s.QE.Entries != 2 || s.Certificates != 3 {
		t.Errorf("%+v", s)
	}
	before := v.Stats().Chains.Entries + int(v.Stats().Chains.Evictions)
	q := *genuine
	q.Auth.CertData = append(bytes.Repeat([]byte{'\n'}, 20<<10), genuine.Auth.CertData...)
	if err := verifyRaw(v, q.Append(nil), c); err != nil {
		t.Fatal(err)
	}
	if after := v.Stats().Chains; after.Entries+int(after.Evictions) != before {
		t.Errorf("an oversized chain was kept: %+v", after)
	}
}

// TestConcurrentVerify: many goroutines, more platforms than there is room for, some of them revoked; for the race detector.
func TestConcurrentVerify(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	v, err := attest.NewVerifier(attest.Config{Root: w.pki.Root(), Caches: attest.Caches{Collateral: 1, Lists: 1, Chains: 1, QE: 1}})
	if err != nil {
		t.Fatal(err)
	}
	var quotes [12][]byte
	for i := range quotes {
		m := w.machine(t, simpki.PlatformConfig{Name: fmt.Sprint("m", i)})
		quotes[i] = quoteOf(t, m, attest.SGX)
		if i%3 == 0 {
			w.pki.Revoke(m, simNow)
		}
	}
	c := w.collateral(t, attest.SGX, simpki.DefaultFMSPC)
	var wg sync.WaitGroup
	for worker := range 4 {
		wg.Go(func() {
			for i := range 24 {
				n := (i*5 + worker) % len(quotes)
				if err := verifyRaw(v, quotes[n], c); errors.Is(err, pck.ErrRevoked) != (n%3 == 0) || (err == nil) == (n%3 == 0) {
					t.Errorf("quote %d: %v", n, err)
				}
			}
		})
	}
	wg.Wait()
}

// TestWarmAllocations holds the target of DESIGN.md.
func TestWarmAllocations(t *testing.T) {
	w := newWorld(t, 1)
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		c := w.collateral(t, tee, simpki.DefaultFMSPC)
		raw := quoteOf(t, w.machine(t, simpki.PlatformConfig{Name: "a", TCB: attest.StatusOutOfDate}), tee)
		v := w.warmed(t, raw, c)
		n := testing.AllocsPerRun(50, func() {
			if err := verifyRaw(v, raw, c); err != nil {
				t.Error(err)
			}
		})
		if n > 40 {
			t.Errorf("%s: %v allocations", tee, n)
		}
		t.Logf("%s: %v allocations to parse and verify, warm", tee, n)
	}
}

func TestStatsOfNothing(t *testing.T) {
	t.Parallel()
	if (*attest.Verifier)(nil).Stats() != (attest.Stats{}) || new(attest.Verifier).Stats() != (attest.Stats{}) {
		t.Error("a verifier that is none has counters")
	}
}

// TestWarmSignerExpires: the certificate that signs collateral ends before the platform's, and no grace helps it. The evidence
// is real: its signing certificate was valid to 2025.
func TestWarmSignerExpires(t *testing.T) {
	t.Parallel()
	raw, c := realEvidence(t)
	v := intelVerifier(t)
	q := mustParse(t, raw)
	for _, tc := range []struct {
		at    time.Time
		stage attest.Stage
	}{{realTime, ""}, {time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), attest.StageCollateral}, {realTime, ""}} {
		verified, err := v.Verify(q, c, tc.at, attest.WithGrace(1<<62))
		checkStage(t, tc.at.String(), verified, err, tc.stage)
	}
	if s := v.Stats().Collateral; s.Hits != 2 {
		t.Errorf("%+v", s)
	}
}

// TestStoreServesCollateral: VerifyCollateral knows what Verify knows, and checks it as strictly.
func TestStoreServesCollateral(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	c := w.collateral(t, attest.SGX, simpki.DefaultFMSPC)
	v := w.warmed(t, quoteOf(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), attest.SGX), c)
	issuer, err := w.pki.IssuerChain(simpki.PlatformCA)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.VerifyCollateral(c, issuer, simNow); err != nil {
		t.Error(err)
	}
	processor, err := w.pki.IssuerChain(simpki.ProcessorCA)
	if err != nil {
		t.Fatal(err)
	}
	if r, err := v.VerifyCollateral(c, processor, simNow); !errors.Is(err, pck.ErrCRLIssuer) || r != nil {
		t.Errorf("known set with the chain of the other CA: %v", err)
	}
	if r, err := v.VerifyCollateral(c, issuer, simNow.AddDate(0, 2, 0)); !errors.Is(err, pck.ErrValidity) || r != nil {
		t.Errorf("known set, expired: %v", err)
	}
	for name, change := range map[string]func(c *attest.Collateral){
		"root list": func(c *attest.Collateral) { c.RootCRL = []byte("x") }, "PCK list": func(c *attest.Collateral) { c.PCKCRL = []byte("x") },
	} {
		changed := *c
		change(&changed)
		if r, err := v.VerifyCollateral(&changed, issuer, simNow); !errors.Is(err, pck.ErrCRL) || r != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPCKIssuerRefused(t *testing.T) {
	t.Parallel()
	if chain, err := attest.PCKIssuer(nil); !errors.Is(err, attest.ErrInput) || chain != nil {
		t.Errorf("nil: %v", err)
	}
	w := newWorld(t, 1)
	q := sgxQuote(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), report)
	q.Auth.CertData = []byte("none")
	if chain, err := attest.PCKIssuer(mustParse(t, q.Append(nil))); !errors.Is(err, pck.ErrFormat) || chain != nil {
		t.Errorf("no chain: %v", err)
	}
}

// TestBundleOversized: parts within their limits that are too large together.
func TestBundleOversized(t *testing.T) {
	t.Parallel()
	c := &attest.Collateral{
		TCBInfo: make([]byte, attest.MaxTCBInfo), QEIdentity: make([]byte, attest.MaxQEIdentity),
		TCBSigningChain: make([]byte, attest.MaxSigningChain), PCKCRL: make([]byte, attest.MaxCRL), RootCRL: make([]byte, attest.MaxCRL),
	}
	if raw, err := c.Marshal(); !errors.Is(err, attest.ErrBundle) || raw != nil {
		t.Errorf("%d bytes, %v", len(raw), err)
	}
}
