package node

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/kds/state"
)

type metrics struct {
	admissions prometheus.Counter
	refused    prometheus.Counter
	clones     prometheus.Counter
	unfit      prometheus.Counter
	waiting    prometheus.Counter
	slowed     prometheus.Counter
	expelled   prometheus.Counter
	rejoin     prometheus.Gauge
}

func newMetrics(r prometheus.Registerer) *metrics {
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "claviger_node_" + name, Help: help})
		r.MustRegister(c)
		return c
	}
	rejoin := prometheus.NewGauge(prometheus.GaugeOpts{Name: "claviger_node_rejoin_seconds", Help: "From the start of this boot until it was ready; 0 before."})
	r.MustRegister(rejoin)
	return &metrics{
		rejoin:     rejoin,
		slowed:     counter("admissions_slowed_total", "Admissions put off because the slot changed hands too often."),
		expelled:   counter("expulsions_total", "Servers that this leader took out of the configuration: removed by the operators, or of code that the node policy no longer accepts."),
		admissions: counter("admissions_total", "Nodes admitted by this leader."),
		refused:    counter("refused_connections_total", "Connections to the attested listeners refused."),
		unfit:      counter("unfit_member_alarms_total", "Members found revoked, or behind the node policy, when they were judged again."),
		waiting:    counter("superseded_waits_total", "Times a superseded boot heard no leader and no peer could say whether it was removed."),
		clones:     counter("clone_alarms_total", "Admissions to a slot whose older boot was still alive."),
	}
}

// newStateMetrics shows what the replicated state says, as this node knows it.
func newStateMetrics(r prometheus.Registerer, view func() state.View) {
	gauge := func(name, help string, value func(state.View) float64) {
		r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "claviger_node_" + name, Help: help}, func() float64 { return value(view()) }))
	}
	gauge("feature_level", "Feature level of the replicated state.", func(v state.View) float64 { return float64(v.Level) })
	gauge("policy_version", "Version of the node policy in the replicated state.", func(v state.View) float64 { return float64(v.NodePolicy) })
	gauge("pending_tickets", "Tickets of the operators that no boot has used yet.", func(v state.View) float64 { return float64(len(v.Tickets)) })
	gauge("epoch_ended", "1 once the operators have ended the epoch.", func(v state.View) float64 {
		if v.Ended {
			return 1
		}
		return 0
	})
}
