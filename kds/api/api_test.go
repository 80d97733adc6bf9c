package api

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/tlog"
)

type testSigner struct{ ed25519.PrivateKey }

func (s testSigner) Public() ed25519.PublicKey {
	return s.PrivateKey.Public().(ed25519.PublicKey)
}
func (s testSigner) Sign(m []byte) ([]byte, error) { return ed25519.Sign(s.PrivateKey, m), nil }

func signer(b byte) testSigner {
	return testSigner{ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, 32))}
}

func testManifest() *Manifest {
	return &Manifest{
		Version: ManifestVersion, Name: "test", Root: RootOfTrust{ID: [32]byte{1}, Simulated: true},
		NodePolicy: []string{"C:aa", "C:bb"},
		Operators:  Operators{Threshold: 1, Keys: [][]byte{signer(9).Public()}},
		Nonce:      [32]byte{7},
	}
}

func TestManifestRoundTrip(t *testing.T) {
	t.Parallel()
	raw, err := testManifest().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseManifest(raw)
	if err != nil {
		t.Fatal(err)
	}
	again, err := got.Marshal()
	if err != nil || !bytes.Equal(raw, again) {
		t.Fatalf("second encoding differs: %v", err)
	}
	for i := range raw {
		if _, err := ParseManifest(raw[:i]); err == nil {
			t.Fatalf("accepted a manifest cut at %d", i)
		}
	}
	if _, err := ParseManifest(append(slices.Clone(raw), 0)); err == nil {
		t.Fatal("accepted a trailing byte")
	}
	if _, err := ParseManifest(make([]byte, MaxManifest+1)); !errors.Is(err, ErrTooLarge) {
		t.Fatalf("oversized: %v", err)
	}
}

func TestManifestRefusals(t *testing.T) {
	t.Parallel()
	cases := map[string]func(*Manifest){
		"version":         func(m *Manifest) { m.Version = 2 },
		"no name":         func(m *Manifest) { m.Name = "" },
		"name with space": func(m *Manifest) { m.Name = "a b" },
		"no root":         func(m *Manifest) { m.Root.ID = [32]byte{} },
		"no node policy":  func(m *Manifest) { m.NodePolicy = nil },
		"unsorted policy": func(m *Manifest) { slices.Reverse(m.NodePolicy) },
		"repeated policy": func(m *Manifest) { m.NodePolicy[1] = m.NodePolicy[0] },
		"empty policy":    func(m *Manifest) { m.NodePolicy[0] = "" },
		"no operators":    func(m *Manifest) { m.Operators.Keys = nil },
		"threshold zero":  func(m *Manifest) { m.Operators.Threshold = 0 },
		"threshold high":  func(m *Manifest) { m.Operators.Threshold = 2 },
		"short key":       func(m *Manifest) { m.Operators.Keys = [][]byte{{1}} },
		"repeated key":    func(m *Manifest) { m.Operators.Keys = append(m.Operators.Keys, m.Operators.Keys[0]) },
		"no nonce":        func(m *Manifest) { m.Nonce = [32]byte{} },
	}
	for name, change := range cases {
		m := testManifest()
		change(m)
		if _, err := m.Marshal(); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: Marshal = %v, want ErrManifest", name, err)
		}
		raw, err := MarshalCanonical(m)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := ParseManifest(raw); !errors.Is(err, ErrManifest) {
			t.Errorf("%s: ParseManifest = %v, want ErrManifest", name, err)
		}
	}
}

func TestNonCanonicalManifestRefused(t *testing.T) {
	t.Parallel()
	raw, err := testManifest().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	// The version as a two-byte integer: the same value, another encoding.
	long := append([]byte{raw[0], 0x18, 0x01}, raw[2:]...)
	if _, err := ParseManifest(long); err == nil {
		t.Fatal("accepted a non-minimal integer")
	}
	indefinite := append(append([]byte{0x9f}, raw[1:]...), 0xff)
	if _, err := ParseManifest(indefinite); err == nil {
		t.Fatal("accepted an indefinite array")
	}
}

func statement(t *testing.T) (*NodeStatement, ID) {
	t.Helper()
	raw, err := testManifest().Marshal()
	if err != nil {
		t.Fatal(err)
	}
	s := signer(1)
	id, err := ClusterID(raw, s.Public())
	if err != nil {
		t.Fatal(err)
	}
	m := Membership{ClusterID: id, Epoch: 3, Slot: "a", Incarnation: 2, ServerID: [32]byte{5}}
	sig, err := SignMembership(s, m)
	if err != nil {
		t.Fatal(err)
	}
	return &NodeStatement{Manifest: raw, IdentityKey: s.Public(), Membership: m, Signature: sig}, id
}

