package functions

import (
	"errors"
	"fmt"

	"github.com/claviger/claviger/enclave/functions/engine"
)

// Code says what went wrong; it is stable and meant for programs.
type Code string

// Codes sealed to the caller: the enclave's own word.
const (
	CodeHashMismatch      Code = "code_hash_mismatch"
	CodeStaleSession      Code = "stale_session"
	CodeDuplicate         Code = "duplicate_invocation"
	CodeProjectNotFound   Code = "project_not_found"
	CodeFunctionNotFound  Code = "function_not_found"
	CodeBadArguments      Code = "bad_arguments"
	CodeScript            Code = "script_error"
	CodeDeadline          Code = "deadline_exceeded"
	CodeMemory            Code = "memory_exceeded"
	CodeStack             Code = "stack_exceeded"
	CodeTooLarge          Code = "too_large"
	CodeUnsettled         Code = "promise_never_settles"
	CodeBadBundle         Code = "bad_bundle"
	CodeNotOwner          Code = "not_owner"
	CodeBadSignature      Code = "bad_signature"
	CodeWrongRuntime      Code = "wrong_runtime"
	CodeStaleSequence     Code = "stale_sequence"
	CodeStorageFull       Code = "storage_full"
	CodeStorage           Code = "storage_failed"
	CodeStorageRolledBack Code = "storage_rolled_back"
	CodeSnapshot          Code = "snapshot_too_large"
	CodeOwnerNotAllowed   Code = "owner_not_allowed"
	CodeQuota             Code = "quota_exceeded"
	CodeInternal          Code = "internal"
)

// Codes of a Problem, in the clear: the host's word. CodeBusy also comes sealed.
const (
	CodeBadRequest  Code = "bad_request"
	CodeCannotOpen  Code = "cannot_open"
	CodeNotFound    Code = "not_found"
	CodeBusy        Code = "busy"
	CodeUnavailable Code = "unavailable"
	CodeMethod      Code = "method_not_allowed"
	CodeTimeout     Code = "timeout"
)

// Errors that a CallError matches with errors.Is.
var (
	ErrCodeHashMismatch = errors.New("functions: the deployed code is not the pinned code")
	ErrStaleSession     = errors.New("functions: the request was made for another session of the runtime")
	ErrDuplicate        = errors.New("functions: this invocation was made already")
	ErrProjectNotFound  = errors.New("functions: the runtime has no such project")
	ErrStaleSequence    = errors.New("functions: the deployment's sequence number is not above the one in force")
	ErrNotOwner         = errors.New("functions: the project belongs to another key")
	ErrBadSignature     = errors.New("functions: the deployment's signature is not the owner's")
	ErrWrongRuntime     = errors.New("functions: the deployment was signed for another runtime")
	ErrOwnerNotAllowed  = errors.New("functions: the function host does not take deployments of this owner")
	ErrQuota            = errors.New("functions: the function host has no room for another project")
	ErrBusy             = errors.New("functions: the runtime is busy")
	ErrStorage          = errors.New("functions: the project's store failed")
)

// Errors raised on either side; matched with errors.Is.
var (
	// ErrConfig: a Config or Client is incomplete; the message names the field.
	ErrConfig = errors.New("functions: bad configuration")
	// ErrFormat: bytes are not a message of this protocol.
	ErrFormat = errors.New("functions: malformed message")
	// ErrTooLarge: code, arguments or a message exceeds its limit.
	ErrTooLarge = errors.New("functions: too large")
	// ErrReply: an answer does not open: the host made it up or damaged it.
	// Whether the call happened is unknown.
	ErrReply = errors.New("functions: the answer is not the runtime's")
)

var sentinels = map[Code]error{
	CodeHashMismatch:      ErrCodeHashMismatch,
	CodeStaleSession:      ErrStaleSession,
	CodeDuplicate:         ErrDuplicate,
	CodeProjectNotFound:   ErrProjectNotFound,
	CodeStaleSequence:     ErrStaleSequence,
	CodeNotOwner:          ErrNotOwner,
	CodeBadSignature:      ErrBadSignature,
	CodeWrongRuntime:      ErrWrongRuntime,
	CodeStorage:           ErrStorage,
	CodeStorageFull:       ErrStorage,
	CodeStorageRolledBack: ErrStorage,
	CodeTooLarge:          ErrTooLarge,
	CodeDeadline:          engine.ErrDeadline,
	CodeMemory:            engine.ErrMemory,
	CodeStack:             engine.ErrStack,
	CodeFunctionNotFound:  engine.ErrNoFunction,
	CodeBadArguments:      engine.ErrArguments,
	CodeUnsettled:         engine.ErrUnsettled,
	CodeSnapshot:          engine.ErrSnapshot,
	CodeOwnerNotAllowed:   ErrOwnerNotAllowed,
	CodeQuota:             ErrQuota,
	CodeBusy:              ErrBusy,
}

// CallError is the enclave's answer that a call or a deployment failed; it came
// sealed to the caller. Nothing of the call was kept, except that after
// CodeStorage the outcome is unknown.
type CallError struct {
	Code    Code
	Message string // what to do; for CodeScript the text that the code threw
	Name    string // CodeScript: the JavaScript error's name
	Stack   string // CodeScript: frames, may be empty
	Logs    []engine.LogLine
}

func (e *CallError) Error() string {
	if e.Name != "" {
		return fmt.Sprintf("functions: %s: %s: %s", e.Code, e.Name, e.Message)
	}
	return fmt.Sprintf("functions: %s: %s", e.Code, e.Message)
}

// Unwrap gives the sentinel of the code, if it has one.
func (e *CallError) Unwrap() error { return sentinels[e.Code] }

// refuse makes the enclave's refusal, without the texts of a script.
func refuse(code Code, format string, args ...any) *CallError {
	return &CallError{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Problem is the RFC 9457 document of a refusal in the clear, and its error value
// at the client. The host can forge it: it proves nothing about the call.
type Problem struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Code   Code   `json:"code"`
}

func (p *Problem) Error() string {
	return fmt.Sprintf("functions: %s: %s (said by the host, HTTP status %d)", p.Code, p.Detail, p.Status)
}
