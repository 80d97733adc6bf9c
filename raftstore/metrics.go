package raftstore

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hashicorp/raft"
)

type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector
	commits    prometheus.Histogram
	forwarded  prometheus.Counter
	batches    prometheus.Histogram
}

// newMetrics registers the store's metrics; none carries an address or a key.
func newMetrics(s *Store, r prometheus.Registerer) *metrics {
	m := &metrics{registerer: r, commits: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "claviger_raft_commit_seconds", Help: "Time from proposal to applied result on the leader.",
		Buckets: prometheus.ExponentialBuckets(0.0005, 2, 14),
	}), forwarded: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "claviger_raft_forwarded_taken_total", Help: "Proposals of other servers taken by this leader.",
	}), batches: prometheus.NewHistogram(prometheus.HistogramOpts{
		Name: "claviger_raft_append_entries", Help: "Entries in one AppendEntries request that has any.",
		Buckets: prometheus.ExponentialBuckets(1, 2, 7), // to maxAppendEntries
	})}
	batches := func(n int) { m.batches.Observe(float64(n)) }
	s.trans.batches.Store(&batches)
	gauge := func(name, help string, f func() float64) {
		m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "claviger_raft_" + name, Help: help}, f))
	}
	counter := func(name, help string, f func() float64) {
		m.collectors = append(m.collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "claviger_raft_" + name, Help: help}, f))
	}
	gauge("term", "Current term.", func() float64 { return float64(s.raft.CurrentTerm()) })
	gauge("leader", "1 on the leader.", func() float64 {
		if s.raft.State() == raft.Leader {
			return 1
		}
		return 0
	})
	gauge("failed", "1 once the store has stopped by itself: see Err.", func() float64 {
		if s.Err() != nil {
			return 1
		}
		return 0
	})
	gauge("halted", "1 once the machine has halted.", func() float64 {
		if s.Halted() {
			return 1
		}
		return 0
	})
	counter("read_rounds_total", "Rounds of acknowledgements that answered reads.", func() float64 { return float64(s.reads.count()) })
	counter("read_questions_total", "Questions for a read index sent to a leader.", func() float64 { return float64(s.asks.count()) })
	counter("leader_changes_total", "How often this server has seen another leader.", func() float64 { return float64(s.leaders.changes()) })
	counter("forwarded_total", "Proposals sent to a leader.", func() float64 { _, _, n := s.forwards.counts(); return float64(n) })
	gauge("forward_queue", "Proposals waiting to be sent to a leader.", func() float64 { n, _, _ := s.forwards.counts(); return float64(n) })
	gauge("forward_frames", "Frames of proposals whose outcome is awaited.", func() float64 { _, n, _ := s.forwards.counts(); return float64(n) })
	gauge("commit_index", "Highest index known to be committed.", func() float64 { return float64(s.raft.CommitIndex()) })
	gauge("applied_index", "Last entry the machine has applied.", func() float64 { return float64(s.AppliedIndex()) })
	gauge("members", "Servers in the configuration.", func() float64 { l, _ := s.Members(); return float64(len(l)) })
	counter("refused_peers_total", "Connections and messages of peers refused.", func() float64 { return float64(s.trans.refused.Load()) })
	counter("archive_records_total", "Sealed records written.", func() float64 { n, _ := s.journal.totals(); return float64(n) })
	counter("archive_bytes_total", "Sealed bytes written.", func() float64 { _, n := s.journal.totals(); return float64(n) })
	m.collectors = append(m.collectors, m.commits, m.forwarded, m.batches)
	if r != nil {
		for _, c := range m.collectors {
			// A second store in one process keeps its numbers to itself.
			_ = r.Register(c)
		}
	}
	return m
}

func (m *metrics) takenForwards(n int) { m.forwarded.Add(float64(n)) }

func (m *metrics) committed(d time.Duration) { m.commits.Observe(d.Seconds()) }

func (m *metrics) unregister() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		m.registerer.Unregister(c)
	}
}
