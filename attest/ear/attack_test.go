package ear

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"

	"github.com/claviger/claviger/attest"
)

func b64(raw string) string { return base64.RawURLEncoding.EncodeToString([]byte(raw)) }

// forge signs any header and payload with the cluster's own key: what a fault in the issuer, or another use of the key,
// could at worst produce.
func forge(s signer, header, payload string) string {
	input := b64(header) + "." + b64(payload)
	sig, _ := s.Sign([]byte(input))
	return input + "." + b64(string(sig))
}

// refuse demands an error and no result, whatever the caller says about the nonce.
func refuse(t *testing.T, name, token string, k Keys, at time.Time, want error) {
	t.Helper()
	if r, err := Verify(token, k, at, nonce); !errors.Is(err, want) || r != nil {
		t.Errorf("%s: %v, want %v", name, err, want)
	}
	if r, err := VerifyAnyNonce(token, k, at); err == nil && !errors.Is(want, ErrNonce) || err != nil && r != nil {
		t.Errorf("%s, any nonce: %v", name, err)
	}
}

// The header chooses nothing: not the algorithm, not the key, not the type.
func TestHeaderAttacks(t *testing.T) {
	t.Parallel()
	s, k := newSigner(1), keys(t, newSigner(1))
	token := must[string](t)(Issue(s, statement(t, sgxClaims(attest.StatusUpToDate), accepted)))
	parts := strings.Split(token, ".")
	raw, _ := base64.RawURLEncoding.DecodeString(parts[1])
	payload, kid := string(raw), k.keys[0].id
	good := `{"alg":"EdDSA","kid":"` + kid + `","typ":"eat+jwt"}`
	if forge(s, good, payload) != token {
		t.Fatal("the header is not what this test believes")
	}

	for _, alg := range []string{"none", "None", "NONE", ""} {
		header := strings.Replace(good, "EdDSA", alg, 1)
		refuse(t, "alg "+alg+", signed", forge(s, header, payload), k, now, ErrAlgorithm)
		refuse(t, "alg "+alg+", unsigned", b64(header)+"."+parts[1]+".", k, now, ErrMalformed)
		refuse(t, "alg "+alg+", any signature", b64(header)+"."+parts[1]+"."+parts[2], k, now, ErrAlgorithm)
	}
	// The public key as the secret of an HMAC: as bytes, and as the texts it is published in.
	jwk := string(must[[]byte](t)(json.Marshal(k.JWKs()[0])))
	for _, alg := range []string{"HS256", "HS384", "HS512"} {
		for _, secret := range []string{string(s.Public()), base64.RawURLEncoding.EncodeToString(s.Public()), jwk} {
			input := b64(strings.Replace(good, "EdDSA", alg, 1)) + "." + parts[1]
			mac := hmac.New(sha256.New, []byte(secret))
			mac.Write([]byte(input))
			refuse(t, alg+" with the public key", input+"."+b64(string(mac.Sum(nil))), k, now, ErrAlgorithm)
		}
	}
	signer := must[jose.Signer](t)(jose.NewSigner(jose.SigningKey{Algorithm: jose.HS256, Key: []byte(s.Public())}, new(jose.SignerOptions).WithType(tokenType)))
	jws := must[*jose.JSONWebSignature](t)(signer.Sign(raw))
	refuse(t, "HS256 by a library", must[string](t)(jws.CompactSerialize()), k, now, ErrAlgorithm)

	other := newSigner(66)
	otherID := keys(t, other).keys[0].id
	for name, tc := range map[string]struct {
		token string
		want  error
	}{
		"another cluster's token":     {forge(other, strings.Replace(good, kid, otherID, 1), payload), ErrKey},
		"another key under our kid":   {forge(other, good, payload), ErrSignature},
		"our key under another kid":   {forge(s, strings.Replace(good, kid, otherID, 1), payload), ErrKey},
		"no kid":                      {forge(s, `{"alg":"EdDSA","typ":"eat+jwt"}`, payload), ErrKey},
		"kid of a path":               {forge(s, strings.Replace(good, kid, "../../dev/null", 1), payload), ErrKey},
		"no typ":                      {forge(s, `{"alg":"EdDSA","kid":"`+kid+`"}`, payload), ErrType},
		"typ JWT":                     {forge(s, strings.Replace(good, "eat+jwt", "JWT", 1), payload), ErrType},
		"typ in capitals":             {forge(s, strings.Replace(good, "eat+jwt", "EAT+JWT", 1), payload), ErrType},
		"cty beside typ":              {forge(s, strings.Replace(good, `"alg"`, `"cty":"JWT","alg"`, 1), payload), ErrType},
		"embedded key":                {forge(other, strings.Replace(good, `"kid"`, `"jwk":`+string(must[[]byte](t)(json.Marshal(keys(t, other).JWKs()[0])))+`,"kid"`, 1), payload), ErrType},
		"key by URL":                  {forge(s, strings.Replace(good, `"alg"`, `"jku":"https://example.org/jwks.json","alg"`, 1), payload), ErrType},
		"critical parameter":          {forge(s, strings.Replace(good, `"alg"`, `"crit":["exp"],"alg"`, 1), payload), ErrType},
		"alg twice, the last is good": {forge(s, strings.Replace(good, `{`, `{"alg":"none",`, 1), payload), ErrMalformed},
		"blank in the header":         {forge(s, strings.Replace(good, `,`, `, `, 1), payload), ErrType},
		"payload not ours":            {parts[0] + "." + b64(strings.Replace(payload, `"iat"`, `"IAT"`, 1)) + "." + parts[2], ErrSignature},
	} {
		refuse(t, name, tc.token, k, now, tc.want)
	}
	refuse(t, "zero keys", token, Keys{}, now, ErrInput)
	refuse(t, "no time", token, k, time.Time{}, ErrInput)
}

