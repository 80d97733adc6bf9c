package ego

import (
	"bytes"
	"testing"
)

// FuzzStrip: whatever passes is the input behind its header, whole, and binds the report data.
func FuzzStrip(f *testing.F) {
	good, err := (&fake{}).RemoteReport(make([]byte, 64))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	f.Add(good[:len(good)-1])
	f.Add(good[oeHeaderSize:])
	f.Add([]byte(nil))
	f.Fuzz(func(t *testing.T, report []byte) {
		quote, err := strip(report, [64]byte{})
		if err != nil {
			if quote != nil {
				t.Fatal("bytes beside an error")
			}
			return
		}
		if !bytes.Equal(quote, report[oeHeaderSize:]) || !bytes.Equal(quote[reportDataAt:][:64], make([]byte, 64)) {
			t.Fatal("not the quote that came in")
		}
	})
}
