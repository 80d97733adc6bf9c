package functions

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/persist/persisttest"
	"github.com/claviger/claviger/enclave/secret"
)

const testRuntime = "S:4924 PROD:1"

// testKeys stands for the key service: every host with the same root and runtime
// gets the same keys.
type testKeys struct {
	root  secret.Key
	asked *atomic.Int64
}

func newKeys(t testing.TB, b byte) testKeys {
	t.Helper()
	root, err := secret.New([]byte(strings.Repeat(string(rune(b)), 32)))
	if err != nil {
		t.Fatal(err)
	}
	return testKeys{root, new(atomic.Int64)}
}

func (k testKeys) Key(_ context.Context, name, purpose string) (secret.Key, error) {
	k.asked.Add(1)
	return k.root.Derive(purpose+" "+name, 32)
}

// fakeRunner runs functions written in Go, so that tests of the protocol need no
// engine. The code of a bundle only tells programs apart.
type fakeRunner struct {
	ran      atomic.Int64           // calls that reached a program
	open     atomic.Int64           // programs loaded and not closed
	loaded   atomic.Int64           // programs loaded
	fail     atomic.Bool            // nothing loads
	failOnly atomic.Pointer[string] // this code does not load
	parallel int                    // Concurrency
	large    atomic.Bool            // programs keep as much as Largest
	inside   chan struct{}          // "wait" says on it that it runs
	resume   chan struct{}          // and goes on when this gives
}

func newRunner() *fakeRunner {
	return &fakeRunner{inside: make(chan struct{}), resume: make(chan struct{})}
}

type fakeProgram struct {
	r    *fakeRunner
	code string
}

func (r *fakeRunner) Load(_ context.Context, code []byte) (Program, error) {
	if string(code) == "broken" {
		return nil, &engine.ScriptError{Name: "SyntaxError", Message: "broken"}
	}
	if only := r.failOnly.Load(); r.fail.Load() || only != nil && *only == string(code) {
		return nil, fmt.Errorf("%w: it has 2 bytes of 1", engine.ErrSnapshot)
	}
	r.loaded.Add(1)
	r.open.Add(1)
	return fakeProgram{r, string(code)}, nil
}

func (r *fakeRunner) Concurrency() int {
	if r.parallel > 0 {
		return r.parallel
	}
	return 128
}

func (r *fakeRunner) Largest() int64            { return 1 << 20 }
func (r *fakeRunner) Trim(context.Context) bool { return false }

func (p fakeProgram) Size() int64 {
	if p.r.large.Load() {
		return p.r.Largest()
	}
	return 1 << 10
}
func (p fakeProgram) Exports() []string     { return nil }
func (p fakeProgram) Close(context.Context) { p.r.open.Add(-1) }

func (p fakeProgram) Call(ctx context.Context, function string, raw []byte, h engine.Host) (engine.Result, error) {
	p.r.ran.Add(1)
	res := engine.Result{Logs: []engine.LogLine{{Level: "log", Text: "secret log of " + function}}}
	var args []string
	if json.Unmarshal(raw, &args) != nil {
		return res, engine.ErrArguments
	}
	value, err := p.run(ctx, function, args, h)
	if err == nil {
		res.Value, err = json.Marshal(value)
	}
	return res, err
}

