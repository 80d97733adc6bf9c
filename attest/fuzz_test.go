package attest_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// exhibit is genuine evidence, and what is said about it.
type exhibit struct {
	raw    []byte
	c      *attest.Collateral
	signed string // what the attestation key signed
	status attest.Status
}

// exhibits are one quote of each form, of platforms of different statuses.
func (w world) exhibits(t testing.TB) (list []exhibit) {
	t.Helper()
	for i, tc := range []struct {
		tee   attest.TEE
		tcb   attest.Status
		quote func(m *simpki.Platform) ([]byte, error)
	}{
		{attest.SGX, attest.StatusUpToDate, func(m *simpki.Platform) ([]byte, error) { return m.QuoteSGX(report) }},
		{attest.SGX, attest.StatusOutOfDate, func(m *simpki.Platform) ([]byte, error) { return m.QuoteSGX5(report) }},
		{attest.TDX, attest.StatusUpToDate, func(m *simpki.Platform) ([]byte, error) { return m.QuoteTDX(tdx.Body{MRTD: [48]byte{1}}) }},
		{attest.TDX, attest.StatusConfigurationNeeded, func(m *simpki.Platform) ([]byte, error) {
			return m.QuoteTDX5(tdx.Body{MRTD: [48]byte{2}}, nil, nil)
		}},
		{attest.TDX, attest.StatusSWHardeningNeeded, func(m *simpki.Platform) ([]byte, error) {
			return m.QuoteTDX5(tdx.Body{MRTD: [48]byte{3}}, &tdx.Body15{}, nil)
		}},
	} {
		m := w.machine(t, simpki.PlatformConfig{Name: fmt.Sprint("exhibit ", i), TCB: tc.tcb})
		raw, err := tc.quote(m)
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, exhibit{raw, w.collateral(t, tc.tee, m.FMSPC()), signedPart(mustParse(t, raw)), tc.tcb})
	}
	return list
}

func signedPart(q *attest.Quote) string {
	if q.TDX() != nil {
		return string(q.TDX().AppendSigned(nil))
	}
	return string(q.SGX().AppendSigned(nil))
}

// FuzzVerify changes a quote and all five parts of its collateral. Whatever comes of it: no panic, no value beside an error, a
// typed refusal; and what is accepted is what a quoting enclave signed, with the status that Intel gave it. The two verifiers
// live as long as the fuzzing, so their caches are attacked as well.
func FuzzVerify(f *testing.F) {
	w := newWorld(f, 1)
	known := map[string]attest.Status{}
	for _, e := range w.exhibits(f) {
		known[e.signed] = e.status
		f.Add(e.raw, e.c.TCBInfo, e.c.QEIdentity, e.c.TCBSigningChain, e.c.PCKCRL, e.c.RootCRL)
	}
	relaxed, err := attest.NewVerifier(attest.Config{Root: w.pki.Root(), ReserializedCollateralUnsafe: true})
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, raw, info, identity, chain, pckCRL, rootCRL []byte) {
		q, err := attest.Parse(raw)
		if (q == nil) != (err != nil) {
			t.Fatal("a quote beside an error")
		}
		if err != nil {
			return
		}
		c := &attest.Collateral{TCBInfo: info, QEIdentity: identity, TCBSigningChain: chain, PCKCRL: pckCRL, RootCRL: rootCRL}
		for _, v := range []*attest.Verifier{w.verifier, relaxed} {
			verified, err := v.Verify(q, c, simNow)
			if (verified == nil) != (err != nil) {
				t.Fatal("a proof beside an error")
			}
			if err != nil {
				if !errors.As(err, new(*attest.Error)) {
					t.Fatalf("untyped error %v", err)
				}
				continue
			}
			want, ok := known[signedPart(q)]
			if got := verified.Claims().TCB.Status; !ok || got != want {
				t.Fatalf("accepted with status %s what no enclave signed (known %v, %s)", got, ok, want)
			}
		}
	})
}

// FuzzVerifyCollateral is FuzzVerify without a quote.
func FuzzVerifyCollateral(f *testing.F) {
	w := newWorld(f, 1)
	issuer, err := w.pki.IssuerChain(simpki.PlatformCA)
	if err != nil {
		f.Fatal(err)
	}
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		c := w.collateral(f, tee, simpki.DefaultFMSPC)
		f.Add(issuer, c.TCBInfo, c.QEIdentity, c.TCBSigningChain, c.PCKCRL, c.RootCRL)
	}
	f.Fuzz(func(t *testing.T, issuer, info, identity, chain, pckCRL, rootCRL []byte) {
		c := &attest.Collateral{TCBInfo: info, QEIdentity: identity, TCBSigningChain: chain, PCKCRL: pckCRL, RootCRL: rootCRL}
		r, err := w.verifier.VerifyCollateral(c, issuer, simNow)
		if (r == nil) != (err != nil) || err != nil && !errors.As(err, new(*attest.Error)) {
			t.Fatalf("%v beside %v", r, err)
		}
		if err == nil && (r.FMSPC != simpki.DefaultFMSPC || r.Set.LatestIssue.After(simNow) || r.Set.EarliestExpiry.Before(simNow)) {
			t.Fatalf("accepted %+v", r)
		}
	})
}

// flipBit returns raw with bit n changed.
func flipBit(raw []byte, n int) []byte {
	raw = bytes.Clone(raw)
	raw[n/8] ^= 1 << (n % 8)
	return raw
}

