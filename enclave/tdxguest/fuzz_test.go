package tdxguest

import (
	"bytes"
	"testing"

	"github.com/google/go-tdx-guest/testing/testdata"
)

// FuzzCheck: whatever passes is the input without its zero padding, and passes again unchanged.
func FuzzCheck(f *testing.F) {
	for _, p := range []fake{{version: 4, bodySize: body10Size}, {version: 5, bodySize: body10Size}, {version: 5, bodySize: body15Size}} {
		good, err := p.GetRawQuote([64]byte{})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(good)
		f.Add(append(good, 0, 0))
		f.Add(good[:len(good)-1])
	}
	f.Add(testdata.RawQuote)
	f.Fuzz(func(t *testing.T, raw []byte) {
		quote, err := check(raw, [64]byte{})
		if err != nil {
			if quote != nil {
				t.Fatal("bytes beside an error")
			}
			return
		}
		if rest := raw[len(quote):]; !bytes.HasPrefix(raw, quote) || !bytes.Equal(rest, make([]byte, len(rest))) {
			t.Fatal("not the quote that came in")
		}
		if again, err := check(quote, [64]byte{}); err != nil || !bytes.Equal(again, quote) {
			t.Fatalf("does not pass again: %v", err)
		}
	})
}
