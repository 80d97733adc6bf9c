package persist_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/claviger/claviger/enclave/persist"
	"github.com/claviger/claviger/enclave/persist/persisttest"
	"github.com/claviger/claviger/enclave/secret"
)

func testKey(t testing.TB, b byte) secret.Key {
	t.Helper()
	k, err := secret.New([]byte(strings.Repeat(string(rune(b)), 32)))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// unsafeOptions are options without a register.
func unsafeOptions(t testing.TB, files persist.Files) persist.Options {
	return persist.Options{Files: files, Name: "store", Key: testKey(t, 'k'), NoFreshnessUnsafe: true}
}

func freshOptions(t testing.TB, files persist.Files, r persist.Register) persist.Options {
	return persist.Options{Files: files, Name: "store", Key: testKey(t, 'k'), Register: r}
}

func mustCreate(t testing.TB, o persist.Options) *persist.Map {
	t.Helper()
	m, err := persist.Create(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func mustOpen(t testing.TB, o persist.Options) *persist.Map {
	t.Helper()
	m, err := persist.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { m.Close() })
	return m
}

func put(ctx context.Context, m *persist.Map, kv ...string) error {
	return m.Update(ctx, func(tx *persist.Tx) error {
		for i := 0; i < len(kv); i += 2 {
			if err := tx.Put([]byte(kv[i]), []byte(kv[i+1])); err != nil {
				return err
			}
		}
		return nil
	})
}

func mustPut(t testing.TB, m *persist.Map, kv ...string) {
	t.Helper()
	if err := put(t.Context(), m, kv...); err != nil {
		t.Fatal(err)
	}
}

// contents returns the whole map as "k=v k=v".
func contents(t testing.TB, m *persist.Map) string {
	t.Helper()
	var list []string
	err := m.View(t.Context(), func(tx *persist.Tx) error {
		for k, v := range tx.Scan(nil, nil) {
			list = append(list, fmt.Sprintf("%s=%s", k, v))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(list, " ")
}

func wantOpen(t *testing.T, o persist.Options, want error) {
	t.Helper()
	m, err := persist.Open(t.Context(), o)
	if !errors.Is(err, want) {
		t.Fatalf("Open: %v, want %v", err, want)
	}
	if m != nil {
		t.Fatal("Open returned a Map beside its error")
	}
}

func TestLifecycleOnDisk(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	o := unsafeOptions(t, persist.Dir(dir))
	wantOpen(t, o, persist.ErrNotFound)
	m := mustCreate(t, o)
	mustPut(t, m, "b", "2", "a", "1", "c", "")
	if err := m.Update(t.Context(), func(tx *persist.Tx) error { return tx.Delete([]byte("b")) }); err != nil {
		t.Fatal(err)
	}
	if _, err := persist.Open(t.Context(), o); !errors.Is(err, persist.ErrLocked) {
		t.Fatalf("second opener: %v, want ErrLocked", err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := put(t.Context(), m, "x", "y"); !errors.Is(err, persist.ErrClosed) {
		t.Fatalf("write after Close: %v", err)
	}
	if _, err := persist.Create(t.Context(), o); !errors.Is(err, persist.ErrExists) {
		t.Fatalf("second Create: %v, want ErrExists", err)
	}
	if got := contents(t, mustOpen(t, o)); got != "a=1 c=" {
		t.Fatalf("contents %q", got)
	}
}

func TestOpenNeverInitialises(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	wantOpen(t, unsafeOptions(t, persist.Dir(dir)), persist.ErrNotFound)
	wantOpen(t, unsafeOptions(t, persist.Dir(filepath.Join(dir, "missing"))), persist.ErrNotFound)
	for _, name := range []string{"store.a", "store.b"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("Open made %s (%v)", name, err)
		}
	}
	if ok, err := persist.Exists(persist.Dir(dir), "store"); ok || err != nil {
		t.Fatalf("Exists: %v, %v", ok, err)
	}
	// A store whose files were emptied is damaged, neither new nor missing.
	files := persisttest.NewFiles()
	mustCreate(t, unsafeOptions(t, files)).Close()
	files.Set("store.a", []byte{})
	wantOpen(t, unsafeOptions(t, files), persist.ErrCorrupt)
	if _, err := persist.Create(t.Context(), unsafeOptions(t, files)); !errors.Is(err, persist.ErrExists) {
		t.Fatalf("Create over emptied files: %v, want ErrExists", err)
	}
}

func TestOptionsDeny(t *testing.T) {
	t.Parallel()
	short, err := secret.New(make([]byte, 31))
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*persist.Options){
		"zero":             func(o *persist.Options) { *o = persist.Options{} },
		"no files":         func(o *persist.Options) { o.Files = nil },
		"no key":           func(o *persist.Options) { o.Key = secret.Key{} },
		"short key":        func(o *persist.Options) { o.Key = short },
		"no register":      func(o *persist.Options) { o.NoFreshnessUnsafe = false },
		"both":             func(o *persist.Options) { o.Register = new(persisttest.Register) },
		"no name":          func(o *persist.Options) { o.Name = "" },
		"path as a name":   func(o *persist.Options) { o.Name = "../store" },
		"capital":          func(o *persist.Options) { o.Name = "Store" },
		"name of 129":      func(o *persist.Options) { o.Name = strings.Repeat("n", 129) },
		"name with a zero": func(o *persist.Options) { o.Name = "a\x00" },
	} {
		o := unsafeOptions(t, persisttest.NewFiles())
		change(&o)
		if _, err := persist.Create(t.Context(), o); !errors.Is(err, persist.ErrOptions) {
			t.Errorf("Create with %s: %v, want ErrOptions", name, err)
		}
		if _, err := persist.Open(t.Context(), o); !errors.Is(err, persist.ErrOptions) {
			t.Errorf("Open with %s: %v, want ErrOptions", name, err)
		}
	}
}

func TestLimits(t *testing.T) {
	t.Parallel()
	o := unsafeOptions(t, persisttest.NewFiles())
	o.Limits = persist.Limits{Value: 2000, Txn: 5000, Store: 8000}
	m := mustCreate(t, o)
	big := func(n int) string { return strings.Repeat("x", n) }
	for name, kv := range map[string][]string{
		"empty key":  {"", "v"},
		"long key":   {big(persist.MaxKey + 1), "v"},
		"long value": {"k", big(2001)},
		"large txn":  {"a", big(2000), "b", big(2000), "c", big(1000)},
	} {
		if err := put(t.Context(), m, kv...); !errors.Is(err, persist.ErrTooLarge) {
			t.Errorf("%s: %v, want ErrTooLarge", name, err)
		}
	}
	mustPut(t, m, big(persist.MaxKey), "v", "a", big(2000))
	mustPut(t, m, "b", big(2000))
	if err := put(t.Context(), m, "c", big(2000), "d", big(2000)); !errors.Is(err, persist.ErrTooLarge) {
		t.Fatalf("store limit: %v, want ErrTooLarge", err)
	}
	mustPut(t, m, "a", "short") // shrinking is always possible
	mustPut(t, m, "c", big(2000))
}

func TestTransactionsAreAtomicAndIsolated(t *testing.T) {
	t.Parallel()
	m := mustCreate(t, unsafeOptions(t, persisttest.NewFiles()))
	mustPut(t, m, "a", "1", "b", "1")
	boom := errors.New("boom")
	err := m.Update(t.Context(), func(tx *persist.Tx) error {
		return errors.Join(tx.Put([]byte("a"), []byte("2")), tx.Delete([]byte("b")), boom)
	})
	if !errors.Is(err, boom) || contents(t, m) != "a=1 b=1" {
		t.Fatalf("a failed Update left %q (%v)", contents(t, m), err)
	}
	func() {
		defer func() { _ = recover() }()
		_ = m.Update(t.Context(), func(tx *persist.Tx) error {
			_ = tx.Put([]byte("a"), []byte("3"))
			panic("in the middle")
		})
	}()
	err = m.View(t.Context(), func(old *persist.Tx) error {
		mustPut(t, m, "a", "4", "c", "4")
		v, _, err := old.Get([]byte("a"))
		if string(v) != "1" {
			t.Errorf("a View saw a later commit: a=%s", v)
		}
		if has, _ := old.Has([]byte("c")); has {
			t.Error("a View saw a later commit: c")
		}
		if err := old.Put([]byte("a"), nil); !errors.Is(err, persist.ErrReadOnly) {
			t.Errorf("Put in View: %v", err)
		}
		return err
	})
	if err != nil || contents(t, m) != "a=4 b=1 c=4" {
		t.Fatalf("%v; contents %q", err, contents(t, m))
	}
}

func TestTxEnds(t *testing.T) {
	t.Parallel()
	m := mustCreate(t, unsafeOptions(t, persisttest.NewFiles()))
	var kept *persist.Tx
	if err := m.Update(t.Context(), func(tx *persist.Tx) error {
		kept = tx
		if err := tx.Commit(t.Context()); !errors.Is(err, persist.ErrTxDone) {
			t.Errorf("Commit inside Update: %v", err)
		}
		return tx.Put([]byte("k"), []byte("v"))
	}); err != nil {
		t.Fatal(err)
	}
	_, _, getErr := kept.Get([]byte("k"))
	_, hasErr := kept.Has([]byte("k"))
	_, lenErr := kept.Len()
	for i, err := range []error{getErr, hasErr, lenErr, kept.Put([]byte("k"), nil), kept.Delete([]byte("k")), kept.Commit(t.Context())} {
		if !errors.Is(err, persist.ErrTxDone) {
			t.Errorf("use %d after the end: %v, want ErrTxDone", i, err)
		}
	}
	for range kept.Scan(nil, nil) {
		t.Error("Scan after the end yields")
	}
	tx, err := m.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := m.Begin(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("Begin with a cancelled context: %v", err)
	}
	if err := tx.Put([]byte("k"), []byte("w")); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); !errors.Is(err, context.Canceled) || contents(t, m) != "k=v" {
		t.Fatalf("cancelled Commit: %v, %q", err, contents(t, m))
	}
}

func TestScan(t *testing.T) {
	t.Parallel()
	m := mustCreate(t, unsafeOptions(t, persisttest.NewFiles()))
	mustPut(t, m, "a", "", "a/1", "", "a/2", "", "b", "", "\xff", "", "\xff\xff", "")
	keys := func(seq func(func(k, v []byte) bool)) (s string) {
		for k := range seq {
			s += fmt.Sprintf("%q ", k)
		}
		return s
	}
	if err := m.Update(t.Context(), func(tx *persist.Tx) error {
		for _, c := range []struct{ got, want string }{
			{keys(tx.Prefix([]byte("a/"))), `"a/1" "a/2" `},
			{keys(tx.Prefix([]byte("\xff"))), `"\xff" "\xff\xff" `},
			{keys(tx.Scan([]byte("a/1"), []byte("b"))), `"a/1" "a/2" `},
			{keys(tx.Scan([]byte("b"), nil)), `"b" "\xff" "\xff\xff" `},
			{keys(tx.Scan([]byte("b"), []byte("a"))), ``},
		} {
			if c.got != c.want {
				t.Errorf("scan: %s, want %s", c.got, c.want)
			}
		}
		if got := keys(func(yield func(k, v []byte) bool) {
			for k := range tx.Keys([]byte("a/")) {
				if !yield(k, nil) {
					return
				}
			}
		}); got != `"a/1" "a/2" ` {
			t.Errorf("keys: %s", got)
		}
		n := 0
		for k := range tx.Prefix(nil) { // a loop that deletes what it walks over
			n++
			if err := tx.Delete(k); err != nil {
				return err
			}
		}
		if left, _ := tx.Len(); n != 6 || left != 0 {
			t.Errorf("walked %d, left %d", n, left)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestConcurrentIncrements(t *testing.T) {
	t.Parallel()
	m := mustCreate(t, unsafeOptions(t, persist.Dir(t.TempDir())))
	const workers, rounds = 8, 25
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range rounds {
				err := m.Update(t.Context(), func(tx *persist.Tx) error {
					v, _, err := tx.Get([]byte("n"))
					return errors.Join(err, tx.Put([]byte("n"), append(v, 'x')))
				})
				if err != nil {
					t.Error(err)
				}
				_ = m.View(t.Context(), func(tx *persist.Tx) error { _, _, err := tx.Get([]byte("n")); return err })
			}
		})
	}
	wg.Wait()
	if got := contents(t, m); got != "n="+strings.Repeat("x", workers*rounds) {
		t.Fatalf("lost updates: %d characters", len(got))
	}
}
