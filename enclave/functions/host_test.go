package functions

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/persist/persisttest"
)

func TestLifeOfAProject(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	refused(t, w.client("p", "v1"), CodeProjectNotFound, "echo")
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	if got := call(t, c, "echo", "a", "b"); got != `["a","b"]` {
		t.Fatalf("echo: %s", got)
	}
	call(t, c, "put", "k", "value")
	w.deploy("p", "v2", 7) // another version keeps the data
	refused(t, c, CodeHashMismatch, "get", "k")
	c = w.client("p", "v2")
	if got := call(t, c, "get", "k"); got != `"value"` {
		t.Fatalf("after an upgrade: %s", got)
	}
	key := call(t, c, "key")
	// Another machine: a copy of the files, the same keys, nothing else.
	w.cfg.Files = w.cfg.Files.(*persisttest.Files).Clone()
	w.restart()
	c = w.client("p", "v2")
	if got := call(t, c, "get", "k"); got != `"value"` {
		t.Fatalf("on the other machine: %s", got)
	}
	if got := call(t, c, "key"); got != key {
		t.Fatal("the project's key did not move with it")
	}
	if got := call(t, c, "version"); got != `"v2"` {
		t.Fatalf("version: %s", got)
	}
	w.restart()
	if n := w.runner.open.Load(); n != 0 {
		t.Errorf("%d programs were left open", n)
	}
}

func TestProjectsAreApart(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "same code", 1)
	w.deploy("q", "same code", 1)
	p, q := w.client("p", "same code"), w.client("q", "same code")
	call(t, p, "put", "k", "p's")
	if got := call(t, q, "get", "k"); got != "null" {
		t.Fatalf("q reads p's data: %s", got)
	}
	if call(t, p, "key") == call(t, q, "key") {
		t.Fatal("two projects share a key")
	}
	for _, k := range []string{"a/1", "a/2", "a/3", "b"} {
		call(t, p, "put", k, "")
	}
	if got := call(t, p, "list", "a/"); got != `["a/1","a/2"]` {
		t.Fatalf("list: %s", got)
	}
	// The host's own records are out of the functions' reach.
	for _, k := range []string{keyDeployment, keyCode, "../" + keyCode} {
		if got := call(t, p, "get", k); got != "null" {
			t.Fatalf("kv reads the record %s", k)
		}
	}
}

func TestFailedCallsLeaveNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.ProjectBytes = 20_000 })
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	e := refused(t, c, CodeScript, "putThenThrow", "k", "v")
	if e.Name != "Error" || e.Message != "secret text" || e.Stack != "at f" || len(e.Logs) != 1 {
		t.Errorf("the caller does not get the error: %+v", e)
	}
	if n := w.runner.ran.Load(); n != 1 {
		t.Errorf("a call that failed ran %d times", n)
	}
	refused(t, c, CodeStorageFull, "putAndSwallow", "k", "v")
	refused(t, c, CodeStorageFull, "put", "k", strings.Repeat("v", 30_000))
	refused(t, c, CodeFunctionNotFound, "missing")
	if _, err := c.Call(t.Context(), "echo", []byte("{}")); !errors.Is(err, engine.ErrArguments) {
		t.Errorf("bad arguments: %v", err)
	}
	if got := call(t, c, "get", "k"); got != "null" {
		t.Fatalf("a failed call left %s", got)
	}
}

func TestConcurrentCallsSerialise(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	const callers, rounds = 8, 12
	var wg sync.WaitGroup
	for i := range callers {
		c := w.client("p", "v1")
		wg.Go(func() {
			for range rounds {
				if _, err := c.Call(t.Context(), "add", args("n")); err != nil {
					t.Errorf("caller %d: %v", i, err)
				}
			}
		})
	}
	wg.Wait()
	if got := call(t, w.client("p", "v1"), "get", "n"); got != `"`+strings.Repeat("x", callers*rounds)+`"` {
		t.Fatalf("lost updates: %d of %d", len(got)-2, callers*rounds)
	}
}

// TestOldCodeDoesNotWriteIntoNewData deploys while a call of the old code runs
// that has not touched kv yet.
func TestOldCodeDoesNotWriteIntoNewData(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	done := make(chan error)
	go func() {
		_, err := w.client("p", "v1").Call(t.Context(), "wait", args())
		done <- err
	}()
	w.entered()
	w.deploy("p", "v2", 2)
	if n := w.runner.open.Load(); n != 2 {
		t.Errorf("%d programs are open while an old call runs, want 2", n)
	}
	w.resume()
	if err := <-done; !errors.Is(err, ErrCodeHashMismatch) {
		t.Fatalf("the old call: %v, want ErrCodeHashMismatch", err)
	}
	if got := call(t, w.client("p", "v2"), "get", "late"); got != "null" {
		t.Fatalf("old code wrote %s", got)
	}
	if n := w.runner.open.Load(); n != 1 {
		t.Errorf("%d programs are open, want 1", n)
	}
}

func TestStoreFailureIsTheCallersAndPasses(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	w := newWorld(t, func(c *Config) { c.Files = files })
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	call(t, c, "put", "k", "1")
	files.FailAt(2, false) // the fsync of the commit: its outcome is unknown
	refused(t, c, CodeStorage, "put", "k", "2")
	files.FailAt(0, false)
	if got := call(t, c, "get", "k"); got != `"1"` && got != `"2"` {
		t.Fatalf("after reopening: %s", got)
	}
	call(t, c, "put", "k", "3")
	files.FailAt(2, false)
	if _, err := c.Deploy(t.Context(), w.owner, "p", []byte("v2"), 2); !errors.Is(err, ErrStorage) {
		t.Fatalf("a deployment on a failing store: %v", err)
	}
	files.FailAt(0, false)
	if v, err := c.Call(t.Context(), "get", args("k")); err == nil && string(v.Value) != `"3"` || err != nil && !errors.Is(err, ErrCodeHashMismatch) {
		t.Fatalf("after reopening: %s, %v", v.Value, err)
	}
}

