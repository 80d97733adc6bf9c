package functions

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/persist"
)

// realRunner boots the JavaScript engine once for all tests.
var realRunner = sync.OnceValues(func() (Runner, error) {
	e, err := engine.New(testContext, engine.Config{
		Mode: engine.Compiler, Limits: engine.Limits{Deadline: time.Second, LoadDeadline: time.Second},
	})
	if err != nil {
		return nil, err
	}
	return NewRunner(e), nil
})

const passwords = `
const entries = "entry/";
export async function store(user, secret) {
	const key = crypto.getProjectKey();
	if (!key) throw new Error("no key");
	await kv.put(entries + user, JSON.stringify({user, secret}));
	console.log("stored " + user);
	return (await kv.list(entries)).length;
}
export async function fetch(user) {
	const found = await kv.get(entries + user, "json");
	if (!found) throw new RangeError("unknown user " + user);
	return found.secret;
}
export async function storeAndFail(user) {
	await kv.put(entries + user, "half");
	throw new Error("changed my mind");
}
export function key() { return crypto.getProjectKey(); }
let calls = 0;
export function count() { return ++calls; }
export function forever() { for (;;) {} }
`

// TestWholeLife runs real JavaScript over files on disk, moves the files to
// "another machine", and reads everything back with the same keys.
func TestWholeLife(t *testing.T) {
	t.Parallel()
	runner, err := realRunner()
	if err != nil {
		t.Fatal(err)
	}
	machineA, machineB := t.TempDir(), t.TempDir()
	w := newWorld(t, func(c *Config) { c.Runner, c.Files = runner, persist.Dir(machineA) })
	w.deploy("pass", passwords, 1)
	c := w.client("pass", passwords)
	res, err := c.Call(t.Context(), "store", []byte(`["ada","engine no 1"]`))
	if err != nil || string(res.Value) != "1" || len(res.Logs) != 1 || res.Logs[0].Text != "stored ada" {
		t.Fatalf("store: %s, %v, %v", res.Value, res.Logs, err)
	}
	e := refused(t, c, CodeScript, "storeAndFail", "bob")
	if e.Message != "changed my mind" || !strings.Contains(e.Stack, "storeAndFail") {
		t.Errorf("the error: %+v", e)
	}
	if e := refused(t, c, CodeScript, "fetch", "bob"); e.Name != "RangeError" {
		t.Errorf("a failed call left something: %+v", e)
	}
	refused(t, c, CodeFunctionNotFound, "missing")
	for range 2 {
		if got := call(t, c, "count"); got != "1" {
			t.Fatalf("something stays between calls: count is %s", got)
		}
	}
	key := call(t, c, "key")
	if len(key) < 40 {
		t.Fatalf("the project's key is %d characters", len(key))
	}
	for _, name := range []string{"a", "b"} {
		raw, err := os.ReadFile(filepath.Join(machineA, "project-"+w.project("pass").String()+"."+name))
		if err != nil {
			t.Fatal(err)
		}
		for _, word := range []string{"ada", "engine", "entry", "store"} {
			if bytes.Contains(raw, []byte(word)) {
				t.Errorf("the file shows %q", word)
			}
		}
		if err := os.WriteFile(filepath.Join(machineB, "project-"+w.project("pass").String()+"."+name), raw, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w.cfg.Files = persist.Dir(machineB)
	w.restart()
	c = w.client("pass", passwords)
	if got := call(t, c, "fetch", "ada"); got != `"engine no 1"` {
		t.Fatalf("on machine B: %s", got)
	}
	if got := call(t, c, "key"); got != key {
		t.Fatal("the project's key is another on machine B")
	}
	w.restart() // with the runtime of somebody else: other keys
	w.cfg.Keys = newKeys(t, 'm')
	w.restart()
	stranger := w.client("pass", passwords)
	stranger.Target.RuntimeKey = w.host.PublicKey()
	if e := refused(t, stranger, CodeStorage, "fetch", "ada"); !errors.Is(e, ErrStorage) {
		t.Errorf("a runtime with other keys: %v", e)
	}
}

func TestLimitsReachTheCaller(t *testing.T) {
	t.Parallel()
	runner, err := realRunner()
	if err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, func(c *Config) { c.Runner = runner })
	w.deploy("pass", passwords, 1)
	c := w.client("pass", passwords)
	if e := refused(t, c, CodeDeadline, "forever"); !errors.Is(e, engine.ErrDeadline) {
		t.Errorf("a loop for ever: %v", e)
	}
	if got := call(t, c, "count"); got != "1" {
		t.Errorf("after it: %s", got)
	}
	for name, code := range map[string]string{
		"no exports": `let x = 1;`, "a syntax error": `export function (`, "a loop": `for(;;){}`,
		"randomness": `export const x = Math.random(); export function f() {}`,
	} {
		if _, err := c.Deploy(t.Context(), w.owner, "pass", []byte(code), 2); err == nil {
			t.Errorf("%s: deployed", name)
		} else if _, ok := errors.AsType[*CallError](err); !ok {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := call(t, c, "count"); got != "1" {
		t.Errorf("after refused deployments: %s", got)
	}
}
