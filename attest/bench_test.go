package attest_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-tdx-guest/verify"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
)

// scene is one way of verifying, ready to run. Each call of run does one operation on one core.
type scene struct {
	name string
	unit float64 // signature checks that cannot be avoided: what the ratio is over; 0 for none
	run  func() error
}

// platforms is how many platforms the scenes with a new one go through. It is more than their caches hold.
const platforms = 32

// scenes makes all that the benchmarks compare, from simulated evidence: its formats and sizes are Intel's.
func scenes(b *testing.B) []scene {
	b.Helper()
	list := []scene{{"p256", 1, rawP256(b)}}
	w := newWorld(b, 1)
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		collateral := w.collateral(b, tee, simpki.DefaultFMSPC)
		quotes := make([][]byte, platforms)
		for i := range quotes {
			quotes[i] = quoteOf(b, w.machine(b, simpki.PlatformConfig{Name: fmt.Sprint("m", i)}), tee)
		}
		list = append(list,
			scene{string(tee) + "/cold", 9, w.cold(b, quotes, collateral)},
			scene{string(tee) + "/warm-collateral", 3, w.newPlatforms(b, quotes, collateral)},
			scene{string(tee) + "/warm-platform", 1, w.warm(b, quotes[0], collateral)},
		)
		if tee == attest.TDX {
			list = append(list,
				scene{"tdx/go-tdx-guest", 0, w.oracle(b, quotes[0], collateral, false)},
				scene{"tdx/go-tdx-guest-crl", 0, w.oracle(b, quotes[0], collateral, true)},
			)
		}
	}
	return list
}

// rawP256 is the unit of the others: one signature check by crypto/ecdsa over the hash of a report.
func rawP256(b *testing.B) func() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256(nil)
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	return func() error {
		if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
			return fmt.Errorf("signature refused")
		}
		return nil
	}
}

// verifyRaw is what every scene of ours does: parse and verify.
func verifyRaw(v *attest.Verifier, raw []byte, c *attest.Collateral) error {
	q, err := attest.Parse(raw)
	if err != nil {
		return err
	}
	_, err = v.Verify(q, c, simNow)
	return err
}

// cold verifies with a verifier that has seen nothing, which it makes too (with small caches).
func (w world) cold(b *testing.B, quotes [][]byte, c *attest.Collateral) func() error {
	root, i := w.pki.Root(), 0
	return func() error {
		v, err := attest.NewVerifier(attest.Config{Root: root, Caches: attest.Caches{Collateral: 1, Lists: 1, Chains: 1, QE: 1}})
		if err != nil {
			return err
		}
		i++
		return verifyRaw(v, quotes[i%len(quotes)], c)
	}
}

// newPlatforms verifies quotes of platforms that the verifier does not know (any more), with collateral that it does.
func (w world) newPlatforms(b *testing.B, quotes [][]byte, c *attest.Collateral) func() error {
	v, err := attest.NewVerifier(attest.Config{Root: w.pki.Root(), Caches: attest.Caches{Chains: 1, QE: 1}})
	if err != nil {
		b.Fatal(err)
	}
	for _, raw := range quotes {
		if err := verifyRaw(v, raw, c); err != nil {
			b.Fatal(err)
		}
	}
	i := 0
	return func() error {
		i++
		err := verifyRaw(v, quotes[i%len(quotes)], c)
		if s := v.Stats(); s.Chains.Hits+s.QE.Hits != 0 {
			return fmt.Errorf("a platform was known: %+v", s)
		}
		return err
	}
}

func (w world) warm(b *testing.B, raw []byte, c *attest.Collateral) func() error {
	v, err := attest.NewVerifier(attest.Config{Root: w.pki.Root()})
	if err != nil {
		b.Fatal(err)
	}
	if err := verifyRaw(v, raw, c); err != nil {
		b.Fatal(err)
	}
	return func() error { return verifyRaw(v, raw, c) }
}

