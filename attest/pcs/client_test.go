package pcs_test

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pcs"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/simpki/pcsserver"
)

// TestFetch gets collateral over TLS from both kinds of service, and verifies quotes with it.
func TestFetch(t *testing.T) {
	t.Parallel()
	for _, pccs := range []bool{false, true} {
		b := newBed(t, func(c *pcsserver.Config) { c.PCCS = pccs })
		client, _ := b.online(t, func(c *pcs.Config) {
			if pccs {
				c.RootCRLURL = "" // the path below the base URL
				c.BaseURL += "/sgx/certification/v4/"
			}
		})
		for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
			for _, ca := range []simpki.CA{simpki.PlatformCA, simpki.ProcessorCA} {
				raw := b.quote(t, tee, ca)
				r, err := pcs.RequestFor(raw)
				if err != nil || r.TEE != tee || r.CA != string(ca) || r.FMSPC != simpki.DefaultFMSPC {
					t.Fatalf("request %+v: %v", r, err)
				}
				set, err := client.Fetch(t.Context(), r)
				if err != nil {
					t.Fatalf("pccs %v, %s: %v", pccs, r, err)
				}
				if set.Request != r || set.Report.TEE != tee || set.Report.CA != string(ca) || !set.Fetched.Equal(birth) {
					t.Errorf("set %+v", set)
				}
				// Both kinds of service lead to the same bytes.
				want, err := b.pki.CollateralFor(tee, r.FMSPC, ca, birth)
				if err != nil || set.Collateral.Hash() != want.Hash() {
					t.Errorf("pccs %v, %s: collateral differs from what Intel serves (%v)", pccs, r, err)
				}
				q, err := attest.Parse(raw)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := b.verifier.Verify(q, set.Collateral, birth); err != nil {
					t.Errorf("pccs %v, %s: %v", pccs, r, err)
				}
			}
		}
	}
}

// TestQueries checks what goes over the wire.
func TestQueries(t *testing.T) {
	t.Parallel()
	key, err := pcs.NewAPIKey("0123456789abcdef")
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t, func(c *pcsserver.Config) { c.APIKey = "0123456789abcdef" })
	client, _ := b.online(t, func(c *pcs.Config) { c.APIKey = key })
	r := pcs.Request{TEE: attest.TDX, FMSPC: [6]byte{0x50, 0x80, 0x6f}, CA: pcs.ProcessorCA, Update: pcs.Early}
	if _, err := client.Fetch(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	want := []struct{ path, query string }{
		{"/tdx/certification/v4/tcb", "fmspc=50806F000000&update=early"},
		{"/tdx/certification/v4/qe/identity", "update=early"},
		{"/sgx/certification/v4/pckcrl", "ca=processor&encoding=der"},
		{"/IntelSGXRootCA.der", ""},
	}
	got := b.server.Requests()
	if len(got) != len(want) {
		t.Fatalf("%d requests: %v", len(got), got)
	}
	for i, w := range want {
		if got[i].Path != w.path || got[i].Query.Encode() != w.query || got[i].Key != (i < 3) {
			t.Errorf("request %d: %s?%s key %v", i, got[i].Path, got[i].Query.Encode(), got[i].Key)
		}
	}
	wrong, err := pcs.NewAPIKey("wrong-subscription")
	if err != nil {
		t.Fatal(err)
	}
	client, _ = b.online(t, func(c *pcs.Config) { c.APIKey = wrong })
	set, err := client.Fetch(t.Context(), r)
	wants(t, "wrong key", set, err, pcs.ErrUnauthorized)
	if strings.Contains(err.Error(), "wrong-subscription") {
		t.Errorf("the error shows the key: %v", err)
	}
}

