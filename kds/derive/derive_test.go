package derive

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"filippo.io/age"
	"pgregory.net/rapid"

	"github.com/claviger/claviger/enclave/secret"
)

func newRoot(t testing.TB, b byte) secret.Key {
	t.Helper()
	k, err := secret.New(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func base() Params {
	return Params{Realm: Simulated, Binding: Constraint("C:aa"), Name: "n", Purpose: AES256, Counter: 1}
}

func raw(t testing.TB, text string) Purpose {
	t.Helper()
	p, err := ParsePurpose(text)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// Every field of the tuple, the cluster id and the root must change the key.
func TestEachFieldChangesTheKey(t *testing.T) {
	t.Parallel()
	root, id := newRoot(t, 1), [32]byte{1}
	seen := map[string]string{}
	record := func(name string, root secret.Key, id [32]byte, p Params) {
		k, err := Key(root, id, p)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		got := string(k.Reveal()[:min(k.Len(), 32)])
		if other, dup := seen[got]; dup {
			t.Errorf("%s and %s give the same key", name, other)
		}
		seen[got] = name
	}
	record("base", root, id, base())
	record("root", newRoot(t, 2), id, base())
	record("cluster", root, [32]byte{2}, base())
	changes := map[string]func(*Params){
		"hw":         func(p *Params) { p.Realm = Hardware },
		"hw-debug":   func(p *Params) { p.Realm = HardwareDebug },
		"sim-debug":  func(p *Params) { p.Realm = SimulatedDebug },
		"binding":    func(p *Params) { p.Binding = Constraint("C:ab") },
		"name":       func(p *Params) { p.Name = "m" },
		"moved byte": func(p *Params) { p.Binding, p.Name = Constraint("C:a"), "an" },
		"counter":    func(p *Params) { p.Counter = 2 },
		"raw/32":     func(p *Params) { p.Purpose = raw(t, "raw/32") },
		"raw/33":     func(p *Params) { p.Purpose = raw(t, "raw/33") },
		"raw/64":     func(p *Params) { p.Purpose = raw(t, "raw/64") },
		"x25519":     func(p *Params) { p.Purpose = X25519 },
		"ed25519":    func(p *Params) { p.Purpose = Ed25519 },
		"age":        func(p *Params) { p.Purpose = Age },
	}
	for name, change := range changes {
		p := base()
		change(&p)
		record(name, root, id, p)
	}
	if len(seen) != len(changes)+3 {
		t.Fatalf("%d distinct keys of %d", len(seen), len(changes)+3)
	}
}

func TestParamsRefused(t *testing.T) {
	t.Parallel()
	short, err := secret.New(make([]byte, 31))
	if err != nil {
		t.Fatal(err)
	}
	cases := map[string]struct {
		root   secret.Key
		id     [32]byte
		change func(*Params)
		want   error
	}{
		"zero root":     {secret.Key{}, [32]byte{1}, func(*Params) {}, ErrParams},
		"short root":    {short, [32]byte{1}, func(*Params) {}, ErrParams},
		"zero cluster":  {newRoot(t, 1), [32]byte{}, func(*Params) {}, ErrParams},
		"zero realm":    {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Realm = "" }, ErrRealm},
		"unknown realm": {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Realm = "HW" }, ErrRealm},
		"zero binding":  {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Binding = Binding{} }, ErrParams},
		"other binding": {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Binding.Kind = 1 }, ErrParams},
		"long binding":  {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Binding = Constraint(strings.Repeat("x", 4097)) }, ErrParams},
		"no name":       {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Name = "" }, ErrParams},
		"long name":     {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Name = strings.Repeat("x", 257) }, ErrParams},
		"zero counter":  {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Counter = 0 }, ErrParams},
		"zero purpose":  {newRoot(t, 1), [32]byte{1}, func(p *Params) { p.Purpose = Purpose{} }, ErrPurpose},
	}
	for name, c := range cases {
		p := base()
		c.change(&p)
		k, err := Key(c.root, c.id, p)
		if !errors.Is(err, c.want) || !k.IsZero() {
			t.Errorf("%s: %v, want %v; key usable: %v", name, err, c.want, !k.IsZero())
		}
	}
	if _, err := Key(newRoot(t, 1), [32]byte{1}, Params{}); err == nil {
		t.Error("zero Params gave a key")
	}
	if _, err := Public(newRoot(t, 1), [32]byte{1}, base()); !errors.Is(err, ErrNoHalf) {
		t.Errorf("public half of a symmetric key: %v", err)
	}
}

