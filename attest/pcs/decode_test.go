package pcs

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/simpki"
)

var instant = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// sample is a genuine set of a simulated Intel.
func sample(t testing.TB) *attest.Collateral {
	t.Helper()
	p, err := simpki.New(simpki.Config{Seed: [32]byte{7}, Now: instant})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.Collateral(attest.SGX, simpki.DefaultFMSPC, instant)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

const pemTail = "-----END CERTIFICATE-----\n"

func TestDecodeChain(t *testing.T) {
	t.Parallel()
	chain := string(sample(t).TCBSigningChain)
	leaf, root, _ := strings.Cut(chain, pemTail)
	leaf += pemTail
	for name, value := range map[string]string{
		"Intel's form":       strings.ReplaceAll(url.QueryEscape(chain), "+", "%20"),
		"plus signs bare":    url.PathEscape(chain),
		"lower-case escapes": strings.ReplaceAll(url.PathEscape(chain), "%0A", "%0a"),
		"no last line end":   url.PathEscape(strings.TrimSpace(chain)),
		"carriage returns":   url.PathEscape(strings.ReplaceAll(chain, "\n", "\r\n")),
		"spaces about":       url.PathEscape(leaf + " \n\t" + root + " "),
		"barely escaped":     strings.ReplaceAll(chain, "\n", "%0A"),
	} {
		got, err := decodeChain(value)
		if err != nil || string(got) != chain {
			t.Errorf("%s: %v", name, err)
		}
	}
	long := strings.Repeat("A", attest.MaxSigningChain)
	fat := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(long[:attest.MaxSigningChain*3/5])}))
	for name, tc := range map[string]struct {
		value string
		is    error
	}{
		"empty":               {"", ErrHeader},
		"one":                 {url.PathEscape(leaf), ErrHeader},
		"three":               {url.PathEscape(chain + leaf), ErrHeader},
		"text before":         {url.PathEscape("x" + chain), ErrHeader},
		"text between":        {url.PathEscape(leaf + "x\n" + root), ErrHeader},
		"text after":          {url.PathEscape(chain + "x"), ErrHeader},
		"cut":                 {url.PathEscape(chain[:len(chain)-40]), ErrHeader},
		"damaged":             {url.PathEscape(strings.Replace(chain, "\nMI", "\n!!", 1)), ErrHeader},
		"damaged, then whole": {url.PathEscape(strings.Replace(leaf, "\nMI", "\n!!", 1) + chain), ErrHeader},
		"key":                 {url.PathEscape(strings.ReplaceAll(chain, "CERTIFICATE", "EC PRIVATE KEY")), ErrHeader},
		"headers":             {url.PathEscape(strings.Replace(chain, "-----\n", "-----\nProc-Type: 4\n\n", 1)), ErrHeader},
		"bad escape":          {"%zz" + url.PathEscape(chain), ErrHeader},
		"half escape":         {url.PathEscape(chain) + "%", ErrHeader},
		"form-encoded":        {url.QueryEscape(chain), ErrHeader}, // "+" for a space is not what the API does
		"empty certificates":  {url.PathEscape(strings.Repeat("-----BEGIN CERTIFICATE-----\n-----END CERTIFICATE-----\n", 2)), ErrHeader},
		"over the limit":      {strings.Repeat("A", maxChainHeader+1), ErrTooLarge},
		"over, when decoded":  {fat + fat, ErrTooLarge},
	} {
		if got, err := decodeChain(tc.value); !errors.Is(err, tc.is) || got != nil {
			t.Errorf("%s: %v, want %v", name, err, tc.is)
		}
	}
}

