package pcs

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
)

// Where Intel serves collateral.
const (
	// IntelURL is the base URL of Intel's service.
	IntelURL = "https://api.trustedservices.intel.com"
	// IntelRootCRLURL is the distribution point that Intel's certificates name for the root's revocation list. It is not
	// part of the service's API.
	IntelRootCRLURL = "https://certificates.trustedservices.intel.com/IntelSGXRootCA.der"
)

// Config configures a Client. Only Verifier is required.
type Config struct {
	// Verifier verifies what is fetched, under its root of trust.
	Verifier *attest.Verifier
	// BaseURL is the service: IntelURL if empty, or a PCCS such as "https://pccs.example:8081". A path in front of
	// /sgx/certification/v4 is kept; that suffix itself may be there, as in Intel's own configuration files.
	BaseURL string
	// RootCRLURL is where the root's revocation list lies. Empty means IntelRootCRLURL when BaseURL is Intel's, and
	// PCCS's /sgx/certification/v4/rootcacrl below BaseURL otherwise.
	RootCRLURL string
	// PlainHTTPUnsafe allows http:// to other hosts than the loopback ones. Collateral is signed, so a network attacker can
	// then watch, withhold, and serve what is old but valid. An APIKey is never sent in the clear.
	PlainHTTPUnsafe bool
	// APIKey is the subscription key, where the service wants one. It is sent to BaseURL only.
	APIKey APIKey
	// RootCAs are the certificates that may vouch for the service's TLS certificate; nil means the host's. PCCS
	// installations often sign their own.
	RootCAs *x509.CertPool
	// HTTPClient, if set, makes the requests; RootCAs must then be nil. A copy is used, whose redirects and time limits
	// are this package's, and which has no cookie jar.
	HTTPClient *http.Client
	// Timeout is for a whole set, retries and waits included; AttemptTimeout for one request. 0 means the defaults.
	Timeout, AttemptTimeout time.Duration
	// Attempts is how often one request is made at most, 1 to 10; 0 means DefaultAttempts. Only failures that may pass
	// are repeated: no answer, a short answer, 408, 429, 5xx.
	Attempts int
	// Backoff is the wait before the second attempt, doubled before each further one up to 8 s; up to half of each wait is
	// random. 0 means DefaultBackoff.
	Backoff time.Duration
	// MaxRetryAfter is the longest wait that a Retry-After header is followed for; beyond it the request fails and the
	// error says how long the service asked for. 0 means DefaultMaxRetryAfter.
	MaxRetryAfter time.Duration
	// Clock tells the time to verify at; nil means time.Now.
	Clock func() time.Time
	// Logger gets retries at level debug and warnings of the service; nil means none.
	Logger *slog.Logger
}

// Client fetches and verifies collateral. It keeps nothing; see Source. It is safe for concurrent use.
type Client struct {
	config  Config
	base    *url.URL
	rootCRL string
	http    *http.Client
}

// NewClient checks the configuration and fills in its defaults. It fails with ErrConfig.
func NewClient(config Config) (*Client, error) {
	if config.Verifier == nil {
		return nil, fail(fmt.Errorf("%w: no verifier", ErrConfig), "set Config.Verifier: nothing is fetched that cannot be verified")
	}
	c := &Client{config: config}
	if err := c.config.fill(); err != nil {
		return nil, err
	}
	var err error
	if c.base, err = serviceURL(c.config.BaseURL, &c.config); err != nil {
		return nil, err
	}
	if !c.config.APIKey.IsZero() && c.base.Scheme != "https" && !loopback(c.base) {
		return nil, fail(fmt.Errorf("%w: API key over plain http", ErrConfig), "use an https:// base URL, or leave the API key out")
	}
	c.rootCRL = c.config.RootCRLURL
	switch {
	case c.rootCRL != "":
		if _, err := parseURL(c.rootCRL, &c.config); err != nil {
			return nil, err
		}
	case c.base.String() == IntelURL:
		c.rootCRL = IntelRootCRLURL
	default:
		c.rootCRL = c.base.String() + "/sgx/certification/v4/rootcacrl"
	}
	c.http = c.config.client()
	return c, nil
}