func TestNodeStatement(t *testing.T) {
	t.Parallel()
	st, id := statement(t)
	raw, err := st.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseNodeStatement(raw)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := got.Verify(id, 3, [32]byte{5}); err != nil {
		t.Fatal(err)
	}
	if _, err := got.Verify(ID{1}, 3, [32]byte{5}); !errors.Is(err, ErrMembership) {
		t.Errorf("another cluster: %v", err)
	}
	if _, err := got.Verify(id, 4, [32]byte{5}); !errors.Is(err, ErrMembership) {
		t.Errorf("fallen epoch: %v", err)
	}
	if _, err := got.Verify(id, 3, [32]byte{6}); !errors.Is(err, ErrMembership) {
		t.Errorf("another peer's key: %v", err)
	}
}

// A host swaps the identity key, or edits what was signed.
func TestForgedStatementRefused(t *testing.T) {
	t.Parallel()
	st, id := statement(t)
	forged := *st
	forged.IdentityKey = signer(2).Public()
	if _, err := forged.Verify(id, 1, [32]byte{5}); err == nil {
		t.Fatal("another identity key was accepted")
	}
	edits := map[string]func(*Membership){
		"epoch":       func(m *Membership) { m.Epoch++ },
		"slot":        func(m *Membership) { m.Slot = "b" },
		"incarnation": func(m *Membership) { m.Incarnation++ },
	}
	for name, edit := range edits {
		forged := *st
		edit(&forged.Membership)
		if _, err := forged.Verify(id, 1, [32]byte{5}); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, bad := range []Membership{
		{}, {ClusterID: id, Epoch: 1, Slot: "A", Incarnation: 1, ServerID: [32]byte{1}},
		{ClusterID: id, Epoch: 0, Slot: "a", Incarnation: 1, ServerID: [32]byte{1}},
		{ClusterID: id, Epoch: 1, Slot: "a", Incarnation: 0, ServerID: [32]byte{1}},
	} {
		if _, err := SignMembership(signer(1), bad); !errors.Is(err, ErrMembership) {
			t.Errorf("signed %+v: %v", bad, err)
		}
	}
}

// receipt builds a tree of n leaves with the tested record at index.
func receipt(t *testing.T, n, index int64) (*Receipt, testSigner, ID) {
	t.Helper()
	s, id := signer(1), ID{3}
	rec := &Record{Label: RecordLabel, ClusterID: id, Epoch: 1, Realm: "sim", Name: "k", Purpose: "aes-256", Constraint: "c"}
	raw, err := rec.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(at []int64) ([]tlog.Hash, error) {
		var out []tlog.Hash
		for _, i := range at {
			out = append(out, hashes[i])
		}
		return out, nil
	})
	opening := [32]byte{9}
	for i := range n {
		leaf := [32]byte{byte(i)}
		if i == index {
			leaf = Commitment(opening, raw)
		}
		h, err := tlog.StoredHashes(i, leaf[:], reader)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, h...)
	}
	root, err := tlog.TreeHash(n, reader)
	if err != nil {
		t.Fatal(err)
	}
	proof, err := tlog.ProveRecord(n, index, reader)
	if err != nil {
		t.Fatal(err)
	}
	r := &Receipt{Record: raw, Opening: opening, Index: uint64(index), TreeSize: uint64(n), RootHash: ID(root), Epoch: 1, ClusterID: id}
	for _, h := range proof {
		r.Proof = append(r.Proof, ID(h))
	}
	if r.Signature, err = SignCheckpoint(s, id, 1, uint64(n), r.RootHash); err != nil {
		t.Fatal(err)
	}
	return r, s, id
}

