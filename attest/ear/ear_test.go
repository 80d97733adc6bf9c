package ear

import (
	"bytes"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/claviger/claviger/attest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var nonce = []byte("a nonce of this relying party")

// signer holds a key as the service's identity key is held.
type signer struct{ key ed25519.PrivateKey }

func newSigner(seed byte) signer {
	return signer{ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))}
}

func (s signer) Public() ed25519.PublicKey           { return s.key.Public().(ed25519.PublicKey) }
func (s signer) Sign(message []byte) ([]byte, error) { return ed25519.Sign(s.key, message), nil }

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

var accepted = Policy{ID: "urn:test:policy", Accepted: true, Executables: ApprovedAtBoot}

// sgxClaims are claims as a verifier under Intel's root makes them.
func sgxClaims(status attest.Status) attest.Claims {
	c := attest.Claims{
		TEE: attest.SGX, QuoteVersion: 3, Root: attest.IntelRoot(), ReportData: [64]byte{1, 2},
		SGX: &attest.SGXClaims{MREnclave: [32]byte{0xe1}, MRSigner: [32]byte{0x51}, ISVProdID: 7, ISVSVN: 3},
	}
	c.SGX.Attributes[0] = 0x05
	c.TCB.Status = status
	c.Platform.PPID = [16]byte{0xab, 0xcd, 0xef}
	return c
}

func tdxClaims(status attest.Status) attest.Claims {
	c := sgxClaims(status)
	c.TEE, c.QuoteVersion, c.SGX = attest.TDX, 4, nil
	c.TDX = &attest.TDXClaims{MRTD: [48]byte{0x7d}}
	c.TDX.RTMR[2] = [48]byte{0x72}
	c.TDX.TDAttributes[3] = 0x10 // SEPT_VE_DISABLE
	return c
}

func statement(t testing.TB, c attest.Claims, p Policy) Statement {
	t.Helper()
	return Statement{
		Issuer: "urn:claviger:cluster:00", Verifier: VerifierID{"developer", "build 1"}, IssuedAt: now, Expires: now.Add(DefaultLifetime),
		Nonce: nonce, Appraisal: must[Appraisal](t)(Appraise(c, p)),
	}
}

func keys(t testing.TB, signers ...signer) Keys {
	t.Helper()
	var out []ed25519.PublicKey
	for _, s := range signers {
		out = append(out, s.Public())
	}
	return must[Keys](t)(NewKeys(out...))
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	s := newSigner(1)
	for name, c := range map[string]attest.Claims{LabelSGX: sgxClaims(attest.StatusUpToDate), LabelTDX: tdxClaims(attest.StatusUpToDate)} {
		st := statement(t, c, accepted)
		st.Appraisal.EvidenceNonce = c.ReportData[:]
		st.Appraisal.Verdict.Epoch = 9
		token := must[string](t)(Issue(s, st))
		r := must[*Result](t)(Verify(token, keys(t, newSigner(2), s), now, nonce))
		if !r.Affirms(accepted.ID) || r.Affirms("") || r.Affirms("urn:test:other") || r.Appraisal.Label != name || r.Issuer != st.Issuer || r.Verifier != st.Verifier || r.Appraisal.Verdict.Epoch != 9 {
			t.Errorf("%s: %+v", name, r)
		}
		if !r.IssuedAt.Equal(now) || !r.Expires.Equal(now.Add(DefaultLifetime)) || !bytes.Equal(r.Nonce, nonce) {
			t.Errorf("%s: %s %s %q", name, r.IssuedAt, r.Expires, r.Nonce)
		}
		if r.Appraisal.Vector != st.Appraisal.Vector || r.Appraisal.PolicyIDs[0] != accepted.ID {
			t.Errorf("%s: %+v", name, r.Appraisal)
		}
		e := r.Evidence
		if string(e.TEE) != name || e.Debug || e.Simulated || e.Root != attest.IntelRoot().ID() || e.ReportData != c.ReportData || e.Platform != c.Platform.ID() {
			t.Errorf("%s: %+v", name, e)
		}
		if name == LabelSGX && *e.SGX != (SGXEvidence{c.SGX.MREnclave, c.SGX.MRSigner, 7, 3}) {
			t.Errorf("%+v", e.SGX)
		}
		if name == LabelTDX && *e.TDX != (TDXEvidence{c.TDX.MRTD, c.TDX.RTMR, c.TDX.TDAttributes}) {
			t.Errorf("%+v", e.TDX)
		}
		if strings.Contains(string(r.Appraisal.Claims), "abcdef") || strings.Contains(string(r.Appraisal.Claims), "ppid") {
			t.Errorf("%s: the result shows the PPID", name)
		}
		if _, err := VerifyAnyNonce(token, keys(t, s), now); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The claims set has the names and forms of the draft, read by a library that knows nothing of ours.
func TestGenericLibraryReads(t *testing.T) {
	t.Parallel()
	s := newSigner(1)
	token := must[string](t)(Issue(s, statement(t, sgxClaims(attest.StatusOutOfDate), accepted)))
	var set jose.JSONWebKeySet
	raw := must[[]byte](t)(json.Marshal(map[string]any{"keys": keys(t, s).JWKs()}))
	if err := json.Unmarshal(raw, &set); err != nil || len(set.Keys) != 1 || !set.Keys[0].Valid() || !set.Keys[0].IsPublic() {
		t.Fatalf("%s: %v", raw, err)
	}
	parsed := must[*jwt.JSONWebToken](t)(jwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA}))
	var standard jwt.Claims
	var claims map[string]any
	if err := parsed.Claims(&set, &standard, &claims); err != nil {
		t.Fatal(err)
	}
	if err := standard.ValidateWithLeeway(jwt.Expected{Issuer: "urn:claviger:cluster:00", Time: now}, 0); err != nil {
		t.Error(err)
	}
	if parsed.Headers[0].KeyID != set.Keys[0].KeyID || parsed.Headers[0].ExtraHeaders[jose.HeaderType] != "eat+jwt" {
		t.Errorf("header %+v", parsed.Headers[0])
	}
	sub, _ := claims["submods"].(map[string]any)["sgx"].(map[string]any)
	vector, _ := sub["ear_trustworthiness_vector"].(map[string]any)
	if claims["eat_profile"] != "tag:ietf.org,2026:rats/ear#04" || claims["ear_status"] != "warning" || sub["ear_status"] != "warning" ||
		vector["hardware"] != 32. || vector["executables"] != 3. || vector["runtime-opaque"] != 2. || len(vector) != 3 ||
		claims["ear_verifier_id"].(map[string]any)["build"] != "build 1" || claims["eat_nonce"] != "YSBub25jZSBvZiB0aGlzIHJlbHlpbmcgcGFydHk=" {
		t.Errorf("%v", claims)
	}
}