// TestEvaluationNumbers asks for the current, a past and a future one, and for an answer that ignores the question.
func TestEvaluationNumbers(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	client := b.client(t, nil)
	r := request()
	set, err := client.Fetch(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	current := set.Report.Set.TCBEvaluation
	r.Evaluation = current
	if set, err = client.Fetch(t.Context(), r); err != nil || set.Report.Set.TCBEvaluation != current {
		t.Errorf("current number: %v", err)
	}
	r.Evaluation = current - 1
	set, err = client.Fetch(t.Context(), r)
	wants(t, "past number", set, err, pcs.ErrGone)
	r.Evaluation = current + 1
	set, err = client.Fetch(t.Context(), r)
	wants(t, "future number", set, err, pcs.ErrNotFound)

	// An old PCCS does not know the parameter and answers with what it has.
	deaf := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		query := r.URL.Query()
		query.Del("tcbEvaluationDataNumber")
		r.URL.RawQuery = query.Encode()
		b.server.ServeHTTP(w, r)
	})
	client = b.client(t, func(c *pcs.Config) { c.HTTPClient = &http.Client{Transport: memory{deaf}} })
	set, err = client.Fetch(t.Context(), r)
	wants(t, "number ignored", set, err, pcs.ErrMismatch)
}

// TestFaults breaks each document in each way and looks at the error.
func TestFaults(t *testing.T) {
	t.Parallel()
	elsewhere := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(elsewhere.Close)
	const page = "<html>Please log in</html>"
	for _, tc := range []struct {
		name     string
		document pcsserver.Document
		fault    pcsserver.Fault
		is       error
		says     string
	}{
		{"slow", pcsserver.TCBInfo, pcsserver.Slow(time.Minute), pcs.ErrTimeout, "allow more time"},
		{"truncated", pcsserver.TCBInfo, pcsserver.Truncated(), pcs.ErrTruncated, "check proxies"},
		{"truncated list", pcsserver.PCKCRL, pcsserver.Truncated(), pcs.ErrTruncated, "check proxies"},
		{"wrong signature", pcsserver.TCBInfo, pcsserver.WrongSignature(), pcs.ErrVerify, "someone changed the collateral"},
		{"wrong signature of identity", pcsserver.QEIdentity, pcsserver.WrongSignature(), pcs.ErrVerify, "someone changed the collateral"},
		{"wrong signature of list", pcsserver.PCKCRL, pcsserver.WrongSignature(), pcs.ErrVerify, "someone changed the collateral"},
		{"wrong signature of root list", pcsserver.RootCRL, pcsserver.WrongSignature(), pcs.ErrVerify, "someone changed the collateral"},
		{"expired", pcsserver.TCBInfo, pcsserver.AsOf(birth.Add(-31 * day)), pcs.ErrExpired, "check this machine's clock"},
		{"expired identity", pcsserver.QEIdentity, pcsserver.AsOf(birth.Add(-31 * day)), pcs.ErrExpired, "check this machine's clock"},
		{"expired list", pcsserver.PCKCRL, pcsserver.AsOf(birth.Add(-31 * day)), pcs.ErrExpired, "check this machine's clock"},
		{"from the future", pcsserver.TCBInfo, pcsserver.AsOf(birth.Add(2 * day)), pcs.ErrVerify, "if the clock is right"},
		{"bad request", pcsserver.TCBInfo, pcsserver.Status(400), pcs.ErrRefused, "version 4 of the API"},
		{"unauthorized", pcsserver.TCBInfo, pcsserver.Status(401), pcs.ErrUnauthorized, "API key"},
		{"not found", pcsserver.TCBInfo, pcsserver.Status(404), pcs.ErrNotFound, "check TEE, FMSPC"},
		{"gone", pcsserver.TCBInfo, pcsserver.Status(410), pcs.ErrGone, "higher evaluation number"},
		{"too many", pcsserver.TCBInfo, pcsserver.RetryAfter(429, "7200"), pcs.ErrRateLimited, "asks to wait 2h0m0s"},
		{"server error", pcsserver.PCKCRL, pcsserver.Status(500), pcs.ErrServer, "fetch again later"},
		{"unavailable", pcsserver.RootCRL, pcsserver.RetryAfter(503, birth.Add(time.Hour).Format(http.TimeFormat)), pcs.ErrServer, "asks to wait 1h0m0s"},
		{"teapot", pcsserver.TCBInfo, pcsserver.Status(418), pcs.ErrStatus, "that of a PCS or PCCS"},
		{"PCCS's own code", pcsserver.TCBInfo, pcsserver.Status(461), pcs.ErrStatus, "that of a PCS or PCCS"},
		{"oversized", pcsserver.TCBInfo, pcsserver.Oversized(attest.MaxTCBInfo), pcs.ErrTooLarge, "no collateral is that large"},
		{"oversized list", pcsserver.RootCRL, pcsserver.Oversized(1 << 20), pcs.ErrTooLarge, "no collateral is that large"},
		{"login page", pcsserver.TCBInfo, pcsserver.Content("text/html", page), pcs.ErrContent, "check the base URL and proxies"},
		{"login page for a list", pcsserver.PCKCRL, pcsserver.Content("text/html", page), pcs.ErrContent, "check the base URL and proxies"},
		{"empty", pcsserver.QEIdentity, pcsserver.Content("application/json", ""), pcs.ErrContent, "check the base URL and proxies"},
		{"empty list", pcsserver.RootCRL, pcsserver.Content("application/pkix-crl", ""), pcs.ErrContent, "check the base URL and proxies"},
		{"trailing data", pcsserver.TCBInfo, pcsserver.Content("application/json", "{}{}"), pcs.ErrContent, "check the base URL and proxies"},
		{"array", pcsserver.TCBInfo, pcsserver.Content("application/json", "[]"), pcs.ErrContent, "check the base URL and proxies"},
		{"empty object", pcsserver.TCBInfo, pcsserver.Content("application/json", "{}"), pcs.ErrVerify, "someone changed the collateral"},
		{"no chain", pcsserver.TCBInfo, pcsserver.Header(pcsserver.TCBInfoChain, ""), pcs.ErrHeader, "a proxy may strip the header"},
		{"no identity chain", pcsserver.QEIdentity, pcsserver.Header(pcsserver.QEIdentityChain, ""), pcs.ErrHeader, "a proxy may strip the header"},
		{"no list chain", pcsserver.PCKCRL, pcsserver.Header(pcsserver.PCKCRLChain, ""), pcs.ErrHeader, "a proxy may strip the header"},
		{"chain is no chain", pcsserver.TCBInfo, pcsserver.Header(pcsserver.TCBInfoChain, "%2"), pcs.ErrHeader, "a proxy may strip the header"},
		{"redirect", pcsserver.TCBInfo, pcsserver.Redirect(elsewhere.URL + "/"), pcs.ErrRedirect, "name the host"},
		{"redirect in circles", pcsserver.TCBInfo, pcsserver.Redirect("/sgx/certification/v4/tcb?fmspc=518060000000"), pcs.ErrRedirect, "name the host"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			b := newBed(t, nil)
			client, _ := b.online(t, func(c *pcs.Config) {
				if tc.is == pcs.ErrTimeout {
					c.AttemptTimeout = 50 * time.Millisecond
				}
			})
			b.server.Inject(tc.document, -1, tc.fault)
			set, err := client.Fetch(t.Context(), request())
			wants(t, tc.name, set, err, tc.is)
			if !strings.Contains(err.Error(), tc.says) {
				t.Errorf("%v\ndoes not say %q", err, tc.says)
			}
			if n := b.count(tc.document); n != 1 && tc.name != "redirect in circles" || n > 4 {
				t.Errorf("%d requests", n)
			}
			t.Log(err)
			b.server.Inject(tc.document, 0, pcsserver.Fault{})
			if _, err := client.Fetch(t.Context(), request()); err != nil {
				t.Errorf("healed: %v", err)
			}
		})
	}
}