// flipPEM changes bit n of the DER of the certificates in raw, which keep their PEM form.
func flipPEM(raw []byte, n int) []byte {
	var blocks []*pem.Block
	for rest := bytes.TrimRight(raw, "\x00"); ; {
		block, more := pem.Decode(rest)
		if block == nil {
			break
		}
		blocks, rest = append(blocks, block), more
	}
	var out []byte
	for _, block := range blocks {
		if bits := 8 * len(block.Bytes); n >= 0 && n < bits {
			block.Bytes = flipBit(block.Bytes, n)
		}
		n -= 8 * len(block.Bytes)
		out = append(out, pem.EncodeToMemory(block)...)
	}
	return out
}

func pemBits(raw []byte) (bits int) {
	for rest := bytes.TrimRight(raw, "\x00"); ; {
		block, more := pem.Decode(rest)
		if block == nil {
			return bits
		}
		bits, rest = bits+8*len(block.Bytes), more
	}
}

// TestNoBitMayFlip: Intel's signatures cover every bit of a quote and of its collateral, the encodings of certificates and the
// white space around documents aside. No bit that they cover can change, in any order and mixture of attempts, whether the
// verifier knows the genuine evidence or not.
func TestNoBitMayFlip(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	list := w.exhibits(t)
	cold, err := attest.NewVerifier(attest.Config{Root: w.pki.Root(), Caches: attest.Caches{Collateral: -1, Lists: -1, Chains: -1, QE: -1}})
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range list { // w.verifier knows all of it
		if err := verifyRaw(w.verifier, e.raw, e.c); err != nil {
			t.Fatal(err)
		}
	}
	flips := map[string]int{}
	one := func(t *rapid.T) {
		e := rapid.SampledFrom(list).Draw(t, "exhibit")
		v := rapid.SampledFrom([]*attest.Verifier{w.verifier, cold}).Draw(t, "verifier")
		part := rapid.SampledFrom([]string{"quote", "certificates", "TCB info", "QE identity", "signing chain", "PCK list", "root list"}).Draw(t, "part")
		raw, c := e.raw, *e.c
		bit := func(n int) int { return rapid.IntRange(0, n-1).Draw(t, "bit") }
		switch part {
		case "quote": // up to the certificates
			raw = flipBit(raw, bit(8*bytes.Index(raw, []byte("-----BEGIN"))))
		case "certificates":
			raw = withChain(raw, func(chain []byte) []byte { return flipPEM(chain, bit(pemBits(chain))) })
		case "TCB info":
			c.TCBInfo = flipDocument(c.TCBInfo, bit)
		case "QE identity":
			c.QEIdentity = flipDocument(c.QEIdentity, bit)
		case "signing chain":
			c.TCBSigningChain = flipPEM(c.TCBSigningChain, bit(pemBits(c.TCBSigningChain)))
		case "PCK list":
			c.PCKCRL = flipBit(c.PCKCRL, bit(8*len(c.PCKCRL)))
		case "root list":
			c.RootCRL = flipBit(c.RootCRL, bit(8*len(c.RootCRL)))
		}
		if bytes.Equal(raw, e.raw) && c.Hash() == e.c.Hash() {
			t.Fatalf("%s: nothing changed", part)
		}
		flips[part]++
		q, err := attest.Parse(raw)
		if err != nil {
			return
		}
		if verified, err := v.Verify(q, &c, simNow.Add(time.Minute)); err == nil || verified != nil {
			t.Fatalf("%s: accepted with a bit changed", part)
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		for range 20 {
			one(t)
		}
	})
	if len(flips) != 7 {
		t.Fatalf("parts that were not tried: %v", flips)
	}
	t.Logf("single bits flipped and refused: %v", flips)
}

// flipDocument changes a bit of the signed object inside an envelope.
func flipDocument(raw []byte, bit func(int) int) []byte {
	start, end := bytes.Index(raw, []byte(`:{`))+1, bytes.LastIndex(raw, []byte(`,"signature"`))
	return flipBit(raw, 8*start+bit(8*(end-start)))
}

// withChain replaces the certification data of a quote.
func withChain(raw []byte, edit func([]byte) []byte) []byte {
	if raw[4] == 0 {
		q, err := sgx.ParseQuote(raw)
		if err != nil {
			return raw
		}
		q.Auth.CertData = edit(q.Auth.CertData)
		return q.Append(nil)
	}
	q, err := tdx.ParseQuote(raw)
	if err != nil {
		return raw
	}
	q.Auth.CertData = edit(q.Auth.CertData)
	return q.Append(nil)
}

// TestHexCaseOfSignatures: the hexadecimal digits of a document's signature are outside of it, so their case means nothing. It is
// the one freedom that an envelope leaves besides white space.
func TestHexCaseOfSignatures(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	e := w.exhibits(t)[0]
	c := *e.c
	at := bytes.LastIndex(c.TCBInfo, []byte(`"signature":"`)) + len(`"signature":"`)
	c.TCBInfo = append(bytes.Clone(c.TCBInfo[:at]), strings.ToUpper(string(c.TCBInfo[at:]))...)
	verified, err := w.verifier.Verify(mustParse(t, e.raw), &c, simNow)
	checkStage(t, "capitals", verified, err, "")
}
