package tdxguest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-tdx-guest/testing/testdata"

	"github.com/claviger/claviger/enclave"
)

// fake is a quote provider without a kernel behind it.
type fake struct {
	unsupported, err error
	version          uint16
	bodySize         int
	mangle           func(quote []byte) []byte
}

func (f *fake) IsSupported() error { return f.unsupported }

// GetRawQuote returns a quote of the version with 9 bytes of signature data.
func (f *fake) GetRawQuote(reportData [64]byte) ([]byte, error) {
	quote := make([]byte, headerSize)
	binary.LittleEndian.PutUint16(quote, f.version)
	binary.LittleEndian.PutUint32(quote[4:], teeTypeTDX)
	if f.version == 5 {
		quote = binary.LittleEndian.AppendUint16(quote, 3)
		quote = binary.LittleEndian.AppendUint32(quote, uint32(f.bodySize))
	}
	body := make([]byte, f.bodySize)
	copy(body[min(reportDataAt, len(body)):], reportData[:])
	quote = append(quote, body...)
	quote = binary.LittleEndian.AppendUint32(quote, 9)
	quote = append(quote, bytes.Repeat([]byte{0xee}, 9)...)
	if f.mangle != nil {
		quote = f.mangle(quote)
	}
	return quote, f.err
}

func openFake(t *testing.T, f *fake) *TEE {
	t.Helper()
	tee, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	return tee
}

func TestQuote(t *testing.T) {
	for name, c := range map[string]struct {
		fake fake
		size int
	}{
		"version 4":          {fake{version: 4, bodySize: body10Size}, headerSize + body10Size + 4 + 9},
		"version 5, TDX 1.0": {fake{version: 5, bodySize: body10Size}, headerSize + 6 + body10Size + 4 + 9},
		"version 5, TDX 1.5": {fake{version: 5, bodySize: body15Size}, headerSize + 6 + body15Size + 4 + 9},
		"padded": {fake{version: 4, bodySize: body10Size, mangle: func(b []byte) []byte {
			return append(b, make([]byte, 100)...)
		}}, headerSize + body10Size + 4 + 9},
	} {
		tee := openFake(t, &c.fake)
		quote, err := tee.Quote(t.Context(), [64]byte{5, 63: 6})
		if err != nil || len(quote) != c.size {
			t.Errorf("%s: %d bytes, %v; want %d", name, len(quote), err, c.size)
		}
		if tee.Kind() != enclave.TDX {
			t.Errorf("kind %q", tee.Kind())
		}
	}
}

func TestQuoteRefusesMalformed(t *testing.T) {
	end := headerSize + body10Size
	for name, mangle := range map[string]func(b []byte) []byte{
		"empty":          func([]byte) []byte { return nil },
		"header only":    func(b []byte) []byte { return b[:headerSize] },
		"truncated body": func(b []byte) []byte { return b[:end] },
		"truncated":      func(b []byte) []byte { return b[:len(b)-1] },
		"trailing":       func(b []byte) []byte { return append(b, 0, 1) },
		"version 3":      func(b []byte) []byte { b[0] = 3; return b },
		"SGX":            func(b []byte) []byte { b[4] = 0; return b },
		"signature size": func(b []byte) []byte { b[end+3] = 0xff; return b },
		"report data":    func(b []byte) []byte { b[headerSize+reportDataAt] ^= 1; return b },
		"oversized":      func(b []byte) []byte { return append(b, make([]byte, maxQuote)...) },
		"version 5 body": func(b []byte) []byte { b[0] = 5; return b },
	} {
		tee := openFake(t, &fake{version: 4, bodySize: body10Size, mangle: mangle})
		if quote, err := tee.Quote(t.Context(), [64]byte{1}); !errors.Is(err, ErrQuote) || quote != nil {
			t.Errorf("%s: %d bytes, %v; want ErrQuote", name, len(quote), err)
		}
	}
}

// A quote from real hardware passes for the data it was made over, and for no other: the host cannot replay one.
func TestRealQuote(t *testing.T) {
	raw := testdata.RawQuote // a real quote, followed by text that its authors put there for tests like this one
	signature := binary.LittleEndian.Uint32(raw[headerSize+body10Size:])
	real := raw[:headerSize+body10Size+4+int(signature)]
	var data [64]byte
	copy(data[:], raw[headerSize+reportDataAt:])

	out := real
	tee := openFake(t, &fake{version: 4, bodySize: body10Size, mangle: func([]byte) []byte { return bytes.Clone(out) }})
	if quote, err := tee.Quote(t.Context(), data); err != nil || !bytes.Equal(quote, real) {
		t.Fatalf("%d bytes, %v", len(quote), err)
	}
	data[0] ^= 1
	if _, err := tee.Quote(t.Context(), data); !errors.Is(err, ErrQuote) {
		t.Errorf("a replayed quote passes: %v", err)
	}
	data[0] ^= 1
	if out = raw; len(raw) == len(real) {
		t.Fatal("the test data has nothing behind the quote any more")
	}
	if _, err := tee.Quote(t.Context(), data); !errors.Is(err, ErrQuote) {
		t.Errorf("text behind the quote passes: %v", err)
	}
}

func TestErrorsAndZeroValue(t *testing.T) {
	errKernel := errors.New("EBUSY")
	tee := openFake(t, &fake{version: 4, bodySize: body10Size, err: errKernel})
	if quote, err := tee.Quote(t.Context(), [64]byte{}); !errors.Is(err, errKernel) || quote != nil {
		t.Errorf("kernel error: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tee.Quote(ctx, [64]byte{}); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if tee, err := open(&fake{unsupported: errKernel}); !errors.Is(err, enclave.ErrUnsupported) || !errors.Is(err, errKernel) || tee != nil {
		t.Errorf("open: %v", err)
	}
	for _, zero := range []*TEE{nil, {}} {
		if _, err := zero.Quote(t.Context(), [64]byte{}); !errors.Is(err, enclave.ErrUnsupported) {
			t.Errorf("zero TEE: %v", err)
		}
	}
}

func TestNoSealingKey(t *testing.T) {
	tee := openFake(t, &fake{})
	if key, err := tee.SealingKey(t.Context(), "x"); !errors.Is(err, enclave.ErrUnsupported) || !key.IsZero() {
		t.Errorf("SealingKey: %v, want ErrUnsupported", err)
	}
	if _, err := tee.SealingKey(t.Context(), ""); !errors.Is(err, enclave.ErrLabel) {
		t.Errorf("empty label: %v", err)
	}
}

func TestOpenHereRefuses(t *testing.T) {
	tee, err := Open()
	if err == nil {
		t.Skip("this test process runs inside a TD")
	}
	if tee != nil || !errors.Is(err, enclave.ErrUnsupported) || !strings.Contains(err.Error(), "tdx_guest") {
		t.Errorf("Open: %v, want ErrUnsupported and what to do", err)
	}
}
