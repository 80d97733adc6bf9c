package kds

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
)

func secretsFor(t *testing.T) *Secrets {
	t.Helper()
	s, err := GenerateSecrets()
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sharesOf(t *testing.T, threshold, n uint64) ([]byte, []Share) {
	t.Helper()
	public, shares, err := NewRecoveryKey(threshold, n)
	if err != nil {
		t.Fatal(err)
	}
	return public, shares
}

func wrap(t *testing.T, s *Secrets, public []byte) []byte {
	t.Helper()
	raw, err := WrapSecrets(s, public)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func sameSecrets(t *testing.T, a, b *Secrets) bool {
	t.Helper()
	x, err := a.Reveal()
	if err != nil {
		t.Fatal(err)
	}
	y, err := b.Reveal()
	return err == nil && bytes.Equal(x, y)
}

// Exactly the threshold is enough, whichever shares they are; one less is not,
// although the library counts from one below (New(t) needs t+1).
func TestThreshold(t *testing.T) {
	t.Parallel()
	s := secretsFor(t)
	identity := s.Identity().Public()
	for _, c := range []struct{ threshold, n uint64 }{{1, 1}, {1, 3}, {2, 3}, {3, 5}, {5, 5}} {
		public, shares := sharesOf(t, c.threshold, c.n)
		wrapped := wrap(t, s, public)
		ran := 0
		for set := range 1 << c.n {
			var chosen []Share
			for i := range shares {
				if set>>i&1 == 1 {
					chosen = append(chosen, shares[i])
				}
			}
			got, err := UnwrapSecrets(wrapped, chosen, identity)
			if uint64(len(chosen)) < c.threshold {
				if !errors.Is(err, ErrShares) || got != nil {
					t.Fatalf("%d shares of threshold %d: %v", len(chosen), c.threshold, err)
				}
				continue
			}
			if err != nil || !sameSecrets(t, got, s) {
				t.Fatalf("%d of %d, set %b: %v", c.threshold, c.n, set, err)
			}
			ran++
		}
		if ran == 0 {
			t.Fatal("no set was enough")
		}
	}
	for _, c := range []struct{ threshold, n uint64 }{{0, 0}, {0, 3}, {4, 3}, {1, 65}, {1 << 63, 1 << 63}} {
		if _, _, err := NewRecoveryKey(c.threshold, c.n); !errors.Is(err, ErrShares) {
			t.Errorf("%d of %d: %v", c.threshold, c.n, err)
		}
	}
}

func TestSharesAttacks(t *testing.T) {
	t.Parallel()
	s, other := secretsFor(t), secretsFor(t)
	identity := s.Identity().Public()
	public, shares := sharesOf(t, 2, 3)
	public2, shares2 := sharesOf(t, 2, 3)
	wrapped := wrap(t, s, public)
	with := func(change func(*Share)) Share {
		bad := shares[1]
		change(&bad)
		return bad
	}
	random, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	beyond, err := secret.New(bytes.Repeat([]byte{0xff}, 32)) // not below the group's order
	if err != nil {
		t.Fatal(err)
	}
	for name, list := range map[string][]Share{
		"none":               nil,
		"too few":            shares[:1],
		"the same twice":     {shares[0], shares[0]},
		"of another set":     {shares[0], shares2[1]},
		"all of another set": shares2[:2],
		"another's value":    {shares[0], with(func(b *Share) { b.value = shares2[1].value })},
		"another's index":    {shares[0], with(func(b *Share) { b.Index = 3 })},
		"index zero":         {shares[0], with(func(b *Share) { b.Index = 0 })},
		"a huge index":       {shares[0], with(func(b *Share) { b.Index = 1 << 40 })},
		"a lower threshold":  {with(func(b *Share) { b.Threshold = 1 })},
		"threshold zero":     {with(func(b *Share) { b.Threshold = 0 })},
		"a random value":     {shares[0], with(func(b *Share) { b.value = secret.Key{}; b.value = random })},
		"no value":           {shares[0], with(func(b *Share) { b.value = secret.Key{} })},
		"a value too large":  {shares[0], with(func(b *Share) { b.value = beyond })},
	} {
		got, err := UnwrapSecrets(wrapped, list, identity)
		want := ErrShares // so that people look for the share, and not for the file
		if name == "all of another set" {
			want = ErrWrapped
		}
		if got != nil || !errors.Is(err, want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := UnwrapSecrets(wrapped, shares[:2], other.Identity().Public()); !errors.Is(err, ErrWrapped) {
		t.Errorf("another cluster's identity: %v", err)
	}
	if _, err := UnwrapSecrets(wrap(t, s, public2), shares[:2], identity); !errors.Is(err, ErrWrapped) {
		t.Errorf("wrapped to another key: %v", err)
	}
	refused := 0
	for i := 0; i < len(wrapped); i += 7 {
		bad := bytes.Clone(wrapped)
		bad[i] ^= 1
		if got, err := UnwrapSecrets(bad, shares[:2], identity); got != nil || err == nil {
			t.Fatalf("byte %d of %d was changed: %v", i, len(wrapped), err)
		}
		refused++
	}
	if refused < 100 {
		t.Errorf("only %d changes were tried", refused)
	}
	for name, raw := range map[string][]byte{
		"empty": nil, "cut": wrapped[:len(wrapped)-1], "trailing": append(bytes.Clone(wrapped), 0), "huge": make([]byte, maxWrapped+1),
	} {
		if _, err := UnwrapSecrets(raw, shares[:2], identity); !errors.Is(err, ErrWrapped) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, key := range map[string][]byte{"no key": nil, "a short key": public[1:], "a bad key": bytes.Repeat([]byte{0xff}, len(public))} {
		if _, err := WrapSecrets(s, key); !errors.Is(err, ErrWrapped) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(public) > api.MaxRecoveryKey {
		t.Errorf("the public key has %d bytes", len(public))
	}
}

// A share travels sealed to one enclave, under one info.
func TestSealedShares(t *testing.T) {
	t.Parallel()
	s := secretsFor(t)
	public, shares := sharesOf(t, 2, 3)
	enclave, err := NewShareRecipient()
	if err != nil {
		t.Fatal(err)
	}
	clone, err := NewShareRecipient()
	if err != nil {
		t.Fatal(err)
	}
	info := []byte("cluster and request")
	var got []Share
	for _, share := range shares[1:] {
		sealed, err := share.Seal(enclave.Public(), info)
		if err != nil || len(sealed) > maxSealed {
			t.Fatal(err)
		}
		opened, err := enclave.Open(sealed, info)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, opened)
		for name, f := range map[string]func() (Share, error){
			"another enclave": func() (Share, error) { return clone.Open(sealed, info) },
			"another info":    func() (Share, error) { return enclave.Open(sealed, []byte("x")) },
			"cut":             func() (Share, error) { return enclave.Open(sealed[:len(sealed)-1], info) },
			"empty":           func() (Share, error) { return enclave.Open(nil, info) },
			"huge":            func() (Share, error) { return enclave.Open(make([]byte, maxSealed+1), info) },
		} {
			if _, err := f(); !errors.Is(err, ErrShares) {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	back, err := UnwrapSecrets(wrap(t, s, public), got, s.Identity().Public())
	if err != nil || !sameSecrets(t, s, back) {
		t.Error(err)
	}
	if _, err := shares[0].Seal([]byte("no key"), info); !errors.Is(err, ErrShares) {
		t.Errorf("sealed to no key: %v", err)
	}
	if _, err := (Share{Index: 1, Threshold: 1}).Seal(enclave.Public(), info); !errors.Is(err, ErrShares) {
		t.Errorf("an empty share was sealed: %v", err)
	}
}

// A new generation adds a root and changes nothing else, and can be wrapped
// without any share.
func TestNextGeneration(t *testing.T) {
	t.Parallel()
	s := secretsFor(t)
	public, shares := sharesOf(t, 1, 1)
	next, err := s.NextGeneration()
	if err != nil || next.Generation() != 2 || s.Generation() != 1 || !next.Identity().Public().Equal(s.Identity().Public()) {
		t.Fatalf("%v", err)
	}
	twin, err := s.NextGeneration()
	if err != nil || sameSecrets(t, next, twin) {
		t.Errorf("two new generations have one root: %v", err)
	}
	if !next.roots[0].Equal(s.roots[0]) || next.roots[1].Equal(next.roots[0]) {
		t.Error("the roots are mixed up")
	}
	back, err := UnwrapSecrets(wrap(t, next, public), shares, s.Identity().Public())
	if err != nil || back.Generation() != 2 || !sameSecrets(t, next, back) {
		t.Errorf("unwrapped: %v", err)
	}
	for range maxGenerations - 1 {
		if s, err = s.NextGeneration(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.NextGeneration(); !errors.Is(err, ErrSecrets) {
		t.Errorf("generation %d: %v", maxGenerations+1, err)
	}
	if raw := wrap(t, s, public); len(raw) > maxWrapped {
		t.Errorf("%d generations are %d bytes wrapped", maxGenerations, len(raw))
	} else if _, err := UnwrapSecrets(raw, shares, s.Identity().Public()); err != nil {
		t.Error(err)
	}
	if _, err := new(Secrets).NextGeneration(); !errors.Is(err, ErrSecrets) {
		t.Errorf("of no secrets: %v", err)
	}
}

func TestSharesDoNotPrint(t *testing.T) {
	t.Parallel()
	_, shares := sharesOf(t, 2, 2)
	recipient, err := NewShareRecipient()
	if err != nil {
		t.Fatal(err)
	}
	raw := shares[0].value.Reveal()
	forms := []string{string(raw[:6]), hex.EncodeToString(raw[:6]), strings.Trim(fmt.Sprint(raw[:6]), "[]"), base64.StdEncoding.EncodeToString(raw[:6])}
	var out bytes.Buffer
	for verb := 'A'; verb <= 'z'; verb++ {
		for _, flag := range []string{"", "#", "+", "-", "#+"} {
			fmt.Fprintf(&out, "%"+flag+string(verb), shares[0])
			fmt.Fprintf(&out, "%"+flag+string(verb), &shares)
			fmt.Fprintf(&out, "%"+flag+string(verb), recipient)
		}
	}
	slog.New(slog.NewTextHandler(&out, nil)).Info("x", "share", shares[0], "all", shares)
	slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "share", shares[0], "all", shares)
	if _, err := json.Marshal(shares); err == nil {
		t.Error("shares marshal")
	}
	for _, form := range forms {
		if strings.Contains(strings.ToLower(out.String()), strings.ToLower(form)) {
			t.Errorf("a share is printed as %q", form)
		}
	}
	if out.Len() < 1000 {
		t.Error("nothing was printed")
	}
	encoded, err := shares[0].Reveal()
	if err != nil {
		t.Fatal(err)
	}
	for i := range encoded {
		bad := bytes.Clone(encoded)
		bad[i] ^= 0x55
		_, err := ParseShare(bad[:i+1])
		for _, form := range forms {
			if err != nil && strings.Contains(err.Error(), form) {
				t.Errorf("an error quotes the share: %v", err)
			}
		}
	}
}

func FuzzParseShare(f *testing.F) {
	_, shares, err := NewRecoveryKey(2, 3)
	if err != nil {
		f.Fatal(err)
	}
	raw, err := shares[2].Reveal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Fuzz(func(t *testing.T, raw []byte) {
		s, err := ParseShare(raw)
		if err != nil {
			return
		}
		if again, err := s.Reveal(); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("%x is written again as %x: %v", raw, again, err)
		}
	})
}

func FuzzUnwrapSecrets(f *testing.F) {
	s, err := GenerateSecrets()
	if err != nil {
		f.Fatal(err)
	}
	public, shares, err := NewRecoveryKey(1, 1)
	if err != nil {
		f.Fatal(err)
	}
	good, err := WrapSecrets(s, public)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	identity := ed25519.PublicKey(s.Identity().Public())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := UnwrapSecrets(raw, shares, identity); (err == nil) != bytes.Equal(raw, good) {
			t.Fatalf("%x: %v", raw, err)
		}
	})
}
