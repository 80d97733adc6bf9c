package httpapi

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/kds/api"
)

// metrics of the API. Labels take few values and none from requests: route is from our table, code from kds/api.
type metrics struct {
	requests *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "claviger_api_requests_total", Help: "Requests answered, by route and code.",
		}, []string{"route", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "claviger_api_request_seconds", Help: "Time from the request's header to its answer, in seconds, by route.",
			Buckets: []float64{.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10},
		}, []string{"route"}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.requests, m.seconds} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) observe(route, code string, d time.Duration) {
	m.requests.WithLabelValues(route, code).Inc()
	m.seconds.WithLabelValues(route).Observe(d.Seconds())
}

// label bounds the label: a service that invents codes must not grow the metric without end.
func label(c api.Code) string {
	if c.Known() {
		return string(c)
	}
	return "other"
}