// One token, one spelling.
func TestEncodingAttacks(t *testing.T) {
	t.Parallel()
	s, k := newSigner(1), keys(t, newSigner(1))
	token := must[string](t)(Issue(s, statement(t, sgxClaims(attest.StatusUpToDate), accepted)))
	parts := strings.Split(token, ".")
	trailing := func(part string) string { // the unused bits of the last character set
		const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
		last := strings.IndexByte(alphabet, part[len(part)-1])
		return part[:len(part)-1] + string(alphabet[last|1])
	}
	sig := trailing(parts[2]) // 64 bytes leave four unused bits
	if sig == parts[2] {
		t.Fatal("the attack changes nothing")
	}
	for name, bad := range map[string]string{
		"empty": "", "one part": parts[0], "two parts": parts[0] + "." + parts[1], "four parts": token + ".", "no payload": parts[0] + ".." + parts[2],
		"padding": token + "==", "line end": token + "\n", "line end inside": parts[0] + "." + parts[1][:9] + "\r\n" + parts[1][9:] + "." + parts[2],
		"blank": " " + token, "standard alphabet": strings.ReplaceAll(strings.ReplaceAll(token, "-", "+"), "_", "/") + "+", "unused bits": parts[0] + "." + parts[1] + "." + sig,
		"JSON form": `{"payload":"` + parts[1] + `","protected":"` + parts[0] + `","signature":"` + parts[2] + `"}`,
	} {
		refuse(t, name, bad, k, now, ErrMalformed)
	}
	refuse(t, "oversized", token+strings.Repeat("A", MaxToken), k, now, ErrTooLarge)
	for i := 0; i < len(token); i += 7 {
		flipped := []byte(token)
		flipped[i] ^= 1
		if r, err := VerifyAnyNonce(string(flipped), k, now); err == nil || r != nil {
			t.Fatalf("accepted with byte %d changed", i)
		}
	}
}

