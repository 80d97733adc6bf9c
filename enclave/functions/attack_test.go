package functions

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/mail"
	"github.com/claviger/claviger/enclave/persist/persisttest"
)

// capture seals a call without sending it.
func (w *world) capture(c *Client, function string, list ...string) ([]byte, *CallOpener) {
	w.t.Helper()
	sealed, opener, err := SealCall(c.Target, w.host.window.now(), function, args(list...))
	if err != nil {
		w.t.Fatal(err)
	}
	return sealed, opener
}

// TestHostSwapsRequests delivers genuine sealed calls to where they do not belong.
func TestHostSwapsRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	w.deploy("q", "v1", 1)
	w.deploy("q", "v2", 2)
	p, q, v1, v2 := w.project("p"), w.project("q"), HashCode([]byte("v1")), HashCode([]byte("v2"))
	sealed, opener := w.capture(w.client("p", "v1"), "put", "k", "v")
	altered := slices.Clone(sealed)
	altered[len(altered)/2] ^= 1
	for name, attack := range map[string]func() ([]byte, error){
		"another function":  func() ([]byte, error) { return w.host.Call(t.Context(), p, "get", v1, sealed) },
		"another project":   func() ([]byte, error) { return w.host.Call(t.Context(), q, "put", v1, sealed) },
		"another code hash": func() ([]byte, error) { return w.host.Call(t.Context(), p, "put", v2, sealed) },
		"altered":           func() ([]byte, error) { return w.host.Call(t.Context(), p, "put", v1, altered) },
		"as a deployment":   func() ([]byte, error) { return w.host.Deploy(t.Context(), p, sealed) },
	} {
		if reply, err := attack(); !errors.Is(err, errCannotOpen) || reply != nil {
			t.Errorf("%s: %v, want a request that does not open", name, err)
		}
	}
	if n := w.runner.ran.Load(); n != 0 {
		t.Fatalf("%d calls ran", n)
	}
	reply, err := w.host.Call(t.Context(), p, "put", v1, sealed)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := opener.OpenReply(reply); err != nil {
		t.Fatalf("the genuine delivery: %v", err)
	}
}

// TestHostReplays delivers one sealed call again: at once, after a restart, and to
// another machine with the same keys.
func TestHostReplays(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	sealed, opener := w.capture(c, "add", "n")
	failing, _ := w.capture(c, "putThenThrow", "n", "from a failed call")
	deliver := func(function string, sealed []byte) []byte {
		t.Helper()
		reply, err := w.host.Call(t.Context(), c.Target.Project, function, c.Target.Code, sealed)
		if err != nil {
			t.Fatal(err)
		}
		return reply
	}
	if _, err := opener.OpenReply(deliver("add", sealed)); err != nil {
		t.Fatal(err)
	}
	deliver("putThenThrow", failing)
	if _, err := opener.OpenReply(deliver("add", sealed)); !errors.Is(err, ErrDuplicate) {
		t.Errorf("replay: %v, want ErrDuplicate", err)
	}
	ran := w.runner.ran.Load()
	deliver("putThenThrow", failing) // a call that failed stays failed
	w.restart()
	if _, err := opener.OpenReply(deliver("add", sealed)); !errors.Is(err, ErrStaleSession) {
		t.Errorf("replay after a restart: %v, want ErrStaleSession", err)
	}
	w.cfg.Files = w.cfg.Files.(*persisttest.Files).Clone()
	w.restart()
	if _, err := opener.OpenReply(deliver("add", sealed)); !errors.Is(err, ErrStaleSession) {
		t.Errorf("replay to another machine: %v, want ErrStaleSession", err)
	}
	if n := w.runner.ran.Load(); n != ran {
		t.Errorf("%d replays ran", n-ran)
	}
	if got := call(t, w.client("p", "v1"), "get", "n"); got != `"x"` {
		t.Errorf("the call happened not exactly once: %s", got)
	}
}

func TestPinnedCodeHash(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "malicious", 1)
	e := refused(t, w.client("p", "reviewed"), CodeHashMismatch, "echo", "password")
	if !errors.Is(e, ErrCodeHashMismatch) || !strings.Contains(e.Message, HashCode([]byte("malicious")).String()) {
		t.Errorf("the refusal: %v", e)
	}
	if n := w.runner.ran.Load(); n != 0 {
		t.Errorf("%d calls ran under a hash that the caller did not pin", n)
	}
}

