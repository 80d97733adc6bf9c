package derive

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"flag"
	"hash"
	"os"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
)

const vectorFile = "testdata/vectors.json"

var writeVectors = flag.Bool("write-vectors", false, "write the vector file from the independent computation in this test")

// vector is one published case. All byte strings are hexadecimal.
type vector struct {
	Root       string `json:"root"`
	ClusterID  string `json:"cluster_id"`
	Realm      string `json:"realm"`
	Constraint string `json:"constraint"`
	Name       string `json:"name"`
	Purpose    string `json:"purpose"`
	Length     int    `json:"length"`
	Counter    uint64 `json:"counter"`
	Info       string `json:"info"`                 // the CBOR tuple
	PRK        string `json:"prk"`                  // HKDF-Extract
	OKM        string `json:"okm"`                  // HKDF-Expand
	Key        string `json:"key"`                  // what is released
	Public     string `json:"public,omitempty"`     // its public half
	Recipient  string `json:"recipient,omitempty"`  // age only
	Comment    string `json:"comment,omitempty"`    // for readers
	AgeSecret  string `json:"age_secret,omitempty"` // age only
}

// The functions below compute a vector again from nothing but HMAC, SHA-2 and
// curve arithmetic: CBOR by hand, HKDF of RFC 5869 and DeriveKeyPair of
// RFC 9180 by hand. They share no code with the package.

