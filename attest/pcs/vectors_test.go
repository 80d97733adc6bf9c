package pcs_test

import (
	"encoding/json"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// TestIntelsCollateral serves what Intel signed over the years, as Intel's service would have served it, and fetches it at
// the time of each reference case: with the quote's PCK CA as issuer of the revocation list, under Intel's root.
func TestIntelsCollateral(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("CLAVIGER_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	raw, err := os.ReadFile(filepath.Join(dir, "cases.json"))
	if err != nil {
		t.Skip("reference vectors are absent: set CLAVIGER_VECTORS to their folder")
	}
	var all struct {
		Cases []struct {
			ID, Quote   string
			TCBInfo     string `json:"tcb_info"`
			QEIdentity  string `json:"qe_identity"`
			PCKCRL      string `json:"pck_crl"`
			RootCRL     string `json:"root_crl"`
			SigningPair string `json:"tcb_signing_chain"`
			Time        int64
			Expect      struct {
				PCKChain string `json:"pck_chain"`
			}
		}
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: attest.IntelRoot()})
	if err != nil {
		t.Fatal(err)
	}
	read := func(parts ...string) []byte {
		t.Helper()
		raw, err := os.ReadFile(filepath.Join(append([]string{dir}, parts...)...))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	seen := map[string]bool{}
	for _, tc := range all.Cases {
		key := strings.Join([]string{tc.TCBInfo, tc.QEIdentity, tc.PCKCRL, tc.RootCRL, tc.SigningPair}, " ")
		if seen[key] || strings.HasSuffix(tc.Expect.PCKChain, "_INVALID_ISSUER") { // a quote whose own chain is broken has no issuer to give
			continue
		}
		seen[key] = true
		now := time.Unix(tc.Time, 0)
		quote := read("quotes", tc.Quote)
		q, err := attest.Parse(quote)
		if err != nil {
			t.Fatal(err)
		}
		issuer, err := attest.PCKIssuer(q)
		if err != nil {
			t.Fatal(err)
		}
		signing := read("certs", "tcb_signing_chain_"+tc.SigningPair+".pem")
		r, err := pcs.RequestFor(quote)
		if err != nil {
			t.Fatal(err)
		}
		served := map[string]struct {
			body   []byte
			header string
			chain  []byte
		}{
			"/" + string(r.TEE) + "/certification/v4/tcb":         {read("collateral", tc.TCBInfo), "TCB-Info-Issuer-Chain", signing},
			"/" + string(r.TEE) + "/certification/v4/qe/identity": {read("collateral", tc.QEIdentity), "SGX-Enclave-Identity-Issuer-Chain", signing},
			"/sgx/certification/v4/pckcrl":                        {read("crls", tc.PCKCRL), "SGX-PCK-CRL-Issuer-Chain", issuer},
			"/IntelSGXRootCA.der":                                 {read("crls", tc.RootCRL), "", nil},
		}
		hosts := map[string]int{}
		client, err := pcs.NewClient(pcs.Config{
			Verifier: verifier, Clock: func() time.Time { return now },
			HTTPClient: &http.Client{Transport: memory{http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				hosts[r.URL.Host]++
				part, ok := served[r.URL.Path]
				if !ok {
					http.NotFound(w, r)
					return
				}
				if part.header != "" {
					w.Header().Set(part.header, pcsserver.EncodeChain(part.chain))
				}
				_, _ = w.Write(part.body)
			})}},
		})
		if err != nil {
			t.Fatal(err)
		}
		set, err := client.Fetch(t.Context(), r)
		if err != nil {
			t.Errorf("%s: %v", tc.ID, err)
			continue
		}
		verified, err := verifier.Verify(q, set.Collateral, now)
		if err != nil {
			t.Errorf("%s: %v", tc.ID, err)
			continue
		}
		got, want := set.Report.Set, verified.Claims().Collateral
		// Only the quote knows when its PCK certificate expires.
		if want.EarliestExpiry.After(got.EarliestExpiry) {
			t.Errorf("%s: expiry %v, claims say %v", tc.ID, got.EarliestExpiry, want.EarliestExpiry)
		}
		got.EarliestExpiry = want.EarliestExpiry
		if got != want {
			t.Errorf("%s: report\n%+v\nclaims\n%+v", tc.ID, got, want)
		}
		if hosts["api.trustedservices.intel.com"] != 3 || hosts["certificates.trustedservices.intel.com"] != 1 {
			t.Errorf("%s: asked %v", tc.ID, hosts)
		}
	}
	if len(seen) < 50 {
		t.Errorf("only %d sets of collateral", len(seen))
	}
	t.Logf("%d sets of %d cases", len(seen), len(all.Cases))
}