func TestTimeAndNonce(t *testing.T) {
	t.Parallel()
	s, k := newSigner(1), keys(t, newSigner(1))
	st := statement(t, sgxClaims(attest.StatusUpToDate), accepted)
	token := must[string](t)(Issue(s, st))
	for name, tc := range map[string]struct {
		at   time.Time
		want error
	}{
		"at issue": {now, nil}, "a slow clock": {now.Add(-Leeway), nil}, "last second": {st.Expires.Add(-time.Nanosecond), nil},
		"at expiry": {st.Expires, ErrExpired}, "long after": {now.AddDate(1, 0, 0), ErrExpired}, "too early": {now.Add(-Leeway - time.Second), ErrNotYetValid},
	} {
		if r, err := Verify(token, k, tc.at, nonce); !errors.Is(err, tc.want) || (r == nil) != (tc.want != nil) {
			t.Errorf("%s: %v", name, err)
		}
	}
	st.Nonce = nil
	without := must[string](t)(Issue(s, st))
	for name, tc := range map[string]struct {
		token string
		nonce []byte
		want  error
	}{
		"another": {token, []byte("a nonce of another party     "), ErrNonce}, "prefix": {token, nonce[:8], ErrNonce}, "none expected": {token, nil, ErrNonce},
		"none given": {without, nonce, ErrNonce}, "neither": {without, nil, nil}, "empty": {token, []byte{}, ErrInput}, "short": {token, nonce[:7], ErrInput},
		"long": {token, make([]byte, 65), ErrInput},
	} {
		if r, err := Verify(tc.token, k, now, tc.nonce); !errors.Is(err, tc.want) || (r == nil) != (tc.want != nil) {
			t.Errorf("%s: %v, want %v", name, err, tc.want)
		}
	}
}

