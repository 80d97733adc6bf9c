package pcs

import (
	"time"

	"github.com/claviger/claviger/attest"
)

// Bounds on what a service may send, in bytes. Bodies are bounded by attest's limits for each part.
const (
	maxHeaders     = 64 << 10                   // all headers of an answer
	maxChainHeader = 3 * attest.MaxSigningChain // one issuer chain, percent-encoded
	maxHexCRL      = 2*attest.MaxCRL + 2        // a revocation list in hex, with a line end
	maxIssuer      = attest.MaxSigningChain     // a PCK CA chain on disk
	maxRequestID   = 64
	maxAPIKey      = 256
	maxURL         = 2048
	maxRedirects   = 3
)

// Bounds on what is kept.
const (
	maxEntries  = 128 // sets in memory, and remembered failures
	maxFiles    = 512 // in a cache directory
	maxFlights  = 32  // fetches at once
	maxAttempts = 10  // of one request
)

// Defaults of Config and SourceConfig.
const (
	DefaultTimeout        = time.Minute      // for a whole set, waits included
	DefaultAttemptTimeout = 15 * time.Second // for one request
	DefaultAttempts       = 4
	DefaultBackoff        = 500 * time.Millisecond // before the second attempt, doubled before each further one
	DefaultMaxRetryAfter  = 30 * time.Second       // the longest wait that a service may ask for
	DefaultMaxAge         = 24 * time.Hour         // after which a set is renewed although it is valid
	maxBackoff            = 8 * time.Second
	failureMemory         = 10 * time.Second // a failed request is not repeated before
	refreshRetry          = 5 * time.Minute  // nor a failed renewal, while the old set is valid
)
