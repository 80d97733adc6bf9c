package tcb

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
	"time"
	"unicode/utf8"
)

// Bounds on a document's structure. Real ones have a depth of 6 and some 700 values.
const (
	maxDepth  = 16
	maxValues = 1 << 14
)

// value is one decoded JSON value. The decoder exists because encoding/json matches keys without regard to case and lets
// the last of repeated keys win: two readings of one signed document. Slices of bytes share memory with the input.
type value struct {
	kind    byte    // '{', '[', '"', '0' for numbers, 't' for booleans, 'n' for null
	key     []byte  // under which it stands in its object
	text    []byte  // the string without its quotes and escapes; of all else the text as written
	members []value // of an object or an array, in order
}

// decoder reads one JSON text (RFC 8259) strictly: no repeated keys, valid UTF-8, bounded depth and number of values.
type decoder struct {
	data  []byte
	pos   int
	count int

	open []value // the values above the one that is read, with the members that each has so far
	slab []value // members of objects and arrays that are closed
}

// Decoders are used again, because the tree of a document is many times larger than what is kept of it.
var decoders = sync.Pool{New: func() any {
	return &decoder{open: make([]value, 0, 128), slab: make([]value, 0, 1024)}
}}

// release gives back the decoder and with it every value that it returned. Large ones are left to the collector.
func (d *decoder) release() {
	if cap(d.slab) > 4096 || cap(d.open) > 1024 {
		return
	}
	d.open, d.slab = d.open[:cap(d.open)], d.slab[:cap(d.slab)]
	clear(d.open)
	clear(d.slab)
	*d = decoder{open: d.open[:0], slab: d.slab[:0]}
	decoders.Put(d)
}

// close takes the open values from the given one on as the members of the one before them.
func (d *decoder) close(from int) {
	n := len(d.open) - from
	if len(d.slab)+n > cap(d.slab) {
		d.slab = make([]value, 0, max(n, 2*cap(d.slab))) // the old one stays with the values that lie in it
	}
	start := len(d.slab)
	d.slab = append(d.slab, d.open[from:]...)
	d.open = d.open[:from]
	d.open[from-1].members = d.slab[start : start+n : start+n]
}

