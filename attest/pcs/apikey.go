package pcs

import (
	"encoding"
	"fmt"
	"io"
	"log/slog"
)

// APIKey is a subscription key of the service. It prints as "pcs.APIKey(redacted)" under every verb, marshaller and logger.
// The zero APIKey is none.
type APIKey struct {
	_   [0]func() // not comparable: == would not be constant in time
	key *string   // behind a pointer, so that reflection-driven printers stop at an address
}

// NewAPIKey holds a key: 1 to 256 visible ASCII characters, else ErrConfig. The error does not repeat it.
func NewAPIKey(key string) (APIKey, error) {
	if len(key) == 0 || len(key) > maxAPIKey {
		return APIKey{}, fail(fmt.Errorf("%w: API key of %d characters", ErrConfig, len(key)), "give a key of 1 to 256 characters")
	}
	for i := range len(key) {
		if key[i] <= ' ' || key[i] > '~' {
			return APIKey{}, fail(fmt.Errorf("%w: API key with a character that a header cannot carry", ErrConfig), "strip white space and line ends")
		}
	}
	return APIKey{key: &key}, nil
}

// IsZero reports whether there is no key.
func (k APIKey) IsZero() bool { return k.key == nil }

const redacted = "pcs.APIKey(redacted)"

var (
	_ fmt.Formatter          = APIKey{}
	_ slog.LogValuer         = APIKey{}
	_ encoding.TextMarshaler = APIKey{}
)

// Format prints the redacted form under every verb.
func (k APIKey) Format(s fmt.State, _ rune) { _, _ = io.WriteString(s, redacted) }

// LogValue is the redacted form.
func (k APIKey) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText returns the redacted form.
func (k APIKey) MarshalText() ([]byte, error) { return []byte(redacted), nil }