func TestReceipt(t *testing.T) {
	t.Parallel()
	r, s, id := receipt(t, 11, 6)
	if _, err := r.Verify(s.Public(), id); err != nil {
		t.Fatal(err)
	}
	edits := map[string]func(*Receipt){
		"record":    func(r *Receipt) { r.Record[len(r.Record)-1] ^= 1 },
		"opening":   func(r *Receipt) { r.Opening[0] ^= 1 },
		"index":     func(r *Receipt) { r.Index++ },
		"size":      func(r *Receipt) { r.TreeSize++ },
		"zero size": func(r *Receipt) { r.TreeSize = 0 },
		"huge size": func(r *Receipt) { r.TreeSize = 1 << 63 },
		"root":      func(r *Receipt) { r.RootHash[0] ^= 1 },
		"proof":     func(r *Receipt) { r.Proof[0][0] ^= 1 },
		"no proof":  func(r *Receipt) { r.Proof = nil },
		"signature": func(r *Receipt) { r.Signature[0] ^= 1 },
		"epoch":     func(r *Receipt) { r.Epoch++ },
		"cluster":   func(r *Receipt) { r.ClusterID[0] ^= 1 },
	}
	for name, edit := range edits {
		r, _, _ := receipt(t, 11, 6)
		edit(r)
		if _, err := r.Verify(s.Public(), id); !errors.Is(err, ErrReceipt) {
			t.Errorf("%s: %v, want ErrReceipt", name, err)
		}
	}
	if _, err := r.Verify(signer(2).Public(), id); !errors.Is(err, ErrReceipt) {
		t.Errorf("another identity key: %v", err)
	}
}

// A node answers with one key and the receipt of another release.
func TestReceiptOfAnotherRelease(t *testing.T) {
	t.Parallel()
	r, s, id := receipt(t, 5, 2)
	reply := KeyReply{Purpose: "aes-256", Constraint: "c", Name: "k", Realm: "sim", ClusterID: id, Epoch: 1, Receipt: *r}
	if _, err := reply.CheckReceipt(s.Public(), id); err != nil {
		t.Fatal(err)
	}
	reply.Name = "other"
	if _, err := reply.CheckReceipt(s.Public(), id); !errors.Is(err, ErrReceipt) {
		t.Fatalf("got %v, want ErrReceipt", err)
	}
}

func TestPublicKeyReplySignature(t *testing.T) {
	t.Parallel()
	s := signer(1)
	hash, err := PolicyHash("c")
	if err != nil {
		t.Fatal(err)
	}
	make := func() PublicKeyReply {
		r := PublicKeyReply{PublicKey: []byte{1}, Recipient: "age1", Purpose: "age", Constraint: "c", Name: "n", Realm: "sim",
			Version: Version{Generation: 1, Counter: 1, GenerationID: ID{5}}, ClusterID: ID{3}, Epoch: 1, PolicyHash: hash}
		if err := r.Sign(s); err != nil {
			t.Fatal(err)
		}
		return r
	}
	r := make()
	if err := r.Verify(s.Public(), ID{3}); err != nil {
		t.Fatal(err)
	}
	edits := map[string]func(*PublicKeyReply){
		"key":        func(r *PublicKeyReply) { r.PublicKey[0]++ },
		"recipient":  func(r *PublicKeyReply) { r.Recipient += "x" },
		"purpose":    func(r *PublicKeyReply) { r.Purpose = "x25519" },
		"constraint": func(r *PublicKeyReply) { r.Constraint = "d" },
		"name":       func(r *PublicKeyReply) { r.Name = "m" },
		"realm":      func(r *PublicKeyReply) { r.Realm = "hw" },
		"generation": func(r *PublicKeyReply) { r.Version.Generation++ },
		"counter":    func(r *PublicKeyReply) { r.Version.Counter++ },
		"id":         func(r *PublicKeyReply) { r.Version.GenerationID[0]++ },
		"no id":      func(r *PublicKeyReply) { r.Version.GenerationID = ID{} },
		"cluster":    func(r *PublicKeyReply) { r.ClusterID = ID{4} },
		"epoch":      func(r *PublicKeyReply) { r.Epoch++ },
		"hash":       func(r *PublicKeyReply) { r.PolicyHash = ID{} },
		"mutable":    func(r *PublicKeyReply) { r.Mutable = true },
	}
	for name, edit := range edits {
		r := make()
		edit(&r)
		if err := r.Verify(s.Public(), ID{3}); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: %v, want ErrSignature", name, err)
		}
	}
}

func TestKeyReplyNeverPrintsKey(t *testing.T) {
	t.Parallel()
	r := KeyReply{Key: []byte("SECRETSECRET")}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q", "%d"} {
		out := fmt.Sprintf(verb, r) + fmt.Sprintf(verb, &r)
		if strings.Contains(out, "SECRET") || strings.Contains(out, "534543") || strings.Contains(out, "83 69") {
			t.Errorf("%s prints the key: %s", verb, out)
		}
	}
}

