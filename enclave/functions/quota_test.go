package functions

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/enclave/persist/persisttest"
)

// tryDeploy deploys and returns the enclave's refusal, if it is one.
func (w *world) tryDeploy(owner ed25519.PrivateKey, project, code string, sequence uint64) error {
	w.t.Helper()
	id, err := ProjectIDOf(owner.Public().(ed25519.PublicKey), project)
	if err != nil {
		w.t.Fatal(err)
	}
	c := w.client(project, code)
	c.Target.Project = id
	_, err = c.Deploy(w.t.Context(), owner, project, []byte(code), sequence)
	return err
}

func TestOnlyListedOwnersDeploy(t *testing.T) {
	t.Parallel()
	listed := ownerKey(t)
	w := newWorld(t, func(c *Config) { c.OpenToAnyOwner = false })
	if err := w.tryDeploy(listed, "p", "v1", 1); !errors.Is(err, ErrOwnerNotAllowed) {
		t.Fatalf("without a list: %v, want ErrOwnerNotAllowed", err)
	}
	w.cfg.Owners = []ed25519.PublicKey{ownerKey(t).Public().(ed25519.PublicKey), listed.Public().(ed25519.PublicKey)}
	w.restart()
	err := w.tryDeploy(w.owner, "p", "v1", 1)
	if !errors.Is(err, ErrOwnerNotAllowed) || !strings.Contains(err.Error(), fmt.Sprintf("%x", w.owner.Public())) {
		t.Errorf("a stranger: %v, want ErrOwnerNotAllowed with the key", err)
	}
	if n := w.runner.loaded.Load(); n != 0 {
		t.Errorf("the code of refused owners was loaded %d times", n)
	}
	if names := w.cfg.Files.(*persisttest.Files).Names(); len(names) != 0 {
		t.Errorf("refused owners left files: %q", names)
	}
	w.owner = listed
	w.deploy("p", "v1", 1)
	// Who leaves the list keeps the project and deploys no more.
	w.cfg.Owners = w.cfg.Owners[:1]
	w.restart()
	if got := call(t, w.client("p", "v1"), "echo", "a"); got != `["a"]` {
		t.Errorf("echo: %s", got)
	}
	if err := w.tryDeploy(listed, "p", "v2", 2); !errors.Is(err, ErrOwnerNotAllowed) {
		t.Errorf("after leaving the list: %v, want ErrOwnerNotAllowed", err)
	}
}

func TestNumberOfProjectsIsBounded(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	w := newWorld(t, func(c *Config) { c.MaxProjects, c.Files = 2, files })
	w.deploy("a", "v1", 1)
	w.deploy("b", "v1", 1)
	for _, when := range []string{"before", "after"} {
		if err := w.tryDeploy(ownerKey(t), "c", "v1", 1); !errors.Is(err, ErrQuota) {
			t.Errorf("a third project %s a restart: %v, want ErrQuota", when, err)
		}
		w.restart()
	}
	w.deploy("a", "v2", 2)
	if n := w.runner.loaded.Load(); n > 5 {
		t.Errorf("%d programs were loaded: those of refused projects too", n)
	}
	// Another machine's project, moved here, takes a place as well.
	other := newWorld(t)
	other.owner = w.owner
	other.deploy("moved", "v1", 1)
	move := func(from, to *persisttest.Files, name string) {
		for _, suffix := range []string{".a", ".b"} {
			file := storeName(w.project(name)) + suffix
			to.Set(file, from.Bytes(file))
			from.Set(file, nil)
		}
	}
	if err := other.host.Close(); err != nil {
		t.Fatal(err)
	}
	move(other.cfg.Files.(*persisttest.Files), files, "moved")
	refused(t, w.client("moved", "v1"), CodeQuota, "echo")
	// One that is moved away leaves its place at the next start.
	if err := w.host.Close(); err != nil {
		t.Fatal(err)
	}
	move(files, persisttest.NewFiles(), "b")
	w.restart()
	if got := call(t, w.client("moved", "v1"), "version"); got != `"v1"` {
		t.Errorf("the moved project: %s", got)
	}
	w.restart()
	refused(t, w.client("b", "v1"), CodeProjectNotFound, "echo")
	if n, _ := w.host.disk.totals(); n != 2 {
		t.Errorf("%d projects are known, want 2", n)
	}
}

