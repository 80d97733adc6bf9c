package attest_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
)

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	p384, err := ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, root := range map[string]attest.Root{
		"zero":       {},
		"no key":     {Name: "intel"},
		"empty key":  attest.SimulatedRoot(&ecdsa.PublicKey{}),
		"no point":   attest.SimulatedRoot(&ecdsa.PublicKey{Curve: elliptic.P256()}),
		"P-384":      attest.SimulatedRoot(&p384.PublicKey),
		"nil of sim": attest.SimulatedRoot(nil),
	} {
		if v, err := attest.NewVerifier(attest.Config{Root: root}); !errors.Is(err, attest.ErrConfig) || v != nil {
			t.Errorf("%s: %v", name, err)
		}
		if root.ID() != [32]byte{} {
			t.Errorf("%s: has an id", name)
		}
	}
}

func TestIntelRoot(t *testing.T) {
	t.Parallel()
	root := attest.IntelRoot()
	if root.Name != "intel" || root.Simulated || root.ID() == [32]byte{} || root.ID() != attest.IntelRoot().ID() {
		t.Fatalf("%+v", root)
	}
	// What a caller does to a returned root must not reach the verifier.
	v := intelVerifier(t)
	*v.Root().Key = ecdsa.PublicKey{}
	if v.Root().ID() != root.ID() {
		t.Fatal("the verifier's root was changed from outside")
	}
}

func TestParseRefused(t *testing.T) {
	t.Parallel()
	raw, _ := realEvidence(t)
	for n := range raw {
		if q, err := attest.Parse(raw[:n]); err == nil || q != nil {
			t.Fatalf("accepted %d of %d bytes", n, len(raw))
		}
	}
	with := func(at int, b byte) []byte {
		c := bytes.Clone(raw)
		c[at] = b
		return c
	}
	for name, tc := range map[string]struct {
		raw  []byte
		want error
	}{
		"nil":              {nil, attest.ErrUnsupported},
		"trailing byte":    {append(bytes.Clone(raw), 0), tdx.ErrTrailing},
		"oversized":        {make([]byte, attest.MaxQuote+1), attest.ErrUnsupported},
		"version 2":        {with(0, 2), attest.ErrUnsupported},
		"version 6":        {with(0, 6), attest.ErrUnsupported},
		"version 4 as 3":   {with(0, 3), sgx.ErrTEEType},
		"version 4 as 5":   {with(0, 5), tdx.ErrBodyType},
		"SGX in version 4": {with(4, 0), tdx.ErrTEEType},
		"key type":         {with(2, 3), tdx.ErrKeyType},
	} {
		q, err := attest.Parse(tc.raw)
		if !errors.Is(err, tc.want) || q != nil {
			t.Errorf("%s: got %v, want %v", name, err, tc.want)
		}
		checkStage(t, name, nil, err, attest.StageParse)
	}
}

func TestQuoteSize(t *testing.T) {
	t.Parallel()
	raw, _ := realEvidence(t)
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	inSGX := sgxQuote(t, m, report).Append(nil)
	q, err := tdx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	q.Header.Version, q.BodyType, q.Body15 = 5, tdx.BodyTD15, new(tdx.Body15)
	for name, good := range map[string][]byte{"version 3": inSGX, "version 4": raw, "version 5": q.Append(nil)} {
		size, err := attest.QuoteSize(append(bytes.Clone(good), make([]byte, 100)...))
		if err != nil || size != len(good) {
			t.Errorf("%s: %d, %v; want %d", name, size, err, len(good))
		}
		for n := range good {
			if size, err := attest.QuoteSize(good[:n]); err == nil || size != 0 {
				t.Fatalf("%s: size of %d bytes is %d", name, n, size)
			}
		}
	}
	if _, err := attest.QuoteSize(bytes.Repeat([]byte{0xff}, 1000)); err == nil {
		t.Error("size of noise")
	}
}

func TestPlatformOfRefused(t *testing.T) {
	t.Parallel()
	if _, err := attest.PlatformOf(nil); !errors.Is(err, attest.ErrInput) {
		t.Errorf("nil: %v", err)
	}
	w := newWorld(t, 1)
	q := sgxQuote(t, w.machine(t, simpki.PlatformConfig{Name: "a"}), report)
	q.Auth.CertData = []byte("none")
	p, err := attest.PlatformOf(mustParse(t, q.Append(nil)))
	checkStage(t, "no chain", nil, err, attest.StageChain)
	if p != (attest.Platform{}) {
		t.Errorf("a platform beside an error: %+v", p)
	}
}

