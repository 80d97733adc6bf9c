package simpki

import (
	"errors"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tdx"
)

// TestVersion5 checks that each version 5 quote is what it says, and that the relaunch script shows where it should.
func TestVersion5(t *testing.T) {
	p := newPKI(t)
	m := newPlatform(t, p, PlatformConfig{Name: "v5", Module: attest.StatusOutOfDate, ModuleNow: attest.StatusUpToDate, ModuleMajor: 3})
	raw, err := m.QuoteSGX5(sgx.Report{MREnclave: [32]byte{1}})
	if err != nil {
		t.Fatal(err)
	}
	if q, err := sgx.ParseQuote(raw); err != nil || q.Header.Version != sgx.Version5 || q.Report.MREnclave != [32]byte{1} {
		t.Errorf("SGX: %v", err)
	}
	extended := &tdx.Body15Ex{TDID: [32]byte{2}}
	for want, more := range map[uint16][2]bool{tdx.BodyTD10: {}, tdx.BodyTD15: {true, false}, tdx.BodyTD15Ex: {true, true}} {
		var b15 *tdx.Body15
		var ex *tdx.Body15Ex
		if more[0] {
			b15 = &tdx.Body15{MRServiceTD: [48]byte{3}}
		}
		if more[1] {
			ex = extended
		}
		raw, err := m.QuoteTDX5(tdx.Body{MRTD: [48]byte{1}}, b15, ex)
		if err != nil {
			t.Fatal(err)
		}
		q, err := tdx.ParseQuote(raw)
		if err != nil || q.BodyType != want || q.Body.TEETCBSVN[0] != moduleOld || q.Body.TEETCBSVN[1] != 3 {
			t.Errorf("body type %d: %v", want, err)
			continue
		}
		if b15 != nil && (q.Body15.TEETCBSVN2[0] != moduleTop || q.Body15.MRServiceTD != b15.MRServiceTD || b15.TEETCBSVN2 != [16]byte{}) {
			t.Errorf("body type %d: %+v, from %+v", want, q.Body15, b15)
		}
	}
	// An extended body is one of TDX 1.5: without that it is not made.
	if raw, err = m.QuoteTDX5(tdx.Body{}, nil, extended); err != nil {
		t.Fatal(err)
	}
	if q, err := tdx.ParseQuote(raw); err != nil || q.BodyType != tdx.BodyTD10 {
		t.Errorf("extended without 1.5: %v", err)
	}
}

func TestIssuerChain(t *testing.T) {
	p := newPKI(t)
	for ca, name := range map[CA]string{PlatformCA: platformName, ProcessorCA: processorName} {
		raw, err := p.IssuerChain(ca)
		if err != nil {
			t.Fatal(err)
		}
		if list := certificates(t, raw); len(list) != 2 || list[0].Subject.CommonName != name || list[1].Subject.CommonName != rootName {
			t.Errorf("%s: %d certificates", ca, len(list))
		}
	}
	if raw, err := p.IssuerChain("other"); !errors.Is(err, ErrConfig) || raw != nil {
		t.Errorf("unknown CA: %v", err)
	}
}

func TestNamesForPeople(t *testing.T) {
	m := newPlatform(t, newPKI(t), PlatformConfig{Name: "v5"})
	if m.String() != `simulated platform "v5" (FMSPC 518060000000)` || m.Name() != "v5" {
		t.Error(m.String())
	}
	if _, err := newPKI(t).Platform(PlatformConfig{Name: "x", ModuleNow: attest.StatusSWHardeningNeeded}); !errors.Is(err, ErrConfig) {
		t.Errorf("impossible status of the module in force: %v", err)
	}
	if _, err := newPKI(t).Platform(PlatformConfig{Name: "x", Module: "x"}); !errors.Is(err, ErrConfig) {
		t.Errorf("impossible status of the module: %v", err)
	}
	if _, err := newPKI(t).Platform(PlatformConfig{Name: "x", CA: "x"}); !errors.Is(err, ErrConfig) {
		t.Errorf("unknown CA: %v", err)
	}
}
