package kds

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts requests. Labels come from fixed lists, never from input.
type metrics struct {
	requests *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer) (*metrics, error) {
	m := &metrics{requests: prometheus.NewCounterVec(prometheus.CounterOpts{
		Namespace: "claviger", Subsystem: "kds", Name: "requests_total",
		Help: "Finished requests by operation (release, public, attest, cluster, verify) and code; code ok is a success, release with ok a released key.",
	}, []string{"operation", "code"})}
	if r == nil {
		return m, nil
	}
	err := r.Register(m.requests)
	if already, ok := errors.AsType[prometheus.AlreadyRegisteredError](err); ok {
		// A node that rejoins in one process makes a second service.
		if existing, ok := already.ExistingCollector.(*prometheus.CounterVec); ok {
			m.requests = existing
			return m, nil
		}
	}
	return m, err
}

func (m *metrics) count(operation, code string) { m.requests.WithLabelValues(operation, code).Inc() }
