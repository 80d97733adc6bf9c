package functions

import (
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
)

// TestMetricsTellTheHostLittle counts calls by outcome, and does not tell what a function made of its secrets.
func TestMetricsTellTheHostLittle(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewPedanticRegistry()
	w := newWorld(t, func(c *Config) { c.Registerer, c.MaxProjects = registry, 1 })
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	call(t, c, "echo")
	call(t, c, "put", "k", "v")
	refused(t, c, CodeScript, "putThenThrow", "k", "v")
	refused(t, c, CodeFunctionNotFound, "missing")
	refused(t, w.client("p", "v2"), CodeHashMismatch, "echo")
	refused(t, w.client("unknown", "v1"), CodeProjectNotFound, "echo")
	for owner, sequence := range map[string]uint64{"p": 1, "q": 1} {
		if err := w.tryDeploy(w.owner, owner, "v1", sequence); err == nil {
			t.Errorf("deployment %s was taken", owner)
		}
	}
	want := `
# HELP claviger_fn_calls_total Calls that opened, by outcome; answered includes what the function itself threw.
# TYPE claviger_fn_calls_total counter
claviger_fn_calls_total{outcome="answered"} 4
claviger_fn_calls_total{outcome="code_hash_mismatch"} 1
claviger_fn_calls_total{outcome="project_not_found"} 1
# HELP claviger_fn_deployments_total Deployments that opened, by outcome.
# TYPE claviger_fn_deployments_total counter
claviger_fn_deployments_total{outcome="deployed"} 1
claviger_fn_deployments_total{outcome="quota_exceeded"} 1
claviger_fn_deployments_total{outcome="stale_sequence"} 1
# HELP claviger_fn_projects Projects with files here.
# TYPE claviger_fn_projects gauge
claviger_fn_projects 1
# HELP claviger_fn_projects_closed_total Idle projects closed to make room.
# TYPE claviger_fn_projects_closed_total counter
claviger_fn_projects_closed_total 0
`
	if err := testutil.GatherAndCompare(registry, strings.NewReader(want), "claviger_fn_calls_total",
		"claviger_fn_deployments_total", "claviger_fn_projects", "claviger_fn_projects_closed_total"); err != nil {
		t.Error(err)
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, f := range families {
		switch f.GetName() {
		case "claviger_fn_memory_bytes":
			seen++
			if v := f.GetMetric()[0].GetGauge().GetValue(); v != float64(w.host.budget.Used()) || v <= 0 {
				t.Errorf("memory in use is given as %v", v)
			}
		case "claviger_fn_call_duration_seconds":
			seen++
			h := f.GetMetric()[0].GetHistogram()
			if ms := h.GetSampleSum() * 1000; h.GetSampleCount() != 6 || ms < 6 || ms-float64(int(ms+0.5)) > 1e-6 {
				t.Errorf("durations: %d with the sum %v, want 6 of whole milliseconds", h.GetSampleCount(), h.GetSampleSum())
			}
		}
	}
	if seen != 2 {
		t.Errorf("%d of 2 metrics are there", seen)
	}
	if _, err := New(t.Context(), w.cfg); err == nil {
		t.Error("metrics that cannot be registered go unnoticed")
	}
}
