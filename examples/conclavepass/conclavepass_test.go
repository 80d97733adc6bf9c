package conclavepass_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/functions/engine"
	"github.com/claviger/claviger/examples/conclavepass"
)

// store is a host with a map for a store.
type store struct {
	kv  map[string][]byte
	key byte
}

func (s *store) KVGet(_ context.Context, k string) ([]byte, bool, error) {
	v, ok := s.kv[k]
	return v, ok, nil
}
func (s *store) KVPut(_ context.Context, k string, v []byte) error { s.kv[k] = v; return nil }
func (s *store) KVDelete(_ context.Context, k string) error        { delete(s.kv, k); return nil }
func (s *store) KVList(context.Context, string, int) ([]string, error) {
	return nil, errors.New("not used")
}
func (s *store) ProjectKey(context.Context) ([]byte, error) {
	return bytes.Repeat([]byte{s.key}, 32), nil
}
func (s *store) Random(p []byte) error { _, err := rand.Read(p); return err }
func (s *store) Now() time.Time        { return time.Unix(1_800_000_000, 0) }

func token(user string) string { return fmt.Sprintf("%x", sha256.Sum256([]byte(user))) }

// TestConclavePass runs the webpack bundle, and the module it was made of, unchanged.
func TestConclavePass(t *testing.T) {
	t.Parallel()
	e, err := engine.New(t.Context(), engine.Config{Mode: engine.Compiler})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = e.Close(context.Background()) })
	source, err := os.ReadFile("src/index.js")
	if err != nil {
		t.Fatal(err)
	}
	for name, code := range map[string][]byte{"bundle": conclavepass.Bundle, "source": source} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p, err := e.Load(t.Context(), engine.Bundle{Code: code})
			if err != nil {
				t.Fatal(err)
			}
			if got := p.Exports(); !slices.Equal(got, []string{"addEntry", "get", "query", "remove"}) {
				t.Errorf("exports %q", got)
			}
			story(t, p)
		})
	}
}

func story(t *testing.T, p *engine.Program) {
	s := &store{kv: map[string][]byte{}, key: 1}
	call := func(fn string, args ...any) (string, error) {
		b, err := json.Marshal(args)
		if err != nil {
			t.Fatal(err)
		}
		res, err := p.Call(t.Context(), fn, b, s)
		return string(res.Value), err
	}
	want := func(want, fn string, args ...any) {
		t.Helper()
		if got, err := call(fn, args...); err != nil || got != want {
			t.Errorf("%s%v = %s, %v; want %s", fn, args, got, err, want)
		}
	}
	refused := func(text, fn string, args ...any) {
		t.Helper()
		got, err := call(fn, args...)
		if e, ok := errors.AsType[*engine.ScriptError](err); !ok || !strings.Contains(e.Message, text) {
			t.Errorf("%s%v = %s, %v; want an exception with %q", fn, args, got, err, text)
		}
	}
	ada, bob := token("ada"), token("bob")
	entry := func(url, password string) map[string]string {
		return map[string]string{"url": url, "description": "my " + url, "username": "ada", "password": password}
	}
	want(`[]`, "query", ada, "master", "")
	want(`"ok"`, "addEntry", ada, "master", entry("https://one.example", "pa55-one"))
	want(`"ok"`, "addEntry", ada, "master", entry("https://two.example", "pa55-two"))
	want(`"ok"`, "addEntry", bob, "other", entry("https://one.example", "pa55-bob"))
	want(`{"url":"https://one.example","description":"my https://one.example","username":"ada","password":"pa55-one"}`, "get", ada, "master", "https://one.example")
	want(`[{"url":"https://two.example","description":"my https://two.example","username":"ada","password":""}]`, "query", ada, "master", "two")
	want(`null`, "get", ada, "master", "https://three.example")

	refused("wrong password", "get", ada, "Master", "https://one.example")
	refused("wrong password", "addEntry", ada, "x", entry("https://four.example", "p"))
	refused("password is needed", "query", ada, "", "")
	refused("user token", "query", "../"+ada, "master", "")
	refused("an entry has", "addEntry", ada, "master", map[string]any{"url": 1})
	refused("an entry has", "addEntry", ada, "master")

	// What is stored says nothing, differs each time, belongs to its user and to the project's key.
	record := bytes.Clone(s.kv["passwords/"+ada])
	for _, v := range s.kv {
		if len(s.kv) != 2 || bytes.Contains(v, []byte("pa55")) || bytes.Contains(v, []byte("example")) {
			t.Fatalf("%d records, or plain text in one", len(s.kv))
		}
	}
	want(`"ok"`, "addEntry", ada, "master", entry("https://two.example", "pa55-two"))
	if bytes.Equal(record[:12], s.kv["passwords/"+ada][:12]) {
		t.Error("a nonce was used twice")
	}
	s.kv["passwords/"+bob] = record // the host moves a record
	refused("wrong password", "query", bob, "master", "")
	s.key = 2
	refused("wrong password", "query", ada, "master", "")
	s.key = 1
	want(`"ok"`, "remove", ada, "master", "https://one.example")
	want(`null`, "get", ada, "master", "https://one.example")
	s.kv["passwords/"+ada] = []byte("short")
	refused("wrong password", "query", ada, "master", "")
}
