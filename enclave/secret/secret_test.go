package secret

import (
	"bytes"
	"encoding/hex"
	"errors"
	"strings"
	"sync"
	"testing"
)

func mustNew(t *testing.T, b []byte) Key {
	t.Helper()
	k, err := New(b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestSizes(t *testing.T) {
	for _, n := range []int{1, 16, 32, MaxSize} {
		k, err := New(make([]byte, n))
		if err != nil || k.Len() != n || k.IsZero() {
			t.Errorf("New of %d bytes: Len %d, %v", n, k.Len(), err)
		}
		k, err = Random(n)
		if err != nil || k.Len() != n {
			t.Errorf("Random(%d): Len %d, %v", n, k.Len(), err)
		}
	}
	for _, n := range []int{0, MaxSize + 1, 1 << 16} {
		if k, err := New(make([]byte, n)); !errors.Is(err, ErrSize) || !k.IsZero() {
			t.Errorf("New of %d bytes: %v, want ErrSize and a zero key", n, err)
		}
	}
	for _, n := range []int{-1, 0, MaxSize + 1} {
		if k, err := Random(n); !errors.Is(err, ErrSize) || !k.IsZero() {
			t.Errorf("Random(%d): %v, want ErrSize and a zero key", n, err)
		}
	}
}

func TestNewCopiesAndRevealCopies(t *testing.T) {
	in := []byte("0123456789abcdef")
	k := mustNew(t, in)
	clear(in)
	out := k.Reveal()
	if string(out) != "0123456789abcdef" {
		t.Fatal("New kept a reference to the caller's bytes")
	}
	clear(out)
	if string(k.Reveal()) != "0123456789abcdef" {
		t.Fatal("Reveal handed out the key's own buffer")
	}
}

func TestEqual(t *testing.T) {
	a, b := mustNew(t, []byte("0123456789abcdef")), mustNew(t, []byte("0123456789abcdef"))
	if !a.Equal(b) || !a.Equal(a) {
		t.Error("equal keys differ")
	}
	for name, other := range map[string]Key{
		"last bit": mustNew(t, []byte("0123456789abcdeg")),
		"shorter":  mustNew(t, []byte("0123456789abcde")),
		"longer":   mustNew(t, []byte("0123456789abcdef\x00")),
		"zero":     {},
	} {
		if a.Equal(other) || other.Equal(a) {
			t.Errorf("%s: keys compare equal", name)
		}
	}
	if (Key{}).Equal(Key{}) {
		t.Error("two missing keys match each other")
	}
}

func TestRandomDiffers(t *testing.T) {
	a, _ := Random(32)
	b, _ := Random(32)
	if a.Equal(b) || bytes.Equal(a.Reveal(), make([]byte, 32)) {
		t.Fatal("Random repeats itself or is zero")
	}
}

// The value was computed with an independent HKDF-Expand (Python's hmac and
// hashlib) over the framing that Derive documents.
func TestDeriveKnownAnswer(t *testing.T) {
	prk := make([]byte, 32)
	for i := range prk {
		prk[i] = byte(i)
	}
	k, err := mustNew(t, prk).Derive("test/label", 32)
	if err != nil {
		t.Fatal(err)
	}
	const want = "cc533d9c638c351ae39b69aa52361e7a70444b4cca10d8b917d632b26e2d64f4"
	if got := hex.EncodeToString(k.Reveal()); got != want {
		t.Errorf("Derive = %s, want %s", got, want)
	}
}

func TestDeriveSeparates(t *testing.T) {
	k, other := mustNew(t, bytes.Repeat([]byte{1}, 32)), mustNew(t, bytes.Repeat([]byte{2}, 32))
	seen := map[string]string{}
	add := func(name string, from Key, label string, n int) {
		t.Helper()
		d, err := from.Derive(label, n)
		if err != nil || d.Len() != n {
			t.Fatalf("%s: %v, %d bytes", name, err, d.Len())
		}
		prefix := string(d.Reveal()[:16])
		if before, dup := seen[prefix]; dup {
			t.Errorf("%s derives the same key as %s", name, before)
		}
		seen[prefix] = name
	}
	add("base", k, "a", 32)
	add("label", k, "b", 32)
	add("longer label", k, "a\x00", 32)
	add("length", k, "a", 64)
	add("short", k, "a", 16)
	add("other key", other, "a", 32)

	again, err := k.Derive("a", 32)
	if err != nil {
		t.Fatal(err)
	}
	if _, dup := seen[string(again.Reveal()[:16])]; !dup {
		t.Error("Derive is not deterministic")
	}
}

func TestDeriveRefuses(t *testing.T) {
	k := mustNew(t, make([]byte, 32))
	destroyed := mustNew(t, make([]byte, 32))
	destroyed.Destroy()
	for name, c := range map[string]struct {
		k     Key
		label string
		n     int
		want  error
	}{
		"zero key":    {Key{}, "a", 32, ErrZero},
		"destroyed":   {destroyed, "a", 32, ErrZero},
		"short key":   {mustNew(t, make([]byte, MinDeriveSize-1)), "a", 32, ErrSize},
		"empty label": {k, "", 32, ErrLabel},
		"long label":  {k, strings.Repeat("a", MaxLabel+1), 32, ErrLabel},
		"no output":   {k, "a", 0, ErrSize},
		"negative":    {k, "a", -1, ErrSize},
		"too long":    {k, "a", MaxSize + 1, ErrSize},
	} {
		if d, err := c.k.Derive(c.label, c.n); !errors.Is(err, c.want) || !d.IsZero() {
			t.Errorf("%s: %v, want %v and a zero key", name, err, c.want)
		}
	}
	if _, err := k.Derive(strings.Repeat("a", MaxLabel), MaxSize); err != nil {
		t.Errorf("at the limits: %v", err)
	}
}

func TestDestroy(t *testing.T) {
	k := mustNew(t, []byte("0123456789abcdef"))
	under := k.p.view()
	alias := k
	k.Destroy()
	k.Destroy()
	Key{}.Destroy()
	if !alias.IsZero() || alias.Reveal() != nil || alias.Equal(alias) || alias.Len() != 0 {
		t.Error("a copy of the handle survives Destroy")
	}
	if !bytes.Equal(under, make([]byte, 16)) {
		t.Error("Destroy left the bytes in memory")
	}
}

func TestConcurrentUse(t *testing.T) {
	k := mustNew(t, []byte("0123456789abcdef"))
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 100 {
				if b := k.Reveal(); b != nil && string(b) != "0123456789abcdef" {
					t.Error("a reader saw a half-destroyed key")
				}
			}
			k.Destroy()
		})
	}
	wg.Wait()
}
