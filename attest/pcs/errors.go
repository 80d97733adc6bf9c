package pcs

import (
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
)

// Reasons for failure. Each comes wrapped in an *Error; match with errors.Is.
var (
	// ErrConfig says that a configuration cannot be used as it stands.
	ErrConfig = errors.New("pcs: unusable configuration")
	// ErrRequest says that a Request does not name collateral, or that a quote does not lead to one.
	ErrRequest = errors.New("pcs: not a request for collateral")
	// ErrClosed says that the Source was closed.
	ErrClosed = errors.New("pcs: source is closed")

	// ErrBusy says that too many requests are under way.
	ErrBusy = errors.New("pcs: too many fetches at once")

	// ErrUnreachable says that no answer came: the name does not resolve, or the connection failed.
	ErrUnreachable = errors.New("pcs: service is unreachable")
	// ErrTLS says that the service's certificate is not trusted.
	ErrTLS = errors.New("pcs: certificate of the service is not trusted")
	// ErrTimeout says that the answer did not come in time, or that the caller's context ended.
	ErrTimeout = errors.New("pcs: no answer in time")
	// ErrRedirect says that the service pointed to another host.
	ErrRedirect = errors.New("pcs: redirected to another place")

	// ErrRefused says that the service found the request malformed (400).
	ErrRefused = errors.New("pcs: service refuses the request")
	// ErrUnauthorized says that the service wants another API key (401, 403).
	ErrUnauthorized = errors.New("pcs: service refuses the credentials")
	// ErrNotFound says that the service has no such collateral (404).
	ErrNotFound = errors.New("pcs: no such collateral")
	// ErrGone says that the evaluation number asked for is no longer published (410).
	ErrGone = errors.New("pcs: evaluation number is no longer published")
	// ErrRateLimited says that the service asks for patience (429).
	ErrRateLimited = errors.New("pcs: too many requests")
	// ErrServer says that the service failed (5xx).
	ErrServer = errors.New("pcs: service failed")
	// ErrStatus says that the service answered with a status code that the API does not have.
	ErrStatus = errors.New("pcs: unexpected status")

	// ErrTruncated says that the connection ended before the answer did.
	ErrTruncated = errors.New("pcs: answer is cut short")
	// ErrTooLarge says that an answer or a file is larger than its bound.
	ErrTooLarge = errors.New("pcs: too large")
	// ErrHeader says that the issuer chain is missing from the headers, or is not one.
	ErrHeader = errors.New("pcs: no issuer chain in the answer")
	// ErrContent says that the body is not of the kind that was asked for.
	ErrContent = errors.New("pcs: body is not what was asked for")
	// ErrSigners says that two parts of one set are signed by different keys.
	ErrSigners = errors.New("pcs: parts are signed by different certificates")

	// ErrVerify says that collateral is not genuine under the verifier's root. The *attest.Error is wrapped too.
	ErrVerify = errors.New("pcs: collateral does not verify")
	// ErrExpired says that collateral is genuine and past its next update.
	ErrExpired = errors.New("pcs: collateral has expired")
	// ErrMismatch says that genuine collateral is for something else than was asked for.
	ErrMismatch = errors.New("pcs: collateral is for something else")
	// ErrRollback says that genuine collateral is older than what was known before. See RollbackError.
	ErrRollback = errors.New("pcs: collateral is older than what is known")

	// ErrNoBundle says that a directory has no file for a request.
	ErrNoBundle = errors.New("pcs: no collateral on disk")
	// ErrNoIssuer says that no chain of the PCK CA is at hand to verify a revocation list with.
	ErrNoIssuer = errors.New("pcs: chain of the PCK CA is missing")
	// ErrCorrupt says that a file is not a bundle.
	ErrCorrupt = errors.New("pcs: file is corrupt")
	// ErrDisk says that a file could not be read or written.
	ErrDisk = errors.New("pcs: cache directory fails")
)

// Error is a failure. Err says what (matchable with errors.Is), Hint what to do about it.
type Error struct {
	Part       string        // of the collateral: "TCB info", "QE identity", "PCK revocation list", "root revocation list"; or ""
	URL        string        // that was asked, "" if none was
	Path       string        // of the file that was read, "" if none was
	Status     int           // HTTP status, 0 if there was none
	RequestID  string        // by which the service's operators can find the request, at most 64 characters
	Attempts   int           // made, 0 if none was
	RetryAfter time.Duration // the wait that the service asked for, 0 if none
	Err        error
	Hint       string
}

// Error says what failed and what to do.
func (e *Error) Error() string {
	text := e.Err.Error()
	if e.Part != "" {
		text += " (" + e.Part + ")"
	}
	if e.URL != "" {
		text += ": GET " + e.URL
	}
	if e.Path != "" {
		text += ": " + e.Path
	}
	if e.Status != 0 {
		text += fmt.Sprintf(": status %d", e.Status)
	}
	if e.Attempts > 1 {
		text += fmt.Sprintf(", %d attempts", e.Attempts)
	}
	if e.RequestID != "" {
		text += ", request " + e.RequestID
	}
	if e.Hint != "" {
		text += "; " + e.Hint
	}
	return text
}

// Unwrap returns what failed.
func (e *Error) Unwrap() error { return e.Err }

// fail makes an *Error without the particulars of a request.
func fail(err error, hint string) *Error { return &Error{Err: err, Hint: hint} }

// refused wraps what attest says about collateral. Its text leaves out attest's hint, because ours says more.
type refused struct {
	sentinel, err error
}

func (r *refused) Error() string {
	if e, ok := errors.AsType[*attest.Error](r.err); ok {
		return fmt.Sprintf("%v: stage %s: %v", r.sentinel, e.Stage, e.Err)
	}
	return fmt.Sprintf("%v: %v", r.sentinel, r.err)
}

func (r *refused) Unwrap() []error { return []error{r.sentinel, r.err} }

// RollbackError says which part of a set would have gone back. It matches ErrRollback.
type RollbackError struct {
	What      string // such as "PCK CRL number"
	Have, Got string
}

// Error says what is older than what.
func (e *RollbackError) Error() string {
	return fmt.Sprintf("%v: %s %s, after %s was seen", ErrRollback, e.What, e.Got, e.Have)
}

// Is matches ErrRollback.
func (e *RollbackError) Is(target error) bool { return target == ErrRollback }
