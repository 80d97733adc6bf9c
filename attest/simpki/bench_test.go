package simpki

import (
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
)

func BenchmarkQuote(b *testing.B) {
	p, err := New(Config{Now: now})
	if err != nil {
		b.Fatal(err)
	}
	m, err := p.Platform(PlatformConfig{Name: "m"})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := m.QuoteSGX(sgx.Report{}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCollateral(b *testing.B) {
	p, err := New(Config{Now: now})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := p.Collateral(attest.TDX, DefaultFMSPC, now); err != nil {
			b.Fatal(err)
		}
	}
}
