package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
)

// TestBenchVerify runs the measurements as briefly as possible. It looks at what is measured and that it adds up, never at how
// fast this machine is. Not parallel, for it counts the allocations of the whole process.
func TestBenchVerify(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run(t.Context(), []string{"bench", "verify", "--budget", "1ms", "--json"}, nil, nil, &out, &errs); code != 0 {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	var b verifyBench
	if err := json.Unmarshal(out.Bytes(), &b); err != nil {
		t.Fatal(err)
	}
	want := map[string]int{
		"ecdsa.VerifyASN1": 1, "sgx/cold": 9, "sgx/warm-collateral": 3, "sgx/warm-platform": 1,
		"tdx/cold": 9, "tdx/warm-collateral": 3, "tdx/warm-platform": 1,
	}
	if len(b.Rows) != len(want) || b.Rounds < minRounds || len(b.Scaling) != 3 {
		t.Fatalf("%d rows, %d rounds, %d of scaling", len(b.Rows), b.Rounds, len(b.Scaling))
	}
	for _, m := range b.Rows {
		if m.Checks != want[m.Name] || m.Median <= 0 || m.RatioLow <= 0 || m.Ratio < m.RatioLow || m.RatioHigh < m.Ratio || m.Floors <= 0 {
			t.Errorf("%+v", m)
		}
		if floor := m.Name == b.Rows[0].Name; floor && m.Ratio != 1 || !floor && (m.Reach == 0 || m.Allocs < 1 || m.Bytes < 1) {
			t.Errorf("%+v", m)
		}
	}
	for _, s := range b.Scaling {
		if s.Cores < 1 || s.One <= 0 || s.All <= 0 || s.Ratio <= 0 || s.Best <= 0 {
			t.Errorf("%+v", s)
		}
	}
	// A cold run does strictly more than one that knows the collateral, and that more than one that knows all.
	for i := 1; i < len(b.Rows); i += 3 {
		if r := b.Rows[i : i+3]; r[0].Allocs <= r[1].Allocs || r[1].Allocs <= r[2].Allocs {
			t.Errorf("allocations %v, %v, %v", r[0].Allocs, r[1].Allocs, r[2].Allocs)
		}
	}
	out.Reset()
	b.write(&out)
	for _, want := range []string{"ecdsa.VerifyASN1", "tdx/warm-platform", "× 9 (", "≤ 1.25", "cores"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, &out)
		}
	}
	if code := run(t.Context(), []string{"bench", "verify", "--budget", "0s"}, nil, nil, &out, &errs); code != 2 {
		t.Errorf("no budget: exit code %d", code)
	}
}

// TestSummarize feeds rounds in which a busy machine doubled both times, and one in which it hit the scene alone: neither
// moves the median ratio.
func TestSummarize(t *testing.T) {
	t.Parallel()
	floor := []float64{100, 200, 100, 100, 100}
	m := summarize(&scene{name: "x", checks: 3, reach: 1.3}, []float64{330, 660, 330, 330, 9000}, floor)
	if m.Ratio < 1.0999 || m.Ratio > 1.1001 || m.Floors < 3.2999 || m.Floors > 3.3001 || m.Median != 330 || m.Reach != 1.3 {
		t.Errorf("%+v", m)
	}
}
