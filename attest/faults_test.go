package attest_test

import (
	"math/big"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// TestFaultClasses performs end to end what verifiers were found to forget. Those of evaluation alone are in package tcb, the
// case variants of signed keys in TestCaseVariantOfASignedKey, the root pinned by its certificate in package pck and, with
// both of Intel's, in TestVectors.
func TestFaultClasses(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	good := w.machine(t, simpki.PlatformConfig{Name: "good"})
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		c := w.collateral(t, tee, simpki.DefaultFMSPC)
		other := attest.TDX
		if tee == attest.TDX {
			other = attest.SGX
		}
		foreign := w.collateral(t, other, simpki.DefaultFMSPC)
		for name, tc := range map[string]struct {
			config simpki.PlatformConfig
			edit   func(c *attest.Collateral)
			stage  attest.Stage
		}{
			"PCEID not compared":                 {simpki.PlatformConfig{PCEID: [2]byte{1}}, nil, attest.StageCollateral},
			"FMSPC not compared":                 {simpki.PlatformConfig{FMSPC: [6]byte{1}}, nil, attest.StageCollateral},
			"list of the other CA":               {simpki.PlatformConfig{CA: simpki.ProcessorCA}, nil, attest.StageRevocation},
			"no revocation list":                 {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.PCKCRL = nil }, attest.StageParse},
			"no root revocation list":            {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.RootCRL = nil }, attest.StageParse},
			"root's list as the CA's":            {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.PCKCRL = c.RootCRL }, attest.StageRevocation},
			"CA's list as the root's":            {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.RootCRL = c.PCKCRL }, attest.StageRevocation},
			"no QE identity":                     {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.QEIdentity = nil }, attest.StageParse},
			"QE identity of the other TEE":       {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.QEIdentity = foreign.QEIdentity }, attest.StageCollateral},
			"TCB info of the other TEE":          {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.TCBInfo = foreign.TCBInfo }, attest.StageCollateral},
			"both documents of the other TEE":    {simpki.PlatformConfig{}, func(c *attest.Collateral) { *c = *foreign }, attest.StageCollateral},
			"chain signed by the PCK of another": {simpki.PlatformConfig{}, func(c *attest.Collateral) { c.TCBSigningChain = good.Chain() }, attest.StageCollateral},
			"nothing wrong":                      {simpki.PlatformConfig{}, nil, ""},
		} {
			tc.config.Name = name
			raw, changed := quoteOf(t, w.machine(t, tc.config), tee), *c
			if tc.edit != nil {
				tc.edit(&changed)
			}
			verified, err := w.verifier.Verify(mustParse(t, raw), &changed, simNow)
			checkStage(t, string(tee)+", "+name, verified, err, tc.stage)
		}
	}
}

// TestQEIsNotAnyEnclave: a host that gets the PCK key to sign the report of an enclave of its own, which vouches for a key of its
// own, is refused by the QE identity. Here a platform stands in for it whose quoting enclaves change places: the report of the
// TD quoting enclave, genuine in every bit, in an SGX quote.
func TestQEIsNotAnyEnclave(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	q := sgxQuote(t, m, report)
	raw, err := m.QuoteTDX(tdx.Body{})
	if err != nil {
		t.Fatal(err)
	}
	td, err := tdx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	q.Auth.AttestationKey, q.Auth.QEReport, q.Auth.QEReportSignature, q.Auth.QEAuthData =
		td.Auth.AttestationKey, td.Auth.QEReport, td.Auth.QEReportSignature, td.Auth.QEAuthData
	verified, err := w.verifier.Verify(mustParse(t, q.Append(nil)), w.collateral(t, attest.SGX, m.FMSPC()), simNow)
	checkStage(t, "TD quoting enclave in an SGX quote", verified, err, attest.StageQE)
}

// malleated returns the other signature (r, n − s) of the same meaning.
func malleated(signature [64]byte) [64]byte {
	order, _ := new(big.Int).SetString("ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551", 16)
	s := new(big.Int).SetBytes(signature[32:])
	s.Sub(order, s).FillBytes(signature[32:])
	return signature
}

// TestMalleability: the one change of a quote that is accepted. Nothing may therefore be named by a quote's hash.
func TestMalleability(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	c := w.collateral(t, attest.SGX, m.FMSPC())
	for name, edit := range map[string]func(q *sgx.Quote){
		"report":    func(q *sgx.Quote) { q.Auth.Signature = malleated(q.Auth.Signature) },
		"QE report": func(q *sgx.Quote) { q.Auth.QEReportSignature = malleated(q.Auth.QEReportSignature) },
	} {
		q := sgxQuote(t, m, report)
		edit(q)
		verified, err := w.verifier.Verify(mustParse(t, q.Append(nil)), c, simNow)
		checkStage(t, name, verified, err, "")
	}
	for name, s := range map[string][64]byte{"zero": {}, "r of zero": {63: 1}, "s of zero": {31: 1}, "ones": {}} {
		if name == "ones" {
			for i := range s {
				s[i] = 0xff
			}
		}
		q := sgxQuote(t, m, report)
		q.Auth.Signature = s
		verified, err := w.verifier.Verify(mustParse(t, q.Append(nil)), c, simNow)
		checkStage(t, name, verified, err, attest.StageSignature)
	}
}
