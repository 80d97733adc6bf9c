package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
)

// fake answers what a test tells it to and remembers what it was asked.
type fake struct {
	mu       sync.Mutex
	asked    []string
	evidence api.Evidence
	request  api.KeyRequest
	do       func(ctx context.Context) error
}

func (f *fake) called(ctx context.Context, what string) error {
	f.mu.Lock()
	f.asked = append(f.asked, what)
	f.mu.Unlock()
	if f.do != nil {
		return f.do(ctx)
	}
	return nil
}

func (f *fake) Release(ctx context.Context, ev api.Evidence, req api.KeyRequest) (api.KeyReply, error) {
	f.evidence, f.request = ev, req
	err := f.called(ctx, "release")
	return api.KeyReply{Key: []byte("k3y"), Purpose: req.Purpose, Constraint: req.Constraint, Name: req.Name}, err
}

func (f *fake) PublicKey(ctx context.Context, req api.PublicKeyRequest) (api.PublicKeyReply, error) {
	return api.PublicKeyReply{PublicKey: []byte{1}, Name: req.Name}, f.called(ctx, "public")
}

func (f *fake) Attest(ctx context.Context, req api.AttestRequest) (api.Verdict, error) {
	return api.Verdict{OK: true}, f.called(ctx, "attest")
}

func (f *fake) Cluster(ctx context.Context) (api.Cluster, error) {
	return api.Cluster{Epoch: 4}, f.called(ctx, "cluster")
}

func (f *fake) Operate(ctx context.Context, req api.AdminRequest) (api.AdminReply, error) {
	return api.AdminReply{Sequence: uint64(len(req.Statement))}, f.called(ctx, "operate")
}

func (f *fake) KeySet(ctx context.Context) (api.KeySet, error) {
	return api.KeySet{Keys: []api.JSONWebKey{{KeyType: "OKP", KeyID: "thumbprint"}}}, f.called(ctx, "keyset")
}

// logs collects what the handler logs.
type logs struct {
	mu sync.Mutex
	bytes.Buffer
}

func (l *logs) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.Buffer.Write(p)
}

type stand struct {
	fake     *fake
	logs     *logs
	registry *prometheus.Registry
	handler  http.Handler
}

func newStand(t *testing.T, do func(context.Context) error) *stand {
	t.Helper()
	s := &stand{fake: &fake{do: do}, logs: &logs{}, registry: prometheus.NewRegistry()}
	var err error
	s.handler, err = New(Config{Service: s.fake, Logger: slog.New(slog.NewTextHandler(s.logs, nil)), Registerer: s.registry})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

const keyBody = `{"constraint":"C:00","name":"db","purpose":"aes-256"}`

// attested is what the channel of an enclave leaves in the context.
var attested = ratls.Peer{
	Evidence: ratls.Evidence{Quote: []byte("quote"), Collateral: []byte("bundle")}, ReportData: [64]byte{7}, Verified: &attest.Verified{},
}

// ask sends one request; peer nil is a connection that is not attested.
func (s *stand) ask(method, path, body string, peer *ratls.Peer) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, strings.NewReader(body))
	if peer != nil {
		r = r.WithContext(ratls.NewContext(r.Context(), *peer))
	}
	w := httptest.NewRecorder()
	s.handler.ServeHTTP(w, r)
	return w
}

// wantProblem checks a refusal: status, code, form, and a sentence.
func wantProblem(t *testing.T, w *httptest.ResponseRecorder, status int, code api.Code) api.Problem {
	t.Helper()
	var p api.Problem
	if err := api.DecodeJSON(w.Body.Bytes(), api.MaxReplyBody, &p); err != nil {
		t.Fatalf("status %d, not a problem: %v", w.Code, err)
	}
	if w.Code != status || p.Status != status || p.Code != code || p.Detail == "" {
		t.Errorf("got %d %+v, want %d %s and a detail", w.Code, p, status, code)
	}
	if got := w.Header().Get("Content-Type"); got != api.ProblemType {
		t.Errorf("content type %q", got)
	}
	if w.Header().Get("Cache-Control") != "no-store" {
		t.Error("a refusal may be cached")
	}
	return p
}

