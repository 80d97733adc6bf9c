package httpapi

import (
	"context"
	"log/slog"
	"net/http"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// readyTimeout bounds one readiness probe.
const readyTimeout = 2 * time.Second

// Admin returns the handler of the operator's plain listener: GET /healthz answers 200 while the process serves at all,
// GET /readyz answers 200 when ready returns nil and 503 with its text otherwise, GET /metrics exports gatherer. The host
// reads all of it: nothing secret may be in ready's errors or in a metric.
func Admin(ready func(context.Context) error, gatherer prometheus.Gatherer, log *slog.Logger) http.Handler {
	r := mux.NewRouter().SkipClean(true)
	r.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		write(w, http.StatusOK, "text/plain; charset=utf-8", []byte("ok\n"))
	}).Methods(http.MethodGet)
	r.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), readyTimeout)
		defer cancel()
		if err := ready(ctx); err != nil {
			write(w, http.StatusServiceUnavailable, "text/plain; charset=utf-8", []byte(err.Error()+"\n"))
			return
		}
		write(w, http.StatusOK, "text/plain; charset=utf-8", []byte("ready\n"))
	}).Methods(http.MethodGet)
	r.Handle("/metrics", promhttp.HandlerFor(gatherer, promhttp.HandlerOpts{
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	})).Methods(http.MethodGet)
	return r
}
