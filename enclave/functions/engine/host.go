package engine

import (
	"context"
	"time"
)

// Host is what one call may reach outside its instance. The engine calls it from one goroutine, only during Call, with
// arguments already bounded: keys of 1 to 1024 bytes of valid UTF-8, values up to 1 MiB, at most 1000 listed keys. An
// error it returns never reaches the script's text: the script sees a generic exception, and if that ends the call, the
// caller gets the error wrapped beside ErrHost. The context ends at the call's deadline.
type Host interface {
	KVGet(ctx context.Context, key string) (value []byte, found bool, err error)
	KVPut(ctx context.Context, key string, value []byte) error
	KVDelete(ctx context.Context, key string) error
	// KVList returns keys that start with prefix in ascending byte order, at most limit of them.
	KVList(ctx context.Context, prefix string, limit int) ([]string, error)
	// ProjectKey returns the key that the project's functions share, 16 to 64 bytes. The engine wipes what it is given.
	ProjectKey(ctx context.Context) ([]byte, error)
	// Random fills p with cryptographically secure random bytes.
	Random(p []byte) error
	// Now is read once at the start of a call and again after each host call: a script's clock advances only with I/O.
	Now() time.Time
}

// LogLine is one line that the script wrote.
type LogLine struct {
	Level string `json:"level"` // debug, info, log, warn, error; engine for output of the JavaScript engine itself
	Text  string `json:"text"`
}

// Usage says what a call consumed.
type Usage struct {
	Fuel      int64         `json:"fuel"`       // loop turns and function entries inside the engine, rounded up to a slice
	Memory    int           `json:"memory"`     // linear memory at the end, in bytes
	HostCalls int           `json:"host_calls"` // kv and crypto calls
	Duration  time.Duration `json:"duration"`   // wall time, without waiting for a free instance
}

// Result is the outcome of a call. Value is set only when err is nil; Logs and Usage also when the call failed.
type Result struct {
	Value         []byte // JSON
	Logs          []LogLine
	LogsTruncated bool
	Usage         Usage
}