func TestServes(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil)
	tests := []struct{ method, path, body, want string }{
		{"GET", "/v1/cluster", "", `"epoch":4`},
		{"POST", "/v1/attest", `{"quote":"AAAA"}`, `"ok":true`},
		{"POST", "/v1/keys/public", keyBody, `"public_key":"AQ=="`},
		{"POST", "/v1/keys", keyBody, `"key":"azN5"`},
		{"POST", "/v1/admin/statements", `{"statement":"AAAA","approvals":[]}`, `"sequence":3`},
		{"GET", "/v1/openapi.json", "", `"openapi"`},
		{"GET", "/.well-known/jwks.json", "", `{"keys":[{"kty":"OKP",`},
	}
	for _, tt := range tests {
		w := s.ask(tt.method, tt.path, tt.body, &attested)
		if w.Code != 200 || !strings.Contains(w.Body.String(), tt.want) || w.Header().Get("Cache-Control") != "no-store" {
			t.Errorf("%s: %d %s", tt.path, w.Code, w.Body)
		}
	}
	if got := string(s.fake.evidence.Quote) + string(s.fake.evidence.Collateral); got != "quotebundle" || s.fake.evidence.Binding != attested.ReportData {
		t.Errorf("the service saw evidence %q, binding %x", got, s.fake.evidence.Binding[:2])
	}
	if s.fake.request.Constraint != "C:00" || s.fake.request.Name != "db" {
		t.Errorf("the service saw %+v", s.fake.request)
	}
}

// Without evidence only the listed endpoints answer; whatever route is added later is closed unless it is listed.
func TestEvidenceIsRequired(t *testing.T) {
	t.Parallel()
	unverified, empty := attested, attested
	unverified.Verified = nil
	empty.Evidence = ratls.Evidence{}
	for name, peer := range map[string]*ratls.Peer{"plain connection": nil, "unverified": &unverified, "no quote": &empty} {
		s := newStand(t, nil)
		closed := 0
		for _, rt := range routes {
			w := s.ask(rt.method, rt.path, map[bool]string{true: keyBody}[rt.limit > 0], peer)
			if slices.Contains(Public, rt.name()) {
				if w.Code == http.StatusUnauthorized {
					t.Errorf("%s: public endpoint %s asks for evidence", name, rt.name())
				}
				continue
			}
			closed++
			wantProblem(t, w, 401, api.CodeEvidenceMissing)
			// The body of a stranger is not even read.
			w = s.ask(rt.method, rt.path, strings.Repeat("x", api.MaxAttestBody+1), peer)
			wantProblem(t, w, 401, api.CodeEvidenceMissing)
		}
		if closed != 1 || slices.Contains(s.fake.asked, "release") {
			t.Errorf("%s: %d closed routes, service saw %v", name, closed, s.fake.asked)
		}
	}
	for _, name := range Public {
		if !slices.ContainsFunc(routes, func(r route) bool { return r.name() == name }) {
			t.Errorf("public endpoint %q has no route", name)
		}
	}
}

