package attest_test

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/verify"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
)

// guestVerdict asks the independent verifier. It has one good outcome: all of it up to date.
func guestVerdict(raw []byte, s *service, pool *x509.CertPool, at time.Time) error {
	return verify.RawTdxQuote(raw, &verify.Options{CheckRevocations: true, GetCollateral: true, Getter: s, Now: at, TrustedRoots: pool})
}

// differences counts where two verifiers agree, and the classes in which they may disagree; DESIGN.md says why.
type differences struct {
	t      *testing.T
	counts map[string]int
}

// compare holds the two verdicts against each other. Ours is up to date exactly when the other accepts, except for a class of
// difference that the caller names because of what it did, or that the errors show.
func (d *differences) compare(what string, ours string, err error, theirs error, class string) {
	d.t.Helper()
	upToDate := err == nil && ours == string(attest.StatusUpToDate)
	switch {
	case upToDate && theirs == nil:
		d.counts["agree: accepted"]++
	case !upToDate && theirs != nil:
		d.counts["agree: not accepted"]++
	case upToDate && strings.Contains(theirs.Error(), "FMSPC from PCK Certificate") && strings.Contains(strings.ToLower(theirs.Error()), "is not equal"):
		// Collateral writes an FMSPC in capitals, a certificate has its bytes. Intel's library compares bytes, as we do.
		d.counts["differ: FMSPC with letters compared as text"]++
	case !upToDate && theirs == nil && class != "":
		d.counts["differ: "+class]++
	default:
		d.t.Errorf("%s: ours %q %v, theirs %v", what, ours, err, theirs)
	}
}

func (d *differences) done(least int) {
	total := 0
	for _, name := range slices.Sorted(maps.Keys(d.counts)) {
		d.t.Logf("%4d %s", d.counts[name], name)
		total += d.counts[name]
	}
	if total < least || d.counts["agree: accepted"] == 0 || d.counts["agree: not accepted"] == 0 {
		d.t.Fatalf("only %d comparisons: %v", total, d.counts)
	}
}

// intelRoots returns every root certificate at the end of the vectors' signing chains.
func intelRoots(t *testing.T, dir string) *x509.CertPool {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "certs", "tcb_signing_chain_*.pem"))
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	pool := x509.NewCertPool()
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		_, second, _ := bytes.Cut(raw, []byte("-----END CERTIFICATE-----"))
		if !pool.AppendCertsFromPEM(second) {
			t.Fatalf("no root in %s", name)
		}
	}
	return pool
}

func status(v *attest.Verified) string { return string(v.Claims().TCB.Status) }

// TestDifferentialVectors compares with the independent verifier on every real quote that both know: TDX version 4.
func TestDifferentialVectors(t *testing.T) {
	t.Parallel()
	dir := vectorDir(t)
	v := intelVerifier(t)
	pool := intelRoots(t, dir)
	d := &differences{t, map[string]int{}}
	for _, c := range readCases(t, dir) {
		if c.TEE != "TDX" || c.Version != 4 {
			continue
		}
		f := c.files(t, dir)
		verified, err := verifyFiles(v, f, c.Time)
		issuer, issuerErr := attest.PCKIssuer(mustParse(t, f["quote.bin"]))
		if issuerErr != nil {
			t.Fatal(issuerErr)
		}
		theirs := guestVerdict(f["quote.bin"], &service{collateralOf(f), issuer}, pool, time.Unix(c.Time, 0))
		d.compare(c.ID, status(verified), err, theirs, "")
	}
	d.done(250)
}

