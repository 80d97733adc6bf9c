package tcb

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

// rewrite decodes an envelope as caching services do and writes it again: keys in the order of the alphabet, indented.
func rewrite(t testing.TB, raw []byte) []byte {
	t.Helper()
	var any map[string]any
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	if err := d.Decode(&any); err != nil {
		t.Fatal(err)
	}
	any["cachedAt"] = "2026-01-01" // a key of the service's own
	out, err := json.MarshalIndent(any, " ", "\t")
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// TestReserialized: strictly such documents are refused, and in the relaxed form they say what they said.
func TestReserialized(t *testing.T) {
	t.Parallel()
	for _, body := range []string{sgxBody, tdxBody, v2Body} {
		good := seal(t, "tcbInfo", body)
		again := rewrite(t, good)
		if _, err := VerifyInfo(again, &signer.PublicKey); err == nil {
			t.Error("strict reading took a document that was written again")
		}
		want, err := VerifyInfo(good, &signer.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		for name, raw := range map[string][]byte{
			"untouched": good, "written again": again,
			"escapes":     []byte(strings.ReplaceAll(string(good), `"tcbDate"`, `"tcb\u0044ate"`)),
			"white space": []byte(strings.ReplaceAll(string(good), `:`, ": ")),
		} {
			if name == "white space" {
				raw = []byte(strings.ReplaceAll(string(good), `,"`, ",\n\""))
			}
			got, err := VerifyInfoReserialized(raw, &signer.PublicKey)
			if err != nil || !reflect.DeepEqual(got, want) {
				t.Errorf("%s: %v\n%+v\n%+v", name, err, got, want)
			}
		}
	}
	good := seal(t, "enclaveIdentity", qeBody)
	want, err := VerifyIdentity(good, &signer.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := VerifyIdentityReserialized(rewrite(t, good), &signer.PublicKey); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("identity: %v", err)
	}
}

// TestReserializedRefuses: writing again is all that is forgiven.
func TestReserializedRefuses(t *testing.T) {
	t.Parallel()
	good := string(rewrite(t, seal(t, "tcbInfo", sgxBody)))
	for name, tc := range map[string]struct {
		old, with string
		want      error
	}{
		"status":               {`"OutOfDate"`, `"UpToDate"`, ErrSignature},
		"date":                 {`2026-01-31`, `2036-01-31`, ErrSignature},
		"key of one's own":     {`"tcbType"`, `"note": 1, "tcbType"`, ErrSignature},
		"key taken away":       {`"pceId": "0000",`, ``, ErrSignature},
		"second key":           {`"tcbType"`, `"tcbStatus": "UpToDate", "tcbType"`, ErrSignature},
		"repeated key":         {`"tcbType"`, `"fmspc": "000000000000", "tcbType"`, ErrFormat},
		"escaped repeated key": {`"tcbType"`, `"fmsp\u0063": "000000000000", "tcbType"`, ErrFormat},
		"letter case":          {`50806f`, `50806F`, ErrSignature},
		"case of a key":        {`"tcbType"`, `"TCBType"`, ErrSignature},
		"spelling of a number": {`"version": 3`, `"version": 3.0`, ErrSignature},
		"number as a string":   {`"version": 3`, `"version": "3"`, ErrSignature},
		"other document's key": {`"tcbInfo"`, `"enclaveIdentity"`, ErrFormat},
		"two documents":        {`"tcbInfo"`, `"tcbInfo": {}, "tcbInfo"`, ErrFormat},
		"no signature":         {`"signature"`, `"Signature"`, ErrFormat},
	} {
		raw := strings.Replace(good, tc.old, tc.with, 1)
		if raw == good {
			t.Errorf("%s: nothing changed", name)
		}
		if info, err := VerifyInfoReserialized([]byte(raw), &signer.PublicKey); !errors.Is(err, tc.want) || info != nil {
			t.Errorf("%s: %v", name, err)
		}
		if id, err := VerifyIdentityReserialized([]byte(raw), &signer.PublicKey); err == nil || id != nil {
			t.Errorf("%s: taken as an identity", name)
		}
	}
	if info, err := VerifyInfoReserialized(make([]byte, maxDocument+1), &signer.PublicKey); !errors.Is(err, ErrFormat) || info != nil {
		t.Errorf("oversized: %v", err)
	}
	if info, err := VerifyInfoReserialized([]byte(good), nil); !errors.Is(err, ErrSignature) || info != nil {
		t.Errorf("no key: %v", err)
	}
}

// TestReserializedVectors writes every real document again and finds Intel's bytes in it: the canonical form is the one that
// Intel signs.
func TestReserializedVectors(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("CLAVIGER_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	names, _ := filepath.Glob(filepath.Join(dir, "collateral", "*.json"))
	if len(names) == 0 {
		t.Skip("reference vectors are absent: set CLAVIGER_VECTORS to their folder")
	}
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		key := "tcbInfo"
		if bytes.Contains(raw[:30], []byte("enclaveIdentity")) {
			key = "enclaveIdentity"
		}
		original, _, err := new(decoder).split(raw, key)
		if err != nil {
			t.Fatal(err)
		}
		again, _, err := new(decoder).split(rewrite(t, raw), key)
		if err != nil {
			t.Fatal(err)
		}
		if got := again.append(nil, true); !bytes.Equal(got, original.text) {
			t.Errorf("%s: the canonical form is not Intel's", filepath.Base(name))
		}
		if got := again.append(nil, false); bytes.Equal(got, original.text) && key == "tcbInfo" {
			t.Errorf("%s: the order of the alphabet is Intel's?", filepath.Base(name))
		}
	}
	t.Logf("%d documents written again are found to be Intel's", len(names))
}

// FuzzReserialized: a document that nobody signed is not accepted, whatever its form; and the form that a value is written in
// reads as that value.
func FuzzReserialized(f *testing.F) {
	for _, body := range []string{sgxBody, tdxBody, v2Body, qeBody} {
		f.Add([]byte(body))
	}
	f.Add([]byte(`{"a":["\u0001\"\\",-1.5e3,true,null,{}],"b":[]}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		if info, err := VerifyInfoReserialized(raw, &signer.PublicKey); err == nil || info != nil {
			t.Fatal("accepted an envelope that nobody signed")
		}
		v, err := new(decoder).decode(raw)
		if err != nil {
			return
		}
		for _, ordered := range []bool{false, true} {
			form := v.append(nil, ordered)
			again, err := new(decoder).decode(form)
			if err != nil {
				t.Fatalf("%q is written as %q: %v", raw, form, err)
			}
			if second := again.append(nil, ordered); !bytes.Equal(second, form) {
				t.Fatalf("%q is written as %q and then as %q", raw, form, second)
			}
		}
	})
}