// A route that hands out keys checks for itself, should it ever be listed as public by mistake.
func TestReleaseChecksEvidenceItself(t *testing.T) {
	t.Parallel()
	h := &handler{service: &fake{}}
	_, err := h.release(httptest.NewRequest("POST", "/v1/keys", nil), []byte(keyBody))
	if !errors.Is(err, &api.Problem{Code: api.CodeEvidenceMissing}) {
		t.Errorf("got %v", err)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", api.MaxConstraint+1)
	tests := map[string]struct {
		method, path, body string
		status             int
		code               api.Code
	}{
		"unknown key":       {"POST", "/v1/keys", `{"constraint":"C","name":"n","purpose":"age","evidence":"AA=="}`, 400, api.CodeBadRequest},
		"duplicate key":     {"POST", "/v1/keys", `{"constraint":"C","name":"n","purpose":"age","name":"m"}`, 400, api.CodeBadRequest},
		"case duplicate":    {"POST", "/v1/keys", `{"constraint":"C","name":"n","purpose":"age","Name":"m"}`, 400, api.CodeBadRequest},
		"trailing data":     {"POST", "/v1/keys", keyBody + `{}`, 400, api.CodeBadRequest},
		"no body":           {"POST", "/v1/keys", ``, 400, api.CodeBadRequest},
		"array":             {"POST", "/v1/keys", `[]`, 400, api.CodeBadRequest},
		"wrong type":        {"POST", "/v1/keys", `{"constraint":7}`, 400, api.CodeBadRequest},
		"empty constraint":  {"POST", "/v1/keys/public", `{"constraint":"","name":"n","purpose":"age"}`, 400, api.CodeBadRequest},
		"long constraint":   {"POST", "/v1/keys", `{"constraint":"` + long + `","name":"n","purpose":"age"}`, 413, api.CodeTooLarge},
		"body over limit":   {"POST", "/v1/keys", strings.Repeat(" ", api.MaxKeyBody) + keyBody, 413, api.CodeTooLarge},
		"attest over limit": {"POST", "/v1/attest", strings.Repeat(" ", api.MaxAttestBody+1), 413, api.CodeTooLarge},
		"empty quote":       {"POST", "/v1/attest", `{"quote":""}`, 400, api.CodeBadRequest},
		"unpadded nonce":    {"POST", "/v1/attest", `{"quote":"AA==","nonce":"AAAAAAAAAAA"}`, 400, api.CodeBadRequest},
		"short nonce":       {"POST", "/v1/attest", `{"quote":"AA==","nonce":"AAAA"}`, 400, api.CodeBadRequest},
		"body for the keys": {"GET", "/.well-known/jwks.json", `x`, 413, api.CodeTooLarge},
		"deep nesting":      {"POST", "/v1/attest", strings.Repeat("[", 9000), 400, api.CodeBadRequest},
		"body on GET":       {"GET", "/v1/cluster", `x`, 413, api.CodeTooLarge},
		"query":             {"GET", "/v1/cluster?verbose=1", ``, 400, api.CodeBadRequest},
		"no such path":      {"GET", "/v1/secrets", ``, 404, api.CodeNotFound},
		"other spelling":    {"POST", "/v1//keys", keyBody, 404, api.CodeNotFound},
		"trailing slash":    {"POST", "/v1/keys/", keyBody, 404, api.CodeNotFound},
		"other method":      {"GET", "/v1/keys", ``, 405, api.CodeNotFound},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newStand(t, nil)
			wantProblem(t, s.ask(tt.method, tt.path, tt.body, &attested), tt.status, tt.code)
			if len(s.fake.asked) != 0 {
				t.Errorf("the service was asked %v", s.fake.asked)
			}
		})
	}
}

func TestNotLeader(t *testing.T) {
	t.Parallel()
	leader := &api.Leader{ServerID: api.ID{1}, APIAddr: "10.0.0.2:9000"}
	s := newStand(t, func(context.Context) error {
		p := api.NewProblem(api.CodeNotLeader, "ask the leader")
		p.Leader = leader
		return fmt.Errorf("wrapped: %w", p)
	})
	w := s.ask("POST", "/v1/keys", keyBody, &attested)
	p := wantProblem(t, w, 307, api.CodeNotLeader)
	if got := w.Header().Get("Location"); got != "https://10.0.0.2:9000/v1/keys" {
		t.Errorf("Location %q", got)
	}
	if p.Leader == nil || *p.Leader != *leader {
		t.Errorf("leader %+v", p.Leader)
	}
	for _, bad := range []*api.Leader{nil, {}, {APIAddr: "a b\r\nX: y"}} {
		leader = bad
		w := s.ask("POST", "/v1/keys", keyBody, &attested)
		wantProblem(t, w, 503, api.CodeNoQuorum)
		if w.Header().Get("Location") != "" {
			t.Errorf("%+v: a redirect to nowhere", bad)
		}
	}
}

