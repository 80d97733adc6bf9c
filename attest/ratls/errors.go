package ratls

import (
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Reasons for which this side ends a handshake. Each is wrapped with detail; match with errors.Is.
var (
	// ErrConfig says that the Config cannot be used as it stands; nothing was sent.
	ErrConfig = errors.New("ratls: unusable configuration")
	// ErrTLS says that the TLS handshake failed: another version, no common ALPN, or a broken connection.
	ErrTLS = errors.New("ratls: TLS handshake failed")
	// ErrALPN says that the peer did not negotiate "claviger/1", or did so on a key-bound connection.
	ErrALPN = errors.New("ratls: peer does not speak claviger/1")
	// ErrLeaf says that the peer's certificate is not one leaf with a P-256 or Ed25519 key in canonical form, or, where it is
	// key-bound, that it is out of its own dates.
	ErrLeaf = errors.New("ratls: unacceptable peer certificate")
	// ErrSameKey says that both ends use one key, as in a connection reflected to its maker.
	ErrSameKey = errors.New("ratls: both sides present the same key")
	// ErrPeerKey says that the peer's key is not the one that was asked for.
	ErrPeerKey = errors.New("ratls: peer has another key than expected")
	// ErrProtocol says that the client asked for a protocol that this server does not offer.
	ErrProtocol = errors.New("ratls: protocol not offered")
	// ErrClusterID says that the server belongs to another cluster than the pinned one.
	ErrClusterID = errors.New("ratls: server belongs to another cluster")
	// ErrEpoch says that the server's epoch is below the lowest accepted: an old cluster restored beside the live one.
	ErrEpoch = errors.New("ratls: server's epoch is below the lowest accepted")
	// ErrNoEvidence says that the peer sent no evidence where it is required.
	ErrNoEvidence = errors.New("ratls: peer sent no evidence")
	// ErrEvidence says that Config.Verify refused the peer's evidence; its error is wrapped too.
	ErrEvidence = errors.New("ratls: peer's evidence refused")
	// ErrUnbound says that evidence, genuine or not, belongs to another connection, role, key or cluster: relayed or replayed.
	ErrUnbound = errors.New("ratls: peer's evidence is not bound to this connection")
	// ErrFrame says that a frame is not what the protocol allows at this point.
	ErrFrame = errors.New("ratls: malformed frame")
	// ErrFrameSize says that a frame is larger than its bound.
	ErrFrameSize = errors.New("ratls: frame too large")
	// ErrTimeout says that the peer did not finish the handshake in time, or that the caller's context ended.
	ErrTimeout = errors.New("ratls: handshake not finished in time")
	// ErrCrowded says that a listener has too many unfinished connections, from the peer's address or at all.
	ErrCrowded = errors.New("ratls: too many connections in their handshake")
	// ErrAttest says that this side could not produce its own evidence.
	ErrAttest = errors.New("ratls: cannot produce evidence")
)

// Code names the reason in a refusal, for programs.
type Code string

// Codes that this package sends. Config.Verify may send others by returning a *RefusedError.
const (
	CodeProtocol   Code = "protocol"         // the protocol is not offered
	CodeCluster    Code = "cluster"          // another cluster id is pinned
	CodeEpoch      Code = "epoch"            // the epoch is too low
	CodeNoEvidence Code = "no_evidence"      // evidence is required
	CodeEvidence   Code = "evidence_refused" // evidence was judged and refused
	CodeUnbound    Code = "evidence_unbound" // evidence belongs to another connection
	CodeFrame      Code = "malformed"        // a frame did not parse
	CodeFrameSize  Code = "too_large"        // a frame exceeds its bound
	CodeInternal   Code = "unavailable"      // this side failed; nothing is wrong with the peer
)

// RefusedError is a refusal that the peer sent: its reason, in its words. Both fields are the peer's claim; Message is
// bounded and stripped of control characters, so it may be printed.
//
// A Config.Verify that returns a *RefusedError chooses the code and message that its peer receives.
type RefusedError struct {
	Code    Code
	Message string
}

// Error says who refused and why.
func (e *RefusedError) Error() string {
	return fmt.Sprintf("ratls: refused by the peer (%s): %s", e.Code, e.Message)
}

const (
	maxCode    = 64
	maxMessage = 2048
)

// refusalCodes maps what this side found to what the peer is told. Errors outside this table are this side's own trouble
// and are reported without detail.
var refusalCodes = []struct {
	err  error
	code Code
}{
	{ErrProtocol, CodeProtocol},
	{ErrClusterID, CodeCluster},
	{ErrEpoch, CodeEpoch},
	{ErrNoEvidence, CodeNoEvidence},
	{ErrUnbound, CodeUnbound},
	{ErrEvidence, CodeEvidence},
	{ErrFrameSize, CodeFrameSize},
	{ErrFrame, CodeFrame},
}

// refusalFor chooses what the peer is told about err.
func refusalFor(err error) RefusedError {
	if r, ok := errors.AsType[*RefusedError](err); ok && errors.Is(err, ErrEvidence) {
		return RefusedError{Code: cleanCode(r.Code), Message: clean(r.Message, maxMessage)}
	}
	for _, e := range refusalCodes {
		if errors.Is(err, e.err) {
			return RefusedError{Code: e.code, Message: clean(strings.TrimPrefix(err.Error(), "ratls: "), maxMessage)}
		}
	}
	return RefusedError{Code: CodeInternal, Message: "the peer could not complete the handshake; try again"}
}

// clean bounds s to n bytes of printable text: a peer's words end up in logs and terminals.
func clean(s string, n int) string {
	s = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s)
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// cleanCode keeps a code that is a short lower-case word and replaces anything else.
func cleanCode(c Code) Code {
	if len(c) == 0 || len(c) > maxCode {
		return CodeInternal
	}
	for _, r := range c {
		if (r < 'a' || r > 'z') && (r < '0' || r > '9') && r != '_' {
			return CodeInternal
		}
	}
	return c
}
