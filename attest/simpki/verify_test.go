package simpki_test

import (
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

const day = 24 * time.Hour

var now = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// bench is a PKI with the production verifier under its root.
type bench struct {
	*simpki.PKI
	*attest.Verifier
}

func newBench(t *testing.T, seed byte) bench {
	t.Helper()
	p, err := simpki.New(simpki.Config{Seed: [32]byte{seed}, Now: now})
	if err != nil {
		t.Fatal(err)
	}
	v, err := attest.NewVerifier(attest.Config{Root: p.Root()})
	if err != nil {
		t.Fatal(err)
	}
	return bench{p, v}
}

func (b bench) machine(t *testing.T, config simpki.PlatformConfig) *simpki.Platform {
	t.Helper()
	if config.Name == "" {
		config.Name = "machine"
	}
	m, err := b.Platform(config)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// quote returns a quote of a TEE with a few fields set, debug as asked for.
func quote(t *testing.T, m *simpki.Platform, tee attest.TEE, debug byte) *attest.Quote {
	t.Helper()
	var raw []byte
	var err error
	if tee == attest.SGX {
		raw, err = m.QuoteSGX(sgx.Report{MREnclave: [32]byte{1}, ISVSVN: 4, Attributes: [16]byte{5 | debug<<1},
			ReportData: [64]byte{7}})
	} else {
		raw, err = m.QuoteTDX(tdx.Body{MRTD: [48]byte{1}, TDAttributes: [8]byte{debug, 0, 0, 0x10}, ReportData: [64]byte{7}})
	}
	if err != nil {
		t.Fatal(err)
	}
	q, err := attest.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// claims verifies a fresh quote of m with the collateral of at and of m's CA, at the time now.
func (b bench) verify(t *testing.T, m *simpki.Platform, tee attest.TEE, ca simpki.CA, at, now time.Time) (attest.Claims, error) {
	t.Helper()
	c, err := b.CollateralFor(tee, m.FMSPC(), ca, at)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := b.Verify(quote(t, m, tee, 0), c, now)
	if err != nil {
		return attest.Claims{}, err
	}
	return verified.Claims(), nil
}

var tees = []attest.TEE{attest.SGX, attest.TDX}

// Every scripted state evaluates on the production path to what was asked for.
func TestEveryStatus(t *testing.T) {
	b := newBench(t, 1)
	ran := 0
	for _, status := range []attest.Status{
		attest.StatusUpToDate, attest.StatusSWHardeningNeeded, attest.StatusConfigurationNeeded,
		attest.StatusConfigurationAndSWHardeningNeeded, attest.StatusOutOfDate,
		attest.StatusOutOfDateConfigurationNeeded, attest.StatusRevoked, attest.StatusNotSupported,
	} {
		for _, tee := range tees {
			for _, ca := range []simpki.CA{simpki.PlatformCA, simpki.ProcessorCA} {
				m := b.machine(t, simpki.PlatformConfig{TCB: status, CA: ca})
				c, err := b.verify(t, m, tee, ca, now, now)
				if err != nil {
					t.Errorf("%s %s: %v", tee, status, err)
					continue
				}
				if c.TCB.Status != status || c.TCB.Platform.Status != status {
					t.Errorf("%s: status %s, want %s", tee, c.TCB.Status, status)
				}
				quiet := status == attest.StatusUpToDate || status == attest.StatusNotSupported
				if quiet != (len(c.TCB.Advisories) == 0) || !slices.IsSorted(c.TCB.Advisories) {
					t.Errorf("%s %s: advisories %v", tee, status, c.TCB.Advisories)
				}
				ran++
			}
		}
	}
	if ran != 32 {
		t.Errorf("%d of 32 states were verified", ran)
	}
}

// Components merge with the platform as DESIGN states; the expectations are spelled out here.
func TestComponents(t *testing.T) {
	b := newBench(t, 1)
	for name, c := range map[string]struct {
		config   simpki.PlatformConfig
		sgx, tdx attest.Status
	}{
		"old QE": {simpki.PlatformConfig{QE: attest.StatusOutOfDate}, attest.StatusOutOfDate, attest.StatusOutOfDate},
		"revoked QE": {simpki.PlatformConfig{QE: attest.StatusRevoked, TCB: attest.StatusOutOfDate},
			attest.StatusRevoked, attest.StatusRevoked},
		"unknown QE": {simpki.PlatformConfig{QE: attest.StatusNotSupported},
			attest.StatusNotSupported, attest.StatusNotSupported},
		"old QE, to configure": {simpki.PlatformConfig{QE: attest.StatusOutOfDate, TCB: attest.StatusConfigurationNeeded},
			attest.StatusOutOfDateConfigurationNeeded, attest.StatusOutOfDateConfigurationNeeded},
		"old module":     {simpki.PlatformConfig{Module: attest.StatusOutOfDate}, attest.StatusUpToDate, attest.StatusOutOfDate},
		"revoked module": {simpki.PlatformConfig{Module: attest.StatusRevoked}, attest.StatusUpToDate, attest.StatusRevoked},
		"unknown module": {simpki.PlatformConfig{Module: attest.StatusNotSupported}, attest.StatusUpToDate, attest.StatusNotSupported},
	} {
		m := b.machine(t, c.config)
		for tee, want := range map[attest.TEE]attest.Status{attest.SGX: c.sgx, attest.TDX: c.tdx} {
			got, err := b.verify(t, m, tee, simpki.PlatformCA, now, now)
			if err != nil || got.TCB.Status != want {
				t.Errorf("%s, %s: status %q, %v; want %s", name, tee, got.TCB.Status, err, want)
			}
		}
	}
}

func TestClaims(t *testing.T) {
	b := newBench(t, 1)
	m := b.machine(t, simpki.PlatformConfig{})
	for _, tee := range tees {
		c, err := b.verify(t, m, tee, simpki.PlatformCA, now, now)
		if err != nil {
			t.Fatal(err)
		}
		if c.TEE != tee || c.Debug || c.ReportData != [64]byte{7} || !c.Root.Simulated || c.Root.ID() != b.PKI.Root().ID() {
			t.Errorf("%s: %+v", tee, c)
		}
		if c.Platform.PPID != m.PPID() || c.Platform.FMSPC != m.FMSPC() || c.Platform.CA != string(simpki.PlatformCA) {
			t.Errorf("%s: platform %+v", tee, c.Platform)
		}
		if issue := c.Collateral.TCBInfoIssueDate; !issue.Equal(now.Truncate(day)) {
			t.Errorf("%s: issued %s", tee, issue)
		}
		if expiry := c.Collateral.EarliestExpiry; !expiry.Equal(now.Truncate(day).Add(30 * day)) {
			t.Errorf("%s: expires %s", tee, expiry)
		}
		if tee == attest.TDX && (c.TCB.Module == nil || c.TCB.Module.Status != attest.StatusUpToDate) {
			t.Errorf("module %+v", c.TCB.Module)
		}
		set, err := b.Collateral(tee, m.FMSPC(), now)
		if err != nil {
			t.Fatal(err)
		}
		if v, err := b.Verify(quote(t, m, tee, 1), set, now); err != nil || !v.Claims().Debug {
			t.Errorf("%s: a debug report is not claimed as one (%v)", tee, err)
		}
	}
}

// wantStage fails unless err is a refusal at the stage.
func wantStage(t *testing.T, what string, err error, stage attest.Stage) {
	t.Helper()
	if refusal, ok := errors.AsType[*attest.Error](err); !ok || refusal.Stage != stage {
		t.Errorf("%s: %v, want a refusal at stage %s", what, err, stage)
	}
}

func TestRevocations(t *testing.T) {
	for _, tee := range tees {
		b := newBench(t, 1)
		m, other := b.machine(t, simpki.PlatformConfig{}), b.machine(t, simpki.PlatformConfig{Name: "other"})
		b.Revoke(m, now)
		_, err := b.verify(t, m, tee, simpki.PlatformCA, now, now)
		wantStage(t, "revoked PCK", err, attest.StageRevocation)
		if _, err := b.verify(t, other, tee, simpki.PlatformCA, now, now); err != nil {
			t.Errorf("another machine: %v", err)
		}
		// The host keeps the list of the day before: the quote passes with it, which is why lists must never go back.
		if _, err := b.verify(t, m, tee, simpki.PlatformCA, now.Add(-day), now); err != nil {
			t.Errorf("the script reaches into the past: %v", err)
		}
		b.RevokeTCBSigning(now.Add(day))
		_, err = b.verify(t, other, tee, simpki.PlatformCA, now.Add(day), now.Add(day))
		wantStage(t, "revoked TCB signing", err, attest.StageCollateral)

		b = newBench(t, 1)
		if err := b.RevokeCA(simpki.PlatformCA, now); err != nil {
			t.Fatal(err)
		}
		_, err = b.verify(t, m, tee, simpki.PlatformCA, now, now)
		wantStage(t, "revoked CA", err, attest.StageRevocation)
	}
}

func TestExpiredAndForeign(t *testing.T) {
	b, foreign := newBench(t, 1), newBench(t, 2)
	m := b.machine(t, simpki.PlatformConfig{})
	for _, tee := range tees {
		_, err := b.verify(t, m, tee, simpki.PlatformCA, now.Add(-31*day), now)
		wantStage(t, "expired", err, attest.StageRevocation)
		_, err = b.verify(t, m, tee, simpki.PlatformCA, now.Add(day), now)
		if err == nil {
			t.Errorf("%s: collateral of tomorrow passes", tee)
		}
		_, err = b.verify(t, m, tee, simpki.ProcessorCA, now, now)
		wantStage(t, "list of the other CA", err, attest.StageRevocation)
		_, err = foreign.verify(t, m, tee, simpki.PlatformCA, now, now)
		wantStage(t, "another root", err, attest.StageChain)

		c, err := b.Collateral(tee, [6]byte{1}, now)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Verify(quote(t, m, tee, 0), c, now)
		wantStage(t, "another FMSPC", err, attest.StageCollateral)
		other := tees[0]
		if tee == other {
			other = tees[1]
		}
		c, err = b.Collateral(other, m.FMSPC(), now)
		if err != nil {
			t.Fatal(err)
		}
		_, err = b.Verify(quote(t, m, tee, 0), c, now)
		wantStage(t, "another TEE", err, attest.StageCollateral)
	}
}

// A TCB recovery leaves a machine behind until it installs the update.
func TestRecovery(t *testing.T) {
	b := newBench(t, 1)
	m := b.machine(t, simpki.PlatformConfig{})
	for n := 1; n <= 3; n++ {
		at := now.Add(time.Duration(n) * day)
		if err := b.Recover(at); err != nil {
			t.Fatal(err)
		}
		for _, tee := range tees {
			before, err := b.verify(t, m, tee, simpki.PlatformCA, at.Add(-day), at.Add(-day))
			if err != nil || before.TCB.Status != attest.StatusUpToDate {
				t.Errorf("recovery %d, the day before: %s, %v", n, before.TCB.Status, err)
			}
			after, err := b.verify(t, m, tee, simpki.PlatformCA, at, at)
			if err != nil || after.TCB.Status != attest.StatusOutOfDate {
				t.Errorf("recovery %d: %s, %v; want OutOfDate", n, after.TCB.Status, err)
			}
			if after.TCB.EvaluationNumber != before.TCB.EvaluationNumber+1 {
				t.Errorf("recovery %d: evaluation number %d after %d", n, after.TCB.EvaluationNumber, before.TCB.EvaluationNumber)
			}
			patched, err := b.verify(t, b.machine(t, simpki.PlatformConfig{}), tee, simpki.PlatformCA, at, at)
			if err != nil || patched.TCB.Status != attest.StatusUpToDate || patched.Platform.PPID != m.PPID() {
				t.Errorf("recovery %d: patched machine %s, %v", n, patched.TCB.Status, err)
			}
		}
		m = b.machine(t, simpki.PlatformConfig{})
	}
}

// The bundle of a set must stay under the limits of everything that carries it.
func TestBundleSize(t *testing.T) {
	b := newBench(t, 1)
	for _, tee := range tees {
		c, err := b.Collateral(tee, simpki.DefaultFMSPC, now)
		if err != nil {
			t.Fatal(err)
		}
		raw, err := c.Marshal()
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > 64<<10 {
			t.Errorf("%s: bundle of %d bytes", tee, len(raw))
		}
		t.Logf("%s: bundle of %d bytes", tee, len(raw))
	}
}