// Payloads that the key did sign, and that are refused all the same.
func TestPayloadAttacks(t *testing.T) {
	t.Parallel()
	s, k := newSigner(1), keys(t, newSigner(1))
	token := must[string](t)(Issue(s, statement(t, sgxClaims(attest.StatusUpToDate), accepted)))
	parts := strings.Split(token, ".")
	raw, _ := base64.RawURLEncoding.DecodeString(parts[1])
	header, _ := base64.RawURLEncoding.DecodeString(parts[0])
	good := string(raw)
	edits := map[string]struct {
		from, to string
		want     error
	}{
		"profile of another draft": {"rats/ear#04", "rats/ear#03", ErrMalformed},
		"no profile":               {`"eat_profile"`, `"eat_Profile"`, ErrMalformed},
		"no exp":                   {`"exp"`, `"Exp"`, ErrMalformed},
		"exp null":                 {`"exp":1772367000`, `"exp":null`, ErrMalformed},
		"exp as a float":           {`"exp":1772367000`, `"exp":1772367000.5`, ErrMalformed},
		"exp with an exponent":     {`"exp":1772367000`, `"exp":2e9`, ErrMalformed},
		"exp as text":              {`"exp":1772367000`, `"exp":"1772367000"`, ErrMalformed},
		"exp beyond the limit":     {`"exp":1772367000`, `"exp":1772967000`, ErrMalformed},
		"exp far off":              {`"exp":1772367000`, `"exp":9223372036854775807`, ErrMalformed},
		"exp before nbf":           {`"exp":1772367000`, `"exp":1772366400`, ErrMalformed},
		"no nbf":                   {`"nbf"`, `"NBF"`, ErrMalformed},
		"no iat":                   {`"iat"`, `"iAt"`, ErrMalformed},
		"no issuer":                {`"iss"`, `"ISS"`, ErrMalformed},
		"empty issuer":             {`"iss":"urn:claviger:cluster:00"`, `"iss":""`, ErrMalformed},
		"exp twice":                {`"exp":`, `"exp":1772367001,"exp":`, ErrMalformed},
		"status twice below":       {`"ear_status":"affirming","ear_trust`, `"ear_status":"affirming","ear_status":"none","ear_trust`, ErrMalformed},
		"nonce null":               {`"eat_nonce":"YSBu`, `"eat_nonce":null,"x":"YSBu`, ErrMalformed},
		"nonce without padding":    {`cGFydHk="`, `cGFydHk"`, ErrMalformed},
		"two submodules":           {`"submods":{`, `"submods":{"tdx":{},`, ErrMalformed},
		"no submodule":             {`"submods":{"sgx"`, `"submods":{},"x":{"sgx"`, ErrMalformed},
		"label of another kind":    {`"submods":{"sgx"`, `"submods":{"tdx"`, ErrInconsistent},
		"unverified, affirming":    {`"submods":{"sgx"`, `"submods":{"evidence"`, ErrInconsistent},
		"no vector":                {`"ear_trustworthiness_vector"`, `"ear_vector"`, ErrMalformed},
		"vector contraindicates":   {`"hardware":2`, `"hardware":96`, ErrInconsistent},
		"vector warns":             {`"hardware":2`, `"hardware":32`, ErrInconsistent},
		"unknown claim refuses":    {`"hardware":2`, `"later":99,"hardware":2`, ErrMalformed},
		"status only on top":       {`"sgx":{"ear_status":"affirming"`, `"sgx":{"ear_status":"none"`, ErrInconsistent},
		"status unknown":           {`"sgx":{"ear_status":"affirming"`, `"sgx":{"ear_status":"excellent"`, ErrMalformed},
		"status as a number":       {`"sgx":{"ear_status":"affirming"`, `"sgx":{"ear_status":2`, ErrMalformed},
		"no policy":                {`"ear_appraisal_policy_ids"`, `"ear_policies"`, ErrInconsistent},
		"empty policy":             {`["urn:test:policy"]`, `[""]`, ErrMalformed},
		"verdict refuses":          {`"ok":true`, `"ok":false`, ErrInconsistent},
		"no verdict":               {ClaimVerdict, "x", ErrMalformed},
		"no claims":                {ClaimClaims, "x", ErrInconsistent},
		"claims null":              {`"` + ClaimClaims + `":{`, `"` + ClaimClaims + `":null,"x":{`, ErrMalformed},
		"debug, affirming":         {`"debug":false`, `"debug":true`, ErrInconsistent},
		"debug missing":            {`"debug":false`, `"Debug":false`, ErrMalformed},
		"measurement cut":          {`"mrenclave":"e1`, `"mrenclave":"`, ErrMalformed},
		"measurement in capitals":  {`"mrenclave":"e1`, `"mrenclave":"E1`, ErrMalformed},
		"nonce of other evidence":  {`"ear_verifier_claims"`, `"eat_nonce":"AAAAAAAAAAA=","ear_verifier_claims"`, ErrInconsistent},
		"nested":                   {`"nbf"`, `"x":` + strings.Repeat("[", 40) + strings.Repeat("]", 40) + `,"nbf"`, ErrMalformed},
	}
	for name, e := range edits {
		bad := strings.Replace(good, e.from, e.to, 1)
		if bad == good {
			t.Errorf("%s: the attack changes nothing", name)
			continue
		}
		refuse(t, name, forge(s, string(header), bad), k, now, e.want)
	}
	for name, bad := range map[string]string{"trailing": good + "{}", "array": "[" + good + "]", "null": "null", "text": "x"} {
		refuse(t, name, forge(s, string(header), bad), k, now, ErrMalformed)
	}
	// EAR: a receiver must ignore claims it does not know.
	later := strings.Replace(good, `"nbf"`, `"ear_device_topology":{"a":["b"]},"nbf"`, 1)
	if r, err := Verify(forge(s, string(header), later), k, now, nonce); err != nil || !r.Affirms(accepted.ID) {
		t.Errorf("a claim of a later draft: %v", err)
	}
}

