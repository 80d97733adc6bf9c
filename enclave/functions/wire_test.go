package functions

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"strings"
	"testing"
)

// testContext outlives single tests: the engine is shared.
var testContext = context.Background()

// TestKnownAnswers freezes what is hashed and signed; a change breaks every
// project there is.
func TestKnownAnswers(t *testing.T) {
	t.Parallel()
	owner := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32))
	id, err := ProjectIDOf(owner.Public().(ed25519.PublicKey), "demo")
	if err != nil {
		t.Fatal(err)
	}
	d, err := SignDeployment(owner, "demo", testRuntime, []byte("export function f(){}"), 3)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string][2]string{
		"project id": {id.String(), "1907faa57f6e6f2c4c0c62c368d8d76890ebafa5964dcc79fbd7f83440af1571"},
		"code hash":  {d.CodeHash.String(), "477a7c1f2f0682f677045a5601559f2efe55a76584a9f320c8e01b596a7d4cb7"},
		"signature": {hex.EncodeToString(d.Signature), "1615d7b4152ca55a0b16a00b6ee47129283390cfb1be917d8be82949730df494" +
			"d31d13e3b90a0b075c995e141aa894a8865ce79af69fbc7c3b89c066dcbcda07"},
	} {
		if c[0] != c[1] {
			t.Errorf("%s: %s, want %s", name, c[0], c[1])
		}
	}
	if refused := d.verify(id, testRuntime, []byte("export function f(){}")); refused != nil {
		t.Error(refused)
	}
}

func TestIDsParseStrictly(t *testing.T) {
	t.Parallel()
	good := HashCode(nil).String()
	if h, err := ParseCodeHash(good); err != nil || h.String() != good {
		t.Errorf("round trip: %v", err)
	}
	for _, bad := range []string{"", good[1:], good + "0", strings.ToUpper(good), strings.Repeat("g", 64), " " + good[1:]} {
		if _, err := ParseCodeHash(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("ParseCodeHash(%q): %v", bad, err)
		}
		if _, err := ParseProjectID(bad); !errors.Is(err, ErrFormat) {
			t.Errorf("ParseProjectID(%q): %v", bad, err)
		}
	}
	pub := make(ed25519.PublicKey, ed25519.PublicKeySize)
	for _, name := range []string{"", strings.Repeat("n", MaxName+1)} {
		if _, err := ProjectIDOf(pub, name); !errors.Is(err, ErrFormat) {
			t.Errorf("a name of %d bytes: %v", len(name), err)
		}
	}
	if _, err := ProjectIDOf(nil, "p"); !errors.Is(err, ErrFormat) {
		t.Errorf("no key: %v", err)
	}
}

func TestDecodeIsStrict(t *testing.T) {
	t.Parallel()
	good, err := cborEnc.Marshal(callMessage{Args: []byte("[]")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := decode[callMessage](good); err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"nil": nil, "trailing": append(bytes.Clone(good), 0), "cut": good[:len(good)-1],
		"an empty map":   {0xa0},
		"unknown key":    append([]byte{good[0] + 1}, append(bytes.Clone(good[1:]), 0x09, 0x01)...),
		"repeated key":   append([]byte{good[0] + 1}, append(bytes.Clone(good[1:]), 0x03, 0x40)...),
		"a long length":  bytes.Replace(good, []byte{0x03, 0x42}, []byte{0x03, 0x58, 0x02}, 1),
		"indefinite map": append(append([]byte{0xbf}, good[1:]...), 0xff),
	} {
		if m, err := decode[callMessage](raw); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: %+v, %v", name, m, err)
		}
	}
}

func FuzzParseDocument(f *testing.F) {
	f.Add([]byte(`{"request":"AA==","code_hash":"00"}`))
	f.Add([]byte(`{"request":"\u0041","code_hash":""} `))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var a, b string
		if err := parseDocument(raw, map[string]*string{"request": &a, "code_hash": &b}); err == nil && len(raw) < 29 {
			t.Fatalf("%q lacks a member", raw)
		}
	})
}

func FuzzDecode(f *testing.F) {
	for _, v := range []any{callMessage{Args: []byte("[]")}, deployMessage{Code: []byte("x")}, replyMessage{Code: CodeScript, Logs: []logMessage{{"log", "x"}}}} {
		raw, err := cborEnc.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := decode[callMessage](raw); err == nil {
			same(t, raw, m)
		}
		if m, err := decode[deployMessage](raw); err == nil {
			same(t, raw, m)
			_ = m.Deployment.verify(ProjectID{}, testRuntime, m.Code)
		}
		if m, err := decode[replyMessage](raw); err == nil {
			same(t, raw, m)
		}
	})
}

func same(t *testing.T, raw []byte, m any) {
	t.Helper()
	if again, err := cborEnc.Marshal(m); err != nil || !bytes.Equal(again, raw) {
		t.Fatalf("two encodings of one message (%v)", err)
	}
}
