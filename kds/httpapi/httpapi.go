package httpapi

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"time"

	"github.com/gorilla/mux"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
)

// Service is what this package needs of the key derivation service. A refusal is an *api.Problem somewhere in the error's
// chain; any other error is a fault and is shown to nobody but the log.
type Service interface {
	Release(ctx context.Context, ev api.Evidence, req api.KeyRequest) (api.KeyReply, error)
	PublicKey(ctx context.Context, req api.PublicKeyRequest) (api.PublicKeyReply, error)
	Attest(ctx context.Context, req api.AttestRequest) (api.Verdict, error)
	Cluster(ctx context.Context) (api.Cluster, error)
	KeySet(ctx context.Context) (api.KeySet, error)
	Operate(ctx context.Context, req api.AdminRequest) (api.AdminReply, error)
}

// Public is the whole list of endpoints that answer a client without evidence. They reveal no secret.
var Public = []string{
	"GET /v1/cluster",
	"POST /v1/admin/statements", // what counts is the operators' signatures
	"POST /v1/attest",
	"POST /v1/keys/public",
	"GET /v1/openapi.json",
	"GET /.well-known/jwks.json",
}

// DefaultTimeout bounds one request where Config does not.
const DefaultTimeout = 10 * time.Second

// Config says what the handler works with.
type Config struct {
	Service    Service               // required
	Logger     *slog.Logger          // required; told of faults, never of keys
	Registerer prometheus.Registerer // nil: metrics are counted but not exported
	Timeout    time.Duration         // of one request; zero means DefaultTimeout
}

// ErrConfig says that a Config lacks a required field.
var ErrConfig = errors.New("httpapi: Service and Logger are required")

// route is one endpoint. limit bounds its body in bytes; zero means that it takes none.
type route struct {
	method, path string
	limit        int
	serve        func(h *handler, r *http.Request, body []byte) (any, error)
}

func (r route) name() string { return r.method + " " + r.path }

var routes = []route{
	{http.MethodGet, "/v1/cluster", 0, (*handler).cluster},
	{http.MethodGet, "/v1/openapi.json", 0, (*handler).openAPI},
	{http.MethodGet, "/.well-known/jwks.json", 0, (*handler).keySet},
	{http.MethodPost, "/v1/admin/statements", api.MaxAdminBody, (*handler).operate},
	{http.MethodPost, "/v1/attest", api.MaxAttestBody, (*handler).attest},
	{http.MethodPost, "/v1/keys", api.MaxKeyBody, (*handler).release},
	{http.MethodPost, "/v1/keys/public", api.MaxKeyBody, (*handler).publicKey},
}

type handler struct {
	service Service
	log     *slog.Logger
	timeout time.Duration
	metrics *metrics
	public  map[string]bool
}

// New returns the handler of the API. It is safe for concurrent use.
func New(cfg Config) (http.Handler, error) {
	if cfg.Service == nil || cfg.Logger == nil {
		return nil, ErrConfig
	}
	m, err := newMetrics(cfg.Registerer)
	if err != nil {
		return nil, err
	}
	h := &handler{service: cfg.Service, log: cfg.Logger, timeout: cfg.Timeout, metrics: m, public: map[string]bool{}}
	if h.timeout <= 0 {
		h.timeout = DefaultTimeout
	}
	for _, name := range Public {
		h.public[name] = true
	}
	// SkipClean: no path is rewritten or redirected, so each endpoint has one spelling.
	router := mux.NewRouter().SkipClean(true)
	for _, rt := range routes {
		router.Handle(rt.path, h.endpoint(rt)).Methods(rt.method)
	}
	router.NotFoundHandler = h.refuseAll(http.StatusNotFound, "no such endpoint; GET /v1/openapi.json lists them")
	router.MethodNotAllowedHandler = h.refuseAll(http.StatusMethodNotAllowed, "this endpoint has another method; GET /v1/openapi.json lists them")
	return router, nil
}