func TestParsePurpose(t *testing.T) {
	t.Parallel()
	for n, text := range map[int]string{1: "raw/1", 64: "raw/64", 32: "raw/32"} {
		if p, err := ParsePurpose(text); err != nil || p.Size() != n || p.String() != text || p.Asymmetric() {
			t.Errorf("%s: %v %v", text, p, err)
		}
	}
	for _, p := range []Purpose{AES256, X25519, Ed25519, Age} {
		if got, err := ParsePurpose(p.String()); err != nil || got != p {
			t.Errorf("%s: %v %v", p, got, err)
		}
	}
	for _, bad := range []string{"", "raw", "raw/", "raw/0", "raw/65", "raw/01", "raw/+1", "raw/-1", "raw/ 1", "RAW/1",
		"aes-128", "AES-256", "x25519 ", "raw/99999999999999999999"} {
		if p, err := ParsePurpose(bad); !errors.Is(err, ErrPurpose) || p != (Purpose{}) {
			t.Errorf("%q: %v %v", bad, p, err)
		}
	}
}

func TestRealmOf(t *testing.T) {
	t.Parallel()
	if RealmOf(false, false) != Hardware || RealmOf(false, true) != HardwareDebug ||
		RealmOf(true, false) != Simulated || RealmOf(true, true) != SimulatedDebug {
		t.Fatal("realms are mixed up")
	}
}

// What anyone encrypts to the recipient of a policy, the enclave's identity opens.
func TestAgeEndToEnd(t *testing.T) {
	t.Parallel()
	p := base()
	p.Purpose = Age
	public, err := Public(newRoot(t, 1), [32]byte{1}, p)
	if err != nil {
		t.Fatal(err)
	}
	recipient, err := AgeRecipient(public)
	if err != nil {
		t.Fatal(err)
	}
	var sealed bytes.Buffer
	w, err := age.Encrypt(&sealed, recipient)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, "to whatever code this policy allows"); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	scalar, err := Key(newRoot(t, 1), [32]byte{1}, p)
	if err != nil {
		t.Fatal(err)
	}
	identity, err := AgeIdentity(scalar)
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(&sealed, identity)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "to whatever code this policy allows" {
		t.Fatalf("%q %v", got, err)
	}
	if _, err := AgeIdentity(secret.Key{}); !errors.Is(err, ErrParams) {
		t.Errorf("zero scalar: %v", err)
	}
	if _, err := AgeRecipient(nil); !errors.Is(err, ErrParams) {
		t.Errorf("no public key: %v", err)
	}
}

// Two different tuples never encode to the same info.
func TestInfoIsInjective(t *testing.T) {
	t.Parallel()
	gen := func(rt *rapid.T, label string) Params {
		return Params{
			Realm:   rapid.SampledFrom([]Realm{Hardware, HardwareDebug, Simulated, SimulatedDebug}).Draw(rt, label+" realm"),
			Binding: Constraint(rapid.StringMatching(`[a-c]{1,3}`).Draw(rt, label+" binding")),
			Name:    rapid.StringMatching(`[a-c]{1,3}`).Draw(rt, label+" name"),
			Purpose: rapid.SampledFrom([]Purpose{AES256, X25519, Ed25519, Age, raw(t, "raw/32")}).Draw(rt, label+" purpose"),
			Counter: rapid.Uint64Range(1, 300).Draw(rt, label+" counter"),
		}
	}
	rapid.Check(t, func(rt *rapid.T) {
		a, b := gen(rt, "a"), gen(rt, "b")
		x, err := a.info()
		if err != nil {
			rt.Fatal(err)
		}
		y, err := b.info()
		if err != nil {
			rt.Fatal(err)
		}
		if bytes.Equal(x, y) != (a == b) {
			rt.Fatalf("%+v and %+v share %x", a, b, x)
		}
	})
}

func BenchmarkKey(b *testing.B) {
	root, p := newRoot(b, 1), base()
	for b.Loop() {
		if _, err := Key(root, [32]byte{1}, p); err != nil {
			b.Fatal(err)
		}
	}
}