func TestZeroVerified(t *testing.T) {
	t.Parallel()
	for _, v := range []*attest.Verified{nil, {}} {
		if c := v.Claims(); c.TEE != "" || c.TCB.Status != "" || c.SGX != nil || c.TDX != nil || c.Root.Key != nil {
			t.Errorf("zero Verified claims %+v", c)
		}
	}
}

// TestClaimsAreCopies: policy and audit see what was verified, whatever a caller did to an earlier copy or to the input.
func TestClaimsAreCopies(t *testing.T) {
	t.Parallel()
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a", TCB: attest.StatusOutOfDate})
	raw, err := m.QuoteTDX(tdx.Body{MRTD: [48]byte{1}, ReportData: [64]byte{2}})
	if err != nil {
		t.Fatal(err)
	}
	q := mustParse(t, raw)
	clear(raw)
	verified, err := w.verifier.Verify(q, w.collateral(t, attest.TDX, m.FMSPC()), simNow)
	if err != nil {
		t.Fatal(err)
	}
	before := fmt.Sprintf("%+v %+v %+v", verified.Claims().TCB.Advisories, *verified.Claims().TDX, *verified.Claims().TCB.Module)
	if len(verified.Claims().TCB.Advisories) == 0 {
		t.Fatal("the test needs advisories")
	}
	c := verified.Claims()
	c.TDX.MRTD[0]++
	c.TCB.Advisories[0] = "x"
	c.TCB.Module.Status = "x"
	*c.Root.Key = ecdsa.PublicKey{}
	q.TDX().Body.MRTD[0]++
	after := fmt.Sprintf("%+v %+v %+v", verified.Claims().TCB.Advisories, *verified.Claims().TDX, *verified.Claims().TCB.Module)
	if before != after || verified.Claims().Root.ID() != w.pki.Root().ID() {
		t.Errorf("claims changed:\n%s\n%s", before, after)
	}
}

func TestClaimsJSON(t *testing.T) {
	t.Parallel()
	raw, collateral := realEvidence(t)
	verified, err := intelVerifier(t).Verify(mustParse(t, raw), collateral, realTime)
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(verified.Claims())
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		`"tee":"tdx"`, `"quote_version":4`, `"debug":false`, `"report_data":"6c62dec1b819`, `"fmspc":"50806f000000"`, `"status":"NotSupported"`,
		`"ca":"platform"`, `"latest_issue":"2023-06-18T08:42:58Z"`, `"simulated":false`, `"root_crl_number":"1"`, `"tee_tcb_svn":"030004`, `"advisories":[]`,
	} {
		if !bytes.Contains(out, []byte(want)) {
			t.Errorf("no %s in %s", want, out)
		}
	}
	for _, not := range []string{`"sgx"`, `mrservicetd`, `null`, `0001-01-01`} {
		if bytes.Contains(out, []byte(not)) {
			t.Errorf("%s in %s", not, out)
		}
	}
	w := newWorld(t, 1)
	m := w.machine(t, simpki.PlatformConfig{Name: "a"})
	verified, err = w.verifier.Verify(mustParse(t, sgxQuote(t, m, report).Append(nil)), w.collateral(t, attest.SGX, m.FMSPC()), simNow)
	if err != nil {
		t.Fatal(err)
	}
	if out, err = json.Marshal(verified.Claims()); err != nil {
		t.Fatal(err)
	}
	if !bytes.Contains(out, []byte(`"mrenclave":"010203`)) || !bytes.Contains(out, []byte(`"simulated":true`)) || bytes.Contains(out, []byte(`"tdx":`)) {
		t.Errorf("SGX: %s", out)
	}
}