// hostile is a function host that answers as it likes.
func hostile(t *testing.T, w *world, f func(w http.ResponseWriter, r *http.Request, honest http.Handler)) *Client {
	t.Helper()
	honest := w.host.Handler()
	s := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { f(rw, r, honest) }))
	t.Cleanup(s.Close)
	c := w.client("p", "v1")
	c.Endpoint = s.URL
	return c
}

func TestHostForgesAnswers(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	// An enclave of the host's own whose key it knows.
	mallory := newWorld(t, func(c *Config) { c.Keys = newKeys(t, 'm') })
	mallory.deploy("p", "v1", 1)
	var earlier []byte
	answers := map[string]func(honest *httptest.ResponseRecorder) []byte{
		"an earlier answer":    func(*httptest.ResponseRecorder) []byte { return earlier },
		"nothing":              func(*httptest.ResponseRecorder) []byte { return nil },
		"an empty document":    func(*httptest.ResponseRecorder) []byte { return []byte(`{}`) },
		"an empty reply":       func(*httptest.ResponseRecorder) []byte { return []byte(`{"reply":""}`) },
		"a reply in the clear": func(*httptest.ResponseRecorder) []byte { return []byte(`{"reply":"e30="}`) },
		"a member too many": func(r *httptest.ResponseRecorder) []byte {
			return slices.Concat([]byte(`{"x":"",`), r.Body.Bytes()[1:])
		},
		"two documents":    func(r *httptest.ResponseRecorder) []byte { return slices.Concat(r.Body.Bytes(), r.Body.Bytes()) },
		"an altered reply": func(r *httptest.ResponseRecorder) []byte { return alter(t, r.Body.Bytes()) },
		"too much":         func(*httptest.ResponseRecorder) []byte { return make([]byte, maxDocument+2) },
		"a reply of another": func(*httptest.ResponseRecorder) []byte {
			sealed, _ := mallory.capture(mallory.client("p", "v1"), "echo")
			c := mallory.client("p", "v1")
			reply, err := mallory.host.Call(t.Context(), c.Target.Project, "echo", c.Target.Code, sealed)
			if err != nil {
				t.Error(err)
			}
			raw, _ := json.Marshal(replyDocument{base64.StdEncoding.EncodeToString(reply)})
			return raw
		},
	}
	for name, answer := range answers {
		c := hostile(t, w, func(rw http.ResponseWriter, r *http.Request, honest http.Handler) {
			rec := httptest.NewRecorder()
			honest.ServeHTTP(rec, r)
			if r.Method == http.MethodGet {
				_, _ = rw.Write(rec.Body.Bytes())
				return
			}
			if earlier == nil {
				earlier = rec.Body.Bytes()
			}
			_, _ = rw.Write(answer(rec))
		})
		if earlier == nil { // an honest answer to keep
			first := hostile(t, w, func(rw http.ResponseWriter, r *http.Request, honest http.Handler) {
				rec := httptest.NewRecorder()
				honest.ServeHTTP(rec, r)
				if r.Method == http.MethodPost {
					earlier = slices.Clone(rec.Body.Bytes())
				}
				_, _ = rw.Write(rec.Body.Bytes())
			})
			if got := call(t, first, "echo"); got != "[]" {
				t.Fatal(got)
			}
		}
		res, err := c.Call(t.Context(), "echo", args())
		if res.Value != nil || !errors.Is(err, ErrReply) && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %s, %v", name, res.Value, err)
		}
	}
}

func alter(t *testing.T, document []byte) []byte {
	t.Helper()
	var doc replyDocument
	if err := json.Unmarshal(document, &doc); err != nil {
		t.Error(err)
	}
	raw, err := base64.StdEncoding.DecodeString(doc.Reply)
	if err != nil {
		t.Error(err)
	}
	raw[100] ^= 4
	out, _ := json.Marshal(replyDocument{base64.StdEncoding.EncodeToString(raw)})
	return out
}

