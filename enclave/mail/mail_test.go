package mail

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
)

func identity(t testing.TB) *Identity {
	t.Helper()
	k, err := secret.Random(32)
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(k)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

var (
	info = []byte("call f of project p")
	aad  = []byte("beside")
)

func request(t testing.TB, id *Identity, body string) ([]byte, *ReplyOpener) {
	t.Helper()
	sealed, reply, err := SealRequest(id.Recipient(), info, aad, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return sealed, reply
}

func TestRequestAndReply(t *testing.T) {
	t.Parallel()
	id := identity(t)
	pub, err := ParseRecipient(id.Recipient().Bytes())
	if err != nil {
		t.Fatal(err)
	}
	for _, body := range []string{"", "x", strings.Repeat("y", 100_000)} {
		sealed, opener, err := SealRequest(pub, info, aad, []byte(body))
		if err != nil {
			t.Fatal(err)
		}
		got, sealer, err := id.OpenRequest(info, aad, sealed)
		if err != nil || string(got) != body {
			t.Fatalf("request of %d bytes: %d bytes, %v", len(body), len(got), err)
		}
		answer, err := sealer.Seal(aad, []byte("re: "+body))
		if err != nil {
			t.Fatal(err)
		}
		got, err = opener.Open(aad, answer)
		if err != nil || string(got) != "re: "+body {
			t.Fatalf("reply to %d bytes: %d bytes, %v", len(body), len(got), err)
		}
	}
}

func TestTamperingIsRefused(t *testing.T) {
	t.Parallel()
	id := identity(t)
	sealed, opener := request(t, id, "body")
	_, sealer, err := id.OpenRequest(info, aad, sealed)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := sealer.Seal(aad, []byte("answer"))
	if err != nil {
		t.Fatal(err)
	}
	refused := func(what string, body []byte, err error) {
		t.Helper()
		if body != nil || !errors.Is(err, ErrOpen) && !errors.Is(err, ErrFormat) && !errors.Is(err, ErrTooLarge) {
			t.Fatalf("%s: %q, %v", what, body, err)
		}
	}
	for i := range sealed {
		bad := slices.Clone(sealed)
		bad[i] ^= 0x81
		body, _, err := id.OpenRequest(info, aad, bad)
		refused(fmt.Sprint("request byte ", i), body, err)
	}
	for i := range answer {
		bad := slices.Clone(answer)
		bad[i] ^= 0x81
		body, err := opener.Open(aad, bad)
		refused(fmt.Sprint("reply byte ", i), body, err)
	}
	for name, bad := range map[string][]byte{
		"nil": nil, "one byte": {1}, "cut": sealed[:len(sealed)-1], "longer": append(slices.Clone(sealed), 0),
		"version 0": append([]byte{0}, sealed[1:]...), "version 2": append([]byte{2}, sealed[1:]...),
		"oversized": make([]byte, MaxSealed+1), "key only": sealed[:33],
		"low-order key": slices.Concat([]byte{1}, make([]byte, 32), sealed[33:]),
	} {
		body, _, err := id.OpenRequest(info, aad, bad)
		refused("request: "+name, body, err)
		body, err = opener.Open(aad, bad)
		refused("reply: "+name, body, err)
	}
}

func TestMessagesOpenOnlyInTheirContext(t *testing.T) {
	t.Parallel()
	id := identity(t)
	sealed, opener := request(t, id, "body")
	for name, open := range map[string]func() ([]byte, *ReplySealer, error){
		"another info":     func() ([]byte, *ReplySealer, error) { return id.OpenRequest([]byte("call g"), aad, sealed) },
		"no info":          func() ([]byte, *ReplySealer, error) { return id.OpenRequest(nil, aad, sealed) },
		"another aad":      func() ([]byte, *ReplySealer, error) { return id.OpenRequest(info, nil, sealed) },
		"info as aad":      func() ([]byte, *ReplySealer, error) { return id.OpenRequest(aad, info, sealed) },
		"another identity": func() ([]byte, *ReplySealer, error) { return identity(t).OpenRequest(info, aad, sealed) },
	} {
		if body, reply, err := open(); !errors.Is(err, ErrOpen) || body != nil || reply != nil {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
	_, sealer, err := id.OpenRequest(info, aad, sealed)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := sealer.Seal(aad, []byte("answer"))
	if err != nil {
		t.Fatal(err)
	}
	other, otherOpener := request(t, id, "body")
	if _, err := otherOpener.Open(aad, answer); !errors.Is(err, ErrOpen) {
		t.Errorf("a reply opens for another request: %v", err)
	}
	if _, err := opener.Open(nil, answer); !errors.Is(err, ErrOpen) {
		t.Errorf("a reply opens under another aad: %v", err)
	}
	if _, err := opener.Open(aad, other); !errors.Is(err, ErrOpen) {
		t.Errorf("a request opens as a reply: %v", err)
	}
	if _, _, err := id.OpenRequest(info, aad, answer); !errors.Is(err, ErrOpen) {
		t.Errorf("a reply opens as a request: %v", err)
	}
}

// TestOnlyTheHolderCanAnswer performs the forgery of one who knows the caller's
// reply key, even so, but could not open the request.
func TestOnlyTheHolderCanAnswer(t *testing.T) {
	t.Parallel()
	id, mallory := identity(t), identity(t)
	sealed, opener := request(t, id, "body")
	_, genuine, err := id.OpenRequest(info, aad, sealed)
	if err != nil {
		t.Fatal(err)
	}
	_, another, err := mallory.OpenRequest(info, aad, first(request(t, mallory, "body")))
	if err != nil {
		t.Fatal(err)
	}
	for name, info := range map[string][]byte{
		"without the secret":       fields(replyLabel, nil, info),
		"with a zero secret":       fields(replyLabel, make([]byte, exportSize), info),
		"with another request's":   another.info,
		"under the request's info": fields(requestLabel, info),
	} {
		forged, err := (&ReplySealer{to: genuine.to, info: info}).Seal(aad, []byte("forged"))
		if err != nil {
			t.Fatal(err)
		}
		if body, err := opener.Open(aad, forged); !errors.Is(err, ErrOpen) || body != nil {
			t.Errorf("a forgery %s opens: %q, %v", name, body, err)
		}
	}
}

func first[A, B any](a A, _ B) A { return a }

func TestSizesAreBuckets(t *testing.T) {
	t.Parallel()
	id := identity(t)
	sizes := map[int]bool{}
	for n := 0; n < 900; n += 90 {
		sealed, _ := request(t, id, strings.Repeat("x", n))
		sizes[len(sealed)] = true
	}
	if len(sizes) != 1 {
		t.Errorf("short requests have %d sizes", len(sizes))
	}
	if _, _, err := SealRequest(id.Recipient(), nil, nil, make([]byte, MaxPlaintext+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized plaintext: %v", err)
	}
	sealed, _, err := SealRequest(id.Recipient(), nil, nil, make([]byte, MaxPlaintext))
	if err != nil || len(sealed) != MaxSealed {
		t.Errorf("largest plaintext: %d bytes, %v", len(sealed), err)
	}
}

func TestPaddingIsStrict(t *testing.T) {
	t.Parallel()
	good, err := pad(make([]byte, keySize), []byte("abc"))
	if err != nil {
		t.Fatal(err)
	}
	edit := func(i int, v byte) []byte { b := slices.Clone(good); b[i] = v; return b }
	for name, b := range map[string][]byte{
		"nil": nil, "prefix cut": good[:prefixSize-1], "bucket cut": good[:512], "two buckets": append(slices.Clone(good), good...),
		"not zero": edit(len(good)-1, 1), "length past the end": edit(keySize+2, 4), "huge length": edit(keySize, 0xff),
		"shorter than it was": edit(keySize+3, 2),
	} {
		if _, body, err := unpad(b); !errors.Is(err, ErrFormat) || body != nil {
			t.Errorf("%s: %q, %v", name, body, err)
		}
	}
}

func TestZeroValuesDeny(t *testing.T) {
	t.Parallel()
	_, err := NewIdentity(secret.Key{})
	_, err2 := ParseRecipient(nil)
	_, err3 := ParseRecipient(make([]byte, 33))
	_, _, err4 := SealRequest(nil, nil, nil, nil)
	_, _, err5 := SealRequest(new(Recipient), nil, nil, nil)
	_, _, err6 := new(Identity).OpenRequest(nil, nil, nil)
	_, err7 := new(ReplySealer).Seal(nil, nil)
	_, err8 := new(ReplyOpener).Open(nil, nil)
	low, lowErr := ParseRecipient(make([]byte, 32)) // a point of low order
	if lowErr == nil {
		_, _, lowErr = SealRequest(low, nil, nil, nil)
	}
	for i, err := range []error{err, err2, err3, err4, err5, err6, err7, err8, lowErr} {
		if !errors.Is(err, ErrKey) {
			t.Errorf("case %d: %v, want ErrKey", i+1, err)
		}
	}
}

func TestSecretsDoNotPrint(t *testing.T) {
	t.Parallel()
	id := identity(t)
	_, opener := request(t, id, "")
	for _, v := range []any{id, opener, &ReplySealer{}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
			if got := fmt.Sprintf(verb, v); got != "mail(redacted)" {
				t.Errorf("%T with %s prints %q", v, verb, got)
			}
		}
	}
}

// vector freezes the format: fixed keys, a request and a reply sealed once.
type vector struct {
	PrivateKey, PublicKey, ReplyKey, Info, AAD, Request, Plaintext, Reply, Answer string
}

func TestKnownAnswer(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("testdata/v1.json")
	if err != nil {
		t.Fatal(err)
	}
	var v vector
	if err := json.Unmarshal(raw, &v); err != nil {
		t.Fatal(err)
	}
	unhex := func(s string) []byte {
		b, err := hex.DecodeString(s)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	key, err := secret.New(unhex(v.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	id, err := NewIdentity(key)
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.EncodeToString(id.Recipient().Bytes()); got != v.PublicKey {
		t.Errorf("public key %s, want %s", got, v.PublicKey)
	}
	body, sealer, err := id.OpenRequest([]byte(v.Info), []byte(v.AAD), unhex(v.Request))
	if err != nil || string(body) != v.Plaintext {
		t.Fatalf("request: %q, %v", body, err)
	}
	replyKey, err := kem().NewPrivateKey(unhex(v.ReplyKey))
	if err != nil {
		t.Fatal(err)
	}
	opener := &ReplyOpener{key: replyKey, info: sealer.info}
	if body, err = opener.Open([]byte(v.AAD), unhex(v.Reply)); err != nil || string(body) != v.Answer {
		t.Fatalf("reply: %q, %v", body, err)
	}
	if !bytes.Equal(sealer.to.Bytes(), replyKey.PublicKey().Bytes()) {
		t.Error("the request carries another reply key")
	}
}

func FuzzOpenRequest(f *testing.F) {
	id := identity(f)
	sealed, _ := request(f, id, "seed")
	f.Add(sealed)
	f.Add([]byte{version1})
	f.Fuzz(func(t *testing.T, raw []byte) {
		body, reply, err := id.OpenRequest(info, aad, raw)
		if (reply == nil) == (err == nil) {
			t.Fatalf("%q and %v", body, err)
		}
		if err == nil && !bytes.Equal(raw, sealed) {
			t.Fatal("a second encoding of one message opens")
		}
	})
}

func FuzzUnpad(f *testing.F) {
	good, err := pad(make([]byte, keySize), []byte("abc"))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, raw []byte) {
		key, body, err := unpad(raw)
		if err != nil {
			return
		}
		if again, err := pad(key, body); err != nil || !bytes.Equal(again, raw) {
			t.Fatalf("two padded forms of one plaintext (%v)", err)
		}
	})
}
