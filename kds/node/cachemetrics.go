package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest"
)

// cacheMetrics shows a verifier's caches, which count for themselves: attest is
// pure and knows no metrics. The label cache is collateral, lists, chains or qe.
type cacheMetrics struct {
	stats                    func() attest.Stats
	lookups, evicted, stored *prometheus.Desc
}

func newCacheMetrics(r prometheus.Registerer, stats func() attest.Stats) {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("claviger_verifier_cache_"+name, help, append([]string{"cache"}, labels...), nil)
	}
	r.MustRegister(&cacheMetrics{
		stats:   stats,
		lookups: desc("lookups_total", "Lookups of verified content, by result: hit or miss.", "result"),
		evicted: desc("evictions_total", "Entries that made room for others."),
		stored:  desc("entries", "Entries held now."),
	})
}

// Describe implements prometheus.Collector.
func (m *cacheMetrics) Describe(ch chan<- *prometheus.Desc) {
	ch <- m.lookups
	ch <- m.evicted
	ch <- m.stored
}

// Collect implements prometheus.Collector.
func (m *cacheMetrics) Collect(ch chan<- prometheus.Metric) {
	s := m.stats()
	for name, c := range map[string]attest.CacheStats{"collateral": s.Collateral, "lists": s.Lists, "chains": s.Chains, "qe": s.QE} {
		ch <- prometheus.MustNewConstMetric(m.lookups, prometheus.CounterValue, float64(c.Hits), name, "hit")
		ch <- prometheus.MustNewConstMetric(m.lookups, prometheus.CounterValue, float64(c.Misses), name, "miss")
		ch <- prometheus.MustNewConstMetric(m.evicted, prometheus.CounterValue, float64(c.Evictions), name)
		ch <- prometheus.MustNewConstMetric(m.stored, prometheus.GaugeValue, float64(c.Entries), name)
	}
}
