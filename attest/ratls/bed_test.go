package ratls

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

// instant is the time that the tests' evidence is made and judged at.
var instant = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// bed is a simulated Intel with a verifier: evidence here takes the production path from quote to proof.
type bed struct {
	pki        *simpki.PKI
	verifier   *attest.Verifier
	collateral []byte

	mu        sync.Mutex
	platforms map[string]*simpki.Platform
}

var sharedBed = sync.OnceValues(func() (*bed, error) {
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{1}, Now: instant})
	if err != nil {
		return nil, err
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: pki.Root()})
	if err != nil {
		return nil, err
	}
	bundle, err := pki.Collateral(attest.SGX, simpki.DefaultFMSPC, instant)
	if err != nil {
		return nil, err
	}
	raw, err := bundle.Marshal()
	if err != nil {
		return nil, err
	}
	return &bed{pki: pki, verifier: verifier, collateral: raw, platforms: map[string]*simpki.Platform{}}, nil
})

func newBed(t *testing.T) *bed {
	t.Helper()
	b, err := sharedBed()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (b *bed) platform(name string) (*simpki.Platform, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if p, ok := b.platforms[name]; ok {
		return p, nil
	}
	p, err := b.pki.Platform(simpki.PlatformConfig{Name: name})
	if err == nil {
		b.platforms[name] = p
	}
	return p, err
}

// attester is a genuine enclave on the named machine. All of them have one measurement: what tells them apart is not who
// they are but what their evidence is bound to.
func (b *bed) attester(machine string) func(context.Context, [64]byte) (Evidence, error) {
	return func(_ context.Context, reportData [64]byte) (Evidence, error) {
		p, err := b.platform(machine)
		if err != nil {
			return Evidence{}, err
		}
		quote, err := p.QuoteSGX(sgx.Report{MREnclave: [32]byte{0xaa}, MRSigner: [32]byte{0xbb}, ReportData: reportData})
		return Evidence{Quote: quote, Collateral: b.collateral}, err
	}
}

// tdxQuote is a genuine quote of another kind of TEE.
func (b *bed) tdxQuote(reportData [64]byte) ([]byte, error) {
	p, err := b.platform("td")
	if err != nil {
		return nil, err
	}
	return p.QuoteTDX(tdx.Body{ReportData: reportData})
}

func (b *bed) verify(_ context.Context, _ Hello, ev Evidence) (*attest.Verified, error) {
	quote, err := attest.Parse(ev.Quote)
	if err != nil {
		return nil, err
	}
	collateral, err := attest.ParseCollateral(ev.Collateral)
	if err != nil {
		return nil, err
	}
	return b.verifier.Verify(quote, collateral, instant)
}

// capture verifies as usual and keeps what it saw.
func capture(b *bed, out chan<- Evidence) func(context.Context, Hello, Evidence) (*attest.Verified, error) {
	return func(ctx context.Context, h Hello, ev Evidence) (*attest.Verified, error) {
		out <- ev
		return b.verify(ctx, h, ev)
	}
}

func refusing(err error) func(context.Context, Hello, Evidence) (*attest.Verified, error) {
	return func(context.Context, Hello, Evidence) (*attest.Verified, error) { return nil, err }
}

func noProof(context.Context, Hello, Evidence) (*attest.Verified, error) { return nil, nil }