func TestRequestChecks(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", MaxConstraint+1)
	cases := []struct {
		req  KeyRequest
		want error
	}{
		{KeyRequest{Constraint: "c", Name: "n", Purpose: "age"}, nil},
		{KeyRequest{Name: "n"}, ErrMalformed},
		{KeyRequest{Constraint: "c"}, ErrMalformed},
		{KeyRequest{Constraint: "c", Name: "a b"}, ErrMalformed},
		{KeyRequest{Constraint: "c", Name: "é"}, ErrMalformed},
		{KeyRequest{Constraint: big, Name: "n"}, ErrTooLarge},
		{KeyRequest{Constraint: "c", Name: big}, ErrTooLarge},
		{KeyRequest{Constraint: "c", Name: "n", Purpose: big}, ErrTooLarge},
	}
	for i, c := range cases {
		if err := c.req.Check(); !errors.Is(err, c.want) {
			t.Errorf("%d: %v, want %v", i, err, c.want)
		}
		p := PublicKeyRequest(c.req)
		if err := p.Check(); !errors.Is(err, c.want) {
			t.Errorf("public %d: %v, want %v", i, err, c.want)
		}
	}
	attest := []struct {
		req  AttestRequest
		want error
	}{
		{AttestRequest{Quote: []byte{1}}, nil},
		{AttestRequest{}, ErrMalformed},
		{AttestRequest{Quote: make([]byte, MaxQuote+1)}, ErrTooLarge},
		{AttestRequest{Quote: []byte{1}, Collateral: make([]byte, MaxCollateral+1)}, ErrTooLarge},
		{AttestRequest{Quote: []byte{1}, Constraint: big}, ErrTooLarge},
		{AttestRequest{Quote: []byte{1}, Nonce: make(Nonce, 8)}, nil},
		{AttestRequest{Quote: []byte{1}, Nonce: Nonce{}}, ErrMalformed},
		{AttestRequest{Quote: []byte{1}, Nonce: make(Nonce, 65)}, ErrMalformed},
	}
	for i, c := range attest {
		if err := c.req.Check(); !errors.Is(err, c.want) {
			t.Errorf("attest %d: %v, want %v", i, err, c.want)
		}
	}
}

func TestProblem(t *testing.T) {
	t.Parallel()
	for code := range statusOf {
		p := NewProblem(code, "do this")
		if p.Status != code.Status() || p.Status == 0 || !errors.Is(fmt.Errorf("w: %w", p), &Problem{Code: code}) {
			t.Errorf("%s: %+v", code, p)
		}
	}
	if other := Code("other"); other.Status() != 500 || other.Known() || other.Retry() {
		t.Error("an unknown code must be an internal error")
	}
	p := NewProblem(CodePolicyDenied, "d")
	p.Failures = []Failure{{Clause: "SEC", Want: "SECURE", Got: "OutOfDate", Hint: "update", TCBDate: time.Unix(0, 0).UTC()}}
	raw, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	var back Problem
	if err := DecodeJSON(raw, MaxReplyBody, &back); err != nil || back.Failures[0].Hint != "update" {
		t.Fatalf("%+v %v", back, err)
	}
	if !strings.Contains(p.Error(), "want SECURE, got OutOfDate (update)") {
		t.Error(p.Error())
	}
}

func TestIDText(t *testing.T) {
	t.Parallel()
	id := ID{1, 0xab}
	got, err := ParseID(id.String())
	if err != nil || got != id {
		t.Fatalf("%v %v", got, err)
	}
	for _, bad := range []string{"", "00", strings.ToUpper(id.String()), strings.Repeat("g", 64), id.String() + "0"} {
		if _, err := ParseID(bad); !errors.Is(err, ErrHex) {
			t.Errorf("%q: %v", bad, err)
		}
	}
	var rd ReportData
	if err := json.Unmarshal([]byte(`"`+strings.Repeat("0a", 64)+`"`), &rd); err != nil || rd[63] != 10 {
		t.Errorf("report data: %v", err)
	}
}

func FuzzParse(f *testing.F) {
	raw, err := testManifest().Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte{0x87})
	f.Fuzz(func(t *testing.T, raw []byte) {
		if m, err := ParseManifest(raw); err == nil {
			if again, err := m.Marshal(); err != nil || !bytes.Equal(raw, again) {
				t.Fatalf("accepted %x, encodes as %x, %v", raw, again, err)
			}
		}
		if s, err := ParseNodeStatement(raw); err == nil {
			if again, err := s.Marshal(); err != nil || !bytes.Equal(raw, again) {
				t.Fatalf("accepted %x, encodes as %x, %v", raw, again, err)
			}
		}
		if r, err := ParseRecord(raw); err == nil {
			if again, err := r.Marshal(); err != nil || !bytes.Equal(raw, again) {
				t.Fatalf("accepted %x, encodes as %x, %v", raw, again, err)
			}
		}
	})
}
