package tcb

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"
)

// Bounds on a document's structure. Real ones have a depth of 6 and some 700 values.
const (
	maxDepth  = 16
	maxValues = 1 << 14
)

// value is one decoded JSON value. The decoder exists because encoding/json matches keys without regard to case and lets
// the last of repeated keys win: two readings of one signed document.
type value struct {
	kind    byte // '{', '[', '"', '0' for numbers, 't' for booleans, 'n' for null
	raw     []byte
	text    string   // the string, or the number as written
	keys    []string // of an object, in order
	members []value  // of an object (parallel to keys) or an array
}

// decoder reads one JSON text (RFC 8259) strictly: no repeated keys, valid UTF-8, bounded depth and number of values.
type decoder struct {
	data  []byte
	pos   int
	count int
}

// decode reads the whole of data as one value.
func decode(data []byte) (value, error) {
	d := &decoder{data: data}
	if !utf8.Valid(data) {
		return value{}, fmt.Errorf("%w: not UTF-8", ErrFormat)
	}
	v, err := d.value(0)
	if err != nil {
		return value{}, err
	}
	d.space()
	if d.pos != len(data) {
		return value{}, d.fail("text after the document")
	}
	return v, nil
}

func (d *decoder) fail(what string) error {
	return fmt.Errorf("%w: %s at byte %d", ErrFormat, what, d.pos)
}

func (d *decoder) space() {
	for d.pos < len(d.data) {
		switch d.data[d.pos] {
		case ' ', '\t', '\r', '\n':
			d.pos++
		default:
			return
		}
	}
}

// accept consumes c, after white space, if it is next.
func (d *decoder) accept(c byte) bool {
	d.space()
	if d.pos < len(d.data) && d.data[d.pos] == c {
		d.pos++
		return true
	}
	return false
}

func (d *decoder) value(depth int) (v value, err error) {
	if d.count++; d.count > maxValues || depth > maxDepth {
		return v, d.fail("too many or too deeply nested values")
	}
	d.space()
	start := d.pos
	if start == len(d.data) {
		return v, d.fail("unexpected end")
	}
	switch c := d.data[start]; {
	case c == '{':
		v, err = d.object(depth)
	case c == '[':
		v, err = d.array(depth)
	case c == '"':
		v.kind = '"'
		v.text, err = d.str()
	case c == '-' || c >= '0' && c <= '9':
		v.kind = '0'
		v.text, err = d.number()
	default:
		v.kind, err = d.word()
	}
	if err != nil {
		return value{}, err
	}
	v.raw = d.data[start:d.pos]
	return v, nil
}

func (d *decoder) object(depth int) (value, error) {
	v := value{kind: '{'}
	d.pos++
	if d.accept('}') {
		return v, nil
	}
	for {
		if d.space(); d.pos == len(d.data) || d.data[d.pos] != '"' {
			return value{}, d.fail("a key is missing")
		}
		key, err := d.str()
		if err != nil {
			return value{}, err
		}
		for _, k := range v.keys {
			if k == key {
				return value{}, d.fail("repeated key " + strconv.Quote(key))
			}
		}
		if !d.accept(':') {
			return value{}, d.fail("a colon is missing")
		}
		member, err := d.value(depth + 1)
		if err != nil {
			return value{}, err
		}
		v.keys, v.members = append(v.keys, key), append(v.members, member)
		if len(v.keys) > maxKeys {
			return value{}, d.fail("too many keys")
		}
		if d.accept('}') {
			return v, nil
		}
		if !d.accept(',') {
			return value{}, d.fail("a comma is missing")
		}
	}
}

func (d *decoder) array(depth int) (value, error) {
	v := value{kind: '['}
	d.pos++
	if d.accept(']') {
		return v, nil
	}
	for {
		member, err := d.value(depth + 1)
		if err != nil {
			return value{}, err
		}
		v.members = append(v.members, member)
		if d.accept(']') {
			return v, nil
		}
		if !d.accept(',') {
			return value{}, d.fail("a comma is missing")
		}
	}
}

// str reads a string, of which the opening quote is next.
func (d *decoder) str() (string, error) {
	start := d.pos
	escaped := false
	for d.pos++; d.pos < len(d.data); d.pos++ {
		switch c := d.data[d.pos]; {
		case c == '"':
			d.pos++
			literal := d.data[start:d.pos]
			if !escaped {
				return string(literal[1 : len(literal)-1]), nil
			}
			var s string
			if err := json.Unmarshal(literal, &s); err != nil {
				return "", d.fail("invalid escape")
			}
			return s, nil
		case c == '\\':
			escaped = true
			d.pos++
		case c < 0x20:
			return "", d.fail("control character in a string")
		}
	}
	d.pos = len(d.data)
	return "", d.fail("unterminated string")
}

