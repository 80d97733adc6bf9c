package tcb

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

var signer = func() *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	return key
}()

// seal signs body as Intel does and wraps it.
func seal(t testing.TB, name, body string) []byte {
	t.Helper()
	digest := sha256.Sum256([]byte(body))
	r, s, err := ecdsa.Sign(rand.Reader, signer, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	var raw [64]byte
	r.FillBytes(raw[:32])
	s.FillBytes(raw[32:])
	return []byte(`{"` + name + `":` + body + `,"signature":"` + hex.EncodeToString(raw[:]) + `"}`)
}

// components encodes 16 SVNs, the first of which are given.
func components(svns ...byte) string {
	var list [16]string
	for i := range list {
		svn := byte(0)
		if i < len(svns) {
			svn = svns[i]
		}
		list[i] = fmt.Sprintf(`{"svn":%d}`, svn)
	}
	return "[" + strings.Join(list[:], ",") + "]"
}

const (
	zero48 = "000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000000"
	dates  = `"issueDate":"2026-01-01T00:00:00Z","nextUpdate":"2026-01-31T00:00:00Z"`
	common = dates + `,"fmspc":"50806f000000","pceId":"0000","tcbType":0,"tcbEvaluationDataNumber":17`
	module = `"mrsigner":"` + zero48 + `","attributes":"0000000000000000","attributesMask":"FFFFFFFFFFFFFFFF"`
)

var (
	sgxBody = `{"id":"SGX","version":3,` + common + `,"tcbLevels":[` +
		`{"tcb":{"sgxtcbcomponents":` + components(5, 5) + `,"pcesvn":11},"tcbDate":"2025-01-01T00:00:00Z","tcbStatus":"UpToDate"},` +
		`{"tcb":{"sgxtcbcomponents":` + components(4, 4) + `,"pcesvn":11},"tcbDate":"2024-01-01T00:00:00Z","tcbStatus":"OutOfDate","advisoryIDs":["INTEL-SA-00001"]}]}`
	tdxBody = `{"id":"TDX","version":3,` + common + `,"tdxModule":{` + module + `},"tdxModuleIdentities":[{"id":"TDX_03",` + module +
		`,"tcbLevels":[{"tcb":{"isvsvn":4},"tcbDate":"2025-06-01T00:00:00Z","tcbStatus":"UpToDate"},` +
		`{"tcb":{"isvsvn":2},"tcbDate":"2024-06-01T00:00:00Z","tcbStatus":"OutOfDate","advisoryIDs":["INTEL-SA-00002"]}]}],"tcbLevels":[` +
		`{"tcb":{"sgxtcbcomponents":` + components(5, 5) + `,"pcesvn":11,"tdxtcbcomponents":` + components(5, 0, 6) +
		`},"tcbDate":"2025-01-01T00:00:00Z","tcbStatus":"UpToDate"}]}`
	qeBody = `{"id":"QE","version":2,` + dates + `,"tcbEvaluationDataNumber":17,"miscselect":"00000000","miscselectMask":"FFFFFFFF",` +
		`"attributes":"11000000000000000000000000000000","attributesMask":"FBFFFFFFFFFFFFFF0000000000000000",` +
		`"mrsigner":"` + zero48[:60] + `abcd","isvprodid":1,"tcbLevels":[` +
		`{"tcb":{"isvsvn":8},"tcbDate":"2025-01-01T00:00:00Z","tcbStatus":"UpToDate"},` +
		`{"tcb":{"isvsvn":6},"tcbDate":"2024-01-01T00:00:00Z","tcbStatus":"OutOfDate"}]}`
	v2Body = `{"version":2,` + common + `,"tcbLevels":[{"tcb":{` + v2Components() + `"pcesvn":11},"tcbDate":"2025-01-01T00:00:00Z","tcbStatus":"SWHardeningNeeded"}]}`
)

func v2Components() (out string) {
	for i := 1; i <= 16; i++ {
		out += fmt.Sprintf(`"sgxtcbcomp%02dsvn":%d,`, i, i)
	}
	return out
}

func TestVerifyInfo(t *testing.T) {
	t.Parallel()
	info, err := VerifyInfo(seal(t, "tcbInfo", sgxBody), &signer.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if info.ID != SGX || info.Version != 3 || info.EvaluationNumber != 17 || info.FMSPC != [6]byte{0x50, 0x80, 0x6f} || len(info.Levels) != 2 ||
		info.Levels[0].Status != UpToDate || info.Levels[1].Advisories[0] != "INTEL-SA-00001" || info.Levels[1].SGX != [16]byte{4, 4} {
		t.Fatalf("%+v", info)
	}
	if info, err = VerifyInfo(seal(t, "tcbInfo", v2Body), &signer.PublicKey); err != nil {
		t.Fatal(err)
	}
	if info.ID != SGX || info.Version != 2 || info.Levels[0].SGX[15] != 16 || info.Levels[0].PCESVN != 11 {
		t.Fatalf("version 2: %+v", info)
	}
	if info, err = VerifyInfo(seal(t, "tcbInfo", tdxBody), &signer.PublicKey); err != nil {
		t.Fatal(err)
	}
	if info.ID != TDX || info.Module == nil || len(info.Modules) != 1 || info.Modules[0].Levels[1].ISVSVN != 2 || info.Levels[0].TDX != [16]byte{5, 0, 6} {
		t.Fatalf("TDX: %+v", info)
	}
	id, err := VerifyIdentity(seal(t, "enclaveIdentity", qeBody), &signer.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	if id.ID != QE || id.ISVProdID != 1 || id.Attributes[0] != 0x11 || len(id.Levels) != 2 || id.MRSigner[31] != 0xcd {
		t.Fatalf("%+v", id)
	}
}

// TestSignatureCoversRawBytes: any other bytes of the same meaning are not what was signed.
func TestSignatureCoversRawBytes(t *testing.T) {
	t.Parallel()
	good := string(seal(t, "tcbInfo", sgxBody))
	for name, changed := range map[string]string{
		"white space":      strings.Replace(good, `"version":3,`, `"version": 3,`, 1),
		"escaped key":      strings.Replace(good, `"tcbType"`, `"tcb\u0054ype"`, 1),
		"status":           strings.Replace(good, `"OutOfDate"`, `"UpToDate"`, 1),
		"date":             strings.Replace(good, `2026-01-31`, `2036-01-31`, 1),
		"key order":        strings.Replace(good, `"id":"SGX","version":3,`, `"version":3,"id":"SGX",`, 1),
		"letter case":      strings.Replace(good, `50806f`, `50806F`, 1),
		"one signature":    good[:len(good)-3] + `0"}`,
		"zero signature":   good[:strings.Index(good, `"signature":"`)+13] + strings.Repeat("0", 128) + `"}`,
		"foreign document": string(seal(t, "tcbInfo", v2Body)[:0]) + strings.Replace(good, sgxBody, v2Body, 1),
	} {
		if changed == good {
			t.Errorf("%s: nothing changed", name)
		}
		if info, err := VerifyInfo([]byte(changed), &signer.PublicKey); !errors.Is(err, ErrSignature) || info != nil {
			t.Errorf("%s: got %v", name, err)
		}
	}
	// White space around the signed object is outside the signature and harmless.
	if _, err := VerifyInfo([]byte(" "+strings.Replace(good, `{"tcbInfo":`, `{ "tcbInfo" : `, 1)+"\n"), &signer.PublicKey); err != nil {
		t.Errorf("white space outside: %v", err)
	}
	other, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, key := range map[string]*ecdsa.PublicKey{"another key": &other.PublicKey, "no key": nil} {
		if info, err := VerifyInfo([]byte(good), key); !errors.Is(err, ErrSignature) || info != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestSignedFaults: documents that are signed and yet refused, because two readers could read them differently or because
// they say what this package does not understand.
func TestSignedFaults(t *testing.T) {
	t.Parallel()
	replace := func(body, old, with string) string {
		if strings.Count(body, old) == 0 {
			t.Fatalf("%q is not in the document", old)
		}
		return strings.Replace(body, old, with, 1)
	}
	for name, tc := range map[string]struct {
		body string
		want error
	}{
		"repeated key":           {replace(sgxBody, `"id":"SGX"`, `"id":"SGX","id":"TDX"`), ErrFormat},
		"repeated escaped key":   {replace(sgxBody, `"id":"SGX"`, `"id":"SGX","\u0069d":"SGX"`), ErrFormat},
		"repeated nested key":    {replace(sgxBody, `"pcesvn":11`, `"pcesvn":11,"pcesvn":0`), ErrFormat},
		"case variant of a key":  {replace(sgxBody, `"fmspc"`, `"FMSPC"`), ErrFormat},
		"case variant nested":    {replace(sgxBody, `"tcbStatus":"UpToDate"`, `"TcbStatus":"UpToDate"`), ErrFormat},
		"missing levels":         {replace(sgxBody, `"tcbLevels"`, `"levels"`), ErrFormat},
		"empty levels":           {sgxBody[:strings.Index(sgxBody, `"tcbLevels":[`)] + `"tcbLevels":[]}`, ErrFormat},
		"unknown status":         {replace(sgxBody, `"tcbStatus":"UpToDate"`, `"tcbStatus":"Fine"`), ErrFormat},
		"status in lower case":   {replace(sgxBody, `"tcbStatus":"UpToDate"`, `"tcbStatus":"upToDate"`), ErrFormat},
		"evaluated status":       {replace(sgxBody, `"tcbStatus":"UpToDate"`, `"tcbStatus":"TDRelaunchAdvised"`), ErrFormat},
		"levels of equal SVNs":   {replace(sgxBody, components(4, 4), components(5, 5)), ErrFormat},
		"15 components":          {replace(sgxBody, `{"svn":0},`, ``), ErrFormat},
		"17 components":          {replace(sgxBody, `{"svn":0},`, `{"svn":0},{"svn":0},`), ErrFormat},
		"SVN 256":                {replace(sgxBody, `{"svn":5}`, `{"svn":256}`), ErrFormat},
		"SVN -1":                 {replace(sgxBody, `{"svn":5}`, `{"svn":-1}`), ErrFormat},
		"SVN 5.0":                {replace(sgxBody, `{"svn":5}`, `{"svn":5.0}`), ErrFormat},
		"SVN as string":          {replace(sgxBody, `{"svn":5}`, `{"svn":"5"}`), ErrFormat},
		"PCESVN 65536":           {replace(sgxBody, `"pcesvn":11`, `"pcesvn":65536`), ErrFormat},
		"short FMSPC":            {replace(sgxBody, `50806f000000`, `50806f`), ErrFormat},
		"FMSPC no hex":           {replace(sgxBody, `50806f000000`, `50806g000000`), ErrFormat},
		"date without zone":      {replace(sgxBody, `2026-01-01T00:00:00Z`, `2026-01-01T00:00:00`), ErrFormat},
		"date with offset":       {replace(sgxBody, `2026-01-01T00:00:00Z`, `2026-01-01T00:00:00+01:00`), ErrFormat},
		"date of no month":       {replace(sgxBody, `2026-01-01T00:00:00Z`, `2026-13-01T00:00:00Z`), ErrFormat},
		"advisory not a string":  {replace(sgxBody, `["INTEL-SA-00001"]`, `[1]`), ErrFormat},
		"version 1":              {replace(sgxBody, `"version":3`, `"version":1`), ErrUnsupported},
		"version 4":              {replace(sgxBody, `"version":3`, `"version":4`), ErrUnsupported},
		"TCB type 1":             {replace(sgxBody, `"tcbType":0`, `"tcbType":1`), ErrUnsupported},
		"unknown id":             {replace(sgxBody, `"id":"SGX"`, `"id":"XGS"`), ErrUnsupported},
		"null id":                {replace(sgxBody, `"id":"SGX"`, `"id":null`), ErrFormat},
		"SGX with a module":      {replace(sgxBody, `"tcbType"`, `"tdxModule":{`+module+`},"tcbType"`), ErrFormat},
		"TDX without module":     {replace(tdxBody, `"tdxModule":`, `"other":`), ErrFormat},
		"TDX without components": {replace(tdxBody, `"tdxtcbcomponents"`, `"others"`), ErrFormat},
		"module identity twice": {replace(tdxBody, `"tdxModuleIdentities":[`, `"tdxModuleIdentities":[{"id":"tdx_03",`+module+
			`,"tcbLevels":[{"tcb":{"isvsvn":0},"tcbDate":"2025-06-01T00:00:00Z","tcbStatus":"UpToDate"}]},`), ErrFormat},
		"module status":      {replace(tdxBody, `"tcbStatus":"UpToDate"},{"tcb":{"isvsvn":2}`, `"tcbStatus":"SWHardeningNeeded"},{"tcb":{"isvsvn":2}`), ErrFormat},
		"module SVN 256":     {replace(tdxBody, `"isvsvn":4`, `"isvsvn":256`), ErrFormat},
		"no identities":      {tdxBody[:strings.Index(tdxBody, `"tdxModuleIdentities"`)] + `"tdxModuleIdentities":[],` + tdxBody[strings.Index(tdxBody, `"tcbLevels":[{"tcb":{"sgx`):], ErrFormat},
		"version 2 lost SVN": {replace(v2Body, `"sgxtcbcomp07svn"`, `"sgxtcbcomp7svn"`), ErrFormat},
	} {
		if info, err := VerifyInfo(seal(t, "tcbInfo", tc.body), &signer.PublicKey); !errors.Is(err, tc.want) || info != nil {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
	}
	for name, tc := range map[string]struct {
		body string
		want error
	}{
		"version 1":        {replace(qeBody, `"version":2`, `"version":1`), ErrUnsupported},
		"other enclave":    {replace(qeBody, `"id":"QE"`, `"id":"QVE"`), ErrUnsupported},
		"long MRSIGNER":    {replace(qeBody, `"mrsigner":"`, `"mrsigner":"0`), ErrFormat},
		"no MRSIGNER":      {replace(qeBody, `"mrsigner"`, `"mrSigner"`), ErrFormat},
		"short mask":       {replace(qeBody, `"miscselectMask":"FFFFFFFF"`, `"miscselectMask":"FF"`), ErrFormat},
		"product 65536":    {replace(qeBody, `"isvprodid":1`, `"isvprodid":65536`), ErrFormat},
		"repeated":         {replace(qeBody, `"isvprodid":1`, `"isvprodid":1,"isvprodid":2`), ErrFormat},
		"level without SV": {replace(qeBody, `"isvsvn":8`, `"svn":8`), ErrFormat},
	} {
		if id, err := VerifyIdentity(seal(t, "enclaveIdentity", tc.body), &signer.PublicKey); !errors.Is(err, tc.want) || id != nil {
			t.Errorf("identity, %s: got %v, want %v", name, err, tc.want)
		}
	}
}

func TestEnvelopeFaults(t *testing.T) {
	t.Parallel()
	good := string(seal(t, "tcbInfo", sgxBody))
	for name, raw := range map[string]string{
		"empty":               "",
		"null":                "null",
		"array":               "[" + good + "]",
		"identity":            string(seal(t, "enclaveIdentity", qeBody)),
		"extra key":           strings.Replace(good, `{"tcbInfo":`, `{"x":1,"tcbInfo":`, 1),
		"body twice":          strings.Replace(good, `{"tcbInfo":`, `{"tcbInfo":{},"tcbInfo":`, 1),
		"case variant":        strings.Replace(good, `{"tcbInfo":`, `{"tcbinfo":`, 1),
		"body is a string":    strings.Replace(good, sgxBody, `"x"`, 1),
		"no signature":        strings.Replace(good, `"signature"`, `"sign"`, 1),
		"short signature":     good[:len(good)-4] + `"}`,
		"signature no hex":    good[:len(good)-3] + `z"}`,
		"trailing text":       good + "x",
		"two documents":       good + good,
		"byte order mark":     "\ufeff" + good,
		"not UTF-8":           strings.Replace(good, "SGX", "S\xffX", 1),
		"control character":   strings.Replace(good, "SGX", "S\x01X", 1),
		"oversized":           good + strings.Repeat(" ", maxDocument),
		"deep":                strings.Repeat(`{"a":`, 100000)[:60000],
		"deep arrays":         strings.Repeat(`[`, 60000),
		"many values":         "[" + strings.Repeat("0,", 30000) + "0]",
		"many keys":           "{" + manyKeys(100) + "}",
		"unterminated string": `{"tcbInfo`,
		"unterminated escape": `{"tcbInfo\`,
		"bad escape":          `{"\q":1}`,
		"number with zero":    `{"a":01}`,
		"bare word":           `{"a":yes}`,
		"comma at the end":    `{"a":1,}`,
	} {
		if info, err := VerifyInfo([]byte(raw), &signer.PublicKey); !errors.Is(err, ErrFormat) || info != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for n := range good {
		if info, err := VerifyInfo([]byte(good[:n]), &signer.PublicKey); err == nil || info != nil {
			t.Fatalf("accepted %d of %d bytes", n, len(good))
		}
	}
}

func manyKeys(n int) string {
	keys := make([]string, n)
	for i := range keys {
		keys[i] = fmt.Sprintf(`"k%d":0`, i)
	}
	return strings.Join(keys, ",")
}

// TestUnknownKeysAreSigned: Intel may add keys; they are signed, known readers ignore them.
func TestUnknownKeysAreSigned(t *testing.T) {
	t.Parallel()
	body := strings.Replace(sgxBody, `"tcbType":0`, `"tcbType":0,"note":{"a":[true,false,null,-1.5e3,"\u00e9\n"]}`, 1)
	if _, err := VerifyInfo(seal(t, "tcbInfo", body), &signer.PublicKey); err != nil {
		t.Fatal(err)
	}
}

func TestValidity(t *testing.T) {
	t.Parallel()
	info, err := VerifyInfo(seal(t, "tcbInfo", sgxBody), &signer.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	id, err := VerifyIdentity(seal(t, "enclaveIdentity", qeBody), &signer.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	from, to := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2026, 1, 31, 0, 0, 0, 0, time.UTC)
	for _, tc := range []struct {
		at    time.Time
		grace time.Duration
		ok    bool
	}{
		{from, 0, true}, {to, 0, true}, {from.Add(-time.Second), 0, false}, {to.Add(time.Second), 0, false},
		{to.Add(time.Hour), time.Hour, true}, {to.Add(time.Hour + 1), time.Hour, false}, {from.Add(-time.Second), time.Hour, false},
	} {
		for name, err := range map[string]error{"info": info.CheckValidity(tc.at, tc.grace), "identity": id.CheckValidity(tc.at, tc.grace)} {
			if (err == nil) != tc.ok || err != nil && !errors.Is(err, ErrValidity) {
				t.Errorf("%s at %v, grace %v: %v", name, tc.at, tc.grace, err)
			}
		}
	}
}

// FuzzDecode: whatever the strict decoder accepts, the standard one accepts too.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{sgxBody, tdxBody, qeBody, `{"a":[1,-2.5e3,true,null,"\u00e9\\"]}`, `[[[[]]]]`, `{"a":1,"a":2}`, `"\ud800"`, `01`, ``} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := new(decoder).decode(raw)
		if err == nil && !json.Valid(raw) {
			t.Fatalf("accepted invalid JSON %q", raw)
		}
		if err == nil && len(v.text) > len(raw) {
			t.Fatal("a value longer than its document")
		}
	})
}

// FuzzDocuments reads bodies as if they had been signed: no panic, and nothing beside an error.
func FuzzDocuments(f *testing.F) {
	for _, seed := range []string{sgxBody, tdxBody, qeBody, v2Body} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, err := new(decoder).decode(raw)
		if err != nil {
			return
		}
		identity, identityErr := parseIdentity(v)
		if (identity == nil) != (identityErr != nil) {
			t.Fatal("an identity beside an error")
		}
		info, err := parseInfo(v)
		if (info == nil) != (err != nil) {
			t.Fatal("TCB info beside an error")
		}
		if err == nil {
			if len(info.Levels) == 0 || (info.ID == TDX) != (info.Module != nil) {
				t.Fatal("incomplete TCB info")
			}
			if _, err := Evaluate(info, &Identity{}, Platform{TD: &TD{TEETCBSVN2: new([16]byte)}}); err == nil && info.ID == SGX {
				t.Fatal("a TD was evaluated with TCB info for SGX")
			}
		}
	})
}

// TestMoreSignedFaults: members of the wrong type that are signed all the same.
func TestMoreSignedFaults(t *testing.T) {
	t.Parallel()
	for name, change := range map[string][2]string{
		"no version":              {`"version":3,`, ``},
		"version is a string":     {`"version":3`, `"version":"3"`},
		"no date":                 {`"issueDate":"2026-01-01T00:00:00Z",`, ``},
		"date without zero":       {`2026-01-01T00:00:00Z`, `2026-01-01T0:00:00Z`},
		"date with fraction":      {`2026-01-01T00:00:00Z`, `2026-01-01T00:00:00.0Z`},
		"date with a short hour":  {`2026-01-01T00:00:00Z`, `2026-01-01T0:00:00.0Z`},
		"advisories are a string": {`["INTEL-SA-00001"]`, `"INTEL-SA-00001"`},
		"advisory is a number":    {`["INTEL-SA-00001"]`, `[1]`},
		"advisory is empty":       {`["INTEL-SA-00001"]`, `[""]`},
		"number of 20 digits":     {`"version":3`, `"version":00000000000000000003`},
		"huge number":             {`"version":3`, `"version":30000000000000000000`},
	} {
		body := strings.Replace(sgxBody, change[0], change[1], 1)
		if body == sgxBody {
			t.Errorf("%s: nothing changed", name)
			continue
		}
		if info, err := VerifyInfo(seal(t, "tcbInfo", body), &signer.PublicKey); !errors.Is(err, ErrFormat) || info != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