// head writes a CBOR major type with its shortest argument.
func head(major byte, n uint64) []byte {
	switch {
	case n < 24:
		return []byte{major<<5 | byte(n)}
	case n < 1<<8:
		return []byte{major<<5 | 24, byte(n)}
	case n < 1<<16:
		return binary.BigEndian.AppendUint16([]byte{major<<5 | 25}, uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32([]byte{major<<5 | 26}, uint32(n))
	}
	return binary.BigEndian.AppendUint64([]byte{major<<5 | 27}, n)
}

func text(s string) []byte { return append(head(3, uint64(len(s))), s...) }

func handInfo(v vector) []byte {
	return bytes.Join([][]byte{
		head(4, 7), text("claviger/derive/v1"), text(v.Realm),
		head(4, 2), head(0, 0), text(v.Constraint),
		text(v.Name), text(v.Purpose), head(0, v.Counter), head(0, uint64(v.Length)),
	}, nil)
}

func mac(h func() hash.Hash, key []byte, parts ...[]byte) []byte {
	m := hmac.New(h, key)
	for _, p := range parts {
		m.Write(p)
	}
	return m.Sum(nil)
}

func handExpand(h func() hash.Hash, prk, info []byte, n int) []byte {
	var out, block []byte
	for i := byte(1); len(out) < n; i++ {
		block = mac(h, prk, block, info, []byte{i})
		out = append(out, block...)
	}
	return out[:n]
}

// handDeriveKeyPair is RFC 9180 section 7.1.3 for DHKEM(X25519, HKDF-SHA256),
// with the scalar clamped as SerializePrivateKey asks.
func handDeriveKeyPair(ikm []byte) []byte {
	suite := []byte{'K', 'E', 'M', 0x00, 0x20}
	prk := mac(sha256.New, nil, []byte("HPKE-v1"), suite, []byte("dkp_prk"), ikm)
	info := bytes.Join([][]byte{{0, 32}, []byte("HPKE-v1"), suite, []byte("sk")}, nil)
	sk := handExpand(sha256.New, prk, info, 32)
	sk[0] &= 248
	sk[31] = sk[31]&127 | 64
	return sk
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// compute fills in everything after the inputs of v.
func compute(t *testing.T, v vector) vector {
	t.Helper()
	info := handInfo(v)
	prk := mac(sha512.New, unhex(t, v.ClusterID), unhex(t, v.Root))
	okm := handExpand(sha512.New, prk, info, v.Length)
	key := okm
	var public []byte
	switch v.Purpose {
	case "x25519":
		key = handDeriveKeyPair(okm)
		fallthrough
	case "age":
		k, err := ecdh.X25519().NewPrivateKey(key)
		if err != nil {
			t.Fatal(err)
		}
		public = k.PublicKey().Bytes()
	case "ed25519":
		public = ed25519.NewKeyFromSeed(key).Public().(ed25519.PublicKey)
	}
	v.Info, v.PRK, v.OKM = hex.EncodeToString(info), hex.EncodeToString(prk), hex.EncodeToString(okm)
	v.Key, v.Public = hex.EncodeToString(key), hex.EncodeToString(public)
	return v
}

func readVectors(t *testing.T) []vector {
	t.Helper()
	raw, err := os.ReadFile(vectorFile)
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Description string   `json:"description"`
		Vectors     []vector `json:"vectors"`
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		t.Fatal(err)
	}
	if len(file.Vectors) < 12 {
		t.Fatalf("only %d vectors", len(file.Vectors))
	}
	return file.Vectors
}

func TestVectors(t *testing.T) {
	t.Parallel()
	if *writeVectors {
		writeVectorFile(t)
	}
	seen := map[string]bool{}
	for i, v := range readVectors(t) {
		want := compute(t, v)
		want.Recipient, want.AgeSecret, want.Comment = v.Recipient, v.AgeSecret, v.Comment
		if want != v {
			t.Errorf("vector %d (%s): the file has\n%+v\nthe independent computation\n%+v", i, v.Comment, v, want)
		}
		checkVector(t, i, v)
		seen[v.Purpose] = true
	}
	for _, p := range []string{"raw/1", "raw/32", "raw/64", "aes-256", "x25519", "ed25519", "age"} {
		if !seen[p] {
			t.Errorf("no vector of purpose %s", p)
		}
	}
}

// checkVector compares the package with one published case.
func checkVector(t *testing.T, i int, v vector) {
	t.Helper()
	root, err := secret.New(unhex(t, v.Root))
	if err != nil {
		t.Fatal(err)
	}
	purpose, err := ParsePurpose(v.Purpose)
	if err != nil {
		t.Fatal(err)
	}
	p := Params{Realm: Realm(v.Realm), Binding: Constraint(v.Constraint), Name: v.Name, Purpose: purpose, Counter: v.Counter}
	id := [32]byte(unhex(t, v.ClusterID))
	info, err := p.info()
	if err != nil || hex.EncodeToString(info) != v.Info {
		t.Errorf("vector %d: info %x %v", i, info, err)
	}
	key, err := Key(root, id, p)
	if err != nil || hex.EncodeToString(key.Reveal()) != v.Key {
		t.Errorf("vector %d: key differs, %v", i, err)
	}
	if !purpose.Asymmetric() {
		return
	}
	public, err := Public(root, id, p)
	if err != nil || hex.EncodeToString(public) != v.Public {
		t.Errorf("vector %d: public %x %v", i, public, err)
	}
	if purpose != Age {
		return
	}
	recipient, err := AgeRecipient(public)
	if err != nil || recipient.String() != v.Recipient {
		t.Errorf("vector %d: recipient %v %v", i, recipient, err)
	}
	identity, err := AgeIdentity(key)
	if err != nil || identity.String() != v.AgeSecret || identity.Recipient().String() != v.Recipient {
		t.Errorf("vector %d: identity differs, %v", i, err)
	}
}

func writeVectorFile(t *testing.T) {
	t.Helper()
	repeat := func(s string, n int) string { return string(bytes.Repeat([]byte(s), n)) }
	root := repeat("00", 31) + "01"
	id := repeat("c1", 32)
	c := "C:" + repeat("ab", 32) + " SEC:STALE"
	base := vector{Root: root, ClusterID: id, Realm: "sim", Constraint: c, Name: "db/main", Counter: 1}
	var list []vector
	add := func(comment, purpose string, length int, change func(*vector)) {
		v := base
		v.Comment, v.Purpose, v.Length = comment, purpose, length
		if change != nil {
			change(&v)
		}
		v = compute(t, v)
		if purpose == "age" {
			scalar, err := secret.New(unhex(t, v.Key))
			if err != nil {
				t.Fatal(err)
			}
			identity, err := AgeIdentity(scalar)
			if err != nil {
				t.Fatal(err)
			}
			v.AgeSecret, v.Recipient = identity.String(), identity.Recipient().String()
		}
		list = append(list, v)
	}
	add("smallest raw key", "raw/1", 1, nil)
	add("raw key", "raw/32", 32, nil)
	add("largest raw key, one block of SHA-512", "raw/64", 64, nil)
	add("symmetric key: other bytes than raw/32", "aes-256", 32, nil)
	add("HPKE DeriveKeyPair", "x25519", 32, nil)
	add("RFC 8032 seed", "ed25519", 32, nil)
	add("age identity", "age", 32, nil)
	add("hardware realm", "aes-256", 32, func(v *vector) { v.Realm = "hw" })
	add("hardware debug realm", "aes-256", 32, func(v *vector) { v.Realm = "hw-debug" })
	add("simulated debug realm", "aes-256", 32, func(v *vector) { v.Realm = "sim-debug" })
	add("second counter", "aes-256", 32, func(v *vector) { v.Counter = 2 })
	add("counter of eight bytes", "aes-256", 32, func(v *vector) { v.Counter = 1 << 40 })
	add("another name", "aes-256", 32, func(v *vector) { v.Name = "db/other" })
	add("another cluster", "aes-256", 32, func(v *vector) { v.ClusterID = repeat("c2", 32) })
	add("64-byte root", "age", 32, func(v *vector) { v.Root = repeat("5a", 64) })
	add("signer and product", "x25519", 32, func(v *vector) {
		v.Constraint = "S:" + repeat("49", 32) + " PROD:1 REVOKE:2 SEC:SECURE EXPIRE:P1M"
	})
	raw, err := json.MarshalIndent(map[string]any{
		"description": "Known answers of the key derivation, specified in kds/DESIGN.md. " +
			"Hexadecimal; info is the CBOR tuple, okm the HKDF output, key what the service releases.",
		"vectors": list,
	}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(vectorFile, append(raw, '\n'), 0o644); err != nil {
		t.Fatal(err)
	}
}