func TestCatalogueIsParsedStrictly(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	w := newWorld(t, func(c *Config) { c.Files = files })
	w.deploy("a", "v1", 1)
	good := files.Bytes(catalogue)
	if len(good) != 32 {
		t.Fatalf("the catalogue has %d bytes", len(good))
	}
	for name, raw := range map[string][]byte{
		"torn": append(good[:32:32], 1, 2, 3), "twice": append(good[:32:32], good...), "gone": nil, "a stranger's": make([]byte, 64),
	} {
		files.Set(catalogue, raw)
		w.restart()
		if got := call(t, w.client("a", "v1"), "echo"); got != "[]" {
			t.Errorf("%s: echo gives %s", name, got)
		}
		w.restart()
		if n, bytes := w.host.disk.totals(); n != 1 || bytes != fileBytes(files) {
			t.Errorf("%s: %d projects of %d bytes, want one of %d", name, n, bytes, fileBytes(files))
		}
	}
	files.Set(catalogue, make([]byte, 32*maxCatalogue+32))
	if _, err := New(t.Context(), w.cfg); !errors.Is(err, ErrFormat) {
		t.Errorf("a huge catalogue: %v, want ErrFormat", err)
	}
}

// fileBytes is what the projects' files take.
func fileBytes(files *persisttest.Files) (n int64) {
	for _, name := range files.Names() {
		if strings.HasPrefix(name, "project-") {
			n += int64(len(files.Bytes(name)))
		}
	}
	return n
}

func TestDiskIsBounded(t *testing.T) {
	t.Parallel()
	files := persisttest.NewFiles()
	w := newWorld(t, func(c *Config) { c.Files, c.DiskBytes = files, 300_000 })
	w.deploy("greedy", "v1", 1)
	w.deploy("other", "v1", 1)
	greedy := w.client("greedy", "v1")
	fill := strings.Repeat("v", 60_000)
	written := 0
	for i := range 10 {
		if _, err := greedy.Call(t.Context(), "put", args(fmt.Sprint(i), fill)); errors.Is(err, ErrStorage) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		written++
	}
	if n := fileBytes(files); written != 4 || n > 300_000 {
		t.Errorf("%d values of 60 kB were written, the files have %d bytes of 300,000", written, n)
	}
	refused(t, greedy, CodeStorageFull, "put", "more", fill)
	if got := call(t, greedy, "get", "3"); got != `"`+fill+`"` {
		t.Error("a full disk took the project's data")
	}
	call(t, w.client("other", "v1"), "put", "k", "small")
	w.restart()
	if _, bytes := w.host.disk.totals(); bytes != fileBytes(files) {
		t.Errorf("after a restart %d bytes are accounted for, there are %d", bytes, fileBytes(files))
	}
	refused(t, w.client("greedy", "v1"), CodeStorageFull, "put", "more", fill)
}