func TestBundle(t *testing.T) {
	t.Parallel()
	_, collateral := realEvidence(t)
	raw, err := collateral.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	again, err := attest.ParseCollateral(append(raw, '\n'))
	if err != nil || again.Hash() != collateral.Hash() {
		t.Fatalf("round trip: %v", err)
	}
	if second, err := again.Marshal(); err != nil || !bytes.Equal(second, raw) {
		t.Fatalf("second encoding differs: %v", err)
	}
	text := string(raw)
	for name, bad := range map[string]string{
		"empty":          "",
		"null":           "null",
		"list":           "[" + text + "]",
		"no version":     strings.Replace(text, `"claviger_collateral":1,`, ``, 1),
		"version 2":      strings.Replace(text, `"claviger_collateral":1`, `"claviger_collateral":2`, 1),
		"unknown key":    strings.Replace(text, `"claviger_collateral":1`, `"claviger_collateral":1,"x":2`, 1),
		"repeated key":   strings.Replace(text, `"claviger_collateral":1`, `"claviger_collateral":1,"claviger_collateral":1`, 1),
		"case variant":   strings.Replace(text, `"tcb_info"`, `"TCB_Info"`, 1),
		"missing part":   strings.Replace(text, `"root_crl"`, `"root"`, 1),
		"empty part":     text[:strings.Index(text, `"root_crl":"`)] + `"root_crl":""}`,
		"white space":    strings.Replace(text, `,"tcb_info"`, `, "tcb_info"`, 1),
		"trailing":       text + "{}",
		"loose base64":   strings.Replace(text, `"root_crl":"`, `"root_crl":"\n`, 1),
		"oversized":      text + strings.Repeat(" ", attest.MaxCollateral),
		"oversized part": strings.Replace(text, `"root_crl":"`, `"root_crl":"`+strings.Repeat("AAAA", attest.MaxCRL/3+1), 1),
	} {
		if bad == text {
			t.Errorf("%s: nothing changed", name)
		}
		c, err := attest.ParseCollateral([]byte(bad))
		if !errors.Is(err, attest.ErrBundle) || c != nil {
			t.Errorf("%s: %v", name, err)
		}
		checkStage(t, name, nil, err, attest.StageParse)
	}
	for n := 0; n < len(raw); n += 97 {
		if c, err := attest.ParseCollateral(raw[:n]); err == nil || c != nil {
			t.Fatalf("accepted %d of %d bytes", n, len(raw))
		}
	}
	if _, err := new(attest.Collateral).Marshal(); !errors.Is(err, attest.ErrBundle) {
		t.Errorf("empty collateral: %v", err)
	}
	if _, err := (*attest.Collateral)(nil).Marshal(); !errors.Is(err, attest.ErrBundle) {
		t.Errorf("nil collateral: %v", err)
	}
}

// TestHashFrames: moving a byte from one part to the next gives another hash.
func TestHashFrames(t *testing.T) {
	t.Parallel()
	a := &attest.Collateral{TCBInfo: []byte("ab"), QEIdentity: []byte("c")}
	b := &attest.Collateral{TCBInfo: []byte("a"), QEIdentity: []byte("bc")}
	if a.Hash() == b.Hash() {
		t.Fatal("equal hashes")
	}
	if a.Hash() != (&attest.Collateral{TCBInfo: []byte("ab"), QEIdentity: []byte("c")}).Hash() {
		t.Fatal("the hash is not a function of the parts")
	}
}

func TestPlatformID(t *testing.T) {
	t.Parallel()
	p := attest.Platform{PPID: [16]byte{1}}
	if p.ID() != sha256.Sum256(append([]byte("claviger/platform/v1"), p.PPID[:]...)) || p.ID() == (attest.Platform{}).ID() {
		t.Fatal("wrong id")
	}
}

func FuzzParse(f *testing.F) {
	raw, _ := realEvidence(f)
	f.Add(raw)
	w := newWorld(f, 1)
	inSGX, err := w.machine(f, simpki.PlatformConfig{Name: "a"}).QuoteSGX(report)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(inSGX)
	f.Add([]byte{3, 0})
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := attest.Parse(raw)
		if (q == nil) != (err != nil) {
			t.Fatal("a quote beside an error")
		}
		size, sizeErr := attest.QuoteSize(raw)
		if err != nil {
			return
		}
		if sizeErr != nil || size != len(raw) || !bytes.Equal(q.Raw(), raw) {
			t.Fatalf("size %d of %d, %v", size, len(raw), sizeErr)
		}
		_ = q.ReportData()
		if _, err := attest.PlatformOf(q); err != nil && !errors.As(err, new(*attest.Error)) {
			t.Fatalf("untyped error %v", err)
		}
	})
}

func FuzzParseCollateral(f *testing.F) {
	_, collateral := realEvidence(f)
	raw, err := collateral.Marshal()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add([]byte(`{"claviger_collateral":1,"tcb_info":"AA==","qe_identity":"AA==","tcb_signing_chain":"AA==","pck_crl":"AA==","root_crl":"AA=="}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := attest.ParseCollateral(raw)
		if (c == nil) != (err != nil) {
			t.Fatal("collateral beside an error")
		}
		if err != nil {
			return
		}
		if again, err := c.Marshal(); err != nil || !bytes.Equal(again, bytes.TrimSpace(raw)) {
			t.Fatalf("accepted a bundle that does not round-trip: %v", err)
		}
	})
}

// TestDesignNamesStricter keeps DESIGN.md and the exceptions of TestNegatives together.
func TestDesignNamesStricter(t *testing.T) {
	t.Parallel()
	raw, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, phrase := range []string{"trailing bytes", "white space", "escape", "keys beside"} {
		if !bytes.Contains(raw, []byte(phrase)) {
			t.Errorf("DESIGN.md does not speak of %q", phrase)
		}
	}
}