// TestOtherFailures has the faults that a handler cannot make.
func TestOtherFailures(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	client, _ := b.online(t, func(c *pcs.Config) { c.RootCAs = nil })
	set, err := client.Fetch(t.Context(), request())
	wants(t, "unknown TLS certificate", set, err, pcs.ErrTLS)

	client, server := b.online(t, nil)
	server.Close()
	set, err = client.Fetch(t.Context(), request())
	wants(t, "closed port", set, err, pcs.ErrUnreachable)

	// Another simulated Intel: everything is genuine, under another root.
	other := newBed(t, nil)
	pki, err := simpki.New(simpki.Config{Seed: [32]byte{8}, Now: birth})
	if err != nil {
		t.Fatal(err)
	}
	if other.server, err = pcsserver.New(pcsserver.Config{PKI: pki, Clock: other.now}); err != nil {
		t.Fatal(err)
	}
	set, err = other.client(t, nil).Fetch(t.Context(), request())
	wants(t, "another root", set, err, pcs.ErrVerify)
	if refusal, ok := errors.AsType[*attest.Error](err); !ok || refusal.Stage != attest.StageRevocation {
		t.Errorf("the refusal of attest is not inside: %v", err)
	}

	// A service that answers every question about one platform.
	b = newBed(t, nil)
	stubborn := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.URL.RawQuery = strings.ReplaceAll(r.URL.RawQuery, "518060000000", "AABBCCDDEEFF")
		b.server.ServeHTTP(w, r)
	})
	client = b.client(t, func(c *pcs.Config) { c.HTTPClient = &http.Client{Transport: memory{stubborn}} })
	set, err = client.Fetch(t.Context(), request())
	wants(t, "another platform", set, err, pcs.ErrMismatch)

	// A cache that renewed the TCB info after the signer's key had changed, and not the identity.
	b = newBed(t, nil)
	chain, err := pki.Collateral(attest.SGX, simpki.DefaultFMSPC, birth)
	if err != nil {
		t.Fatal(err)
	}
	b.server.Inject(pcsserver.QEIdentity, -1, pcsserver.Header(pcsserver.QEIdentityChain, pcsserver.EncodeChain(chain.TCBSigningChain)))
	set, err = b.client(t, nil).Fetch(t.Context(), request())
	wants(t, "two signers", set, err, pcs.ErrSigners)
}