// fill sets defaults and refuses values that make no sense.
func (c *Config) fill() error {
	bad := func(what string) error {
		return fail(fmt.Errorf("%w: %s", ErrConfig, what), "leave it out for the default")
	}
	switch {
	case c.Timeout < 0 || c.AttemptTimeout < 0 || c.Backoff < 0 || c.MaxRetryAfter < 0:
		return bad("negative duration")
	case c.Attempts < 0 || c.Attempts > maxAttempts:
		return bad(fmt.Sprintf("%d attempts, at most %d", c.Attempts, maxAttempts))
	case c.HTTPClient != nil && c.RootCAs != nil:
		return bad("both HTTPClient and RootCAs")
	}
	setDefault(&c.BaseURL, IntelURL)
	setDefault(&c.Timeout, DefaultTimeout)
	setDefault(&c.AttemptTimeout, DefaultAttemptTimeout)
	setDefault(&c.Attempts, DefaultAttempts)
	setDefault(&c.Backoff, DefaultBackoff)
	setDefault(&c.MaxRetryAfter, DefaultMaxRetryAfter)
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return nil
}

func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// parseURL parses a URL that requests may go to.
func parseURL(raw string, c *Config) (*url.URL, error) {
	const hint = `give a URL such as "https://pccs.example:8081"`
	if len(raw) > maxURL {
		return nil, fail(fmt.Errorf("%w: URL of %d bytes", ErrConfig, len(raw)), hint)
	}
	u, err := url.Parse(raw)
	switch {
	case err != nil, u.Host == "", u.User != nil, u.RawQuery != "" || u.ForceQuery, u.Fragment != "", u.Opaque != "":
		// The URL may hold a password: it is not repeated.
		return nil, fail(fmt.Errorf("%w: not a plain URL with a host", ErrConfig), hint)
	case u.Scheme == "https", u.Scheme == "http" && (loopback(u) || c.PlainHTTPUnsafe):
		return u, nil
	}
	return nil, fail(fmt.Errorf("%w: scheme %.16q", ErrConfig, u.Scheme), "use https://")
}

// serviceURL parses the base URL and brings it to the form without the API's own path.
func serviceURL(raw string, c *Config) (*url.URL, error) {
	u, err := parseURL(raw, c)
	if err != nil {
		return nil, err
	}
	path := strings.TrimRight(u.Path, "/")
	for _, tee := range []string{"sgx", "tdx"} {
		if strings.HasSuffix(path, "/"+tee+"/certification/v3") {
			return nil, fail(fmt.Errorf("%w: version 3 of the API", ErrConfig), "it has ended; name the service without a path, or with version 4")
		}
		path = strings.TrimSuffix(path, "/"+tee+"/certification/v4")
	}
	u.Path, u.RawPath = path, ""
	return u, nil
}

// loopback reports whether a URL stays on this machine.
func loopback(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// client returns the HTTP client: the caller's with our rules, or one of our own.
func (c *Config) client() *http.Client {
	out := &http.Client{}
	if c.HTTPClient != nil {
		*out = *c.HTTPClient
	} else {
		out.Transport = &http.Transport{
			Proxy:                  http.ProxyFromEnvironment,
			TLSClientConfig:        &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.RootCAs},
			ForceAttemptHTTP2:      true,
			MaxIdleConns:           4,
			IdleConnTimeout:        30 * time.Second,
			MaxResponseHeaderBytes: maxHeaders,
		}
	}
	out.CheckRedirect, out.Timeout, out.Jar = sameHost, 0, nil
	return out
}

// sameHost follows a few redirects within one scheme, host and port. Elsewhere the API key and the names of our platforms
// have no business.
func sameHost(next *http.Request, via []*http.Request) error {
	first := via[0].URL
	if len(via) > maxRedirects || next.URL.Scheme != first.Scheme || next.URL.Host != first.Host {
		return fmt.Errorf("%w: to %.64q", ErrRedirect, next.URL.Host)
	}
	return nil
}

// Set is collateral that was verified, and what it was verified for.
type Set struct {
	Request    Request
	Collateral *attest.Collateral
	PCKIssuer  []byte // PEM, PCK CA then root: what the PCK revocation list was verified with
	Report     *attest.CollateralReport
	Fetched    time.Time // when it came from the service, or was imported
}

