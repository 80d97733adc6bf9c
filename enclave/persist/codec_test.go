package persist

import (
	"bytes"
	"io"
	"reflect"
	"testing"

	"github.com/claviger/claviger/enclave/secret"
)

func TestBodyRoundTrip(t *testing.T) {
	t.Parallel()
	for _, list := range [][]change{
		{},
		{{key: "a", value: []byte{}}},
		{{key: "a"}, {key: "b", value: bytes.Repeat([]byte{1}, 2000)}, {key: "c", value: []byte("x")}},
	} {
		raw := encodeBody(list)
		if n := len(raw) + overhead - bodyHead; n%sector != 0 {
			t.Errorf("a record of %d bytes does not fill sectors", n)
		}
		back, err := parseBody(raw)
		if err != nil || len(back) != len(list) || len(list) > 0 && !reflect.DeepEqual(back, list) {
			t.Errorf("round trip of %v: %v, %v", list, back, err)
		}
	}
}

func TestBodyRefused(t *testing.T) {
	t.Parallel()
	good := encodeBody([]change{{key: "a", value: []byte("1")}, {key: "b"}})
	edit := func(f func(b []byte) []byte) []byte { return f(bytes.Clone(good)) }
	set := func(i int, v byte) []byte { return edit(func(b []byte) []byte { b[i] = v; return b }) }
	for name, raw := range map[string][]byte{
		"nil":                nil,
		"short":              good[:7],
		"count too high":     set(3, 3),
		"count too low":      set(3, 1),
		"huge count":         set(0, 0xff),
		"size too high":      set(7, good[7]+1),
		"size too low":       set(7, good[7]-1),
		"size over the body": set(4, 0xff),
		"padding not zero":   set(len(good)-1, 1),
		"padding too long":   append(bytes.Clone(good), make([]byte, sector)...),
		"unknown operation":  set(8, 3),
		"put as delete":      set(8, 2),
		"empty key":          set(10, 0),
		"keys equal":         set(8+7+2+7, 'a'),
		"keys descending":    set(8+7, 'c'),
		"value over the end": set(14, 200),
		"value over the max": set(11, 0x7f),
	} {
		if got, err := parseBody(raw); err == nil {
			t.Errorf("%s: accepted as %v", name, got)
		}
	}
}

// memory is a read-only file.
type memory struct{ *bytes.Reader }

func (m memory) WriteAt([]byte, int64) (int, error) { return 0, io.ErrShortWrite }
func (m memory) Truncate(int64) error               { return io.ErrShortWrite }
func (m memory) Sync() error                        { return nil }
func (m memory) Close() error                       { return nil }
func (m memory) Size() (int64, error)               { return m.Reader.Size(), nil }

func FuzzParseBody(f *testing.F) {
	f.Add([]byte{})
	f.Add(encodeBody(nil))
	f.Add(encodeBody([]change{{key: "a", value: []byte("1")}, {key: "b"}}))
	f.Fuzz(func(t *testing.T, raw []byte) {
		list, err := parseBody(raw)
		if err != nil {
			return
		}
		body := 0
		for _, c := range list {
			body += c.size()
		}
		// What parses is what its entries encode to, up to the sector's padding.
		again := encodeBody(list)
		if !bytes.Equal(again[:bodyHead+body], raw[:bodyHead+body]) {
			t.Fatalf("two encodings of one body")
		}
	})
}

// FuzzReadSlot feeds whole slot files; the sealed parts come from a real store so
// that changes reach every parser.
func FuzzReadSlot(f *testing.F) {
	key, err := secret.New(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	seal, err := newSealer(key, "fuzz", [32]byte{1})
	if err != nil {
		f.Fatal(err)
	}
	h := seal.header(1)
	raw := h.append(nil)
	s := slotState{hash: seal.genesisHash()}
	end, err := seal.seal(place{1, kindEnd, 0, checkpointHash(&h)}, encodeBody(checkpointEnd{1, s.hash, 0}.changes()))
	if err != nil {
		f.Fatal(err)
	}
	commit, err := seal.seal(place{1, kindCommit, 2, s.hash}, encodeBody([]change{{key: "a", value: []byte("1")}}))
	if err != nil {
		f.Fatal(err)
	}
	whole := append(append(raw, end...), commit...)
	f.Add(whole)
	f.Add(whole[:700])
	f.Fuzz(func(t *testing.T, raw []byte) {
		got, err := readSlot(memory{bytes.NewReader(raw)}, key, "fuzz")
		if (got == nil) == (err == nil) {
			t.Fatalf("state %v beside error %v", got, err)
		}
		if err == nil && got.seq > 2 {
			t.Fatalf("a forged commit was accepted")
		}
	})
}