// number reads a number; which ones are usable is for the caller, the documents have small integers only.
func (d *decoder) number() (string, error) {
	start := d.pos
	for d.pos < len(d.data) && bytes.IndexByte([]byte("+-.0123456789eE"), d.data[d.pos]) >= 0 {
		d.pos++
	}
	text := d.data[start:d.pos]
	if !json.Valid(text) {
		return "", d.fail("invalid number")
	}
	return string(text), nil
}

func (d *decoder) word() (byte, error) {
	for _, word := range []string{"true", "false", "null"} {
		if bytes.HasPrefix(d.data[d.pos:], []byte(word)) {
			d.pos += len(word)
			if word == "null" {
				return 'n', nil
			}
			return 't', nil
		}
	}
	return 0, d.fail("unexpected character")
}

// reader takes typed members out of an object and remembers the first failure, so that a decoder reads as a list.
type reader struct {
	object value
	where  string
	err    error
}

func newReader(v value, where string) *reader {
	r := &reader{object: v, where: where}
	if v.kind != '{' {
		r.err = fmt.Errorf("%w: %s is not an object", ErrFormat, where)
	}
	return r
}

func (r *reader) fail(key, what string) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s.%s %s", ErrFormat, r.where, key, what)
	}
}

// lookup finds a member by its exact key.
func (r *reader) lookup(key string) (value, bool) {
	for i, k := range r.object.keys {
		if k == key {
			return r.object.members[i], true
		}
	}
	return value{}, false
}

// get finds a mandatory member of one kind.
func (r *reader) get(key string, kind byte) (value, bool) {
	v, ok := r.lookup(key)
	if !ok {
		r.fail(key, "is missing")
		return value{}, false
	}
	if v.kind != kind {
		r.fail(key, "has the wrong type")
		return value{}, false
	}
	return v, true
}

func (r *reader) str(key string) string {
	v, _ := r.get(key, '"')
	return v.text
}

// uint reads an integer from 0 to limit.
func (r *reader) uint(key string, limit uint64) uint64 {
	v, ok := r.get(key, '0')
	if !ok {
		return 0
	}
	n, err := strconv.ParseUint(v.text, 10, 64)
	if err != nil || n > limit {
		r.fail(key, fmt.Sprintf("is not an integer from 0 to %d", limit))
		return 0
	}
	return n
}

// hex reads exactly len(dst) bytes.
func (r *reader) hex(key string, dst []byte) {
	v, ok := r.get(key, '"')
	if !ok {
		return
	}
	if len(v.text) != 2*len(dst) {
		r.fail(key, fmt.Sprintf("is not %d bytes of hex", len(dst)))
		return
	}
	if _, err := hex.Decode(dst, []byte(v.text)); err != nil {
		r.fail(key, "is not hex")
	}
}

// time reads a date in the one form that Intel uses: UTC, whole seconds.
func (r *reader) time(key string) time.Time {
	v, ok := r.get(key, '"')
	if !ok {
		return time.Time{}
	}
	t, err := time.Parse("2006-01-02T15:04:05Z", v.text)
	if err != nil || t.Format("2006-01-02T15:04:05Z") != v.text {
		r.fail(key, "is not a date such as 2026-01-31T12:00:00Z")
	}
	return t
}

// list reads an array of at least one and at most limit members.
func (r *reader) list(key string, limit int) []value {
	v, ok := r.get(key, '[')
	if ok && (len(v.members) == 0 || len(v.members) > limit) {
		r.fail(key, fmt.Sprintf("does not have 1 to %d members", limit))
		return nil
	}
	return v.members
}

// strings reads an optional array of at most limit strings.
func (r *reader) strings(key string, limit int) []string {
	v, ok := r.lookup(key)
	if !ok {
		return nil
	}
	if v.kind != '[' || len(v.members) > limit {
		r.fail(key, fmt.Sprintf("is not a list of at most %d strings", limit))
		return nil
	}
	out := make([]string, 0, len(v.members))
	for _, m := range v.members {
		if m.kind != '"' || m.text == "" {
			r.fail(key, "holds something that is not a string")
			return nil
		}
		out = append(out, m.text)
	}
	return out
}
