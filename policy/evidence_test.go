package policy

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// The tests in this file go the whole way: a quote of a simulated platform,
// the production verifier, the constraint.

type simulation struct {
	t        *testing.T
	pki      *simpki.PKI
	verifier *attest.Verifier
}

func newSimulation(t *testing.T) *simulation {
	t.Helper()
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{3}, Now: now.AddDate(0, -1, 0)})
	if err != nil {
		t.Fatal(err)
	}
	v, err := attest.NewVerifier(attest.Config{Root: pki.Root()})
	if err != nil {
		t.Fatal(err)
	}
	return &simulation{t, pki, v}
}

func (s *simulation) verify(raw []byte, tee attest.TEE) *attest.Verified {
	s.t.Helper()
	q, err := attest.Parse(raw)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := s.pki.Collateral(tee, simpki.DefaultFMSPC, now)
	if err != nil {
		s.t.Fatal(err)
	}
	v, err := s.verifier.Verify(q, c, now)
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (s *simulation) platform(config simpki.PlatformConfig) *simpki.Platform {
	s.t.Helper()
	p, err := s.pki.Platform(config)
	if err != nil {
		s.t.Fatal(err)
	}
	return p
}

func TestEvidenceSGX(t *testing.T) {
	t.Parallel()
	s := newSimulation(t)
	good := "C:" + codeA + " SEC:SECURE EXPIRE:P1D"
	cases := map[string]struct {
		platform simpki.PlatformConfig
		change   func(*sgx.Report)
		text     string
		want     []string
	}{
		"good":            {simpki.PlatformConfig{Name: "a"}, nil, good, nil},
		"signer":          {simpki.PlatformConfig{Name: "a"}, nil, "S:" + signA + " PROD:7 REVOKE:2", nil},
		"measurement":     {simpki.PlatformConfig{Name: "a"}, func(r *sgx.Report) { r.MREnclave[31]++ }, good, []string{"C"}},
		"debug":           {simpki.PlatformConfig{Name: "a"}, func(r *sgx.Report) { r.Attributes[0] |= 2 }, good, []string{"SEC:SECURE"}},
		"old version":     {simpki.PlatformConfig{Name: "a"}, func(r *sgx.Report) { r.ISVSVN = 2 }, "S:" + signA + " PROD:7 REVOKE:2", []string{"REVOKE"}},
		"old platform":    {simpki.PlatformConfig{Name: "b", TCB: attest.StatusOutOfDate}, nil, good, []string{"SEC:SECURE"}},
		"old but allowed": {simpki.PlatformConfig{Name: "b", TCB: attest.StatusOutOfDate}, nil, "C:" + codeA, nil},
		"revoked TCB":     {simpki.PlatformConfig{Name: "c", TCB: attest.StatusRevoked}, nil, "C:" + codeA, []string{"SEC:STALE"}},
		"unlisted TCB":    {simpki.PlatformConfig{Name: "d", TCB: attest.StatusNotSupported}, nil, "C:" + codeA, []string{"SEC:STALE"}},
		"old QE":          {simpki.PlatformConfig{Name: "e", QE: attest.StatusOutOfDate}, nil, good, []string{"SEC:SECURE"}},
	}
	for name, c := range cases {
		r := sgx.Report{ISVProdID: 7, ISVSVN: 3}
		r.Attributes[0] = 5
		fill(r.MREnclave[:], codeA)
		fill(r.MRSigner[:], signA)
		if c.change != nil {
			c.change(&r)
		}
		raw, err := s.platform(c.platform).QuoteSGX(r)
		if err != nil {
			t.Fatal(err)
		}
		got := clausesOf(t, mustParse(t, c.text).Check(s.verify(raw, attest.SGX), now))
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: failed %v, want %v", name, got, c.want)
		}
	}
}

