package functions

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/claviger/claviger/enclave/functions/engine"
)

// The sealed messages, in deterministic CBOR with integer keys.

type callMessage struct {
	Session    [idSize]byte `cbor:"1,keyasint"`
	Invocation [idSize]byte `cbor:"2,keyasint"`
	Args       []byte       `cbor:"3,keyasint"` // JSON array
}

type deployMessage struct {
	Deployment Deployment `cbor:"1,keyasint"`
	Code       []byte     `cbor:"2,keyasint"`
}

// replyMessage answers both. An empty Code is success.
type replyMessage struct {
	Code      Code         `cbor:"1,keyasint"`
	Value     []byte       `cbor:"2,keyasint,omitempty"` // JSON
	Message   string       `cbor:"3,keyasint,omitempty"`
	Name      string       `cbor:"4,keyasint,omitempty"`
	Stack     string       `cbor:"5,keyasint,omitempty"`
	Logs      []logMessage `cbor:"6,keyasint,omitempty"`
	Truncated bool         `cbor:"7,keyasint,omitempty"`
	Sequence  uint64       `cbor:"8,keyasint,omitempty"` // deployments: the one in force
}

type logMessage struct {
	Level string `cbor:"1,keyasint"`
	Text  string `cbor:"2,keyasint"`
}

func packLogs(lines []engine.LogLine) []logMessage {
	out := make([]logMessage, len(lines))
	for i, l := range lines {
		out[i] = logMessage(l)
	}
	return out
}

func unpackLogs(lines []logMessage) []engine.LogLine {
	out := make([]engine.LogLine, len(lines))
	for i, l := range lines {
		out[i] = engine.LogLine(l)
	}
	return out
}

var (
	cborEnc = must(cbor.CoreDetEncOptions().EncMode())
	cborDec = must(cbor.DecOptions{
		DupMapKey:         cbor.DupMapKeyEnforcedAPF,
		IndefLength:       cbor.IndefLengthForbidden,
		TagsMd:            cbor.TagsForbidden,
		ExtraReturnErrors: cbor.ExtraDecErrorUnknownField,
		MaxNestedLevels:   8,
		MaxArrayElements:  4096,
		MaxMapPairs:       32,
		UTF8:              cbor.UTF8RejectInvalid,
	}.DecMode())
)

func must[T any](v T, err error) T {
	if err != nil {
		panic(err) // the options above are constants
	}
	return v
}

// decode parses one whole CBOR message in its one encoding.
func decode[T any](raw []byte) (T, error) {
	var v, zero T
	if err := cborDec.Unmarshal(raw, &v); err != nil {
		return zero, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	again, err := cborEnc.Marshal(v)
	if err != nil || !bytes.Equal(again, raw) {
		return zero, fmt.Errorf("%w: not in its canonical encoding", ErrFormat)
	}
	return v, nil
}

// parseDocument parses a JSON object whose members are exactly the given names,
// each once, with string values: all that this protocol has in the clear. The
// standard decoder would take duplicates and names in another case.
func parseDocument(raw []byte, members map[string]*string) error {
	if len(raw) > maxDocument {
		return fmt.Errorf("%w: the document has %d bytes of %d", ErrTooLarge, len(raw), maxDocument)
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return fmt.Errorf("%w: a JSON object is expected", ErrFormat)
	}
	seen := make(map[string]bool, len(members))
	for d.More() {
		name, err := d.Token()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrFormat, err)
		}
		key, _ := name.(string)
		if members[key] == nil || seen[key] {
			return fmt.Errorf("%w: unknown or repeated member %.40q", ErrFormat, key)
		}
		seen[key] = true
		value, err := d.Token()
		text, ok := value.(string)
		if err != nil || !ok {
			return fmt.Errorf("%w: member %q is not a string", ErrFormat, key)
		}
		*members[key] = text
	}
	if _, err := d.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if len(bytes.TrimSpace(raw[d.InputOffset():])) != 0 {
		return fmt.Errorf("%w: trailing bytes", ErrFormat)
	}
	for name := range members {
		if !seen[name] {
			return fmt.Errorf("%w: member %q is missing", ErrFormat, name)
		}
	}
	return nil
}

var base64Strict = base64.StdEncoding.Strict()

func parseBase64(name, text string) ([]byte, error) {
	raw, err := base64Strict.DecodeString(text)
	if err != nil {
		return nil, fmt.Errorf("%w: %s is not Base64", ErrFormat, name)
	}
	return raw, nil
}

// callDocument is the body of a call.
type callDocument struct {
	CodeHash string `json:"code_hash"`
	Request  string `json:"request"` // Base64 of the sealed callMessage
}

// deployDocument is the body of a deployment.
type deployDocument struct {
	Request string `json:"request"` // Base64 of the sealed deployMessage
}

// replyDocument is the body of every sealed answer.
type replyDocument struct {
	Reply string `json:"reply"` // Base64 of the sealed replyMessage
}

// runtimeDocument says what a runtime calls itself. The host can forge it: a
// client takes the key and the constraint from the key service, and from here
// only the session, which is not secret and which a forgery makes useless.
type runtimeDocument struct {
	Constraint string `json:"constraint"`
	PublicKey  string `json:"public_key"` // Base64, 32 bytes
	Session    string `json:"session"`    // Base64, 16 bytes
}
