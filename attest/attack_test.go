package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// simNow is the time of the simulated tests.
var simNow = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// world is a simulated Intel and a verifier that trusts it: the production path under another root.
type world struct {
	pki      *simpki.PKI
	verifier *attest.Verifier
}

func newWorld(t testing.TB, seed byte) world {
	t.Helper()
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{seed}, Now: simNow})
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: pki.Root()})
	if err != nil {
		t.Fatal(err)
	}
	return world{pki, verifier}
}

func (w world) machine(t testing.TB, config simpki.PlatformConfig) *simpki.Platform {
	t.Helper()
	m, err := w.pki.Platform(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func (w world) collateral(t testing.TB, tee attest.TEE, fmspc [6]byte) *attest.Collateral {
	t.Helper()
	c, err := w.pki.Collateral(tee, fmspc, simNow)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func sgxQuote(t testing.TB, m *simpki.Platform, report sgx.Report) *sgx.Quote {
	t.Helper()
	raw, err := m.QuoteSGX(report)
	if err != nil {
		t.Fatal(err)
	}
	q, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

func mustParse(t testing.TB, raw []byte) *attest.Quote {
	t.Helper()
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

var report = sgx.Report{MREnclave: [32]byte{1, 2, 3}, MRSigner: [32]byte{4}, ISVProdID: 5, ISVSVN: 6,
	Attributes: [16]byte{5}, ConfigID: [64]byte{7}, ConfigSVN: 8, ISVFamilyID: [16]byte{9}, ISVExtProdID: [16]byte{10}, ReportData: [64]byte{11}}

func TestSGXClaims(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	q := sgxQuote(t, m, report)
	verified, err := w.verifier.Verify(mustParse(t, q.Append(nil)), w.collateral(t, attest.SGX, m.FMSPC()), simNow)
	if err != nil {
		t.Fatal(err)
	}
	c := verified.Claims()
	s := c.SGX
	if c.TEE != attest.SGX || c.QuoteVersion != 3 || c.TDX != nil || c.Debug || c.ReportData != report.ReportData || !c.Root.Simulated || c.Root.Name != "simulated" {
		t.Errorf("claims %+v", c)
	}
	if s == nil || s.MREnclave != report.MREnclave || s.MRSigner != report.MRSigner || s.ISVProdID != 5 || s.ISVSVN != 6 ||
		s.ConfigID != report.ConfigID || s.ConfigSVN != 8 || s.ISVFamilyID != report.ISVFamilyID || s.ISVExtProdID != report.ISVExtProdID {
		t.Errorf("SGX claims %+v", s)
	}
	if c.TCB.Status != attest.StatusUpToDate || c.TCB.Module != nil || c.TCB.Date.IsZero() || c.Platform.PPID != m.PPID() || c.Platform.ID() == [32]byte{} {
		t.Errorf("TCB %+v, platform %+v", c.TCB, c.Platform)
	}
}

func TestDebugIsAClaim(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	debug := report
	debug.Attributes[0] |= 2
	verified, err := w.verifier.Verify(mustParse(t, sgxQuote(t, m, debug).Append(nil)), w.collateral(t, attest.SGX, m.FMSPC()), simNow)
	if err != nil || !verified.Claims().Debug {
		t.Errorf("debug enclave: %v", err)
	}
	raw, err := m.QuoteTDX(tdx.Body{TDAttributes: [8]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	verified, err = w.verifier.Verify(mustParse(t, raw), w.collateral(t, attest.TDX, m.FMSPC()), simNow)
	if err != nil || !verified.Claims().Debug {
		t.Errorf("debug TD: %v", err)
	}
}

// TestForgedQuotes plays a host that owns genuine machines and wants claims that no enclave made.
func TestForgedQuotes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	a, b := w.machine(t, simpki.PlatformConfig{Name: "a"}), w.machine(t, simpki.PlatformConfig{Name: "b"})
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	sign := func(q *sgx.Quote) {
		digest := sha256.Sum256(q.AppendSigned(nil))
		r, s, err := ecdsa.Sign(rand.Reader, own, digest[:])
		if err != nil {
			t.Fatal(err)
		}
		r.FillBytes(q.Auth.Signature[:32])
		s.FillBytes(q.Auth.Signature[32:])
	}
	ownKey, err := own.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	donor := sgxQuote(t, b, report)
	for name, tc := range map[string]struct {
		forge func(q *sgx.Quote)
		stage attest.Stage
	}{
		"untouched":                      {func(*sgx.Quote) {}, ""},
		"another enclave, old signature": {func(q *sgx.Quote) { q.Report.MREnclave[0]++ }, attest.StageSignature},
		"other report data":              {func(q *sgx.Quote) { q.Report.ReportData[0]++ }, attest.StageSignature},
		"debug cleared":                  {func(q *sgx.Quote) { q.Report.Attributes[0] ^= 2 }, attest.StageSignature},
		"own attestation key": {func(q *sgx.Quote) {
			q.Report.MREnclave[0]++
			copy(q.Auth.AttestationKey[:], ownKey[1:])
			sign(q)
		}, attest.StageQE},
		"own key, QE report saying so": {func(q *sgx.Quote) {
			copy(q.Auth.AttestationKey[:], ownKey[1:])
			sign(q)
			qe, err := sgx.ParseReport(q.Auth.QEReport[:])
			if err != nil {
				t.Fatal(err)
			}
			digest := sha256.Sum256(append(q.Auth.AttestationKey[:], q.Auth.QEAuthData...))
			copy(qe.ReportData[:], digest[:])
			copy(q.Auth.QEReport[:], qe.Append(nil))
		}, attest.StageQE},
		"QE report of another machine": {func(q *sgx.Quote) {
			q.Auth.QEReport, q.Auth.QEReportSignature = donor.Auth.QEReport, donor.Auth.QEReportSignature
		}, attest.StageQE},
		"whole signature of another machine": {func(q *sgx.Quote) { q.Auth = donor.Auth; q.Report.MREnclave[0]++ }, attest.StageSignature},
		"certificates of another machine":    {func(q *sgx.Quote) { q.Auth.CertData = donor.Auth.CertData }, attest.StageQE},
		"longer auth data":                   {func(q *sgx.Quote) { q.Auth.QEAuthData = append(q.Auth.QEAuthData, 0) }, attest.StageQE},
		"signature of zeroes":                {func(q *sgx.Quote) { q.Auth.Signature = [64]byte{} }, attest.StageSignature},
		"key of zeroes":                      {func(q *sgx.Quote) { q.Auth.AttestationKey = [64]byte{} }, attest.StageQE},
		"no certificates":                    {func(q *sgx.Quote) { q.Auth.CertData = nil }, attest.StageChain},
		"encrypted PPID instead":             {func(q *sgx.Quote) { q.Auth.CertType = 3 }, attest.StageParse},
		"another QE vendor":                  {func(q *sgx.Quote) { q.Header.QEVendorID[0]++ }, attest.StageParse},
		"header of another QE":               {func(q *sgx.Quote) { q.Header.QESVN++ }, attest.StageSignature},
	} {
		q := sgxQuote(t, a, report)
		tc.forge(q)
		var verified *attest.Verified
		parsed, err := attest.Parse(q.Append(nil))
		if err == nil {
			verified, err = w.verifier.Verify(parsed, w.collateral(t, attest.SGX, a.FMSPC()), simNow)
		}
		checkStage(t, name, verified, err, tc.stage)
	}
}

// TestWrongCollateral plays a host that picks collateral which says what it likes.
func TestWrongCollateral(t *testing.T) {
	t.Parallel()
	w, other := newWorld(t, 1), newWorld(t, 2)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	fmspc := m.FMSPC()
	good := w.collateral(t, attest.SGX, fmspc)
	foreign := other.collateral(t, attest.SGX, fmspc)
	forTDX := w.collateral(t, attest.TDX, fmspc)
	otherFamily := w.collateral(t, attest.SGX, [6]byte{9, 9, 9})
	processor, err := w.pki.CollateralFor(attest.SGX, fmspc, simpki.ProcessorCA, simNow)
	if err != nil {
		t.Fatal(err)
	}
	stale, err := w.pki.Collateral(attest.SGX, fmspc, simNow.Add(-40*24*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	q := mustParse(t, sgxQuote(t, m, report).Append(nil))
	for name, tc := range map[string]struct {
		edit  func(c *attest.Collateral)
		stage attest.Stage
	}{
		"good":                          {func(*attest.Collateral) {}, ""},
		"all of another root":           {func(c *attest.Collateral) { *c = *foreign }, attest.StageRevocation},
		"TCB info of another root":      {func(c *attest.Collateral) { c.TCBInfo = foreign.TCBInfo }, attest.StageCollateral},
		"QE identity of another root":   {func(c *attest.Collateral) { c.QEIdentity = foreign.QEIdentity }, attest.StageCollateral},
		"documents and chain of it":     {func(c *attest.Collateral) { c.TCBInfo, c.TCBSigningChain = foreign.TCBInfo, foreign.TCBSigningChain }, attest.StageCollateral},
		"PCK list of another root":      {func(c *attest.Collateral) { c.PCKCRL = foreign.PCKCRL }, attest.StageRevocation},
		"root list of another root":     {func(c *attest.Collateral) { c.RootCRL = foreign.RootCRL }, attest.StageRevocation},
		"PCK list of the other CA":      {func(c *attest.Collateral) { c.PCKCRL = processor.PCKCRL }, attest.StageRevocation},
		"TCB info for TDX":              {func(c *attest.Collateral) { c.TCBInfo = forTDX.TCBInfo }, attest.StageCollateral},
		"QE identity for TDX":           {func(c *attest.Collateral) { c.QEIdentity = forTDX.QEIdentity }, attest.StageCollateral},
		"TCB info of another family":    {func(c *attest.Collateral) { c.TCBInfo = otherFamily.TCBInfo }, attest.StageCollateral},
		"documents exchanged":           {func(c *attest.Collateral) { c.TCBInfo, c.QEIdentity = c.QEIdentity, c.TCBInfo }, attest.StageCollateral},
		"stale TCB info":                {func(c *attest.Collateral) { c.TCBInfo = stale.TCBInfo }, attest.StageCollateral},
		"stale QE identity":             {func(c *attest.Collateral) { c.QEIdentity = stale.QEIdentity }, attest.StageCollateral},
		"stale PCK list":                {func(c *attest.Collateral) { c.PCKCRL = stale.PCKCRL }, attest.StageRevocation},
		"PCK chain signs the documents": {func(c *attest.Collateral) { c.TCBSigningChain = m.Chain() }, attest.StageCollateral},
		"no PCK list":                   {func(c *attest.Collateral) { c.PCKCRL = nil }, attest.StageParse},
		"empty":                         {func(c *attest.Collateral) { *c = attest.Collateral{} }, attest.StageParse},
		"oversized":                     {func(c *attest.Collateral) { c.TCBInfo = make([]byte, attest.MaxTCBInfo+1) }, attest.StageParse},
	} {
		c := *good
		tc.edit(&c)
		verified, err := w.verifier.Verify(q, &c, simNow)
		checkStage(t, name, verified, err, tc.stage)
	}
	verified, err := w.verifier.Verify(q, nil, simNow)
	checkStage(t, "nil collateral", verified, err, attest.StageParse)
	verified, err = w.verifier.Verify(nil, good, simNow)
	checkStage(t, "nil quote", verified, err, attest.StageParse)
	verified, err = w.verifier.Verify(new(attest.Quote), good, simNow)
	checkStage(t, "zero quote", verified, err, attest.StageParse)
	verified, err = new(attest.Verifier).Verify(q, good, simNow)
	checkStage(t, "zero verifier", verified, err, attest.StageParse)
	verified, err = (*attest.Verifier)(nil).Verify(q, good, simNow)
	checkStage(t, "nil verifier", verified, err, attest.StageParse)
}

// TestRoots: simulated evidence never passes for Intel's, nor Intel's for simulated.
func TestRoots(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	q := mustParse(t, sgxQuote(t, m, report).Append(nil))
	verified, err := intelVerifier(t).Verify(q, w.collateral(t, attest.SGX, m.FMSPC()), simNow)
	checkStage(t, "simulated under Intel's root", verified, err, attest.StageChain)
	raw, collateral := realEvidence(t)
	verified, err = w.verifier.Verify(mustParse(t, raw), collateral, realTime)
	checkStage(t, "Intel under a simulated root", verified, err, attest.StageChain)
	verified, err = newWorld(t, 2).verifier.Verify(q, w.collateral(t, attest.SGX, m.FMSPC()), simNow)
	checkStage(t, "one simulation under another", verified, err, attest.StageChain)
}

// TestRevokedInGrace: grace extends lists in time and never what they say.
func TestRevokedInGrace(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	w.pki.Revoke(m, simNow.Add(-48*time.Hour))
	q := mustParse(t, sgxQuote(t, m, report).Append(nil))
	c := w.collateral(t, attest.SGX, m.FMSPC())
	for name, at := range map[string]time.Time{"in time": simNow, "in grace": simNow.Add(40 * 24 * time.Hour)} {
		verified, err := w.verifier.Verify(q, c, at, attest.WithGrace(30*24*time.Hour))
		checkStage(t, name, verified, err, attest.StageRevocation)
	}
}