// Server returns an http.Server for h with the timeouts and header bounds that a hostile network asks for. Serve it on a
// ratls.Listener: handlers find the peer through its ConnContext.
func Server(h http.Handler, log *slog.Logger) *http.Server {
	s := &http.Server{
		Handler:           h,
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       15 * time.Second,
		WriteTimeout:      30 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	ratls.ConfigureServer(s) // HTTP/1.1 and HTTP/2, and the peer in the context
	return s
}

// endpoint wraps a route in everything that is the same for all: time limit, evidence, body, panics, metrics. The
// response is written in one place, after the service is done.
func (h *handler) endpoint(rt route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		start := time.Now()
		ctx, cancel := context.WithTimeout(r.Context(), h.timeout)
		defer cancel()
		reply, err := h.call(rt, w, r.WithContext(ctx))
		code := h.respond(w, r, rt, reply, err)
		h.metrics.observe(rt.name(), code, time.Since(start))
	})
}

// call runs one route. A panic is this server's fault and becomes an error like any other.
func (h *handler) call(rt route, w http.ResponseWriter, r *http.Request) (reply any, err error) {
	defer func() {
		if v := recover(); v != nil {
			reply, err = nil, panicError(v)
		}
	}()
	if !h.public[rt.name()] {
		if _, err := evidence(r.Context()); err != nil {
			return nil, err
		}
	}
	if r.URL.RawQuery != "" {
		return nil, api.NewProblem(api.CodeBadRequest, "this endpoint takes no query parameters; remove them")
	}
	body, err := readBody(w, r, rt.limit)
	if err != nil {
		return nil, err
	}
	return rt.serve(h, r, body)
}

// readBody reads at most limit bytes. Reading less than a client announced closes the connection.
func readBody(w http.ResponseWriter, r *http.Request, limit int) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, int64(limit)))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, tooLarge(limit)
	}
	if err != nil {
		return nil, api.NewProblem(api.CodeBadRequest, "the body could not be read to its end; send it again")
	}
	return body, nil
}

// evidence takes the client's evidence from its channel. Only what the channel has verified counts.
func evidence(ctx context.Context) (api.Evidence, error) {
	peer, ok := ratls.FromContext(ctx)
	if !ok || peer.Verified == nil || len(peer.Evidence.Quote) == 0 {
		return api.Evidence{}, api.NewProblem(api.CodeEvidenceMissing,
			"this endpoint answers enclaves only; connect over an attested channel and send evidence in its handshake")
	}
	return api.Evidence{Quote: peer.Evidence.Quote, Collateral: peer.Evidence.Collateral, Binding: peer.ReportData}, nil
}

func (h *handler) cluster(r *http.Request, _ []byte) (any, error) {
	return h.service.Cluster(r.Context())
}

func (h *handler) keySet(r *http.Request, _ []byte) (any, error) {
	return h.service.KeySet(r.Context())
}

func (h *handler) release(r *http.Request, body []byte) (any, error) {
	ev, err := evidence(r.Context())
	if err != nil {
		return nil, err
	}
	var req api.KeyRequest
	if err := decode(body, api.MaxKeyBody, &req); err != nil {
		return nil, err
	}
	return h.service.Release(r.Context(), ev, req)
}

func (h *handler) publicKey(r *http.Request, body []byte) (any, error) {
	var req api.PublicKeyRequest
	if err := decode(body, api.MaxKeyBody, &req); err != nil {
		return nil, err
	}
	return h.service.PublicKey(r.Context(), req)
}

func (h *handler) attest(r *http.Request, body []byte) (any, error) {
	var req api.AttestRequest
	if err := decode(body, api.MaxAttestBody, &req); err != nil {
		return nil, err
	}
	return h.service.Attest(r.Context(), req)
}

func (h *handler) operate(r *http.Request, body []byte) (any, error) {
	var req api.AdminRequest
	if err := decode(body, api.MaxAdminBody, &req); err != nil {
		return nil, err
	}
	return h.service.Operate(r.Context(), req)
}

// decode reads exactly one value of T and applies its own bounds.
func decode(body []byte, limit int, into interface{ Check() error }) error {
	err := api.DecodeJSON(body, limit, into)
	if err == nil {
		err = into.Check()
	}
	switch {
	case err == nil:
		return nil
	case errors.Is(err, api.ErrTooLarge):
		return api.NewProblem(api.CodeTooLarge, err.Error())
	default:
		return api.NewProblem(api.CodeBadRequest, err.Error())
	}
}