// decode reads the whole of data as one value, which is good until d is released or decodes again.
func (d *decoder) decode(data []byte) (value, error) {
	d.data, d.pos, d.count, d.open, d.slab = data, 0, 0, d.open[:0], d.slab[:0]
	if !utf8.Valid(data) {
		return value{}, fmt.Errorf("%w: not UTF-8", ErrFormat)
	}
	if err := d.value(nil, 0); err != nil {
		return value{}, err
	}
	d.space()
	if d.pos != len(data) {
		return value{}, d.fail("text after the document")
	}
	return d.open[0], nil
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

// value reads one value and leaves it on top of the open ones.
func (d *decoder) value(key []byte, depth int) (err error) {
	if d.count++; d.count > maxValues || depth > maxDepth {
		return d.fail("too many or too deeply nested values")
	}
	d.space()
	start := d.pos
	if start == len(d.data) {
		return d.fail("unexpected end")
	}
	at := len(d.open)
	d.open = append(d.open, value{key: key, kind: d.data[start]})
	switch c := d.data[start]; {
	case c == '{':
		err = d.object(at+1, depth)
	case c == '[':
		err = d.array(at+1, depth)
	case c == '"':
		d.open[at].text, err = d.str()
		return err
	case c == '-' || c >= '0' && c <= '9':
		d.open[at].kind = '0'
		err = d.number()
	default:
		d.open[at].kind, err = d.word()
	}
	d.open[at].text = d.data[start:d.pos]
	return err
}

// object reads an object, whose members will be the open values from the given one on.
func (d *decoder) object(from, depth int) error {
	d.pos++
	if d.accept('}') {
		return nil
	}
	for {
		if d.space(); d.pos == len(d.data) || d.data[d.pos] != '"' {
			return d.fail("a key is missing")
		}
		key, err := d.str()
		if err != nil {
			return err
		}
		for i := from; i < len(d.open); i++ {
			if bytes.Equal(d.open[i].key, key) {
				return d.fail("repeated key " + strconv.Quote(string(key)))
			}
		}
		if len(d.open)-from == maxKeys {
			return d.fail("too many keys")
		}
		if !d.accept(':') {
			return d.fail("a colon is missing")
		}
		if err := d.value(key, depth+1); err != nil {
			return err
		}
		if d.accept('}') {
			d.close(from)
			return nil
		}
		if !d.accept(',') {
			return d.fail("a comma is missing")
		}
	}
}

// array reads an array, whose members will be the open values from the given one on.
func (d *decoder) array(from, depth int) error {
	d.pos++
	if d.accept(']') {
		return nil
	}
	for {
		if err := d.value(nil, depth+1); err != nil {
			return err
		}
		if d.accept(']') {
			d.close(from)
			return nil
		}
		if !d.accept(',') {
			return d.fail("a comma is missing")
		}
	}
}

// str reads a string, of which the opening quote is next.
func (d *decoder) str() ([]byte, error) {
	start := d.pos
	escaped := false
	for d.pos++; d.pos < len(d.data); d.pos++ {
		switch c := d.data[d.pos]; {
		case c == '"':
			d.pos++
			literal := d.data[start:d.pos]
			if !escaped {
				return literal[1 : len(literal)-1], nil
			}
			var s string
			if err := json.Unmarshal(literal, &s); err != nil {
				return nil, d.fail("invalid escape")
			}
			return []byte(s), nil
		case c == '\\':
			escaped = true
			d.pos++
		case c < 0x20:
			return nil, d.fail("control character in a string")
		}
	}
	d.pos = len(d.data)
	return nil, d.fail("unterminated string")
}

// number reads a number; which ones are usable is for the caller, the documents have small integers only.
func (d *decoder) number() error {
	start := d.pos
	plain := true // digits only
	for ; d.pos < len(d.data); d.pos++ {
		c := d.data[d.pos]
		if c >= '0' && c <= '9' {
			continue
		}
		if bytes.IndexByte([]byte("+-.eE"), c) < 0 {
			break
		}
		plain = false
	}
	text := d.data[start:d.pos]
	if plain && (text[0] != '0' || len(text) == 1) {
		return nil
	}
	if !json.Valid(text) {
		return d.fail("invalid number")
	}
	return nil
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

// place says where in a document a reader is, for its errors.
type place struct {
	up    *place
	name  string
	index int // of an array's member; negative for none
}

func root(name string) *place                          { return &place{nil, name, -1} }
func (p *place) member(name string) *place             { return &place{p, name, -1} }
func (p *place) element(name string, index int) *place { return &place{p, name, index} }

// String spells p as a path such as tcbInfo.tcbLevels[3].tcb.
func (p *place) String() string {
	text := p.name
	if p.up != nil {
		text = p.up.String() + "." + text
	}
	if p.index >= 0 {
		text += "[" + strconv.Itoa(p.index) + "]"
	}
	return text
}

// reader takes typed members out of an object and remembers the first failure, so that a decoder reads as a list.
type reader struct {
	object value
	where  *place
	err    error
}

func newReader(v value, where *place) *reader {
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
func (v *value) lookup(key string) (value, bool) {
	for i := range v.members {
		if v.kind == '{' && string(v.members[i].key) == key {
			return v.members[i], true
		}
	}
	return value{}, false
}

func (r *reader) lookup(key string) (value, bool) { return r.object.lookup(key) }

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
	return string(v.text)
}

// uint reads an integer from 0 to limit.
func (r *reader) uint(key string, limit uint64) uint64 {
	v, ok := r.get(key, '0')
	if !ok {
		return 0
	}
	n, ok := v.uint(limit)
	if !ok {
		r.fail(key, fmt.Sprintf("is not an integer from 0 to %d", limit))
	}
	return n
}

// uint returns the integer from 0 to limit that v is.
func (v value) uint(limit uint64) (n uint64, ok bool) {
	if v.kind != '0' || len(v.text) > 19 { // 19 digits fit
		return 0, false
	}
	for _, c := range v.text {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	if n > limit {
		return 0, false
	}
	return n, true
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
	if _, err := hex.Decode(dst, v.text); err != nil {
		r.fail(key, "is not hex")
	}
}

// time reads a date in the one form that Intel uses: UTC, whole seconds.
func (r *reader) time(key string) time.Time {
	v, ok := r.get(key, '"')
	if !ok {
		return time.Time{}
	}
	// time.Parse alone forgives a missing digit of the hour and takes fractions of a second.
	const form = "2006-01-02T15:04:05Z"
	t, err := time.Parse(form, string(v.text))
	if err != nil || len(v.text) != len(form) || v.text[13] != ':' || v.text[19] != 'Z' {
		r.fail(key, "is not a date such as 2026-01-31T12:00:00Z")
		return time.Time{}
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
		if m.kind != '"' || len(m.text) == 0 {
			r.fail(key, "holds something that is not a string")
			return nil
		}
		out = append(out, string(m.text))
	}
	return out
}