// TestMemoryIsBounded: projects close by bytes, the longest unused first; what a call works with stays, and all that was
// taken is given back.
func TestMemoryIsBounded(t *testing.T) {
	t.Parallel()
	budget := engine.NewBudget(5 << 20)
	w := newWorld(t, func(c *Config) { c.Budget, c.ProjectBytes = budget, 2<<20 })
	big := strings.Repeat("v", 900_000)
	for i := range 6 {
		name := fmt.Sprint("p", i)
		w.deploy(name, "v1", 1)
		call(t, w.client(name, "v1"), "put", "k", big)
		if used := budget.Used(); used > budget.Limit() || used < 900_000 {
			t.Errorf("%d bytes of %d are in use", used, budget.Limit())
		}
	}
	if n := len(w.host.projects); n >= 6 || n < 2 {
		t.Errorf("%d projects are open, want some but not all", n)
	}
	for i := range 6 {
		if got := call(t, w.client(fmt.Sprint("p", i), "v1"), "get", "k"); len(got) != 900_002 {
			t.Errorf("project %d has %d bytes", i, len(got))
		}
	}
	// Two calls in flight that together leave no room: a third project waits its turn, and neither of the two suffers.
	for _, name := range []string{"p0", "p1"} {
		c := w.client(name, "v1")
		call(t, c, "put", "k2", big)
		go func() { _, _ = c.Call(t.Context(), "wait", args()) }()
		w.entered()
	}
	e := refused(t, w.client("p2", "v1"), CodeBusy, "get", "k")
	if !errors.Is(e, ErrBusy) {
		t.Errorf("busy is %v", e)
	}
	for _, name := range []string{"p0", "p1"} {
		if w.host.projects[w.project(name)] == nil {
			t.Errorf("%s was closed under its call", name)
		}
	}
	w.resume()
	w.resume()
	for _, function := range []string{"putThenThrow", "putAndSwallow", "put"} {
		_, _ = w.client("p3", "v1").Call(t.Context(), function, args("k", big))
	}
	if err := w.tryDeploy(w.owner, "p3", "broken", 2); err == nil {
		t.Error("broken code was deployed")
	}
	if err := w.tryDeploy(w.owner, "p3", "old", 1); !errors.Is(err, ErrStaleSequence) {
		t.Errorf("an old deployment: %v", err)
	}
	// A store from the time of a higher limit counts with all it has.
	if err := w.host.Close(); err != nil {
		t.Fatal(err)
	}
	w.cfg.ProjectBytes = 1 << 20
	w.restart()
	if got := call(t, w.client("p0", "v1"), "get", "k2"); len(got) != 900_002 || budget.Used() < 2*900_000 {
		t.Errorf("a store over the limit: %d bytes read, %d accounted for", len(got), budget.Used())
	}
	if err := w.host.Close(); err != nil {
		t.Fatal(err)
	}
	if used := budget.Used(); used != 0 {
		t.Errorf("%d bytes are in use after the end", used)
	}
}

// TestOneProjectGetsHalfTheSlots fills a project's share with calls that wait.
func TestOneProjectGetsHalfTheSlots(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.MaxCalls = 4 })
	w.deploy("p", "v1", 1)
	w.deploy("q", "v1", 1)
	for range 2 {
		c := w.client("p", "v1")
		go func() { _, _ = c.Call(t.Context(), "wait", args()) }()
		w.entered()
	}
	_, err := w.client("p", "v1").Call(t.Context(), "echo", args())
	if p, ok := errors.AsType[*Problem](err); !ok || p.Code != CodeBusy {
		t.Errorf("a third call of the project: %v, want busy", err)
	}
	call(t, w.client("q", "v1"), "echo")
	w.deploy("p", "v2", 2) // its owner is not kept out
	w.resume()
	w.resume()
}

