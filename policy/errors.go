package policy

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Reasons why a text is not a constraint; a ParseError wraps one of them.
var (
	ErrTooLong   = errors.New("too long")
	ErrUnknown   = errors.New("unknown token")
	ErrEmpty     = errors.New("empty value")
	ErrDuplicate = errors.New("given twice")
	ErrValue     = errors.New("malformed value")
	ErrMissing   = errors.New("missing token")
	ErrUnused    = errors.New("has no effect here")
)

// ParseError says which token of a constraint is wrong and what to do.
type ParseError struct {
	Token string // the key as written, cut to 32 bytes; empty for the whole text
	Err   error  // one of the reasons above
	Hint  string
}

// Error returns token, reason and hint.
func (e *ParseError) Error() string {
	if e.Token == "" {
		return fmt.Sprintf("policy: constraint: %v: %s", e.Err, e.Hint)
	}
	return fmt.Sprintf("policy: constraint token %q: %v: %s", e.Token, e.Err, e.Hint)
}

// Unwrap returns the reason.
func (e *ParseError) Unwrap() error { return e.Err }

func refuse(token string, reason error, format string, args ...any) *ParseError {
	return &ParseError{Token: token[:min(len(token), 32)], Err: reason, Hint: fmt.Sprintf(format, args...)}
}

// Failure is one clause that evidence did not meet.
type Failure struct {
	Alternative string    // the C, S or TD alternative it belongs to; empty for a clause common to all
	Clause      string    // the token, or the name of a check that every constraint makes
	Want        string    // what the constraint asks for
	Got         string    // what the evidence shows
	Advisories  []string  // Intel's advisories that keep the platform from UpToDate
	TCBDate     time.Time // date of the TCB the platform has reached; zero if the clause is not about it
	Hint        string    // what to do
}

// Denied is the refusal of genuine evidence. It lists every failed clause of
// every alternative, never only the first.
type Denied struct {
	Failures []Failure
}

// Error names each failed clause with want, got and hint.
func (d *Denied) Error() string {
	var b strings.Builder
	b.WriteString("policy: denied")
	for i, f := range d.Failures {
		if i == 0 {
			b.WriteString(": ")
		} else {
			b.WriteString("; ")
		}
		fmt.Fprintf(&b, "%s: want %s, got %s", f.Clause, f.Want, f.Got)
		if len(f.Advisories) > 0 {
			fmt.Fprintf(&b, " [%s]", strings.Join(f.Advisories, " "))
		}
		fmt.Fprintf(&b, " (%s)", f.Hint)
	}
	return b.String()
}
