package ego

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/claviger/claviger/enclave"
)

// fake is a runtime that hands out what it is given.
type fake struct {
	key     []byte
	keyErr  error
	mangle  func(report []byte) []byte
	repErr  error
	touched []byte // the report data it was called with
}

var errRuntime = errors.New("OE_PLATFORM_ERROR")

func goodKey() []byte { return []byte("0123456789abcdef") }

func (f *fake) UniqueSealKey() ([]byte, error) { return bytes.Clone(f.key), f.keyErr }

// RemoteReport builds what Open Enclave returns: its header, then a quote with 7 bytes of signature data.
func (f *fake) RemoteReport(reportData []byte) ([]byte, error) {
	f.touched = reportData
	quote := make([]byte, signatureSize+4+7)
	binary.LittleEndian.PutUint16(quote, quoteVersion)
	copy(quote[reportDataAt:], reportData)
	binary.LittleEndian.PutUint32(quote[signatureSize:], 7)
	report := binary.LittleEndian.AppendUint32(nil, oeVersion)
	report = binary.LittleEndian.AppendUint32(report, oeTypeRemote)
	report = binary.LittleEndian.AppendUint64(report, uint64(len(quote)))
	report = append(report, quote...)
	if f.mangle != nil {
		report = f.mangle(report)
	}
	return report, f.repErr
}

func openFake(t *testing.T, f *fake) *TEE {
	t.Helper()
	tee, err := open(f)
	if err != nil {
		t.Fatal(err)
	}
	return tee
}

func TestQuoteStripsHeader(t *testing.T) {
	f := &fake{key: goodKey()}
	tee := openFake(t, f)
	data := [64]byte{1, 2, 3, 63: 9}
	quote, err := tee.Quote(t.Context(), data)
	if err != nil {
		t.Fatal(err)
	}
	if len(quote) != signatureSize+4+7 || binary.LittleEndian.Uint16(quote) != 3 || !bytes.Equal(f.touched, data[:]) {
		t.Errorf("quote of %d bytes, version %d", len(quote), binary.LittleEndian.Uint16(quote))
	}
	if tee.Kind() != enclave.SGX {
		t.Errorf("kind %q", tee.Kind())
	}
}

func TestQuoteRefusesMalformedReports(t *testing.T) {
	for name, mangle := range map[string]func(b []byte) []byte{
		"empty":           func([]byte) []byte { return nil },
		"header only":     func(b []byte) []byte { return b[:oeHeaderSize] },
		"truncated":       func(b []byte) []byte { return b[:len(b)-1] },
		"trailing byte":   func(b []byte) []byte { return append(b, 0) },
		"header version":  func(b []byte) []byte { b[0] = 2; return b },
		"local report":    func(b []byte) []byte { b[4] = 1; return b },
		"size too small":  func(b []byte) []byte { b[8]--; return b },
		"size too large":  func(b []byte) []byte { b[15] = 0xff; return b },
		"no header":       func(b []byte) []byte { return b[oeHeaderSize:] },
		"quote version 4": func(b []byte) []byte { b[oeHeaderSize] = 4; return b },
		"signature size":  func(b []byte) []byte { b[oeHeaderSize+signatureSize]--; return b },
		"report data":     func(b []byte) []byte { b[oeHeaderSize+reportDataAt+63] ^= 1; return b },
		"oversized":       func(b []byte) []byte { return append(b, make([]byte, maxReport)...) },
		"quote padded": func(b []byte) []byte {
			b = append(b, 0)
			binary.LittleEndian.PutUint64(b[8:], uint64(len(b)-oeHeaderSize))
			return b
		},
	} {
		tee := openFake(t, &fake{key: goodKey(), mangle: mangle})
		if quote, err := tee.Quote(t.Context(), [64]byte{63: 7}); !errors.Is(err, ErrReport) || quote != nil {
			t.Errorf("%s: %d bytes, %v; want ErrReport", name, len(quote), err)
		}
	}
}