// The same for claims about a TD.
func TestPayloadAttacksTDX(t *testing.T) {
	t.Parallel()
	s, k := newSigner(1), keys(t, newSigner(1))
	token := must[string](t)(Issue(s, statement(t, tdxClaims(attest.StatusUpToDate), accepted)))
	parts := strings.Split(token, ".")
	raw, _ := base64.RawURLEncoding.DecodeString(parts[1])
	header, _ := base64.RawURLEncoding.DecodeString(parts[0])
	zeros := strings.Repeat("00", 48)
	for name, e := range map[string]struct{ from, to string }{
		"no MRTD":            {`"mrtd"`, `"MRTD"`},
		"three RTMRs":        {`"rtmr":["` + zeros + `",`, `"rtmr":[`},
		"five RTMRs":         {`"rtmr":[`, `"rtmr":["` + zeros + `",`},
		"RTMR cut":           {`"rtmr":["00`, `"rtmr":["`},
		"no attributes":      {`"td_attributes"`, `"attributes"`},
		"no report":          {`"tdx":{"mr`, `"x":{"mr`},
		"two reports":        {`"tee":"tdx"`, `"sgx":{},"tee":"tdx"`},
		"no platform":        {`"platform":{"ca"`, `"x":{"ca"`},
		"platform not an id": {`"platform":{`, `"platform":{"id":"00","x":{`},
		"no root":            {`"root":{`, `"x":{`},
		"root not said":      {`"simulated":false`, `"x":false`},
		"no TCB":             {`"tcb":{`, `"x":{`},
		"TEE unknown":        {`"tee":"tdx"`, `"tee":"sev"`},
	} {
		bad := strings.Replace(string(raw), e.from, e.to, 1)
		if bad == string(raw) {
			t.Errorf("%s: the attack changes nothing", name)
		}
		refuse(t, name, forge(s, string(header), bad), k, now, ErrMalformed)
	}
}

// A debug enclave never gets a result that a production enclave could have.
func TestDebugPresentedAsProduction(t *testing.T) {
	t.Parallel()
	s, k := newSigner(1), keys(t, newSigner(1))
	c := sgxClaims(attest.StatusUpToDate)
	c.Debug = true
	c.SGX.Attributes[0] |= 2
	st := statement(t, c, accepted) // the policy is one for debug enclaves, or at fault
	r := must[*Result](t)(Verify(must[string](t)(Issue(s, st)), k, now, nonce))
	if r.Affirms(accepted.ID) || r.Appraisal.Status != Contraindicated || !r.Evidence.Debug || r.Appraisal.Vector.RuntimeOpaque != 96 {
		t.Errorf("%+v", r.Appraisal)
	}
	st.Appraisal.Status = Affirming
	if token, err := Issue(s, st); !errors.Is(err, ErrInconsistent) || token != "" {
		t.Errorf("issued: %v", err)
	}
	st.Appraisal.Vector = Vector{Hardware: 2, Configuration: 3, Executables: 3, RuntimeOpaque: 2}
	if token, err := Issue(s, st); !errors.Is(err, ErrInconsistent) || token != "" {
		t.Errorf("issued with a clean vector: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	s := newSigner(1)
	k, _ := NewKeys(s.Public())
	for _, c := range []attest.Claims{sgxClaims(attest.StatusUpToDate), tdxClaims(attest.StatusOutOfDate)} {
		a, _ := Appraise(c, accepted)
		token, err := Issue(s, Statement{Issuer: "i", Verifier: VerifierID{"d", "b"}, IssuedAt: now, Expires: now.Add(time.Hour), Nonce: nonce, Appraisal: a})
		if err != nil {
			f.Fatal(err)
		}
		payload, _ := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
		f.Add(payload)
	}
	header, _ := base64.RawURLEncoding.DecodeString(k.keys[0].header)
	// Everything behind the signature: what is accepted must be consistent, and must sign and verify again to the same.
	f.Fuzz(func(t *testing.T, payload []byte) {
		r, err := VerifyAnyNonce(forge(s, string(header), string(payload)), k, now)
		if err != nil {
			if r != nil {
				t.Fatal("a result beside an error")
			}
			return
		}
		again, err := Issue(s, Statement{Issuer: r.Issuer, Verifier: r.Verifier, IssuedAt: r.IssuedAt, Expires: r.Expires, Nonce: r.Nonce, Appraisal: r.Appraisal})
		if err != nil {
			t.Fatal(err)
		}
		if back, err := VerifyAnyNonce(again, k, now); err != nil || back.Appraisal.Status != r.Appraisal.Status || back.Appraisal.Vector != r.Appraisal.Vector {
			t.Fatalf("%v", err)
		}
	})
}