func (p fakeProgram) run(ctx context.Context, function string, args []string, h engine.Host) (any, error) {
	switch function {
	case "echo":
		return args, nil
	case "version":
		return p.code, nil
	case "get":
		v, ok, err := h.KVGet(ctx, args[0])
		if !ok {
			return nil, err
		}
		return string(v), err
	case "put":
		return nil, h.KVPut(ctx, args[0], []byte(args[1]))
	case "putThenThrow":
		return nil, errors.Join(h.KVPut(ctx, args[0], []byte(args[1])), &engine.ScriptError{Name: "Error", Message: "secret text", Stack: "at f"})
	case "putAndSwallow": // meets a failed operation and returns as if all was well
		_ = h.KVPut(ctx, args[0], []byte(args[1]))
		_ = h.KVPut(ctx, "big", make([]byte, persist.MaxValue+1))
		return nil, nil
	case "add":
		v, _, err := h.KVGet(ctx, args[0])
		return nil, errors.Join(err, h.KVPut(ctx, args[0], append(v, 'x')))
	case "list":
		keys, err := h.KVList(ctx, args[0], 2)
		return keys, errors.Join(err, h.KVDelete(ctx, args[0]))
	case "key":
		k, err := h.ProjectKey(ctx)
		return k, err
	case "wait":
		// Neither wait outlives its test.
		select {
		case p.r.inside <- struct{}{}:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		select {
		case <-p.r.resume:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return nil, h.KVPut(ctx, "late", []byte(p.code))
	}
	return nil, engine.ErrNoFunction
}

// patience is how long tests wait for what must happen: for ever would hide why it did not.
const patience = time.Minute

// entered waits until a call of "wait" runs.
func (w *world) entered() {
	w.t.Helper()
	select {
	case <-w.runner.inside:
	case <-time.After(patience):
		w.t.Fatal("the call never ran")
	}
}

// resume lets one call of "wait" go on.
func (w *world) resume() {
	w.t.Helper()
	select {
	case w.runner.resume <- struct{}{}:
	case <-time.After(patience):
		w.t.Fatal("no call waits")
	}
}

// world is one function host with one project, and its client.
type world struct {
	t      testing.TB
	cfg    Config
	runner *fakeRunner
	host   *Host
	server *httptest.Server
	owner  ed25519.PrivateKey
	target Target
}

func ownerKey(t testing.TB) ed25519.PrivateKey {
	t.Helper()
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newWorld(t testing.TB, change ...func(*Config)) *world {
	t.Helper()
	w := &world{t: t, runner: newRunner(), owner: ownerKey(t)}
	w.cfg = Config{
		Keys: newKeys(t, 'r'), Runtime: testRuntime, Runner: w.runner,
		Files: persisttest.NewFiles(), NoFreshnessUnsafe: true,
		OpenToAnyOwner: true,
	}
	for _, f := range change {
		f(&w.cfg)
	}
	w.start()
	w.target = Target{RuntimeKey: w.host.PublicKey(), Runtime: testRuntime, Project: w.project("p")}
	return w
}

// start boots the host, after restarts with what the Config then says.
func (w *world) start() {
	w.t.Helper()
	host, err := New(w.t.Context(), w.cfg)
	if err != nil {
		w.t.Fatal(err)
	}
	w.host = host
	w.server = httptest.NewServer(host.Handler())
	server := w.server
	w.t.Cleanup(func() { server.Close(); host.Close() })
}

func (w *world) restart() {
	w.t.Helper()
	w.server.Close()
	if err := w.host.Close(); err != nil {
		w.t.Fatal(err)
	}
	w.start()
}

func (w *world) project(name string) ProjectID {
	w.t.Helper()
	id, err := ProjectIDOf(w.owner.Public().(ed25519.PublicKey), name)
	if err != nil {
		w.t.Fatal(err)
	}
	return id
}

// client returns a client that pins code in the project of that name.
func (w *world) client(project, code string) *Client {
	w.t.Helper()
	target := w.target
	target.Project, target.Code = w.project(project), HashCode([]byte(code))
	return &Client{Endpoint: w.server.URL, HTTP: &http.Client{Timeout: patience}, Target: target}
}

func (w *world) deploy(project, code string, sequence uint64) {
	w.t.Helper()
	n, err := w.client(project, code).Deploy(w.t.Context(), w.owner, project, []byte(code), sequence)
	if err != nil || n != sequence {
		w.t.Fatalf("deploying %s: %d, %v", project, n, err)
	}
}

func args(list ...string) []byte {
	if list == nil {
		return []byte("[]")
	}
	raw, err := json.Marshal(list)
	if err != nil {
		panic(err)
	}
	return raw
}

// call makes a call that must succeed and returns the result's JSON.
func call(t testing.TB, c *Client, function string, list ...string) string {
	t.Helper()
	res, err := c.Call(t.Context(), function, args(list...))
	if err != nil {
		t.Fatalf("%s%q: %v", function, list, err)
	}
	return string(res.Value)
}

// refused makes a call that the enclave must refuse with a code.
func refused(t testing.TB, c *Client, want Code, function string, list ...string) *CallError {
	t.Helper()
	res, err := c.Call(t.Context(), function, args(list...))
	refusal, ok := errors.AsType[*CallError](err)
	if !ok || refusal.Code != want || res.Value != nil {
		t.Fatalf("%s%q: %s, %v; want the refusal %s", function, list, res.Value, err, want)
	}
	return refusal
}