// What another moment may cure says when to ask again.
func TestPassingTrouble(t *testing.T) {
	t.Parallel()
	for _, code := range []api.Code{api.CodeNoQuorum, api.CodeBusy} {
		s := newStand(t, func(context.Context) error { return api.NewProblem(code, "not now") })
		w := s.ask("POST", "/v1/keys", keyBody, &attested)
		wantProblem(t, w, 503, code)
		if w.Header().Get("Retry-After") != "1" {
			t.Errorf("%s: Retry-After %q", code, w.Header().Get("Retry-After"))
		}
	}
}

// A cluster that does not answer must not hold the request: its time limit ends it.
func TestTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newStand(t, func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		})
		start := time.Now()
		wantProblem(t, s.ask("POST", "/v1/keys", keyBody, &attested), 503, api.CodeNoQuorum)
		if d := time.Since(start); d != DefaultTimeout {
			t.Errorf("answered after %v", d)
		}
	})
}

// A denial reaches the client clause by clause.
func TestDenialIsComplete(t *testing.T) {
	t.Parallel()
	s := newStand(t, func(context.Context) error {
		p := api.NewProblem(api.CodePolicyDenied, "ask for what your code satisfies")
		p.Failures = []api.Failure{{Clause: "REVOKE", Want: "ISVSVN of at least 3", Got: "2", Hint: "deploy the current version"}}
		return p
	})
	p := wantProblem(t, s.ask("POST", "/v1/keys", keyBody, &attested), 403, api.CodePolicyDenied)
	if len(p.Failures) != 1 || p.Failures[0].Hint != "deploy the current version" {
		t.Errorf("failures %+v", p.Failures)
	}
}