// TestHostCannotMakeAClientRepeat: only the enclave's sealed word for a stale
// session makes a client seal a call again; the host's word does not, since it may
// have run the call before it lied.
func TestHostCannotMakeAClientRepeat(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	c := hostile(t, w, func(rw http.ResponseWriter, r *http.Request, honest http.Handler) {
		if r.Method == http.MethodPost {
			honest.ServeHTTP(httptest.NewRecorder(), r)
			writeProblem(rw, http.StatusConflict, CodeStaleSession, "again, please")
			return
		}
		honest.ServeHTTP(rw, r)
	})
	_, err := c.Call(t.Context(), "add", args("n"))
	p, ok := errors.AsType[*Problem](err)
	if !ok || p.Code != CodeStaleSession || errors.Is(err, ErrStaleSession) {
		t.Fatalf("%v, want the host's problem, marked as the host's", err)
	}
	if got := call(t, w.client("p", "v1"), "get", "n"); got != `"x"` {
		t.Fatalf("the call ran %s times", got)
	}
	// The enclave's own word does: the client recovers from a restart.
	c = w.client("p", "v1")
	call(t, c, "echo")
	w.restart()
	c.Endpoint = w.server.URL
	call(t, c, "echo")
	// A false session only makes the enclave refuse.
	lying := hostile(t, w, func(rw http.ResponseWriter, r *http.Request, honest http.Handler) {
		if r.Method == http.MethodGet {
			writeJSON(rw, http.StatusOK, runtimeDocument{testRuntime, "", base64.StdEncoding.EncodeToString(make([]byte, idSize))})
			return
		}
		honest.ServeHTTP(rw, r)
	})
	refused(t, lying, CodeStaleSession, "echo")
}

// TestOnlyTheOwnerDeploys performs the deployments that must not go into force.
func TestOnlyTheOwnerDeploys(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 5)
	id, code := w.project("p"), []byte("evil")
	sign := func(name, runtime string, sequence uint64) Deployment {
		d, err := SignDeployment(w.owner, name, runtime, code, sequence)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	thief, err := SignDeployment(ownerKey(t), "p", testRuntime, code, 6)
	if err != nil {
		t.Fatal(err)
	}
	change := func(f func(d *Deployment)) Deployment { d := sign("p", testRuntime, 6); f(&d); return d }
	for name, c := range map[string]struct {
		d    Deployment
		code []byte
		want error
	}{
		"another owner":         {thief, code, ErrNotOwner},
		"another name":          {sign("q", testRuntime, 6), code, ErrNotOwner},
		"the thief's signature": {change(func(d *Deployment) { d.Signature = thief.Signature }), code, ErrBadSignature},
		"the thief's key":       {change(func(d *Deployment) { d.Owner = thief.Owner }), code, ErrNotOwner},
		"no signature":          {change(func(d *Deployment) { d.Signature = nil }), code, ErrBadSignature},
		"a raised sequence":     {change(func(d *Deployment) { d.Sequence = 7 }), code, ErrBadSignature},
		"another code hash":     {change(func(d *Deployment) { d.CodeHash[0] ^= 1 }), code, ErrBadSignature},
		"other code":            {sign("p", testRuntime, 6), []byte("more evil"), ErrCodeHashMismatch},
		"no code":               {sign("p", testRuntime, 6), nil, nil},
		"sequence zero":         {change(func(d *Deployment) { d.Sequence = 0 }), code, nil},
		"the same sequence":     {sign("p", testRuntime, 5), code, ErrStaleSequence},
		"a lower sequence":      {sign("p", testRuntime, 4), code, ErrStaleSequence},
		"another runtime": {change(func(d *Deployment) {
			*d = sign("p", "C:00", 6)
		}), code, ErrWrongRuntime},
	} {
		body, err := cborEnc.Marshal(deployMessage{c.d, c.code})
		if err != nil {
			t.Fatal(err)
		}
		to, _ := mail.ParseRecipient(w.target.RuntimeKey)
		sealed, opener, err := mail.SealRequest(to, deployInfo(testRuntime, id), nil, body)
		if err != nil {
			t.Fatal(err)
		}
		reply, err := w.host.Deploy(t.Context(), id, sealed)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		n, err := (&DeployOpener{opener}).OpenReply(reply)
		if _, ok := errors.AsType[*CallError](err); !ok || c.want != nil && !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		if errors.Is(err, ErrStaleSequence) && n != 5 {
			t.Errorf("%s: the sequence in force is said to be %d", name, n)
		}
	}
	if got := call(t, w.client("p", "v1"), "version"); got != `"v1"` {
		t.Fatalf("in force: %s", got)
	}
}

