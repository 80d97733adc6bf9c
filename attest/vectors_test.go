package attest_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
)

// vectorCase is one entry of cases.json: real evidence and what Intel's library says about it.
type vectorCase struct {
	ID, Name    string
	Quote       string
	TCBInfo     string `json:"tcb_info"`
	QEIdentity  string `json:"qe_identity"`
	PCKCRL      string `json:"pck_crl"`
	RootCRL     string `json:"root_crl"`
	SigningPair string `json:"tcb_signing_chain"`
	Time        int64
	TEE         string
	Version     int `json:"quote_version"`
	FMSPC, CA   string
	Expect      struct {
		PCKChain string `json:"pck_chain"`
		Status   string
	}
}

// negative is one entry of negatives.json: a mutation of a named case and the verdict of each step of Intel's library.
type negative struct {
	ID, Bundle, Label string
	Mutations         []mutation
	Files             map[string][]string
	Time              int64
	Intel             map[string]string
}

type mutation struct {
	Op, File, Hex, A, B string
	Off, Len            int
	Val                 byte
}

// vectorDir returns the folder of the reference vectors and skips the test, in one line, when they are absent.
func vectorDir(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("CLAVIGER_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "shared", "vectors")
	}
	if _, err := os.Stat(filepath.Join(dir, "cases.json")); err != nil {
		t.Skip("reference vectors are absent: set CLAVIGER_VECTORS to their folder")
	}
	return dir
}

func readJSON(t testing.TB, name string, dst any) {
	t.Helper()
	raw, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, dst); err != nil {
		t.Fatal(err)
	}
}

func readCases(t testing.TB, dir string) []vectorCase {
	var all struct{ Cases []vectorCase }
	readJSON(t, filepath.Join(dir, "cases.json"), &all)
	return all.Cases
}

// files returns the raw parts of a case under the names that negatives.json uses.
func (c vectorCase) files(t testing.TB, dir string) map[string][]byte {
	t.Helper()
	parts := map[string][]byte{}
	for name, path := range map[string]string{
		"quote.bin":        filepath.Join("quotes", c.Quote),
		"tcb_info.json":    filepath.Join("collateral", c.TCBInfo),
		"qe_identity.json": filepath.Join("collateral", c.QEIdentity),
		"pck_crl.der":      filepath.Join("crls", c.PCKCRL),
		"root_crl.der":     filepath.Join("crls", c.RootCRL),
		"signing":          filepath.Join("certs", "tcb_signing_chain_"+c.SigningPair+".pem"),
	} {
		raw, err := os.ReadFile(filepath.Join(dir, path))
		if err != nil {
			t.Fatal(err)
		}
		parts[name] = raw
	}
	return parts
}

func verifyFiles(v *attest.Verifier, f map[string][]byte, at int64, opts ...attest.Option) (*attest.Verified, error) {
	q, err := attest.Parse(f["quote.bin"])
	if err != nil {
		return nil, err
	}
	return v.Verify(q, collateralOf(f), time.Unix(at, 0), opts...)
}

func collateralOf(f map[string][]byte) *attest.Collateral {
	return &attest.Collateral{
		TCBInfo: f["tcb_info.json"], QEIdentity: f["qe_identity.json"], TCBSigningChain: f["signing"],
		PCKCRL: f["pck_crl.der"], RootCRL: f["root_crl.der"],
	}
}