func TestChainFrom(t *testing.T) {
	t.Parallel()
	chain := sample(t).TCBSigningChain
	value := url.PathEscape(string(chain))
	header := func(pairs ...string) http.Header {
		h := http.Header{}
		for i := 0; i < len(pairs); i += 2 {
			h.Add(pairs[i], pairs[i+1])
		}
		return h
	}
	for name, tc := range map[string]struct {
		header http.Header
		ok     bool
	}{
		"first":          {header("first", value), true},
		"second":         {header("SECOND", value), true},
		"both":           {header("First", value, "Second", "nonsense"), true},
		"none":           {header("Third", value), false},
		"first is empty": {header("First", "", "Second", value), false},
		"twice":          {header("First", value, "First", value), true},
		"contradictory":  {header("First", value, "First", value+"%0A"), false},
	} {
		got, err := chainFrom(tc.header, "First", "Second")
		if tc.ok != (err == nil) || tc.ok != bytes.Equal(got, chain) || !tc.ok && !errors.Is(err, ErrHeader) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestDecodeCRL(t *testing.T) {
	t.Parallel()
	der := sample(t).PCKCRL
	armoured := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
	text := hex.EncodeToString(der)
	for name, body := range map[string][]byte{
		"DER": der, "PEM": armoured, "hex": []byte(text), "upper-case hex": []byte(strings.ToUpper(text) + "\r\n"), "PEM in space": append([]byte(" \n"), armoured...),
	} {
		if got, err := decodeCRL(body); err != nil || !bytes.Equal(got, der) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, tc := range map[string]struct {
		body []byte
		is   error
	}{
		"empty": {nil, ErrContent}, "space": {[]byte(" \n"), ErrContent}, "page": {[]byte("<html>"), ErrContent}, "odd hex": {[]byte(text[1:]), ErrContent},
		"two PEM": {append(bytes.Clone(armoured), armoured...), ErrContent}, "cut PEM": {armoured[:len(armoured)-20], ErrContent},
		"PEM of another kind": {bytes.ReplaceAll(armoured, []byte("X509 CRL"), []byte("CERTIFICATE")), ErrContent},
		"large":               {append([]byte{0x30, 0x83}, make([]byte, attest.MaxCRL)...), ErrTooLarge},
		"large hex":           {bytes.Repeat([]byte("30"), attest.MaxCRL+1), ErrTooLarge},
	} {
		if got, err := decodeCRL(tc.body); !errors.Is(err, tc.is) || got != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	const year = 365 * 24 * time.Hour
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "1": time.Second, "120": 2 * time.Minute, "-1": 0, "1.5": 0, "soon": 0, " 1": 0, "0x10": 0,
		"99999999999": year, "18446744073709551616": 0,
		instant.Add(time.Minute).Format(http.TimeFormat): time.Minute, instant.Add(-time.Minute).Format(http.TimeFormat): 0,
		"Fri, 31 Dec 9999 23:59:59 GMT": year,
	} {
		if got := retryAfter(value, instant); got != want {
			t.Errorf("%q: %v, want %v", value, got, want)
		}
	}
}

// TestAPIKeyIsRedacted tries to get the key out by every way of printing.
func TestAPIKeyIsRedacted(t *testing.T) {
	t.Parallel()
	const text = "hunter2-0123456789"
	key, err := NewAPIKey(text)
	if err != nil || key.IsZero() || !(APIKey{}).IsZero() {
		t.Fatal(err)
	}
	config := Config{APIKey: key}
	var log bytes.Buffer
	for _, handler := range []slog.Handler{slog.NewTextHandler(&log, nil), slog.NewJSONHandler(&log, nil)} {
		slog.New(handler).Info("key", "key", key, "config", config.APIKey, "pointer", &key)
	}
	out := log.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%p"} {
		out += fmt.Sprintf(verb+" "+verb+" "+verb, key, &key, config)
	}
	raw, err := json.Marshal(map[string]any{"key": key, "pointer": &key})
	if err != nil {
		t.Fatal(err)
	}
	out += string(raw)
	for _, leak := range []string{text, hex.EncodeToString([]byte(text)), strings.ToUpper(hex.EncodeToString([]byte(text)))} {
		if strings.Contains(out, leak) {
			t.Errorf("the key leaks: %s", out)
		}
	}
	if strings.Count(out, redacted) < 10 {
		t.Errorf("not much was printed: %s", out)
	}
	for _, bad := range []string{"", " ", "a b", "a\n", "a\r\nX: y", "ä", strings.Repeat("a", 257), "hunter2\x00"} {
		if key, err := NewAPIKey(bad); !errors.Is(err, ErrConfig) || !key.IsZero() || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestNamesAreDistinct makes file names for all kinds of request.
func TestNamesAreDistinct(t *testing.T) {
	t.Parallel()
	seen := map[string]Request{}
	for _, tee := range []attest.TEE{attest.SGX, attest.TDX} {
		for _, ca := range []string{PlatformCA, ProcessorCA} {
			for _, fmspc := range [][6]byte{{}, {0, 0, 0, 0, 0, 1}, {0x10}} {
				for _, r := range []Request{{}, {Update: Early}, {Update: Standard}, {Evaluation: 1}, {Evaluation: 11}} {
					r.TEE, r.CA, r.FMSPC = tee, ca, fmspc
					if err := r.check(); err != nil {
						t.Error(err)
					}
					if other, ok := seen[r.name()]; ok {
						t.Errorf("%+v and %+v share %s", r, other, r.name())
					}
					seen[r.name()] = r
				}
			}
		}
	}
	if len(seen) != 60 {
		t.Errorf("%d names", len(seen))
	}
}

// FuzzDecodeChain decodes headers: no panic, bounds kept, and what is decoded is canonical.
func FuzzDecodeChain(f *testing.F) {
	chain := sample(f).TCBSigningChain
	f.Add(strings.ReplaceAll(url.QueryEscape(string(chain)), "+", "%20"))
	f.Add(url.PathEscape(string(chain)))
	f.Add(string(chain))
	f.Add(url.PathEscape(string(chain[:len(chain)/2])))
	f.Add(strings.Repeat("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", 2))
	f.Add("-----BEGIN CERTIFICATE-----\nAAAA\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
	f.Add("%")
	f.Fuzz(func(t *testing.T, value string) {
		got, err := decodeChain(value)
		if err != nil {
			if got != nil || !errors.Is(err, ErrHeader) && !errors.Is(err, ErrTooLarge) {
				t.Fatalf("%v beside %d bytes", err, len(got))
			}
			return
		}
		if len(got) > attest.MaxSigningChain || bytes.Count(got, []byte("-----BEGIN CERTIFICATE-----\n")) != 2 {
			t.Fatalf("decoded %q", got)
		}
		again, err := decodeChain(url.PathEscape(string(got)))
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("not canonical: %v", err)
		}
		if err := sameSigner(got, got); err != nil {
			t.Fatal(err)
		}
	})
}

// FuzzDecodeCRL decodes bodies: no panic, bounds kept, and DER is what comes out.
func FuzzDecodeCRL(f *testing.F) {
	der := sample(f).RootCRL
	f.Add(der)
	f.Add([]byte(hex.EncodeToString(der)))
	f.Add(pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der}))
	f.Add([]byte("-----BEGIN X509 CRL-----\n-----END X509 CRL-----\n"))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := decodeCRL(body)
		if err != nil {
			if got != nil {
				t.Fatalf("%v beside %d bytes", err, len(got))
			}
			return
		}
		if len(got) > attest.MaxCRL {
			t.Fatalf("%d bytes", len(got))
		}
		if _, err := x509.ParseRevocationList(got); err == nil {
			if again, err := decodeCRL(got); err != nil || !bytes.Equal(again, got) {
				t.Fatalf("a list does not survive: %v", err)
			}
		}
	})
}