func TestHostReplaysADeployment(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	d, err := SignDeployment(w.owner, "p", testRuntime, []byte("old"), 1)
	if err != nil {
		t.Fatal(err)
	}
	sealed, opener, err := SealDeployment(w.target.RuntimeKey, d, []byte("old"))
	if err != nil {
		t.Fatal(err)
	}
	deliver := func() error {
		reply, err := w.host.Deploy(t.Context(), w.project("p"), sealed)
		if err != nil {
			t.Fatal(err)
		}
		_, err = opener.OpenReply(reply)
		return err
	}
	if err := deliver(); err != nil {
		t.Fatal(err)
	}
	w.deploy("p", "new", 2)
	w.restart()
	if err := deliver(); !errors.Is(err, ErrStaleSequence) {
		t.Errorf("the old deployment: %v, want ErrStaleSequence", err)
	}
	if _, err := w.host.Deploy(t.Context(), w.project("q"), sealed); !errors.Is(err, errCannotOpen) {
		t.Errorf("delivered to another project: %v", err)
	}
	if _, err := w.client("p", "x").Deploy(t.Context(), w.owner, "p", []byte("broken"), 3); err == nil {
		t.Error("code that does not load went into force")
	}
	if got := call(t, w.client("p", "new"), "version"); got != `"new"` {
		t.Fatalf("in force: %s", got)
	}
}

func TestProblemsDoNotControlTerminals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	c := hostile(t, w, func(rw http.ResponseWriter, _ *http.Request, _ http.Handler) {
		writeProblem(rw, http.StatusTeapot, "busy\x1b", "\x1b[2J\u202egone"+strings.Repeat("x", 5000))
	})
	_, err := c.Call(t.Context(), "echo", args())
	p, ok := errors.AsType[*Problem](err)
	if !ok || p.Code != "busy?" || !strings.HasPrefix(p.Detail, "?[2J?gone") || len(p.Detail) > 1<<10 || p.Status != http.StatusTeapot {
		t.Fatalf("%+v", p)
	}
}

func TestSizesHideLengths(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	requests, replies := map[int]bool{}, map[int]bool{}
	for _, n := range []int{0, 10, 100, 500} {
		sealed, _ := w.capture(c, "echo", strings.Repeat("x", n))
		reply, err := w.host.Call(t.Context(), c.Target.Project, "echo", c.Target.Code, sealed)
		if err != nil {
			t.Fatal(err)
		}
		requests[len(sealed)], replies[len(reply)] = true, true
	}
	if len(requests) != 1 || len(replies) != 1 {
		t.Errorf("sizes of requests %v and replies %v", requests, replies)
	}
}

