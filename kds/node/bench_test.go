package node

import (
	"context"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/enclave"
)

// timedTEE and its collateral count the evidence that is made while a node rejoins.
type timedTEE struct {
	enclave.TEE
	tally *tally
}

type tally struct {
	mu      sync.Mutex
	quotes  [][]byte
	quoting time.Duration
}

func (t timedTEE) Quote(ctx context.Context, data [enclave.ReportDataSize]byte) ([]byte, error) {
	start := time.Now()
	quote, err := t.TEE.Quote(ctx, data)
	t.tally.mu.Lock()
	defer t.tally.mu.Unlock()
	t.tally.quoting += time.Since(start)
	t.tally.quotes = append(t.tally.quotes, quote)
	return quote, err
}

// take empties the tally.
func (t *tally) take() (quotes [][]byte, quoting time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	quotes, quoting = t.quotes, t.quoting
	t.quotes, t.quoting = nil, 0
	return quotes, quoting
}

// BenchmarkRejoin kills a follower of three nodes with a small state and boots its machine again: from the start of the
// boot until it is a voter and serves. Attestation's part is reported beside it: how many quotes all nodes made
// meanwhile, and what it takes to make and to verify those one after another, with the verifier's caches as they are in a
// running node. Quotes are the simulator's; their formats, signatures and chains are the real ones.
func BenchmarkRejoin(b *testing.B) {
	s := newSite(b)
	seen := &tally{}
	boot := func(slot string) *running {
		cfg := s.config(slot, timedTEE{s.launch("machine-"+slot, nodeImage), seen})
		if s.pins.ClusterID.IsZero() {
			s.genesis(&cfg)
		}
		r := s.run(cfg)
		s.awaitReady(r)
		return r
	}
	for _, slot := range []string{"a", "b", "c"} {
		boot(slot)
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: s.world.Root()})
	if err != nil {
		b.Fatal(err)
	}
	var rejoin, quoting, verifying []time.Duration
	var quotes int
	const most = 10 // the pace of a slot allows six in a row, and two slots take turns
	for b.Loop() {
		if len(rejoin) == most {
			continue
		}
		leader := s.leader()
		i := slices.IndexFunc(s.nodes, func(n *running) bool { return n != leader }) // the one that has been up longest
		dead := s.nodes[i]
		dead.Close()
		<-dead.done
		s.mu.Lock()
		s.nodes = slices.Delete(s.nodes, i, i+1)
		s.mu.Unlock()
		seen.take()
		start := time.Now()
		boot(dead.slot)
		rejoin = append(rejoin, time.Since(start))
		made, took := seen.take()
		quotes += len(made)
		quoting, verifying = append(quoting, took), append(verifying, s.verifying(verifier, made))
	}
	median := func(list []time.Duration) float64 {
		slices.Sort(list)
		return float64(list[len(list)/2].Microseconds()) / 1000
	}
	total, making, check := median(rejoin), median(quoting), median(verifying)
	b.Logf("%d rounds: median %.1f ms from start to ready (least %v, most %v); %.1f quotes each time: %.1f ms to make, %.1f ms to verify",
		len(rejoin), total, rejoin[0].Round(time.Millisecond), rejoin[len(rejoin)-1].Round(time.Millisecond),
		float64(quotes)/float64(len(rejoin)), making, check)
	b.ReportMetric(total, "rejoin-ms")
	b.ReportMetric(making+check, "attestation-ms")
	b.ReportMetric(0, "ns/op")
}

// verifying is how long it takes to verify quotes one after another.
func (s *site) verifying(v *attest.Verifier, quotes [][]byte) (took time.Duration) {
	s.t.Helper()
	for _, raw := range quotes {
		c, err := s.world.Collateral(s.t.Context(), raw)
		if err != nil {
			s.t.Fatal(err)
		}
		start := time.Now()
		q, err := attest.Parse(raw)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := v.Verify(q, c, s.now()); err != nil {
			s.t.Fatal(err)
		}
		took += time.Since(start)
	}
	return took
}
