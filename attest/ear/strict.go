package ear

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// uniqueKeys refuses what two JSON readers may read differently: an object key that stands twice, nesting beyond a bound, and
// anything after the value.
func uniqueKeys(raw []byte) error {
	dec := json.NewDecoder(bytes.NewReader(raw))
	if err := walk(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("%w: data after the JSON value", ErrMalformed)
	}
	return nil
}

func walk(dec *json.Decoder, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: nested deeper than %d", ErrMalformed, maxDepth)
	}
	token, err := dec.Token()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	delim, open := token.(json.Delim)
	if !open {
		return nil
	}
	seen := map[string]bool{}
	for dec.More() {
		if delim == '{' {
			key, err := dec.Token()
			if err != nil {
				return fmt.Errorf("%w: %w", ErrMalformed, err)
			}
			name, _ := key.(string)
			if seen[name] {
				return fmt.Errorf("%w: key %.40q stands twice", ErrMalformed, name)
			}
			seen[name] = true
		}
		if err := walk(dec, depth+1); err != nil {
			return err
		}
	}
	if _, err := dec.Token(); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// decodeExact reads one value into v and refuses unknown members.
func decodeExact(raw []byte, v any) error {
	if err := uniqueKeys(raw); err != nil {
		return err
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrMalformed, err)
	}
	return nil
}

// object is a JSON object whose members are looked up in their exact spelling, which encoding/json does not insist on
// for structs. Unknown members are ignored, as EAR demands of receivers.
type object map[string]json.RawMessage

func parseObject(raw []byte) (object, error) {
	var o object
	if err := json.Unmarshal(raw, &o); err != nil || o == nil {
		return nil, fmt.Errorf("%w: not an object", ErrMalformed)
	}
	return o, nil
}

// need reads a member that must be there.
func (o object) need(name string, into any) error {
	raw, ok := o[name]
	if !ok || string(raw) == "null" {
		return fmt.Errorf("%w: %s is missing", ErrMalformed, name)
	}
	if err := json.Unmarshal(raw, into); err != nil {
		return fmt.Errorf("%w: %s", ErrMalformed, name)
	}
	return nil
}

// may reads a member if it is there. A null is not a value.
func (o object) may(name string, into any) error {
	if _, ok := o[name]; !ok {
		return nil
	}
	return o.need(name, into)
}

// child returns a member that is an object.
func (o object) child(name string) (object, error) {
	var c object
	if err := o.need(name, &c); err != nil {
		return nil, err
	}
	return c, nil
}