// Faults are for the log; the client learns that there was one. What panics may hold a key: its value goes nowhere.
func TestFaultsDoNotLeak(t *testing.T) {
	t.Parallel()
	const detail = "root secret 5ec2e7"
	faults := map[string]func(context.Context) error{
		"error": func(context.Context) error { return errors.New(detail) },
		"panic": func(context.Context) error { panic(detail) },
		//lint:ignore SA5000 the panic is the point
		"nil map": func(context.Context) error { var m map[string]int; m[detail] = 1; return nil },
		"success status": func(context.Context) error {
			p := api.NewProblem(api.CodeInternal, "see the log")
			p.Status = 200
			return p
		},
	}
	for name, do := range faults {
		s := newStand(t, do)
		w := s.ask("POST", "/v1/keys", keyBody, &attested)
		if strings.Contains(w.Body.String(), detail) || strings.Contains(w.Body.String(), "goroutine") || w.Code != 500 {
			t.Errorf("%s: %d %s", name, w.Code, w.Body)
		}
		if strings.Contains(w.Body.String(), "azN5") {
			t.Errorf("%s: a key came with the error", name)
		}
		if s.logs.Len() == 0 {
			t.Errorf("%s: nothing logged", name)
		}
		if name == "panic" && strings.Contains(s.logs.String(), detail) {
			t.Errorf("%s: the panic's value was logged", name)
		}
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	s := newStand(t, nil)
	s.ask("GET", "/v1/cluster", "", nil)
	s.ask("POST", "/v1/keys", keyBody, nil)
	s.ask("GET", "/etc/passwd", "", nil)
	s.ask("GET", "/v1/cluster/"+strings.Repeat("y", 50), "", nil)
	s.fake.do = func(context.Context) error { return api.NewProblem("surprise", "x") }
	s.ask("GET", "/v1/cluster", "", nil)
	s.fake.do = func(context.Context) error { return api.NewProblem(api.CodeEnded, "x") }
	s.ask("GET", "/v1/cluster", "", nil)
	want := `# HELP claviger_api_requests_total Requests answered, by route and code.
# TYPE claviger_api_requests_total counter
claviger_api_requests_total{code="ended",route="GET /v1/cluster"} 1
claviger_api_requests_total{code="evidence_missing",route="POST /v1/keys"} 1
claviger_api_requests_total{code="not_found",route="none"} 2
claviger_api_requests_total{code="ok",route="GET /v1/cluster"} 1
claviger_api_requests_total{code="other",route="GET /v1/cluster"} 1
`
	if err := testutil.GatherAndCompare(s.registry, strings.NewReader(want), "claviger_api_requests_total"); err != nil {
		t.Error(err)
	}
	if n := testutil.CollectAndCount(s.registry, "claviger_api_request_seconds"); n != 3 {
		t.Errorf("%d latency series, want one per route seen", n)
	}
	if _, err := New(Config{Service: s.fake, Logger: slog.Default(), Registerer: s.registry}); err == nil {
		t.Error("the same metrics were registered twice")
	}
	if _, err := New(Config{}); !errors.Is(err, ErrConfig) {
		t.Errorf("zero Config: %v", err)
	}
}

// The document names the endpoints that exist, what they need, and every field of the wire types.
func TestOpenAPI(t *testing.T) {
	t.Parallel()
	var doc struct {
		Paths map[string]map[string]struct {
			Evidence string `json:"x-claviger-evidence"`
		} `json:"paths"`
		Components struct {
			Schemas map[string]struct {
				Properties map[string]any `json:"properties"`
			} `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(openAPI, &doc); err != nil {
		t.Fatal(err)
	}
	if len(doc.Paths) != len(routes) {
		t.Errorf("%d paths for %d routes", len(doc.Paths), len(routes))
	}
	for _, rt := range routes {
		need := "required"
		if slices.Contains(Public, rt.name()) {
			need = "none"
		}
		if got := doc.Paths[rt.path][strings.ToLower(rt.method)].Evidence; got != need {
			t.Errorf("%s: evidence %q, want %q", rt.name(), got, need)
		}
	}
	for name, v := range map[string]any{
		"KeyRequest": api.KeyRequest{}, "KeyReply": api.KeyReply{}, "PublicKeyReply": api.PublicKeyReply{}, "Receipt": api.Receipt{},
		"AttestRequest": api.AttestRequest{}, "Verdict": api.Verdict{}, "Cluster": api.Cluster{}, "Member": api.Member{},
		"Problem": api.Problem{}, "Failure": api.Failure{}, "Leader": api.Leader{}, "Version": api.Version{},
		"AdminRequest": api.AdminRequest{}, "AdminReply": api.AdminReply{}, "PendingTicket": api.PendingTicket{},
		"KeySet": api.KeySet{}, "JSONWebKey": api.JSONWebKey{},
	} {
		want := jsonFields(v)
		var got []string
		for field := range doc.Components.Schemas[name].Properties {
			got = append(got, field)
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s: document has %v, type has %v", name, got, want)
		}
	}
}

func TestAdmin(t *testing.T) {
	t.Parallel()
	registry := prometheus.NewRegistry()
	if _, err := New(Config{Service: &fake{}, Logger: slog.Default(), Registerer: registry}); err != nil {
		t.Fatal(err)
	}
	var notReady error
	h := Admin(func(context.Context) error { return notReady }, registry, slog.Default())
	get := func(method, path string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest(method, path, nil))
		body, _ := io.ReadAll(w.Body)
		return w.Code, string(body)
	}
	for path, want := range map[string]string{"/healthz": "ok\n", "/readyz": "ready\n"} {
		if code, body := get("GET", path); code != 200 || body != want {
			t.Errorf("%s: %d %q", path, code, body)
		}
	}
	notReady = errors.New("not admitted yet")
	if code, body := get("GET", "/readyz"); code != 503 || body != "not admitted yet\n" {
		t.Errorf("unready: %d %q", code, body)
	}
	if code, _ := get("GET", "/healthz"); code != 200 {
		t.Errorf("unready is not unhealthy: %d", code)
	}
	if code, _ := get("GET", "/metrics"); code != 200 {
		t.Errorf("metrics: %d", code)
	}
	for _, bad := range [][2]string{{"POST", "/healthz"}, {"GET", "/v1/keys"}, {"GET", "/"}} {
		if code, _ := get(bad[0], bad[1]); code != 404 && code != 405 {
			t.Errorf("%v: %d", bad, code)
		}
	}
}