// TestDifferentialSimulated compares on simulated TDs: every status of every part, revocation, time, and changed bytes of every
// part of the evidence.
func TestDifferentialSimulated(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	root, err := x509.ParseCertificate(w.pki.RootCertificate())
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	d := &differences{t, map[string]int{}}
	compare := func(what string, raw []byte, c *attest.Collateral, at time.Time, class string) {
		t.Helper()
		var verified *attest.Verified
		q, err := attest.Parse(raw)
		if err == nil {
			verified, err = w.verifier.Verify(q, c, at)
		}
		d.compare(what, status(verified), err, guestVerdict(raw, newService(t, w.pki, c), pool, at), class)
	}
	parts := []attest.Status{attest.StatusUpToDate, attest.StatusOutOfDate, attest.StatusRevoked, attest.StatusNotSupported}
	for _, tcb := range []attest.Status{
		attest.StatusUpToDate, attest.StatusSWHardeningNeeded, attest.StatusConfigurationNeeded, attest.StatusConfigurationAndSWHardeningNeeded,
		attest.StatusOutOfDate, attest.StatusOutOfDateConfigurationNeeded, attest.StatusRevoked, attest.StatusNotSupported,
	} {
		for _, qe := range parts[:1+3*boolInt(tcb == attest.StatusUpToDate)] {
			for _, module := range parts[:1+3*boolInt(tcb == attest.StatusUpToDate)] {
				m := w.machine(t, simpki.PlatformConfig{Name: "a", TCB: tcb, QE: qe, Module: module})
				compare(fmt.Sprint(tcb, qe, module), quoteOf(t, m, attest.TDX), w.collateral(t, attest.TDX, m.FMSPC()), simNow, "")
			}
		}
	}
	m := w.machine(t, simpki.PlatformConfig{Name: "good"})
	raw, c := quoteOf(t, m, attest.TDX), w.collateral(t, attest.TDX, m.FMSPC())
	for name, at := range map[string]time.Time{
		"in force": simNow, "at the end": simNow.AddDate(0, 0, 29), "expired": simNow.AddDate(0, 0, 31), "certificates expired": simNow.AddDate(40, 0, 0),
	} {
		compare(name, raw, c, at, "")
	}
	compare("before its issue", raw, c, simNow.AddDate(0, 0, -3), "a time before the collateral's issue date")
	compare("bytes after the quote", append(bytes.Clone(raw), 0), c, simNow, "bytes after the quote")
	for i := 0; i < len(raw); i += 31 {
		changed := bytes.Clone(raw)
		changed[i] ^= 1 << (i % 7)
		compare(fmt.Sprint("quote byte ", i), changed, c, simNow, "")
	}
	stolen := w.machine(t, simpki.PlatformConfig{Name: "stolen"})
	w.pki.Revoke(stolen, simNow)
	compare("revoked platform", quoteOf(t, stolen, attest.TDX), w.collateral(t, attest.TDX, m.FMSPC()), simNow, "")
	for name, edit := range map[string]func(c *attest.Collateral){
		"info value": func(c *attest.Collateral) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte("UpToDate"), []byte("OutOfDate"), 1)
		},
		"info space": func(c *attest.Collateral) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte(`,"version"`), []byte(`, "version"`), 1)
		},
		"identity": func(c *attest.Collateral) {
			c.QEIdentity = bytes.Replace(c.QEIdentity, []byte(`"isvprodid":2`), []byte(`"isvprodid":1`), 1)
		},
		"PCK list":  func(c *attest.Collateral) { c.PCKCRL = bytes.Clone(c.PCKCRL); c.PCKCRL[len(c.PCKCRL)-1]++ },
		"root list": func(c *attest.Collateral) { c.RootCRL = bytes.Clone(c.RootCRL); c.RootCRL[len(c.RootCRL)-1]++ },
	} {
		changed := *c
		edit(&changed)
		if changed.Hash() == c.Hash() {
			t.Errorf("%s: nothing changed", name)
		}
		compare(name, raw, &changed, simNow, "")
	}
	// What the other takes and we refuse on purpose, each for its reason in DESIGN.md.
	for class, edit := range map[string]func(c *attest.Collateral){
		"unsigned keys beside the signed document": func(c *attest.Collateral) {
			c.TCBInfo = bytes.Replace(c.TCBInfo, []byte(`{"tcbInfo":`), []byte(`{"note":1,"tcbInfo":`), 1)
		},
	} {
		changed := *c
		edit(&changed)
		compare(class, raw, &changed, simNow, class)
	}
	d.done(150)
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// TestCaseVariantOfASignedKey performs an attack on lenient decoders: a second, unsigned member whose key differs in case from
// the signed one's. The signature covers the first; whoever matches keys without regard to case reads the second.
func TestCaseVariantOfASignedKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a", TCB: attest.StatusOutOfDate})
	c := w.collateral(t, attest.TDX, m.FMSPC())
	start := bytes.Index(c.TCBInfo, []byte(`{"id"`))
	end := bytes.LastIndex(c.TCBInfo, []byte(`,"signature"`))
	forged := bytes.ReplaceAll(c.TCBInfo[start:end], []byte(`"OutOfDate"`), []byte(`"UpToDate"`))
	for name, raw := range map[string][]byte{
		"case variant": fmt.Appendf(nil, `{"tcbInfo":%s,"tcbinfo":%s%s`, c.TCBInfo[start:end], forged, c.TCBInfo[end:]),
		"repeated key": fmt.Appendf(nil, `{"tcbInfo":%s,"tcbInfo":%s%s`, c.TCBInfo[start:end], forged, c.TCBInfo[end:]),
		"escaped key":  fmt.Appendf(nil, `{"tcbInfo":%s,"tcb\u0049nfo":%s%s`, c.TCBInfo[start:end], forged, c.TCBInfo[end:]),
		"forged first": fmt.Appendf(nil, `{"TcbInfo":%s,"tcbInfo":%s%s`, forged, c.TCBInfo[start:end], c.TCBInfo[end:]),
	} {
		changed := *c
		changed.TCBInfo = raw
		verified, err := w.verifier.Verify(mustParse(t, quoteOf(t, m, attest.TDX)), &changed, simNow)
		checkStage(t, name, verified, err, attest.StageCollateral)
		relaxed, configErr := attest.NewVerifier(attest.Config{Root: w.pki.Root(), ReserializedCollateralUnsafe: true})
		if configErr != nil {
			t.Fatal(configErr)
		}
		verified, err = relaxed.Verify(mustParse(t, quoteOf(t, m, attest.TDX)), &changed, simNow)
		if err == nil && status(verified) != string(attest.StatusOutOfDate) || err != nil && !errors.As(err, new(*attest.Error)) {
			t.Errorf("%s, relaxed: %v %s", name, err, status(verified))
		}
	}
}