// TestAPIKeyStaysHere redirects to another host and sees that neither the key nor anything else arrives there.
func TestAPIKeyStaysHere(t *testing.T) {
	t.Parallel()
	var arrived []*http.Request
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { arrived = append(arrived, r) }))
	key, err := pcs.NewAPIKey("the-key-of-the-site")
	if err != nil {
		t.Fatal(err)
	}
	b := newBed(t, nil)
	client, _ := b.online(t, func(c *pcs.Config) { c.APIKey = key })
	b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Redirect(elsewhere.URL))
	set, err := client.Fetch(t.Context(), request())
	wants(t, "redirect", set, err, pcs.ErrRedirect)
	elsewhere.Close() // waits for handlers
	if len(arrived) != 0 {
		t.Errorf("%d requests were redirected", len(arrived))
	}
}

// TestHTTPClientHook checks that a client of the caller's works under our rules and stays as it was.
func TestHTTPClientHook(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	cookies := 0
	hook := &http.Client{Timeout: time.Nanosecond, Jar: jar, Transport: roundTrip(func(r *http.Request) (*http.Response, error) {
		cookies += len(r.Cookies())
		return memory{b.server}.RoundTrip(r)
	})}
	b.server.Inject(pcsserver.TCBInfo, -1, pcsserver.Header("Set-Cookie", "track=me"))
	client := b.client(t, func(c *pcs.Config) { c.HTTPClient = hook })
	if _, err := client.Fetch(t.Context(), request()); err != nil || cookies != 0 {
		t.Errorf("%v, %d cookies", err, cookies)
	}
	if hook.Timeout != time.Nanosecond || hook.Jar == nil || hook.CheckRedirect != nil {
		t.Error("the caller's client was changed")
	}
}

// TestLenientContentType takes the right body under a wrong label.
func TestLenientContentType(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	for _, d := range []pcsserver.Document{pcsserver.TCBInfo, pcsserver.QEIdentity, pcsserver.PCKCRL, pcsserver.RootCRL} {
		b.server.Inject(d, -1, pcsserver.Header("Content-Type", "text/plain"))
	}
	if _, err := b.client(t, nil).Fetch(t.Context(), request()); err != nil {
		t.Error(err)
	}
}