func TestRegistersRevealAnOldStore(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	registers := map[ProjectID]*persisttest.Register{}
	var mu sync.Mutex
	w := newWorld(t, func(c *Config) {
		c.Files, c.NoFreshnessUnsafe = files, false
		c.Registers = func(id ProjectID) persist.Register {
			mu.Lock()
			defer mu.Unlock()
			if registers[id] == nil {
				registers[id] = new(persisttest.Register)
			}
			return registers[id]
		}
	})
	w.deploy("p", "v1", 1)
	old := files.Clone()
	w.deploy("p", "v2", 2)
	w.cfg.Files = old
	w.restart()
	refused(t, w.client("p", "v1"), CodeStorageRolledBack, "echo")
	// An empty disk and the old deployment again do not start over either.
	w.cfg.Files = persisttest.NewFiles()
	w.restart()
	if _, err := w.client("p", "v1").Deploy(t.Context(), w.owner, "p", []byte("v1"), 1); !errors.Is(err, ErrStorage) {
		t.Fatalf("a new store beside a used register: %v", err)
	}
	w.cfg.Files = files
	w.restart()
	call(t, w.client("p", "v2"), "echo")
}

func TestIdleProjectsAreClosed(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.MaxOpen = 2 })
	for i := range 4 {
		w.deploy(fmt.Sprint("p", i), "v1", 1)
		call(t, w.client(fmt.Sprint("p", i), "v1"), "put", "k", fmt.Sprint(i))
	}
	if n := w.runner.open.Load(); n != 2 {
		t.Errorf("%d programs are open, want 2", n)
	}
	for i := range 4 {
		if got := call(t, w.client(fmt.Sprint("p", i), "v1"), "get", "k"); got != fmt.Sprintf(`"%d"`, i) {
			t.Errorf("project %d: %s", i, got)
		}
	}
}

func TestUnknownProjectsCostNoKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	asked := w.cfg.Keys.(testKeys).asked
	before := asked.Load()
	refused(t, w.client("unknown", "v1"), CodeProjectNotFound, "echo")
	if asked.Load() != before {
		t.Error("the key service was asked for a project that is not there")
	}
	if n := len(w.host.projects); n != 0 {
		t.Errorf("%d projects are kept that are not there", n)
	}
}

func TestTheLogTellsTheHostLittle(t *testing.T) {
	t.Parallel()
	var log bytes.Buffer
	w := newWorld(t, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
	w.deploy("p", "v1", 1)
	c := w.client("p", "v1")
	call(t, c, "echo", "secret argument")
	refused(t, c, CodeScript, "putThenThrow", "secret key", "secret value")
	w.server.Close()
	text := log.String()
	if !strings.Contains(text, w.target.Project.String()) || strings.Count(text, "msg=call") != 2 {
		t.Errorf("the log lacks the calls:\n%s", text)
	}
	for _, word := range []string{"secret", "echo", "script_error", "Error"} {
		if strings.Contains(text, word) {
			t.Errorf("the log says %q:\n%s", word, text)
		}
	}
}

func TestConfigDenies(t *testing.T) {
	t.Parallel()
	good := newWorld(t).cfg
	for name, change := range map[string]func(*Config){
		"zero":            func(c *Config) { *c = Config{} },
		"no keys":         func(c *Config) { c.Keys = nil },
		"no runner":       func(c *Config) { c.Runner = nil },
		"no files":        func(c *Config) { c.Files = nil },
		"no runtime":      func(c *Config) { c.Runtime = "" },
		"no freshness":    func(c *Config) { c.NoFreshnessUnsafe = false },
		"negative limits": func(c *Config) { c.MaxCalls = -1 },
	} {
		cfg := good
		change(&cfg)
		if h, err := New(t.Context(), cfg); !errors.Is(err, ErrConfig) || h != nil {
			t.Errorf("%s: %v, want ErrConfig", name, err)
		}
	}
}

func TestWindow(t *testing.T) {
	t.Parallel()
	w := newWindow(8)
	id := func(n int) (x [idSize]byte) { x[0], x[1] = byte(n), byte(n>>8); return x }
	first := w.now()
	for i := range 4 {
		if e := w.use(first, id(i)); e != nil {
			t.Fatal(e)
		}
	}
	second := w.now()
	if second == first {
		t.Fatal("the session did not change when it was half full")
	}
	for i := range 4 { // replays across the change
		if e := w.use(first, id(i)); e == nil || e.Code != CodeDuplicate {
			t.Fatalf("replay %d: %v", i, e)
		}
	}
	for i := 4; i < 8; i++ { // stragglers
		if e := w.use(first, id(i)); e != nil {
			t.Fatal(e)
		}
	}
	if e := w.use(first, id(99)); e == nil || e.Code != CodeStaleSession {
		t.Fatalf("an old session takes more than its limit: %v", e)
	}
	for i := range 4 {
		if e := w.use(second, id(i)); e != nil {
			t.Fatal(e)
		}
	}
	if e := w.use(first, id(0)); e == nil || e.Code != CodeStaleSession {
		t.Fatalf("a forgotten session: %v", e)
	}
	if e := w.use([idSize]byte{}, id(0)); e == nil || e.Code != CodeStaleSession {
		t.Fatalf("the zero session: %v", e)
	}
	if n := len(w.last.seen) + len(w.current.seen); n > 16 {
		t.Fatalf("%d ids are kept", n)
	}
}
