package node

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/claviger/claviger/attest"
)

func TestCacheMetrics(t *testing.T) {
	t.Parallel()
	r := prometheus.NewPedanticRegistry()
	newCacheMetrics(r, func() attest.Stats {
		return attest.Stats{QE: attest.CacheStats{Hits: 7, Misses: 2, Evictions: 1, Entries: 3}}
	})
	want := `
# HELP claviger_verifier_cache_entries Entries held now.
# TYPE claviger_verifier_cache_entries gauge
claviger_verifier_cache_entries{cache="chains"} 0
claviger_verifier_cache_entries{cache="collateral"} 0
claviger_verifier_cache_entries{cache="lists"} 0
claviger_verifier_cache_entries{cache="qe"} 3
# HELP claviger_verifier_cache_lookups_total Lookups of verified content, by result: hit or miss.
# TYPE claviger_verifier_cache_lookups_total counter
claviger_verifier_cache_lookups_total{cache="chains",result="hit"} 0
claviger_verifier_cache_lookups_total{cache="chains",result="miss"} 0
claviger_verifier_cache_lookups_total{cache="collateral",result="hit"} 0
claviger_verifier_cache_lookups_total{cache="collateral",result="miss"} 0
claviger_verifier_cache_lookups_total{cache="lists",result="hit"} 0
claviger_verifier_cache_lookups_total{cache="lists",result="miss"} 0
claviger_verifier_cache_lookups_total{cache="qe",result="hit"} 7
claviger_verifier_cache_lookups_total{cache="qe",result="miss"} 2
`
	if err := testutil.GatherAndCompare(r, strings.NewReader(want), "claviger_verifier_cache_entries", "claviger_verifier_cache_lookups_total"); err != nil {
		t.Error(err)
	}
}
