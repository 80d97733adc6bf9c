package attest_test

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tcb"
	"github.com/claviger/claviger/attest/tdx"
)

// TestVersion5SGX: an SGX report in a version 5 quote gives the claims that it gives in version 3.
func TestVersion5SGX(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a", TCB: attest.StatusSWHardeningNeeded})
	c := w.collateral(t, attest.SGX, m.FMSPC())
	raw, err := m.QuoteSGX5(report)
	if err != nil {
		t.Fatal(err)
	}
	q := mustParse(t, raw)
	if q.TEE() != attest.SGX || q.Version() != 5 || q.TDX() != nil || q.ReportData() != report.ReportData {
		t.Fatalf("parsed as %s version %d", q.TEE(), q.Version())
	}
	if n, err := attest.QuoteSize(append(raw, 1, 2, 3)); err != nil || n != len(raw) {
		t.Errorf("size %d, %v", n, err)
	}
	verified, err := w.verifier.Verify(q, c, simNow)
	if err != nil {
		t.Fatal(err)
	}
	third, err := w.verifier.Verify(mustParse(t, sgxQuote(t, m, report).Append(nil)), c, simNow)
	if err != nil {
		t.Fatal(err)
	}
	got, want := verified.Claims(), third.Claims()
	if got.QuoteVersion != 5 || *got.SGX != *want.SGX || got.TCB.Status != attest.StatusSWHardeningNeeded || got.Platform != want.Platform {
		t.Errorf("version 5 claims %+v\nversion 3 claims %+v", got, want)
	}
	verified, err = w.verifier.Verify(q, w.collateral(t, attest.TDX, m.FMSPC()), simNow)
	checkStage(t, "with collateral for TDX", verified, err, attest.StageCollateral)
	// One quote's signature is not good in the other version: the header is signed.
	other := q.SGX()
	other.Header.Version = sgx.Version
	verified, err = w.verifier.Verify(mustParse(t, other.Append(nil)), c, simNow)
	checkStage(t, "version 5 rewritten as 3", verified, err, attest.StageSignature)
}

// TestVersion5Bodies: which TEE a version 5 quote is of must agree with its body.
func TestVersion5Bodies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	inSGX, err := m.QuoteSGX5(report)
	if err != nil {
		t.Fatal(err)
	}
	inTDX, err := m.QuoteTDX5(tdx.Body{}, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	binary.LittleEndian.PutUint32(inSGX[4:], tdx.TEEType)
	binary.LittleEndian.PutUint32(inTDX[4:], sgx.TEEType)
	if _, err := attest.Parse(inSGX); !errors.Is(err, tdx.ErrBodyType) {
		t.Errorf("SGX report as TDX: %v", err)
	}
	if _, err := attest.Parse(inTDX); !errors.Is(err, sgx.ErrBodyType) {
		t.Errorf("TD report as SGX: %v", err)
	}
}

// TestVersion5TDX: types 2 and 3 are verified, with relaunch for type 3 only.
func TestVersion5TDX(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	service := &tdx.Body15{MRServiceTD: [48]byte{7}}
	for _, tc := range []struct {
		name   string
		config simpki.PlatformConfig
		more   *tdx.Body15
		want   attest.Status
	}{
		{"1.0", simpki.PlatformConfig{}, nil, attest.StatusUpToDate},
		{"1.5", simpki.PlatformConfig{}, service, attest.StatusUpToDate},
		{"1.0, old module", simpki.PlatformConfig{Module: attest.StatusOutOfDate, ModuleNow: attest.StatusUpToDate}, nil, attest.StatusOutOfDate},
		{"1.5, old module", simpki.PlatformConfig{Module: attest.StatusOutOfDate}, service, attest.StatusOutOfDate},
		{"1.5, module replaced", simpki.PlatformConfig{Module: attest.StatusOutOfDate, ModuleNow: attest.StatusUpToDate}, service, attest.StatusTDRelaunchAdvised},
		{"1.5, module replaced, configuration", simpki.PlatformConfig{TCB: attest.StatusConfigurationNeeded, Module: attest.StatusOutOfDate, ModuleNow: attest.StatusUpToDate}, service,
			attest.StatusTDRelaunchAdvisedConfigurationNeeded},
		{"1.5, module replaced, old QE", simpki.PlatformConfig{QE: attest.StatusOutOfDate, Module: attest.StatusOutOfDate, ModuleNow: attest.StatusUpToDate}, service, attest.StatusOutOfDate},
		{"1.5, revoked module replaced", simpki.PlatformConfig{Module: attest.StatusRevoked, ModuleNow: attest.StatusUpToDate}, service, attest.StatusRevoked},
		{"1.5, old microcode, module replaced", simpki.PlatformConfig{TCB: attest.StatusOutOfDate, Module: attest.StatusOutOfDate, ModuleNow: attest.StatusUpToDate}, service, attest.StatusOutOfDate},
	} {
		tc.config.Name = tc.name
		m := w.machine(t, tc.config)
		raw, err := m.QuoteTDX5(tdx.Body{MRTD: [48]byte{1}}, tc.more, nil)
		if err != nil {
			t.Fatal(err)
		}
		verified, err := w.verifier.Verify(mustParse(t, raw), w.collateral(t, attest.TDX, m.FMSPC()), simNow)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		c := verified.Claims()
		if c.TCB.Status != tc.want || c.QuoteVersion != 5 || (c.TDX.MRServiceTD != nil) != (tc.more != nil) || (c.TDX.TEETCBSVN2 != nil) != (tc.more != nil) {
			t.Errorf("%s: status %s, want %s; %+v", tc.name, c.TCB.Status, tc.want, c.TDX)
		}
		if tc.more != nil && *c.TDX.MRServiceTD != tc.more.MRServiceTD {
			t.Errorf("%s: MRSERVICETD %x", tc.name, *c.TDX.MRServiceTD)
		}
	}
}

