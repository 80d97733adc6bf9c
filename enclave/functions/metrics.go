package functions

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are what the machine's host may know, in sum. Durations are rounded up to
// powers of two milliseconds, as in the log.
type metrics struct {
	calls, deployments *prometheus.CounterVec
	durations          prometheus.Histogram
	evictions          prometheus.Counter
	refused            prometheus.Counter
}

// outcomes are the codes that metrics tell. All that depends on what the function
// did with its secrets is "answered": a counter that told a wrong password from a
// right one would undo the padding of replies. What the host can see anyway, such
// as a deadline or a full disk, is told.
var outcomes = map[Code]bool{
	CodeHashMismatch: true, CodeStaleSession: true, CodeDuplicate: true, CodeProjectNotFound: true, CodeDeadline: true,
	CodeMemory: true, CodeStorage: true, CodeStorageFull: true, CodeStorageRolledBack: true, CodeInternal: true,
	CodeSnapshot: true, CodeQuota: true, CodeBusy: true,
}

func newMetrics(h *Host, r prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_fn_calls_total", Help: "Calls that opened, by outcome; answered includes what the function itself threw.",
		}, []string{"outcome"}),
		deployments: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_fn_deployments_total", Help: "Deployments that opened, by outcome.",
		}, []string{"outcome"}),
		durations: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "claviger_fn_call_duration_seconds", Help: "Duration of calls, rounded up to powers of two milliseconds.",
			Buckets: prometheus.ExponentialBuckets(0.001, 2, 15),
		}),
		evictions: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "claviger_fn_projects_closed_total", Help: "Idle projects closed to make room.",
		}),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "claviger_fn_busy_total", Help: "Requests refused because calls, bodies or memory in use left no room.",
		}),
	}
	if r == nil {
		return m, nil
	}
	gauge := func(name, help string, value func() int64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 { return float64(value()) })
	}
	for _, c := range []prometheus.Collector{
		m.calls, m.deployments, m.durations, m.evictions, m.refused,
		gauge("claviger_fn_memory_bytes", "Bytes of the memory budget in use.", h.budget.Used),
		gauge("claviger_fn_memory_limit_bytes", "Bytes of the memory budget.", h.budget.Limit),
		gauge("claviger_fn_body_bytes", "Bytes of request and reply bodies held beyond each connection's own.", h.bodies.Used),
		gauge("claviger_fn_calls_in_flight", "Calls and deployments in flight.", func() int64 { return int64(len(h.slots)) }),
		gauge("claviger_fn_projects", "Projects with files here.", func() int64 { n, _ := h.disk.totals(); return int64(n) }),
		gauge("claviger_fn_disk_bytes", "Bytes of the projects' files.", func() int64 { _, n := h.disk.totals(); return n }),
	} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) called(outcome Code, d time.Duration) {
	label := "answered"
	if outcomes[outcome] {
		label = string(outcome)
	}
	m.calls.WithLabelValues(label).Inc()
	m.durations.Observe(float64(bucket(d.Milliseconds())) / 1000)
}

// deployed counts a deployment. All its outcomes are told: the host sees from what
// follows whether one was taken.
func (m *metrics) deployed(outcome Code) {
	label := string(outcome)
	switch outcome {
	case "":
		label = "deployed"
	case CodeScript, CodeStack, CodeUnsettled, CodeMemory, CodeDeadline, CodeTooLarge, CodeBadBundle, CodeSnapshot:
		label = string(CodeBadBundle)
	}
	m.deployments.WithLabelValues(label).Inc()
}
