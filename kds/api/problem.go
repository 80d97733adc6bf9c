package api

import (
	"fmt"
	"strings"
	"time"
	"unicode"
)

// ProblemType is the media type of a refusal (RFC 9457).
const ProblemType = "application/problem+json"

// Code says in one word why a request was refused; programs match on it.
type Code string

// The codes. Retry says which of them another attempt may cure.
const (
	CodeBadRequest      Code = "bad_request"       // the request itself is wrong
	CodeTooLarge        Code = "too_large"         // a part exceeds its limit
	CodeEvidenceMissing Code = "evidence_missing"  // the endpoint needs evidence and the channel carried none
	CodeEvidenceRefused Code = "evidence_refused"  // not genuine, or not of this channel; Stage says where
	CodePolicyDenied    Code = "policy_denied"     // genuine, but not what the policy allows; see Failures
	CodeNotFound        Code = "not_found"         // no such version or endpoint
	CodeNotLeader       Code = "not_leader"        // ask the node in Leader
	CodeNoQuorum        Code = "no_quorum"         // too few nodes answer; nothing was released
	CodeBusy            Code = "busy"              // as many requests as the cluster takes at once are under way; nothing was written or released
	CodeStale           Code = "stale"             // policy, collateral or epoch moved during the request
	CodeHalted          Code = "halted"            // this node met an entry it does not know and stopped serving
	CodeStatement       Code = "statement_refused" // a statement of the operators that does not hold here; Stage says which part
	CodeEnded           Code = "ended"             // the operators have ended this epoch
	CodeInternal        Code = "internal"          // a fault of the service
)

var statusOf = map[Code]int{
	CodeBadRequest: 400, CodeTooLarge: 413, CodeEvidenceMissing: 401, CodeEvidenceRefused: 403,
	CodePolicyDenied: 403, CodeNotFound: 404, CodeNotLeader: 307, CodeNoQuorum: 503, CodeBusy: 503, CodeStale: 409,
	CodeHalted: 503, CodeInternal: 500, CodeStatement: 403, CodeEnded: 410,
}

// Status returns the HTTP status that goes with the code; an unknown code is
// an internal error.
func (c Code) Status() int {
	if s, ok := statusOf[c]; ok {
		return s
	}
	return 500
}

// Known reports whether the code is one of the above: labels of metrics and
// other lists that must not grow without end are for those only.
func (c Code) Known() bool {
	_, ok := statusOf[c]
	return ok
}

// Retry reports whether the same request may succeed at another node or a
// moment later.
func (c Code) Retry() bool {
	switch c {
	case CodeNotLeader, CodeNoQuorum, CodeBusy, CodeStale, CodeHalted:
		return true
	}
	return false
}

// Failure is one clause of a policy that the evidence did not meet.
type Failure struct {
	Alternative string    `json:"alternative,omitempty"` // the C, S or TD alternative tried; empty for a clause common to all
	Clause      string    `json:"clause"`
	Want        string    `json:"want"`
	Got         string    `json:"got"`
	Advisories  []string  `json:"advisories,omitempty"`
	TCBDate     time.Time `json:"tcb_date,omitzero"`
	Hint        string    `json:"hint"`
}

// Leader names the node that can serve the request.
type Leader struct {
	ServerID ID     `json:"server_id"`
	APIAddr  string `json:"api_addr"`
}

// Problem is the RFC 9457 document of a refusal, and the error value on both
// sides of the wire. It never carries a secret.
type Problem struct {
	Type     string    `json:"type"`
	Title    string    `json:"title"`
	Status   int       `json:"status"`
	Detail   string    `json:"detail,omitempty"`
	Code     Code      `json:"code"`
	Stage    string    `json:"stage,omitempty"` // for evidence_refused: parse, chain, revocation, collateral, qe, signature, tcb, binding
	Failures []Failure `json:"failures,omitempty"`
	Leader   *Leader   `json:"leader,omitempty"`
}

// NewProblem fills in type, title and status for code. Detail is a sentence
// that says what to do.
func NewProblem(code Code, detail string) *Problem {
	return &Problem{
		Type: "urn:claviger:problem:" + string(code), Title: strings.ReplaceAll(string(code), "_", " "),
		Status: code.Status(), Detail: detail, Code: code,
	}
}

// Error returns title, detail and every failed clause on one line, without what
// is not printable: they may be a peer's words, and end up in logs and terminals.
func (p *Problem) Error() string {
	var b strings.Builder
	b.WriteString(p.Title)
	if p.Stage != "" {
		fmt.Fprintf(&b, " at stage %s", p.Stage)
	}
	if p.Detail != "" {
		fmt.Fprintf(&b, ": %s", p.Detail)
	}
	for _, f := range p.Failures {
		fmt.Fprintf(&b, "; %s: want %s, got %s (%s)", f.Clause, f.Want, f.Got, f.Hint)
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, b.String())
}

// Is matches two problems by code, so that errors.Is(err, &Problem{Code: c})
// works across the wire.
func (p *Problem) Is(target error) bool {
	t, ok := target.(*Problem)
	return ok && t.Code == p.Code
}
