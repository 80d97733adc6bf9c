package engine

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testHost keeps a store in memory. It is used by one call at a time unless a test says otherwise.
type testHost struct {
	mu   sync.Mutex
	kv   map[string][]byte
	key  []byte
	now  time.Time
	fail error
}

func newHost() *testHost {
	return &testHost{kv: map[string][]byte{}, key: bytes.Repeat([]byte{7}, 32), now: time.Unix(1_800_000_000, 0)}
}

func (h *testHost) KVGet(_ context.Context, k string) ([]byte, bool, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	v, ok := h.kv[k]
	return v, ok, h.fail
}

func (h *testHost) KVPut(_ context.Context, k string, v []byte) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.fail == nil {
		h.kv[k] = v
	}
	return h.fail
}

func (h *testHost) KVDelete(_ context.Context, k string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.kv, k)
	return h.fail
}

func (h *testHost) KVList(_ context.Context, prefix string, limit int) ([]string, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	var keys []string
	for k := range h.kv {
		if strings.HasPrefix(k, prefix) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys[:min(limit, len(keys))], h.fail
}

func (h *testHost) ProjectKey(context.Context) ([]byte, error) { return bytes.Clone(h.key), h.fail }
func (h *testHost) Random(p []byte) error                      { _, err := rand.Read(p); return err }
func (h *testHost) Now() time.Time {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.now = h.now.Add(time.Second)
	return h.now
}

var sharedEngine = sync.OnceValues(func() (*Engine, error) {
	return New(context.Background(), Config{Mode: Compiler, Limits: Limits{Deadline: 2 * time.Second}, Concurrency: 8})
})

// engineFor returns the engine that all tests share: compiling it takes most of a second.
func engineFor(t testing.TB) *Engine {
	t.Helper()
	e, err := sharedEngine()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func load(t testing.TB, code string) *Program {
	t.Helper()
	p, err := engineFor(t).Load(t.Context(), Bundle{Code: []byte(code)})
	if err != nil {
		t.Fatalf("load: %v", err)
	}
	t.Cleanup(func() { p.Close(context.Background()) })
	return p
}

func call(t testing.TB, p *Program, fn, args string, h Host) string {
	t.Helper()
	res, err := p.Call(t.Context(), fn, []byte(args), h)
	if err != nil {
		t.Fatalf("%s%s: %v %v", fn, args, err, res.Logs)
	}
	return string(res.Value)
}

func TestCall(t *testing.T) {
	t.Parallel()
	p := load(t, `export async function hello(name) { return "hello " + name }`)
	if got := call(t, p, "hello", `["Ada"]`, newHost()); got != `"hello Ada"` {
		t.Fatal(got)
	}
	if !errors.Is(func() error { _, err := p.Call(t.Context(), "nope", []byte("[]"), newHost()); return err }(), ErrNoFunction) {
		t.Fatal("want ErrNoFunction")
	}
}