func intelVerifier(t testing.TB) *attest.Verifier {
	t.Helper()
	v, err := attest.NewVerifier(attest.Config{Root: attest.IntelRoot()})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

// mustRefuse says whether Intel's library refuses the PCK chain for more than the age of its root certificate. Its
// "untrusted" compares root certificates; the key in them is the same, so those chains are good. The two others are chains
// with a changed byte (a subject attribute's type in the PCK CA, the key in the root), whose signatures do not verify.
func (c vectorCase) mustRefuse() bool {
	return c.Expect.PCKChain != "OK" && c.Expect.PCKChain != "SGX_PCK_CERT_CHAIN_UNTRUSTED"
}

// TestVectors compares every case with the verdict of Intel's library.
func TestVectors(t *testing.T) {
	t.Parallel()
	dir := vectorDir(t)
	verifier := intelVerifier(t)
	var mu sync.Mutex
	counts := map[string]int{}
	for _, c := range readCases(t, dir) {
		outcome := "equal status"
		verified, err := verifyFiles(verifier, c.files(t, dir), c.Time)
		var refusal *attest.Error
		switch {
		case c.mustRefuse():
			outcome = "refused chain"
			if !errors.As(err, &refusal) || refusal.Stage != attest.StageChain || verified != nil {
				t.Errorf("%s: Intel says %s, got %v", c.ID, c.Expect.PCKChain, err)
			}
		case err != nil:
			t.Errorf("%s: %v", c.ID, err)
			continue
		default:
			checkCase(t, c, verified.Claims())
		}
		mu.Lock()
		counts[c.TEE+" v"+string(rune('0'+c.Version))+" "+outcome]++
		mu.Unlock()
	}
	if counts["SGX v3 equal status"] == 0 || counts["TDX v4 equal status"] == 0 || counts["TDX v5 equal status"] == 0 {
		t.Fatalf("too few vectors ran: %v", counts)
	}
	agree, total := 0, 0
	for outcome, n := range counts {
		if total += n; strings.HasSuffix(outcome, "equal status") {
			agree += n
		}
	}
	t.Logf("reference vectors: %d verdicts compared, %d statuses equal, %d chains refused as by Intel: %v", total, agree, total-agree, counts)
}

func checkCase(t *testing.T, c vectorCase, got attest.Claims) {
	t.Helper()
	if string(got.TCB.Status) != c.Expect.Status {
		t.Errorf("%s: status %s, Intel says %s", c.ID, got.TCB.Status, c.Expect.Status)
	}
	if hex.EncodeToString(got.Platform.FMSPC[:]) != c.FMSPC || !strings.EqualFold(got.Platform.CA, c.CA) ||
		!strings.EqualFold(string(got.TEE), c.TEE) || got.QuoteVersion != c.Version {
		t.Errorf("%s: platform %x %s %s %d", c.ID, got.Platform.FMSPC, got.Platform.CA, got.TEE, got.QuoteVersion)
	}
	at := time.Unix(c.Time, 0)
	if got.Collateral.EarliestExpiry.Before(at) || got.Collateral.LatestIssue.After(at) {
		t.Errorf("%s: collateral from %v to %v at %v", c.ID, got.Collateral.LatestIssue, got.Collateral.EarliestExpiry, at)
	}
}

// intelRefuses says whether any step of Intel's library refuses.
func (n negative) intelRefuses() bool {
	for step, verdict := range n.Intel {
		if step == "vci" || strings.HasPrefix(verdict, "STATUS_OK(") {
			continue
		}
		status := step == "quote" && (strings.Contains(verdict, "SW_HARDENING_NEEDED") || strings.Contains(verdict, "OUT_OF_DATE") ||
			strings.Contains(verdict, "TD_RELAUNCH_ADVISED") || strings.Contains(verdict, "CONFIGURATION") && strings.Contains(verdict, "NEEDED"))
		if !status {
			return true
		}
	}
	return false
}

func (n negative) apply(t *testing.T, dir string, byName map[string]vectorCase) map[string][]byte {
	t.Helper()
	base, ok := byName[n.Bundle]
	if !ok {
		t.Fatalf("%s: no case is called %s", n.ID, n.Bundle)
	}
	files := base.files(t, dir)
	for name, from := range n.Files {
		files[name] = byName[from[0]].files(t, dir)[from[1]]
	}
	for _, m := range n.Mutations {
		name := m.File
		if name == "" {
			name = "quote.bin"
		}
		raw := bytes.Clone(files[name])
		data, err := hex.DecodeString(m.Hex)
		if err != nil {
			t.Fatal(err)
		}
		switch m.Op {
		case "xor":
			raw[m.Off] ^= m.Val
		case "set":
			copy(raw[m.Off:], data)
		case "trunc":
			raw = raw[:m.Len]
		case "append":
			raw = append(raw, data...)
		case "replace":
			if !bytes.Contains(raw, []byte(m.A)) {
				t.Fatalf("%s: nothing to replace", n.ID)
			}
			raw = bytes.Replace(raw, []byte(m.A), []byte(m.B), 1)
		default:
			t.Fatalf("%s: unknown mutation %q", n.ID, m.Op)
		}
		files[name] = raw
	}
	return files
}

// TestNegatives applies every mutation: what Intel's library refuses is refused, and what it accepts is either accepted or
// refused for one of the documented reasons of being stricter.
func TestNegatives(t *testing.T) {
	t.Parallel()
	dir := vectorDir(t)
	byName := map[string]vectorCase{}
	for _, c := range readCases(t, dir) {
		if c.Name != "" {
			byName[c.Name] = c
		}
	}
	var all map[string]json.RawMessage
	readJSON(t, filepath.Join(dir, "negatives.json"), &all)
	delete(all, "note")
	verifier := intelVerifier(t)
	counts := map[string]int{}
	for _, list := range all {
		var negatives []negative
		if err := json.Unmarshal(list, &negatives); err != nil {
			t.Fatal(err)
		}
		for _, n := range negatives {
			at := n.Time
			if at == 0 {
				at = byName[n.Bundle].Time
			}
			verified, err := verifyFiles(verifier, n.apply(t, dir, byName), at)
			version := n.Bundle[:2] // names start with v3, v4 or v5
			switch {
			case n.intelRefuses():
				counts[version+" refused as by Intel"]++
				if err == nil || verified != nil {
					t.Errorf("%s %s %s: accepted, Intel says %v", n.ID, n.Bundle, n.Label, n.Intel)
				}
			case err == nil:
				counts[version+" accepted as by Intel"]++
			default:
				counts[version+" stricter than Intel"]++
				if reason := stricter(n); reason == "" {
					t.Errorf("%s %s %s: refused without a documented reason: %v", n.ID, n.Bundle, n.Label, err)
				} else {
					t.Logf("stricter: %s %q: %s: %v", n.Bundle[:2], n.Label, reason, err)
				}
			}
		}
	}
	if counts["v3 refused as by Intel"] == 0 || counts["v4 refused as by Intel"] == 0 || counts["v5 refused as by Intel"] == 0 {
		t.Fatalf("too few negatives ran: %v", counts)
	}
	t.Logf("negative vectors: none that Intel refuses is accepted: %v", counts)
}

// stricter says why this verifier refuses what Intel's library accepts, as DESIGN.md does; "" where it should not.
func stricter(n negative) string {
	for label, reason := range map[string]string{
		"trailing":             "one quote, one encoding",
		"whitespace":           "the signature covers the bytes as Intel wrote them",
		"uppercase hex escape": "the signature covers the bytes as Intel wrote them",
		"extra top-level key":  "nothing unsigned travels beside a signed document",
	} {
		if strings.Contains(n.Label, label) {
			return reason
		}
	}
	return ""
}

// TestNegativesReserialized applies the mutations that are other encodings of what Intel signed. Intel's library, which writes
// documents again before it verifies them, accepts them, and so does a verifier that is told to; the status is Intel's.
func TestNegativesReserialized(t *testing.T) {
	t.Parallel()
	dir := vectorDir(t)
	byName := map[string]vectorCase{}
	for _, c := range readCases(t, dir) {
		if c.Name != "" {
			byName[c.Name] = c
		}
	}
	var all struct{ Cases []negative }
	readJSON(t, filepath.Join(dir, "negatives.json"), &all)
	relaxed, err := attest.NewVerifier(attest.Config{Root: attest.IntelRoot(), ReserializedCollateralUnsafe: true})
	if err != nil {
		t.Fatal(err)
	}
	accepted, refused := 0, 0
	for _, n := range all.Cases {
		files := n.apply(t, dir, byName)
		at := n.Time
		if at == 0 {
			at = byName[n.Bundle].Time
		}
		verified, err := verifyFiles(relaxed, files, at)
		switch {
		case n.intelRefuses():
			refused++
			if err == nil || verified != nil {
				t.Errorf("%s %s %s: accepted, Intel says %v", n.ID, n.Bundle, n.Label, n.Intel)
			}
		case stricter(n) != "" && !strings.Contains(n.Label, "trailing"):
			accepted++
			if err != nil {
				t.Errorf("%s %s %s: %v", n.ID, n.Bundle, n.Label, err)
			} else if got := verified.Claims().TCB.Status; string(got) != byName[n.Bundle].Expect.Status {
				t.Errorf("%s %s %s: status %s", n.ID, n.Bundle, n.Label, got)
			}
		}
	}
	if accepted == 0 || refused == 0 {
		t.Fatalf("%d accepted, %d refused", accepted, refused)
	}
	t.Logf("relaxed: %d re-serialised documents accepted as by Intel, %d refusals of Intel's refused", accepted, refused)
}