// TestOneProjectRunsInHalfTheInstances: calls of one project wait for each other, and not those of another for them.
func TestOneProjectRunsInHalfTheInstances(t *testing.T) {
	t.Parallel()
	w := newWorld(t, func(c *Config) { c.Runner.(*fakeRunner).parallel = 4 })
	w.deploy("p", "v1", 1)
	w.deploy("q", "v1", 1)
	done := make(chan error, 2)
	for range 2 {
		c := w.client("p", "v1")
		go func() {
			_, err := c.Call(t.Context(), "wait", args())
			done <- err
		}()
		w.entered()
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := w.client("p", "v1").Call(short, "echo", args()); err == nil {
		t.Error("one project uses more than half of the instances")
	}
	call(t, w.client("q", "v1"), "echo")
	for range 2 {
		w.resume()
	}
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	call(t, w.client("p", "v1"), "echo")
	if n := w.runner.ran.Load(); n != 4 {
		t.Errorf("%d calls ran, want 4: the one that was given up did not", n)
	}
}

// TestStrangersStayWithinTheBudget: 64 strangers deploy small bundles that fill as much memory as a snapshot may hold, call
// them so that instances stay, and the live heap is measured. Not parallel: it measures the heap.
func TestStrangersStayWithinTheBudget(t *testing.T) {
	if testing.Short() {
		t.Skip("it fills memory")
	}
	const limit = 96 << 20
	budget := engine.NewBudget(limit)
	e, err := engine.New(t.Context(), engine.Config{Mode: engine.Compiler, Budget: budget, Concurrency: 2, Idle: 16})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close(t.Context())
	w := newWorld(t, func(c *Config) { c.Runner, c.Budget, c.ProjectBytes = NewRunner(e), budget, 32<<20 })
	before := liveHeap()
	if err := w.tryDeploy(w.owner, "p", `globalThis.x = new Uint8Array(56 << 20).fill(1); export function f() {}`, 1); !errors.Is(err, engine.ErrSnapshot) ||
		!strings.Contains(err.Error(), "8388608") {
		t.Errorf("a snapshot of 56 MiB: %v, want ErrSnapshot with the limit", err)
	}
	const code = `globalThis.x = new Uint8Array(7 << 20).fill(1); export async function f() { await kv.put("k", "v".repeat(200000)); return x.length }`
	var owners []ed25519.PrivateKey
	for i := range 64 {
		w.owner = ownerKey(t)
		owners = append(owners, w.owner)
		w.deploy("p", code, 1)
		if got := call(t, w.client("p", code), "f"); got != fmt.Sprint(7<<20) {
			t.Fatalf("stranger %d: %s", i, got)
		}
		if used := budget.Used(); used > limit {
			t.Fatalf("%d bytes of %d are in use", used, limit)
		}
	}
	// The files are in memory here: they do not count.
	grown := liveHeap() - before - fileBytes(w.cfg.Files.(*persisttest.Files))*3
	t.Logf("64 strangers: %d MiB of live heap, %d MiB of the budget's %d MiB", grown>>20, budget.Used()>>20, limit>>20)
	if grown > limit+limit/4 {
		t.Errorf("64 strangers hold %d bytes of live heap under a budget of %d", grown, limit)
	}
	if grown < 8<<20 {
		t.Errorf("only %d bytes are held: this does not measure what it should", grown)
	}
	w.owner = owners[0] // and the first is served again
	if got := call(t, w.client("p", code), "f"); got != fmt.Sprint(7<<20) {
		t.Fatalf("the first stranger: %s", got)
	}
}

func liveHeap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// TestCodeThatNoLongerLoadsIsReplaced: a lowered limit stops the code, not its owner.
func TestCodeThatNoLongerLoadsIsReplaced(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.deploy("p", "v1", 1)
	call(t, w.client("p", "v1"), "put", "k", "kept")
	w.runner.fail.Store(true)
	w.restart()
	refused(t, w.client("p", "v1"), CodeSnapshot, "get", "k")
	if err := w.tryDeploy(w.owner, "p", "v2", 2); !errors.Is(err, engine.ErrSnapshot) {
		t.Errorf("code that does not load: %v", err)
	}
	w.runner.fail.Store(false)
	w.restart()
	w.runner.failOnly.Store(new("v1"))
	if err := w.tryDeploy(w.owner, "p", "v0", 1); !errors.Is(err, ErrStaleSequence) {
		t.Errorf("an old sequence: %v, want ErrStaleSequence", err)
	}
	refused(t, w.client("p", "v1"), CodeSnapshot, "get", "k")
	w.deploy("p", "v2", 2)
	if got := call(t, w.client("p", "v2"), "get", "k"); got != `"kept"` {
		t.Errorf("the data: %s", got)
	}
}