// oracle verifies with go-tdx-guest, which asks for collateral and gets it from memory at once.
func (w world) oracle(b *testing.B, raw []byte, c *attest.Collateral, crl bool) func() error {
	s := newService(b, w.pki, c)
	root, err := x509.ParseCertificate(w.pki.RootCertificate())
	if err != nil {
		b.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(root)
	return func() error {
		return verify.RawTdxQuote(raw, &verify.Options{CheckRevocations: crl, GetCollateral: true, Getter: s, Now: simNow, TrustedRoots: pool})
	}
}

// BenchmarkVerify runs each scene by itself.
func BenchmarkVerify(b *testing.B) {
	for _, s := range scenes(b) {
		b.Run(s.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if err := s.run(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkRatios runs the scenes in turns, so that a noisy machine disturbs all of them alike, and prints the medians as
// ratios: to raw signature checks, and to the independent verifier.
func BenchmarkRatios(b *testing.B) {
	list := scenes(b)
	const rounds, long = 60, 4 * time.Millisecond
	times := make([][]time.Duration, len(list))
	for i, s := range list {
		times[i] = append(times[i], timeOf(b, s, 1))
	}
	for range rounds {
		for i, s := range list {
			batch := int(long/times[i][len(times[i])/2]) + 1
			runtime.GC() // nobody pays for the garbage of another
			times[i] = append(times[i], timeOf(b, s, batch))
		}
	}
	median := map[string]time.Duration{}
	for i, s := range list {
		slices.Sort(times[i])
		median[s.name] = times[i][rounds/2]
	}
	unit := median["p256"]
	text := fmt.Sprintf("%-22s %12s %8s  %s", "median of "+fmt.Sprint(rounds), "time", "checks", "ratio to the checks that are needed")
	metrics := map[string]float64{}
	for _, s := range list {
		m := median[s.name]
		over := ""
		if s.unit != 0 {
			ratio := float64(m) / float64(unit) / s.unit
			over = fmt.Sprintf("%.2f × %.0f", ratio, s.unit)
			metrics[s.name+"-ratio"] = ratio
		}
		if strings.HasPrefix(s.name, "tdx/") {
			faster := float64(median["tdx/go-tdx-guest-crl"]) / float64(m)
			over = fmt.Sprintf("%-10s %5.1f times as fast as go-tdx-guest with CRLs", over, faster)
			metrics[s.name+"-faster"] = faster
		}
		text += fmt.Sprintf("\n%-22s %12v %8.2f  %s", s.name, m, float64(m)/float64(unit), over)
	}
	b.Log(text)
	for b.Loop() { // the measuring is above: a benchmark has to run b.N times as well
		if err := list[0].run(); err != nil {
			b.Fatal(err)
		}
	}
	for name, value := range metrics {
		b.ReportMetric(value, name)
	}
}

// timeOf returns how long one run takes, over n of them.
func timeOf(b *testing.B, s scene, n int) time.Duration {
	start := time.Now()
	for range n {
		if err := s.run(); err != nil {
			b.Fatal(s.name, err)
		}
	}
	return time.Since(start) / time.Duration(n)
}

// BenchmarkScaling says what a second, third … core adds for one warm platform, the worst case for sharing: every core reads
// the same entries.
func BenchmarkScaling(b *testing.B) {
	w := newWorld(b, 1)
	c := w.collateral(b, attest.TDX, simpki.DefaultFMSPC)
	run := w.warm(b, quoteOf(b, w.machine(b, simpki.PlatformConfig{Name: "m"}), attest.TDX), c)
	cores := runtime.GOMAXPROCS(0)
	rate := func(workers int) float64 {
		const each = 40
		start := time.Now()
		var wg sync.WaitGroup
		for range workers {
			wg.Go(func() {
				for range each {
					if err := run(); err != nil {
						b.Error(err)
						return
					}
				}
			})
		}
		wg.Wait()
		return float64(workers*each) / time.Since(start).Seconds()
	}
	// The best of many short windows: what the cores can do when nothing else runs on them.
	one, all := 0.0, 0.0
	for range 150 {
		one, all = max(one, rate(1)), max(all, rate(cores))
	}
	defer b.ReportMetric(all/one, "scaling")
	b.Logf("%d cores verify %.0f quotes/s, one %.0f: %.2f times (best of 150 windows)", cores, all, one, all/one)
	for b.Loop() {
		if err := run(); err != nil {
			b.Fatal(err)
		}
	}
}
