package fnd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/enclave/functions"
	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/persist/persisttest"
	"github.com/claviger/claviger/enclave/secret"
)

type anyKey struct{}

func (anyKey) Key(context.Context, string, string) (secret.Key, error) { return secret.Random(32) }

// TestServe runs both listeners of a runtime without a cluster: what the admin listener says, and that connections which
// say nothing, through all the layers of the API's server, keep nobody out.
func TestServe(t *testing.T) {
	t.Parallel()
	e, err := engine.New(t.Context(), engine.Config{Mode: engine.Interpreter})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close(context.Background())
	s := &Service{engine: e, registry: prometheus.NewRegistry(), log: slog.New(slog.DiscardHandler)}
	s.host, err = functions.New(t.Context(), functions.Config{
		Keys: anyKey{}, Runtime: "C:x", Runner: functions.NewRunner(e), Files: persisttest.NewFiles(), NoFreshnessUnsafe: true,
		Registerer: s.registry,
	})
	if err != nil {
		t.Fatal(err)
	}
	var at [2]string
	var listeners [2]net.Listener
	for i := range listeners {
		if listeners[i], err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		at[i] = listeners[i].Addr().String()
	}
	ctx, cancel := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- s.serve(ctx, listeners[0], listeners[1]) }()
	path := "/v1/functions/" + strings.Repeat("0", 64) + "/x"
	var idle []net.Conn
	for range 100 {
		c, err := net.DialTimeout("tcp", at[0], 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		idle = append(idle, c)
		fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n{", path)
	}
	web := &http.Client{Timeout: 30 * time.Second}
	get := func(resp *http.Response, err error) (int, string) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(body)
	}
	if status, body := get(web.Post("http://"+at[0]+path, "application/json", strings.NewReader("{}"))); status != http.StatusBadRequest {
		t.Errorf("beside idle connections: %d %s", status, body)
	}
	for _, path := range []string{"/healthz", "/readyz"} {
		if status, body := get(web.Get("http://" + at[1] + path)); status != http.StatusOK {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	_, metrics := get(web.Get("http://" + at[1] + "/metrics"))
	for _, line := range []string{
		"claviger_fn_memory_limit_bytes 5.36870912e+08", "claviger_fn_calls_in_flight 0", "claviger_fn_instances_ended_total 0",
		`claviger_fn_http_requests_total{code="400",method="post"} 1`, "claviger_fn_call_duration_seconds_count 0",
	} {
		if !strings.Contains(metrics, line+"\n") {
			t.Errorf("/metrics lacks %q", line)
		}
	}
	for _, c := range idle {
		c.Close()
	}
	web.CloseIdleConnections()
	cancel()
	select {
	case err := <-served:
		if err != nil && !errors.Is(err, context.Canceled) {
			t.Errorf("serve: %v", err)
		}
	case <-time.After(time.Minute):
		t.Fatal("serve does not end")
	}
}
