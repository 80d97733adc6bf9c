package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"testing"

	"github.com/claviger/claviger/attest"
)

// BenchmarkP256 is the unit of the others: one signature verification.
func BenchmarkP256(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := make([]byte, 32)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest, signature) {
			b.Fatal("signature refused")
		}
	}
}

// BenchmarkVerify parses and verifies a real TDX quote with its collateral, everything cold.
func BenchmarkVerify(b *testing.B) {
	raw, collateral := realEvidence(b)
	verifier := intelVerifier(b)
	b.ReportAllocs()
	for b.Loop() {
		q, err := attest.Parse(raw)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := verifier.Verify(q, collateral, realTime); err != nil {
			b.Fatal(err)
		}
	}
}