// TestVersion5Extended: body type 4 is read, and refused by name before anything is verified.
func TestVersion5Extended(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	raw, err := m.QuoteTDX5(tdx.Body{ReportData: [64]byte{1}}, &tdx.Body15{}, &tdx.Body15Ex{TDID: [32]byte{2}})
	if err != nil {
		t.Fatal(err)
	}
	q := mustParse(t, raw)
	if q.TDX().Body15Ex.TDID != [32]byte{2} || q.ReportData() != [64]byte{1} {
		t.Errorf("%+v", q.TDX().Body15Ex)
	}
	verified, err := w.verifier.Verify(q, w.collateral(t, attest.TDX, m.FMSPC()), simNow)
	checkStage(t, "body type 4", verified, err, attest.StageParse)
	if !errors.Is(err, attest.ErrUnsupported) || !strings.Contains(err.Error(), "body type 4") {
		t.Error(err)
	}
}

// TestNoPCKChain: quotes that name their platform without a certificate say what is missing and where it comes from, and not
// which machine it is.
func TestNoPCKChain(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	tail := append(append([]byte{}, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x55), 13, 0, 0x77, 0x88) // CPUSVN, PCESVN, PCEID
	for certType, tc := range map[uint16]struct {
		ppid int
		want string
	}{
		1: {16, "type 1 holds PPID in plain text, CPUSVN 11223344000000000000000000000055, PCESVN 13, PCEID 7788"},
		2: {256, "type 2 holds PPID encrypted with RSA-2048, CPUSVN 1122"},
		3: {384, "type 3 holds PPID encrypted with RSA-3072, CPUSVN 1122"},
		4: {0, "type 4 holds the PCK certificate alone;"},
		6: {0, "type 6 holds a QE report;"},
		7: {0, "type 7 holds a platform manifest;"},
		9: {0, "certification data type 9;"},
	} {
		ppid := strings.Repeat("\xAB", tc.ppid)
		q := sgxQuote(t, m, report)
		q.Auth.CertType, q.Auth.CertData = certType, append([]byte(ppid), tail...)
		fifth := *q
		fifth.Header.Version = sgx.Version5
		raw, err := m.QuoteTDX(tdx.Body{})
		if err != nil {
			t.Fatal(err)
		}
		inTDX, err := tdx.ParseQuote(raw)
		if err != nil {
			t.Fatal(err)
		}
		inTDX.Auth.CertType, inTDX.Auth.CertData = q.Auth.CertType, q.Auth.CertData
		for _, raw := range [][]byte{q.Append(nil), fifth.Append(nil), inTDX.Append(nil)} {
			parsed, err := attest.Parse(raw)
			if !errors.Is(err, attest.ErrNoPCKChain) || !errors.Is(err, attest.ErrUnsupported) || parsed != nil {
				t.Errorf("type %d: %v", certType, err)
				continue
			}
			text := err.Error()
			if !strings.Contains(text, tc.want) || !strings.Contains(text, "Get PCK Certificate") || strings.Contains(text, "abab") {
				t.Errorf("type %d: %s", certType, text)
			}
		}
	}
	// A length that does not fit is not read from.
	q := sgxQuote(t, m, report)
	q.Auth.CertType, q.Auth.CertData = 3, []byte{1}
	if _, err := attest.Parse(q.Append(nil)); !errors.Is(err, attest.ErrNoPCKChain) || strings.Contains(err.Error(), "CPUSVN 0") {
		t.Error(err)
	}
}

// TestModuleVersions: the module's major version chooses its identity, and one that Intel does not describe is refused.
func TestModuleVersions(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	for major, stage := range map[byte]attest.Stage{1: "", 3: "", 2: attest.StageTCB, 9: attest.StageTCB, 255: attest.StageTCB} {
		m := w.machine(t, simpki.PlatformConfig{Name: "a", ModuleMajor: major})
		for range 2 {
			verified, err := w.verifier.Verify(mustParse(t, quoteOf(t, m, attest.TDX)), w.collateral(t, attest.TDX, m.FMSPC()), simNow)
			checkStage(t, fmt.Sprint("major version ", major), verified, err, stage)
			if stage != "" && !errors.Is(err, tcb.ErrModule) {
				t.Errorf("major version %d: %v", major, err)
			}
		}
	}
}

// TestVersion5JSON: what only a TDX 1.5 body says is in the claims' JSON.
func TestVersion5JSON(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a", TCB: attest.StatusOutOfDate})
	raw, err := m.QuoteTDX5(tdx.Body{}, &tdx.Body15{MRServiceTD: [48]byte{0xab}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	verified, err := w.verifier.Verify(mustParse(t, raw), w.collateral(t, attest.TDX, m.FMSPC()), simNow)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(verified.Claims())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{`"quote_version":5`, `"mrservicetd":"ab00`, `"tee_tcb_svn_2":"0b01`, `"advisories":["INTEL-SA-`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in %s", want, out)
		}
	}
}