func TestBadHTTP(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.MaxCalls = 1 })
	w.deploy("p", "v1", 1)
	id, hash := w.project("p").String(), HashCode([]byte("v1")).String()
	path := "/v1/functions/" + id + "/echo"
	for name, c := range map[string]struct {
		method, path, body string
		status             int
		code               Code
	}{
		"no body":             {"POST", path, ``, 400, CodeBadRequest},
		"not an object":       {"POST", path, `[]`, 400, CodeBadRequest},
		"a member missing":    {"POST", path, `{"request":""}`, 400, CodeBadRequest},
		"an unknown member":   {"POST", path, `{"request":"","code_hash":"` + hash + `","x":""}`, 400, CodeBadRequest},
		"a member in capital": {"POST", path, `{"Request":"","code_hash":"` + hash + `"}`, 400, CodeBadRequest},
		"a member twice":      {"POST", path, `{"request":"","request":"","code_hash":"` + hash + `"}`, 400, CodeBadRequest},
		"a number":            {"POST", path, `{"request":1,"code_hash":"` + hash + `"}`, 400, CodeBadRequest},
		"trailing bytes":      {"POST", path, `{"request":"","code_hash":"` + hash + `"}{}`, 400, CodeBadRequest},
		"not Base64":          {"POST", path, `{"request":"%","code_hash":"` + hash + `"}`, 400, CodeBadRequest},
		"not a message":       {"POST", path, `{"request":"AQID","code_hash":"` + hash + `"}`, 400, CodeBadRequest},
		"a short hash":        {"POST", path, `{"request":"","code_hash":"00"}`, 400, CodeBadRequest},
		"a hash in capitals":  {"POST", path, `{"request":"","code_hash":"` + strings.ToUpper(hash) + `"}`, 400, CodeBadRequest},
		"oversized":           {"POST", path, `{"request":"` + strings.Repeat("A", maxDocument), 413, CodeTooLarge},
		"a short project":     {"POST", "/v1/functions/00/echo", `{"request":"","code_hash":"` + hash + `"}`, 400, CodeBadRequest},
		"an odd function":     {"POST", "/v1/functions/" + id + "/a%20b", `{"request":"","code_hash":"` + hash + `"}`, 400, CodeBadRequest},
		"no such path":        {"POST", "/v1/else", ``, 404, CodeNotFound},
		"no such method":      {"GET", path, ``, 405, CodeMethod},
		"a bad deployment":    {"POST", "/v1/projects/" + id + "/deployments", `{"request":""}`, 400, CodeBadRequest},
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, w.server.URL+c.path, strings.NewReader(c.body))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		raw, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		var p Problem
		if err := json.Unmarshal(raw, &p); err != nil || resp.StatusCode != c.status || p.Status != c.status || p.Code != c.code || p.Detail == "" {
			t.Errorf("%s: status %d, body %s", name, resp.StatusCode, raw)
		}
		if got := resp.Header.Get("Content-Type"); got != "application/problem+json" {
			t.Errorf("%s: content type %s", name, got)
		}
	}
	done := make(chan error, 1)
	c := w.client("p", "v1")
	go func() { _, err := c.Call(t.Context(), "wait", args()); done <- err }()
	w.entered()
	_, err := w.client("p", "v1").Call(t.Context(), "echo", args())
	if p, ok := errors.AsType[*Problem](err); !ok || p.Code != CodeBusy {
		t.Errorf("a call too many: %v", err)
	}
	w.resume()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestClientDenies(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	if _, err := new(Client).Call(t.Context(), "echo", args()); !errors.Is(err, ErrConfig) {
		t.Errorf("zero client: %v", err)
	}
	c := w.client("p", "v1")
	c.Target.RuntimeKey = nil
	if _, err := c.Call(t.Context(), "echo", args()); !errors.Is(err, mail.ErrKey) {
		t.Errorf("no runtime key: %v", err)
	}
	c = w.client("p", "v1")
	c.Target.Runtime = "C:00"
	if _, err := c.Call(t.Context(), "echo", args()); !errors.Is(err, ErrWrongRuntime) {
		t.Errorf("another runtime: %v", err)
	}
	c = w.client("p", "v1")
	c.Target.RuntimeKey = newWorld(t, func(c *Config) { c.Keys = newKeys(t, 'm') }).host.PublicKey()
	if _, err := c.Call(t.Context(), "echo", args()); err == nil {
		t.Error("a call sealed to another runtime's key was answered")
	}
	if _, err := w.client("p", "v1").Call(t.Context(), "echo", make([]byte, MaxArgs+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large arguments: %v", err)
	}
	if _, err := w.client("p", "v1").Call(t.Context(), "", args()); !errors.Is(err, ErrFormat) {
		t.Errorf("no function: %v", err)
	}
	if _, err := w.client("p", "v1").Deploy(t.Context(), w.owner, "q", []byte("v"), 1); !errors.Is(err, ErrConfig) {
		t.Errorf("deploying another project: %v", err)
	}
	if _, err := SignDeployment(w.owner, "p", testRuntime, make([]byte, MaxCode+1), 1); !errors.Is(err, ErrTooLarge) {
		t.Errorf("large code: %v", err)
	}
}

// Deployments that find no memory are refused, and leave no project behind: otherwise strangers would use up the places of
// everybody else.
func TestRefusedDeploymentsTakeNoPlace(t *testing.T) {
	t.Parallel()
	b := engine.NewBudget(128 << 20)
	w := newWorld(t, func(c *Config) { c.Budget, c.MaxProjects = b, 4 })
	w.runner.large.Store(true)                               // the code fits, the store beside it does not
	hold := b.Limit() - b.Used() - w.runner.Largest() - 1000 // memory is in use by calls just now
	if !b.Reserve(hold) {
		t.Fatal("the budget is not as large as this test needs")
	}
	refused := 0
	for i := range 4 {
		name := fmt.Sprint("q", i)
		if _, err := w.client(name, "v1").Deploy(t.Context(), w.owner, name, []byte("v1"), 1); err != nil {
			refused++
		}
	}
	b.Release(hold)
	if refused != 4 {
		t.Fatalf("%d of 4 deployments refused", refused)
	}
	if n, _ := w.host.disk.totals(); n != 0 {
		t.Errorf("%d projects are left of refused deployments", n)
	}
	if _, err := w.client("honest", "v1").Deploy(t.Context(), w.owner, "honest", []byte("v1"), 1); err != nil {
		t.Errorf("an honest owner: %v", err)
	}
}