func TestRuntimeErrorsPass(t *testing.T) {
	tee := openFake(t, &fake{key: goodKey(), repErr: errRuntime})
	if quote, err := tee.Quote(t.Context(), [64]byte{}); !errors.Is(err, errRuntime) || quote != nil {
		t.Errorf("quote: %v", err)
	}
	if tee, err := open(&fake{keyErr: errRuntime}); !errors.Is(err, errRuntime) || tee != nil {
		t.Errorf("open: %v", err)
	}
}

// EGo hands out zeroes in simulation mode: a store sealed under them would be open to everybody.
func TestZeroSealKeyRefused(t *testing.T) {
	if tee, err := open(&fake{key: make([]byte, 16)}); !errors.Is(err, ErrSimulation) || tee != nil {
		t.Errorf("open: %v, want ErrSimulation", err)
	}
	f := &fake{key: goodKey()}
	tee := openFake(t, f)
	f.key = make([]byte, 16)
	if key, err := tee.SealingKey(t.Context(), "x"); !errors.Is(err, ErrSimulation) || !key.IsZero() {
		t.Errorf("SealingKey: %v, want ErrSimulation", err)
	}
	for _, n := range []int{0, 15, 17, 32} {
		if tee, err := open(&fake{key: bytes.Repeat([]byte{1}, n)}); !errors.Is(err, ErrSealKey) || tee != nil {
			t.Errorf("key of %d bytes: %v, want ErrSealKey", n, err)
		}
	}
}

func TestSealingKey(t *testing.T) {
	f := &fake{key: goodKey()}
	tee := openFake(t, f)
	a, err := tee.SealingKey(t.Context(), "a")
	if err != nil || a.Len() != enclave.SealingKeySize {
		t.Fatalf("%d bytes, %v", a.Len(), err)
	}
	if again, _ := tee.SealingKey(t.Context(), "a"); !again.Equal(a) {
		t.Error("the key is not stable")
	}
	if b, _ := tee.SealingKey(t.Context(), "b"); b.IsZero() || b.Equal(a) {
		t.Error("labels share a key")
	}
	f.key[0] ^= 1
	if other, _ := tee.SealingKey(t.Context(), "a"); other.IsZero() || other.Equal(a) {
		t.Error("another machine gets the same key")
	}
	for _, label := range []string{"", strings.Repeat("x", enclave.MaxLabel+1)} {
		if key, err := tee.SealingKey(t.Context(), label); !errors.Is(err, enclave.ErrLabel) || !key.IsZero() {
			t.Errorf("label of %d bytes: %v", len(label), err)
		}
	}
	if _, err := tee.SealingKey(t.Context(), strings.Repeat("x", enclave.MaxLabel)); err != nil {
		t.Errorf("longest label: %v", err)
	}
}

func TestContextAndZeroValue(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	tee := openFake(t, &fake{key: goodKey()})
	if _, err := tee.Quote(ctx, [64]byte{}); !errors.Is(err, context.Canceled) {
		t.Errorf("Quote: %v", err)
	}
	if _, err := tee.SealingKey(ctx, "x"); !errors.Is(err, context.Canceled) {
		t.Errorf("SealingKey: %v", err)
	}
	for _, tee := range []*TEE{nil, {}} {
		if _, err := tee.Quote(t.Context(), [64]byte{}); !errors.Is(err, enclave.ErrUnsupported) {
			t.Errorf("zero TEE quotes: %v", err)
		}
		if key, err := tee.SealingKey(t.Context(), "x"); !errors.Is(err, enclave.ErrUnsupported) || !key.IsZero() {
			t.Errorf("zero TEE seals: %v", err)
		}
	}
}

// Off SGX hardware Open must fail with and without the tag, and say what to do.
func TestOpenHereRefuses(t *testing.T) {
	tee, err := Open()
	if err == nil {
		t.Skip("this test process runs inside an EGo enclave")
	}
	if tee != nil || !errors.Is(err, enclave.ErrUnsupported) && !errors.Is(err, ErrSimulation) {
		t.Errorf("Open: %v, want ErrUnsupported or ErrSimulation", err)
	}
	if !strings.Contains(err.Error(), "ego run") || strings.Contains(fmt.Sprint(err), "0123456789abcdef") {
		t.Errorf("the error does not say what to do: %v", err)
	}
}
