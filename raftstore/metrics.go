package raftstore

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/hashicorp/raft"
)

// metrics are the store's; none carries an address, a key or a piece of an
// entry. A peer is named by the first twelve digits of its server id.
type metrics struct {
	registerer prometheus.Registerer
	collectors []prometheus.Collector
	registered []prometheus.Collector // of those

	commits, submits, batches, archived prometheus.Histogram
	taken                               prometheus.Counter
	proposing                           prometheus.Gauge
}

func newMetrics(s *Store, r prometheus.Registerer) *metrics {
	m := &metrics{registerer: r}
	seconds := prometheus.ExponentialBuckets(0.0005, 2, 14)
	m.commits = m.histogram("commit_seconds", "Time from proposal to applied result on the leader.", seconds)
	m.submits = m.histogram("submit_seconds", "Time from proposal to applied result on a server that does not lead.", seconds)
	m.batches = m.histogram("append_entries", "Entries in one AppendEntries request that has any.", prometheus.ExponentialBuckets(1, 2, 7)) // to maxAppendEntries
	m.archived = m.histogram("archive_write_seconds", "Time until the records of one change were written, and durable if they must be.", seconds)
	m.taken = prometheus.NewCounter(prometheus.CounterOpts{Name: "claviger_raft_forwarded_taken_total", Help: "Proposals of other servers taken by this leader."})
	m.proposing = prometheus.NewGauge(prometheus.GaugeOpts{Name: "claviger_raft_proposals", Help: "Proposals with raft here that have no outcome yet."})
	m.collectors = append(m.collectors, m.taken, m.proposing, lags{s})
	m.raft(s)
	m.traffic(s)
	return m
}

func (m *metrics) histogram(name, help string, buckets []float64) prometheus.Histogram {
	h := prometheus.NewHistogram(prometheus.HistogramOpts{Name: "claviger_raft_" + name, Help: help, Buckets: buckets})
	m.collectors = append(m.collectors, h)
	return h
}

func (m *metrics) gauge(name, help string, f func() float64) {
	m.collectors = append(m.collectors, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "claviger_raft_" + name, Help: help}, f))
}

func (m *metrics) counter(name, help string, f func() float64) {
	m.collectors = append(m.collectors, prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "claviger_raft_" + name, Help: help}, f))
}

func oneIf(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

// raft are the numbers of the consensus.
func (m *metrics) raft(s *Store) {
	m.gauge("term", "Current term.", func() float64 { return float64(s.raft.CurrentTerm()) })
	m.gauge("leader", "1 on the leader.", func() float64 { return oneIf(s.raft.State() == raft.Leader) })
	m.gauge("failed", "1 once the store has stopped by itself: see Err.", func() float64 { return oneIf(s.Err() != nil) })
	m.gauge("halted", "1 once the machine has halted.", func() float64 { return oneIf(s.Halted()) })
	m.gauge("commit_index", "Highest index known to be committed.", func() float64 { return float64(s.raft.CommitIndex()) })
	m.gauge("applied_index", "Last entry the machine has applied.", func() float64 { return float64(s.AppliedIndex()) })
	m.gauge("snapshot_index", "Index up to which the newest snapshot here reaches; 0 without one.", func() float64 { return float64(s.snaps.newest()) })
	m.gauge("members", "Servers in the configuration.", func() float64 { l, _ := s.Members(); return float64(len(l)) })
	m.counter("leader_changes_total", "How often this server has seen another leader.", func() float64 { return float64(s.leaders.changes()) })
	m.counter("read_rounds_total", "Rounds of acknowledgements that answered reads.", func() float64 { return float64(s.reads.count()) })
	m.counter("read_questions_total", "Questions for a read index sent to a leader.", func() float64 { return float64(s.asks.count()) })
}

// traffic are the numbers of what comes, goes and is written.
func (m *metrics) traffic(s *Store) {
	m.counter("forwarded_total", "Proposals sent to a leader.", func() float64 { _, _, n := s.forwards.counts(); return float64(n) })
	m.gauge("forward_queue", "Proposals waiting to be sent to a leader.", func() float64 { n, _, _ := s.forwards.counts(); return float64(n) })
	m.gauge("forward_frames", "Frames of proposals whose outcome is awaited.", func() float64 { _, n, _ := s.forwards.counts(); return float64(n) })
	m.counter("snapshots_sent_total", "Snapshots that another server has installed from here.", func() float64 { return float64(s.trans.snapshotsOut.Load()) })
	m.counter("snapshots_received_total", "Snapshots installed here from a leader.", func() float64 { return float64(s.trans.snapshotsIn.Load()) })
	m.counter("refused_peers_total", "Connections and messages of peers refused.", func() float64 { return float64(s.trans.refused.Load()) })
	m.counter("archive_records_total", "Sealed records written.", func() float64 { n, _ := s.journal.totals(); return float64(n) })
	m.counter("archive_bytes_total", "Sealed bytes written.", func() float64 { _, n := s.journal.totals(); return float64(n) })
}

// lags is, on the leader, how many entries each other server is behind by what it has told.
type lags struct{ s *Store }

var lagDesc = prometheus.NewDesc("claviger_raft_peer_lag", "Entries that the peer has not yet told to have; on the leader.", []string{"peer"}, nil)

// Describe sends the one description.
func (l lags) Describe(out chan<- *prometheus.Desc) { out <- lagDesc }

// Collect sends a gauge for each other server of the configuration.
func (l lags) Collect(out chan<- prometheus.Metric) {
	if !l.s.IsLeader() {
		return
	}
	told, last := l.s.Progress(), l.s.raft.LastIndex()
	list, _ := l.s.Members()
	for _, m := range list {
		if m.ID != l.s.cfg.ID {
			out <- prometheus.MustNewConstMetric(lagDesc, prometheus.GaugeValue, float64(last-min(last, told[m.ID])), m.ID.short())
		}
	}
}

func (m *metrics) committed(d time.Duration) { m.commits.Observe(d.Seconds()) }

// register shows the numbers, once all they look at is there. A second store in
// one process keeps its numbers to itself.
func (m *metrics) register() {
	if m.registerer == nil {
		return
	}
	for _, c := range m.collectors {
		if m.registerer.Register(c) == nil {
			m.registered = append(m.registered, c)
		}
	}
}

func (m *metrics) unregister() {
	for _, c := range m.registered { // a registry takes out another store's that has the same name, too
		m.registerer.Unregister(c)
	}
}
