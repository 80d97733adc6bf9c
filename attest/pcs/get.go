package pcs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"
)

// answer is a successful answer to one request.
type answer struct {
	document
	url       string
	requestID string
	header    http.Header
	body      []byte
}

// fail wraps an error in decoding the answer with where it came from.
func (a *answer) fail(err error) *Error {
	hint := "the service does not speak the API, or something between changes its answers: check the base URL and proxies"
	if errors.Is(err, ErrHeader) {
		hint = "a proxy may strip the header; without it the signature cannot be verified: ask the service directly"
	}
	return &Error{Part: a.part, URL: a.url, Status: http.StatusOK, RequestID: a.requestID, Err: err, Hint: hint}
}

// get makes a request until it succeeds, it makes no sense to go on, attempts are used up, or ctx ends.
func (c *Client) get(ctx context.Context, d document) (*answer, error) {
	backoff := c.config.Backoff
	for attempt := 1; ; attempt++ {
		a, e := c.once(ctx, d)
		if e == nil {
			return a, nil
		}
		e.Attempts = attempt
		// Half of each wait is random: clients that failed together do not come back together.
		wait := backoff/2 + rand.N(backoff/2+1)
		backoff = min(2*backoff, maxBackoff)
		wait = max(wait, e.RetryAfter)
		if !passing(e) || attempt == c.config.Attempts || e.RetryAfter > c.config.MaxRetryAfter || ctx.Err() != nil {
			return nil, e
		}
		c.config.Logger.Debug("collateral: trying again", "part", d.part, "attempt", attempt, "wait", wait, "error", e)
		if deadline, ok := ctx.Deadline(); ok && time.Now().Add(wait).After(deadline) {
			return nil, e // the next attempt could not start in time; this error says more than a timeout
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil, e
		}
	}
}

// passing says whether a failure may be gone the next time.
func passing(e *Error) bool {
	for _, target := range []error{ErrUnreachable, ErrTimeout, ErrTruncated, ErrRateLimited, ErrServer} {
		if errors.Is(e.Err, target) {
			return true
		}
	}
	return false
}

// once makes one request.
func (c *Client) once(ctx context.Context, d document) (*answer, *Error) {
	target := c.rootCRL
	if d.path != "" {
		target = c.base.String() + d.path
	}
	e := &Error{Part: d.part, URL: target}
	ctx, cancel := context.WithTimeout(ctx, c.config.AttemptTimeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		e.Err, e.Hint = fmt.Errorf("%w: not a URL", ErrConfig), "check the base URL"
		return nil, e
	}
	request.Header.Set("User-Agent", "claviger")
	if d.path != "" && !c.config.APIKey.IsZero() {
		request.Header.Set("Ocp-Apim-Subscription-Key", *c.config.APIKey.key)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return nil, e.transport(ctx, err)
	}
	defer response.Body.Close()
	e.Status, e.RequestID = response.StatusCode, label(response.Header.Get("Request-ID"), maxRequestID)
	if response.StatusCode != http.StatusOK {
		return nil, e.status(response.Header, c.config.Clock())
	}
	if warning := response.Header.Get("Warning"); warning != "" {
		c.config.Logger.Warn("collateral: the service warns", "part", d.part, "warning", label(warning, 256))
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, int64(d.limit)+1))
	switch {
	case len(body) > d.limit:
		e.Err = fmt.Errorf("%w: more than %d bytes", ErrTooLarge, d.limit)
		e.Hint = "no collateral is that large: check that the base URL is that of a PCS or PCCS"
		return nil, e
	case err != nil:
		return nil, e.transport(ctx, err)
	}
	return &answer{d, target, e.RequestID, response.Header, body}, nil
}

// label makes foreign text fit for an error or a log: visible ASCII, n characters at most.
func label(text string, n int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, text[:min(len(text), n)])
}

// transport sorts a failure below HTTP.
func (e *Error) transport(ctx context.Context, err error) *Error {
	var network net.Error
	var certificate *tls.CertificateVerificationError
	switch {
	case errors.Is(err, ErrRedirect):
		e.Err, e.Hint = plain(err), "name the host that really serves collateral as base URL"
	case errors.As(err, &certificate):
		e.Err = fmt.Errorf("%w: %w", ErrTLS, certificate)
		e.Hint = "give the CA certificate of the service, which a PCCS often makes for itself"
	case ctx.Err() != nil, errors.As(err, &network) && network.Timeout():
		e.Err = fmt.Errorf("%w: %w", ErrTimeout, plain(err))
		e.Hint = "check the network between here and the service, or allow more time"
	case errors.Is(err, io.ErrUnexpectedEOF):
		e.Err, e.Hint = fmt.Errorf("%w: %w", ErrTruncated, plain(err)), "check proxies between here and the service, then fetch again"
	default:
		e.Err = fmt.Errorf("%w: %w", ErrUnreachable, plain(err))
		e.Hint = "check the base URL, name resolution, proxy and firewall; without a network use an exported bundle"
	}
	return e
}

// plain strips the method and URL that net/http puts before an error: Error says them itself.
func plain(err error) error {
	if wrapped, ok := errors.AsType[*url.Error](err); ok {
		return wrapped.Err
	}
	return err
}

// status sorts an answer that is not 200, by the API's meaning of the code.
func (e *Error) status(header http.Header, now time.Time) *Error {
	switch code := e.Status; {
	case code == http.StatusBadRequest:
		e.Err, e.Hint = ErrRefused, "check that the service has version 4 of the API and knows the update or evaluation number"
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		e.Err, e.Hint = ErrUnauthorized, "give the API key that the service's operator issued, or none where none is needed"
	case code == http.StatusNotFound:
		e.Err, e.Hint = ErrNotFound, "check TEE, FMSPC and evaluation number; a PCCS may have to fetch the platform first; check the base URL"
	case code == http.StatusGone:
		e.Err, e.Hint = ErrGone, "ask for a higher evaluation number, or for none"
	case code == http.StatusRequestTimeout:
		e.Err, e.Hint = ErrTimeout, "fetch again later"
	case code == http.StatusTooManyRequests:
		e.Err, e.Hint = ErrRateLimited, "fetch less often: share one cache between machines, or run a PCCS"
	case code >= 500:
		e.Err, e.Hint = ErrServer, "fetch again later; valid collateral from a cache or bundle serves until then"
	default:
		e.Err, e.Hint = ErrStatus, "check that the base URL is that of a PCS or PCCS"
	}
	if message := header.Get("Error-Message"); message != "" {
		e.Err = fmt.Errorf("%w: %s", e.Err, label(message, 256))
	}
	if passing(e) {
		e.RetryAfter = retryAfter(header.Get("Retry-After"), now)
	}
	if e.RetryAfter > 0 {
		e.Hint = "the service asks to wait " + e.RetryAfter.Round(time.Second).String() + "; " + e.Hint
	}
	return e
}

// retryAfter reads a Retry-After header (RFC 9110, section 10.2.3): seconds or a date. What is neither, or past, is 0, and
// no wait is longer than a year.
func retryAfter(value string, now time.Time) time.Duration {
	const year = 365 * 24 * time.Hour
	if seconds, err := strconv.ParseUint(value, 10, 63); err == nil {
		return time.Duration(min(seconds, uint64(year/time.Second))) * time.Second
	}
	at, err := http.ParseTime(value)
	if err != nil {
		return 0
	}
	return min(max(at.Sub(now), 0), year)
}