// What the identity key signs otherwise is CBOR arrays; no such message begins like the signing input of a token.
func TestSigningInputIsNoStatement(t *testing.T) {
	t.Parallel()
	spy := &spySigner{signer: newSigner(1)}
	if _, err := Issue(spy, statement(t, sgxClaims(attest.StatusUpToDate), accepted)); err != nil {
		t.Fatal(err)
	}
	if !bytes.HasPrefix(spy.message, []byte("eyJ")) || spy.message[0] >= 0x80 {
		t.Errorf("signed %.20q", spy.message)
	}
}

type spySigner struct {
	signer
	message []byte
	fault   func([]byte) ([]byte, error)
}

func (s *spySigner) Sign(message []byte) ([]byte, error) {
	s.message = bytes.Clone(message)
	sig, err := s.signer.Sign(message)
	if s.fault != nil {
		return s.fault(sig)
	}
	return sig, err
}

func TestIssueRefuses(t *testing.T) {
	t.Parallel()
	for name, tc := range map[string]struct {
		change func(*Statement)
		want   error
	}{
		"zero":                 {func(s *Statement) { *s = Statement{} }, ErrInput},
		"no issuer":            {func(s *Statement) { s.Issuer = "" }, ErrInput},
		"long build":           {func(s *Statement) { s.Verifier.Build = strings.Repeat("b", maxText+1) }, ErrInput},
		"no time":              {func(s *Statement) { s.IssuedAt = time.Time{} }, ErrInput},
		"over at once":         {func(s *Statement) { s.Expires = s.IssuedAt }, ErrInput},
		"too long":             {func(s *Statement) { s.Expires = s.IssuedAt.Add(MaxLifetime + time.Second) }, ErrInput},
		"short nonce":          {func(s *Statement) { s.Nonce = make([]byte, 7) }, ErrInput},
		"empty nonce":          {func(s *Statement) { s.Nonce = []byte{} }, ErrInput},
		"long nonce":           {func(s *Statement) { s.Nonce = make([]byte, 65) }, ErrInput},
		"better than vector":   {func(s *Statement) { s.Appraisal.Vector.Hardware = 96 }, ErrInconsistent},
		"none over a warning":  {func(s *Statement) { s.Appraisal.Vector.Hardware, s.Appraisal.Status = 32, None }, ErrInconsistent},
		"no such status":       {func(s *Statement) { s.Appraisal.Status = 3 }, ErrInconsistent},
		"affirms without":      {func(s *Statement) { s.Appraisal.PolicyIDs = nil }, ErrInconsistent},
		"affirms with failure": {func(s *Statement) { s.Appraisal.Verdict.Failures = []Failure{{Clause: "C"}} }, ErrInconsistent},
		"affirms refused":      {func(s *Statement) { s.Appraisal.Verdict.OK = false }, ErrInconsistent},
		"affirms unverified":   {func(s *Statement) { s.Appraisal.Label, s.Appraisal.Claims = LabelUnverified, nil }, ErrInconsistent},
		"no claims":            {func(s *Statement) { s.Appraisal.Claims = nil }, ErrInconsistent},
		"unknown label":        {func(s *Statement) { s.Appraisal.Label = "sev" }, ErrMalformed},
		"nameless policy":      {func(s *Statement) { s.Appraisal.PolicyIDs = []string{""} }, ErrMalformed},
		"oversized":            {func(s *Statement) { s.Appraisal.Verdict.Constraint = strings.Repeat("c", MaxToken) }, ErrTooLarge},
	} {
		st := statement(t, sgxClaims(attest.StatusUpToDate), accepted)
		tc.change(&st)
		if token, err := Issue(newSigner(1), st); !errors.Is(err, tc.want) || token != "" && !errors.Is(err, ErrTooLarge) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
	good := statement(t, sgxClaims(attest.StatusUpToDate), accepted)
	if token, err := Issue(nil, good); !errors.Is(err, ErrInput) || token != "" {
		t.Errorf("no signer: %v", err)
	}
	// A signer that a fault hits must not leak its fault: Ed25519 signatures with an error in them can reveal the key.
	for name, fault := range map[string]func([]byte) ([]byte, error){
		"flipped": func(sig []byte) ([]byte, error) { sig[40] ^= 1; return sig, nil },
		"short":   func(sig []byte) ([]byte, error) { return sig[:63], nil },
	} {
		if token, err := Issue(&spySigner{signer: newSigner(1), fault: fault}, good); !errors.Is(err, ErrSignature) || token != "" {
			t.Errorf("%s signature: %v", name, err)
		}
	}
	broken := errors.New("broken")
	if _, err := Issue(&spySigner{signer: newSigner(1), fault: func([]byte) ([]byte, error) { return nil, broken }}, good); !errors.Is(err, broken) {
		t.Errorf("failing signer: %v", err)
	}
}

func TestKeys(t *testing.T) {
	t.Parallel()
	one, two := newSigner(1), newSigner(2)
	both := keys(t, one, two)
	raw := must[[]byte](t)(json.Marshal(map[string]any{"keys": both.JWKs()}))
	back := must[Keys](t)(ParseKeys(raw))
	for _, s := range []signer{one, two} {
		if _, err := Verify(must[string](t)(Issue(s, statement(t, sgxClaims(attest.StatusUpToDate), accepted))), back, now, nonce); err != nil {
			t.Error(err)
		}
	}
	// RFC 8037, appendix A.3: the thumbprint of its example key.
	rfc := must[Keys](t)(ParseKeys([]byte(`{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo",` +
		`"kid":"kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k","alg":"EdDSA","use":"sig"}]}`)))
	if id, err := KeyID(rfc.keys[0].key); err != nil || id != "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k" {
		t.Errorf("thumbprint %s %v", id, err)
	}
	text := string(raw)
	for name, bad := range map[string]string{
		"empty": "", "no keys": `{"keys":[]}`, "null": "null", "array": "[]", "trailing": text + "{}",
		"repeated key":  strings.Replace(text, `{"keys":[`, `{"keys":[],"keys":[`, 1),
		"unknown":       strings.Replace(text, `"kty"`, `"d":"AA","kty"`, 1),
		"other type":    strings.Replace(text, `OKP`, `oct`, 1),
		"other curve":   strings.Replace(text, `Ed25519`, `X25519`, 1),
		"other alg":     strings.Replace(text, `EdDSA`, `HS256`, 1),
		"other use":     strings.Replace(text, `"use":"sig"`, `"use":"enc"`, 1),
		"other kid":     strings.Replace(text, both.keys[0].id, both.keys[1].id, 1),
		"short x":       strings.Replace(text, `"x":"`, `"x":"A`, 1),
		"the same keys": string(must[[]byte](t)(json.Marshal(map[string]any{"keys": append(keys(t, one).JWKs(), keys(t, one).JWKs()...)}))),
	} {
		if k, err := ParseKeys([]byte(bad)); err == nil || !k.IsZero() {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := ParseKeys(make([]byte, MaxKeySet+1)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("oversized: %v", err)
	}
	for name, list := range map[string][]ed25519.PublicKey{
		"none": nil, "nil key": {nil}, "short": {make([]byte, 31)}, "low order": {make([]byte, 32)}, "twice": {one.Public(), one.Public()}, "many": make([]ed25519.PublicKey, MaxKeys+1),
	} {
		if k, err := NewKeys(list...); !errors.Is(err, ErrInput) || !k.IsZero() {
			t.Errorf("%s: %v", name, err)
		}
	}
}
