package secret

import (
	"errors"
	"fmt"
	"io"
)

// redacted is all that any formatting of a Key prints.
const redacted = "secret.Key(redacted)"

// ErrMarshal is returned by every marshaller of Key. Seal a key to somebody, or
// do not send it.
var ErrMarshal = errors.New("secret: a key cannot be marshalled, logged or stored")

// Format implements fmt.Formatter: every verb and flag prints the same text.
func (Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// String implements fmt.Stringer and prints no part of the key.
func (Key) String() string { return redacted }

// GoString implements fmt.GoStringer and prints no part of the key.
func (Key) GoString() string { return redacted }

// MarshalText refuses with ErrMarshal. Encoders of XML, TOML and flags, and
// slog's text handler, ask it.
func (Key) MarshalText() ([]byte, error) { return nil, ErrMarshal }

// AppendText refuses with ErrMarshal.
func (Key) AppendText([]byte) ([]byte, error) { return nil, ErrMarshal }

// MarshalBinary refuses with ErrMarshal.
func (Key) MarshalBinary() ([]byte, error) { return nil, ErrMarshal }

// AppendBinary refuses with ErrMarshal.
func (Key) AppendBinary([]byte) ([]byte, error) { return nil, ErrMarshal }

// MarshalJSON refuses with ErrMarshal. slog's JSON handler asks it too.
func (Key) MarshalJSON() ([]byte, error) { return nil, ErrMarshal }

// MarshalYAML refuses with ErrMarshal.
func (Key) MarshalYAML() (any, error) { return nil, ErrMarshal }

// MarshalCBOR refuses with ErrMarshal.
func (Key) MarshalCBOR() ([]byte, error) { return nil, ErrMarshal }

// GobEncode refuses with ErrMarshal.
func (Key) GobEncode() ([]byte, error) { return nil, ErrMarshal }