func TestEvidenceTDX(t *testing.T) {
	t.Parallel()
	s := newSimulation(t)
	good := "TD:" + mrtd + " RTMR1:" + rtmr + " RTMR2:" + rtmr + " SEC:SECURE"
	cases := map[string]struct {
		platform simpki.PlatformConfig
		change   func(*tdx.Body)
		want     []string
	}{
		"good":         {simpki.PlatformConfig{Name: "a"}, nil, nil},
		"other kernel": {simpki.PlatformConfig{Name: "a"}, func(b *tdx.Body) { b.RTMR[1][0]++ }, []string{"RTMR1"}},
		"debug":        {simpki.PlatformConfig{Name: "a"}, func(b *tdx.Body) { b.TDAttributes[0] |= 1 }, []string{"SEC:SECURE"}},
		"interruptible": {simpki.PlatformConfig{Name: "a"}, func(b *tdx.Body) { b.TDAttributes[3] = 0 },
			[]string{"SEPT_VE_DISABLE"}},
		"migratable":  {simpki.PlatformConfig{Name: "a"}, func(b *tdx.Body) { b.TDAttributes[3] |= 0x20 }, []string{"MIGRATABLE"}},
		"unknown bit": {simpki.PlatformConfig{Name: "a"}, func(b *tdx.Body) { b.TDAttributes[5] = 1 }, []string{"TDATTRIBUTES"}},
		"old module":  {simpki.PlatformConfig{Name: "b", Module: attest.StatusOutOfDate}, nil, []string{"SEC:SECURE"}},
		"everything at once": {simpki.PlatformConfig{Name: "b", Module: attest.StatusOutOfDate}, func(b *tdx.Body) {
			b.MRTD[0]++
			b.RTMR[2][0]++
			binary.LittleEndian.PutUint64(b.TDAttributes[:], 1<<29|1)
		}, []string{"TD", "RTMR2", "SEPT_VE_DISABLE", "MIGRATABLE", "SEC:SECURE", "SEC:SECURE"}},
	}
	for name, c := range cases {
		var b tdx.Body
		fill(b.MRTD[:], mrtd)
		for i := range b.RTMR {
			fill(b.RTMR[i][:], rtmr)
		}
		binary.LittleEndian.PutUint64(b.TDAttributes[:], tdSeptVEDisable)
		if c.change != nil {
			c.change(&b)
		}
		raw, err := s.platform(c.platform).QuoteTDX(b)
		if err != nil {
			t.Fatal(err)
		}
		got := clausesOf(t, mustParse(t, good).Check(s.verify(raw, attest.TDX), now))
		if !slices.Equal(got, c.want) {
			t.Errorf("%s: failed %v, want %v", name, got, c.want)
		}
	}
}

// A denial of real evidence carries what an operator needs to act on.
func TestEvidenceDenialIsActionable(t *testing.T) {
	t.Parallel()
	s := newSimulation(t)
	r := sgx.Report{}
	r.Attributes[0] = 5
	r.MREnclave = [32]byte{1}
	raw, err := s.platform(simpki.PlatformConfig{Name: "old", TCB: attest.StatusOutOfDate}).QuoteSGX(r)
	if err != nil {
		t.Fatal(err)
	}
	err = mustParse(t, "C:"+codeA+" C:"+codeB+" SEC:SECURE").Check(s.verify(raw, attest.SGX), now)
	d, ok := errors.AsType[*Denied](err)
	if !ok || len(d.Failures) != 3 {
		t.Fatalf("%v", err)
	}
	for i, code := range []string{codeA, codeB} {
		f := d.Failures[i]
		if f.Alternative != "C:"+code || f.Want != code || f.Got != hex.EncodeToString(r.MREnclave[:]) {
			t.Errorf("alternative %d: %+v", i, f)
		}
	}
	if f := d.Failures[2]; f.Alternative != "" || len(f.Advisories) == 0 || f.TCBDate.IsZero() {
		t.Errorf("TCB: %+v", f)
	}
}