// Fetch gets the four parts of the collateral that r names, and verifies them together.
func (c *Client) Fetch(ctx context.Context, r Request) (*Set, error) {
	if err := r.check(); err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, c.config.Timeout)
	defer cancel()
	raw, issuer, err := c.parts(ctx, r)
	if err != nil {
		return nil, err
	}
	now := c.config.Clock()
	report, err := verify(c.config.Verifier, raw, issuer, r, now)
	if err != nil {
		return nil, err
	}
	return &Set{Request: r, Collateral: raw, PCKIssuer: issuer, Report: report, Fetched: now}, nil
}

// parts gets the four parts, decoded and not verified, and the chain of the PCK CA.
func (c *Client) parts(ctx context.Context, r Request) (*attest.Collateral, []byte, error) {
	var out attest.Collateral
	var issuer, identityChain []byte
	info, identity, pckCRL, rootCRL := r.documents()
	for _, step := range []struct {
		document
		body   *[]byte
		decode func([]byte) ([]byte, error)
		chain  *[]byte
		names  []string // of the header with the chain; PCCS keeps an old one
	}{
		{info, &out.TCBInfo, decodeJSON, &out.TCBSigningChain, []string{"TCB-Info-Issuer-Chain", "SGX-TCB-Info-Issuer-Chain"}},
		{identity, &out.QEIdentity, decodeJSON, &identityChain, []string{"SGX-Enclave-Identity-Issuer-Chain"}},
		{pckCRL, &out.PCKCRL, decodeCRL, &issuer, []string{"SGX-PCK-CRL-Issuer-Chain"}},
		{rootCRL, &out.RootCRL, decodeCRL, nil, nil},
	} {
		a, err := c.get(ctx, step.document)
		if err != nil {
			return nil, nil, err
		}
		if *step.body, err = step.decode(a.body); err != nil {
			return nil, nil, a.fail(err)
		}
		if step.chain == nil {
			continue
		}
		if *step.chain, err = chainFrom(a.header, step.names...); err != nil {
			return nil, nil, a.fail(err)
		}
	}
	if err := sameSigner(out.TCBSigningChain, identityChain); err != nil {
		return nil, nil, fail(err, "a cache renewed one part and not the other: have it refresh both, then fetch again")
	}
	return &out, issuer, nil
}

// lastGrace is how long after its expiry collateral can be told from a forgery: its certificates must be valid still.
const lastGrace = 50 * 365 * 24 * time.Hour

// verify verifies a set and that it is what r asks for. Expired collateral comes back with a report and ErrExpired.
func verify(v *attest.Verifier, c *attest.Collateral, issuer []byte, r Request, now time.Time) (*attest.CollateralReport, error) {
	report, err := v.VerifyCollateral(c, issuer, now)
	var expired error
	if err != nil {
		var late error
		if report, late = v.VerifyCollateral(c, issuer, now, attest.WithGrace(lastGrace)); late != nil {
			return nil, fail(&refused{ErrVerify, err},
				"if the clock is right and the verifier's root is the service's, someone changed the collateral: fetch it from Intel's service directly")
		}
		expired = fail(&refused{ErrExpired, err},
			"fetch it again; if the service keeps serving it, have the cache refreshed, and check this machine's clock")
	}
	mismatch := func(format string, args ...any) (*attest.CollateralReport, error) {
		return nil, fail(fmt.Errorf("%w: "+format, append([]any{ErrMismatch}, args...)...),
			"the service or file does not hold what its name says; use another")
	}
	switch {
	case report.TEE != r.TEE:
		return mismatch("TEE %s, asked for %s", report.TEE, r.TEE)
	case report.FMSPC != r.FMSPC:
		return mismatch("FMSPC %x, asked for %x", report.FMSPC, r.FMSPC)
	case report.CA != r.CA:
		return mismatch("revocation list of the %s CA, asked for %s", report.CA, r.CA)
	case r.Evaluation != 0 && (report.Set.TCBEvaluation != r.Evaluation || report.Set.QEEvaluation != r.Evaluation):
		return mismatch("evaluation numbers %d and %d, asked for %d", report.Set.TCBEvaluation, report.Set.QEEvaluation, r.Evaluation)
	}
	return report, expired
}

// asError finds the *Error in err, or makes one of it.
func asError(err error) *Error {
	if e, ok := errors.AsType[*Error](err); ok {
		return e
	}
	return fail(err, "")
}