func TestClientConfig(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	key, err := pcs.NewAPIKey("k")
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*pcs.Config){
		"no verifier":          func(c *pcs.Config) { c.Verifier = nil },
		"plain http":           func(c *pcs.Config) { c.BaseURL = "http://pccs.example" },
		"other scheme":         func(c *pcs.Config) { c.BaseURL = "ftp://pccs.example" },
		"no host":              func(c *pcs.Config) { c.BaseURL = "https:///path" },
		"no URL":               func(c *pcs.Config) { c.BaseURL = "pccs.example:8081" },
		"password":             func(c *pcs.Config) { c.BaseURL = "https://user:hunter2@pccs.example" },
		"query":                func(c *pcs.Config) { c.BaseURL = "https://pccs.example/?a=b" },
		"fragment":             func(c *pcs.Config) { c.BaseURL = "https://pccs.example/#a" },
		"long":                 func(c *pcs.Config) { c.BaseURL = "https://pccs.example/" + strings.Repeat("a", 2048) },
		"version 3":            func(c *pcs.Config) { c.BaseURL = "https://pccs.example/sgx/certification/v3/" },
		"root list over http":  func(c *pcs.Config) { c.RootCRLURL = "http://crl.example/root.der" },
		"key over plain http":  func(c *pcs.Config) { c.BaseURL, c.PlainHTTPUnsafe, c.APIKey = "http://pccs.example", true, key },
		"negative timeout":     func(c *pcs.Config) { c.Timeout = -1 },
		"negative attempts":    func(c *pcs.Config) { c.Attempts = -1 },
		"many attempts":        func(c *pcs.Config) { c.Attempts = 11 },
		"both client and root": func(c *pcs.Config) { c.HTTPClient, c.RootCAs = http.DefaultClient, newPool() },
	} {
		config := pcs.Config{Verifier: b.verifier}
		change(&config)
		c, err := pcs.NewClient(config)
		wants(t, name, nil, err, pcs.ErrConfig)
		if c != nil || err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: client %v, error %v", name, c, err)
		}
	}
	for _, url := range []string{"", "https://pccs.example:8081", "https://x/pccs/sgx/certification/v4/", "http://localhost:8081", "http://[::1]", "http://127.0.0.1:1"} {
		if _, err := pcs.NewClient(pcs.Config{Verifier: b.verifier, BaseURL: url}); err != nil {
			t.Errorf("%s: %v", url, err)
		}
	}
	if _, err := pcs.NewClient(pcs.Config{Verifier: b.verifier, BaseURL: "http://pccs.example", PlainHTTPUnsafe: true}); err != nil {
		t.Error(err)
	}
}

func TestRequests(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	client := b.client(t, nil)
	for name, change := range map[string]func(*pcs.Request){
		"zero":                  func(r *pcs.Request) { *r = pcs.Request{} },
		"TEE":                   func(r *pcs.Request) { r.TEE = "SGX" },
		"CA":                    func(r *pcs.Request) { r.CA = "../platform" },
		"update":                func(r *pcs.Request) { r.Update = "late" },
		"number":                func(r *pcs.Request) { r.Evaluation = -1 },
		"large number":          func(r *pcs.Request) { r.Evaluation = 1 << 31 },
		"both number and early": func(r *pcs.Request) { r.Evaluation, r.Update = 17, pcs.Early },
	} {
		r := request()
		change(&r)
		set, err := client.Fetch(t.Context(), r)
		wants(t, name, set, err, pcs.ErrRequest)
	}
	if n := len(b.server.Requests()); n != 0 {
		t.Errorf("%d requests were made", n)
	}
	quote := b.quote(t, attest.SGX, "")
	for name, raw := range map[string][]byte{"nil": nil, "short": quote[:100], "trailing": append(bytes.Clone(quote), 0), "huge": make([]byte, attest.MaxQuote+1)} {
		_, err := pcs.RequestFor(raw)
		wants(t, name, nil, err, pcs.ErrRequest)
	}
}

// TestForeignText lets the service speak in headers that end up in errors and logs.
func TestForeignText(t *testing.T) {
	t.Parallel()
	b := newBed(t, nil)
	var out bytes.Buffer
	client := b.client(t, func(c *pcs.Config) { c.Logger = slog.New(slog.NewTextHandler(&out, nil)) })
	hostile := "\x1b[2Jdeprecated\u202e" + strings.Repeat("x", 1000)
	b.server.Inject(pcsserver.TCBInfo, 1, pcsserver.Header("Warning", hostile))
	if _, err := client.Fetch(t.Context(), request()); err != nil {
		t.Fatal(err)
	}
	b.server.Inject(pcsserver.TCBInfo, 1, pcsserver.Change(func(a *pcsserver.Answer) {
		*a = pcsserver.Answer{Status: 400, Header: http.Header{"Error-Message": {hostile}, "Request-Id": {hostile}}}
	}))
	set, err := client.Fetch(t.Context(), request())
	wants(t, "foreign text", set, err, pcs.ErrRefused)
	for _, text := range []string{out.String(), err.Error()} {
		if !strings.Contains(text, "?[2Jdeprecated?") || strings.ContainsAny(text, "\x1b\u202e") || strings.Count(text, "x") > 600 {
			t.Errorf("%q", text)
		}
	}
}
