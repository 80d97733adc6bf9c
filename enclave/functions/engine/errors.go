package engine

import "errors"

// Errors of Load and Call, matched with errors.Is. None of them carries arguments, values, keys or the text of the
// bundle; what the tenant's own code threw is in ScriptError and belongs to the caller and the owner only.
var (
	// ErrConfig reports a Config that New does not accept.
	ErrConfig = errors.New("engine: bad configuration")
	// ErrClosed reports a call on an engine after Close.
	ErrClosed = errors.New("engine: closed")
	// ErrDeadline reports code that ran longer than its time limit or than the caller's context.
	ErrDeadline = errors.New("engine: the function exceeded its time limit")
	// ErrMemory reports code that needed more memory than its limit.
	ErrMemory = errors.New("engine: the function exceeded its memory limit")
	// ErrSnapshot reports a bundle that leaves more data behind when it is evaluated than a snapshot may hold.
	ErrSnapshot = errors.New("engine: the evaluated bundle exceeds the limit of its snapshot; build large tables inside functions or keep them in kv")
	// ErrStack reports code that recursed too deep.
	ErrStack = errors.New("engine: the function exceeded its stack limit")
	// ErrNoFunction reports a name that the bundle does not export.
	ErrNoFunction = errors.New("engine: the bundle exports no function of this name")
	// ErrNoExports reports a bundle that exports no function at all.
	ErrNoExports = errors.New("engine: the bundle exports no function: use `export async function` or assign `cclexports`")
	// ErrArguments reports arguments that are not one JSON array.
	ErrArguments = errors.New("engine: the arguments are not a JSON array")
	// ErrTooLarge reports a bundle, request or response over its limit.
	ErrTooLarge = errors.New("engine: too large")
	// ErrUnsettled reports a promise that can never settle: it is pending and nothing is left to run.
	ErrUnsettled = errors.New("engine: the function's promise never settles: nothing is left that could settle it")
	// ErrTrap reports that the JavaScript engine itself stopped abnormally; its instance was thrown away.
	ErrTrap = errors.New("engine: the JavaScript engine trapped")
	// ErrHost reports that the host behind kv or the project key failed; its own error is wrapped beside it.
	ErrHost = errors.New("engine: the host failed")
)

// Bounds on what a ScriptError holds, in bytes.
const (
	maxErrorName    = 128
	maxErrorMessage = 2048
	maxErrorStack   = 4096
)

// ScriptError is a value that the tenant's code threw and did not catch. All texts are the tenant's: bounded, valid
// UTF-8, otherwise arbitrary.
type ScriptError struct {
	Name    string // of an Error; empty when something else was thrown
	Message string
	Stack   string // frames as "at f (bundle:line:column)"; may be empty
	cause   error
}

func (e *ScriptError) Error() string {
	if e.Name == "" {
		return "engine: the function threw " + e.Message
	}
	return "engine: the function threw " + e.Name + ": " + e.Message
}

// Unwrap gives the limit or host error behind the exception, if there is one: errors.Is(err, ErrMemory) holds for an
// uncaught out-of-memory exception.
func (e *ScriptError) Unwrap() error { return e.cause }
