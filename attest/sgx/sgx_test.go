package sgx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/attest/sgx"
)

// sample is a quote with a different byte pattern in every field, so that a swapped or shifted field shows.
func sample() *sgx.Quote {
	var raw [sgx.ReportSize]byte
	for i := range raw {
		raw[i] = byte(i*7 + 1)
	}
	report, err := sgx.ParseReport(raw[:])
	if err != nil {
		panic(err)
	}
	q := &sgx.Quote{
		Header: sgx.Header{Version: 3, AttestationKeyType: 2, QESVN: 0x0102, PCESVN: 0x0304, QEVendorID: [16]byte{0x93, 1}, UserData: [20]byte{9}},
		Report: *report,
		Auth:   sgx.Auth{QEAuthData: []byte("auth data"), CertType: 5, CertData: []byte("certificates")},
	}
	q.Auth.Signature[0], q.Auth.AttestationKey[1], q.Auth.QEReport[2], q.Auth.QEReportSignature[3] = 1, 2, 3, 4
	return q
}

func TestRoundTrip(t *testing.T) {
	t.Parallel()
	raw := sample().Append(nil)
	q, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := q.Append(nil); !bytes.Equal(got, raw) {
		t.Fatalf("round trip differs:\n%x\n%x", got, raw)
	}
	if got := q.AppendSigned(nil); !bytes.Equal(got, raw[:sgx.HeaderSize+sgx.ReportSize]) {
		t.Fatal("signed part is not header and report")
	}
	if got := q.Report.ISVSVN; got != binary.LittleEndian.Uint16(raw[48+258:]) {
		t.Errorf("ISVSVN %#x", got)
	}
	if !bytes.Equal(q.Report.ReportData[:], raw[48+320:48+384]) {
		t.Error("report data is not the last 64 bytes of the report")
	}
}

// sample5 is the same content in version 5.
func sample5() *sgx.Quote {
	q := sample()
	q.Header.Version = sgx.Version5
	return q
}

func TestVersion5(t *testing.T) {
	t.Parallel()
	raw := sample5().Append(nil)
	q, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	if got := q.Append(nil); !bytes.Equal(got, raw) {
		t.Fatalf("round trip differs:\n%x\n%x", got, raw)
	}
	if got := q.AppendSigned(nil); !bytes.Equal(got, raw[:sgx.HeaderSize+6+sgx.ReportSize]) {
		t.Fatal("signed part is not header, descriptor and report")
	}
	if !bytes.Equal(raw[48:54], []byte{1, 0, 0x80, 1, 0, 0}) {
		t.Errorf("body descriptor %x", raw[48:54])
	}
	want := sample()
	if q.Report != want.Report || q.Auth.Signature != want.Auth.Signature || q.Auth.QEReport != want.Auth.QEReport ||
		string(q.Auth.QEAuthData) != "auth data" || q.Auth.CertType != 5 || string(q.Auth.CertData) != "certificates" {
		t.Errorf("content differs: %+v", q)
	}
}

func TestParseCopies(t *testing.T) {
	t.Parallel()
	raw := sample().Append(nil)
	q, err := sgx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	clear(raw)
	if string(q.Auth.QEAuthData) != "auth data" || string(q.Auth.CertData) != "certificates" {
		t.Fatal("the parsed quote shares memory with its input")
	}
}

func TestTruncatedAtEveryLength(t *testing.T) {
	t.Parallel()
	for _, raw := range [][]byte{sample().Append(nil), sample5().Append(nil)} {
		for n := range raw {
			if q, err := sgx.ParseQuote(raw[:n]); err == nil || q != nil {
				t.Fatalf("accepted %d of %d bytes", n, len(raw))
			}
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	const auth = sgx.HeaderSize + sgx.ReportSize
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"empty":            {func(b []byte) []byte { return nil }, sgx.ErrShort},
		"trailing byte":    {func(b []byte) []byte { return append(b, 0) }, sgx.ErrTrailing},
		"version 4":        {func(b []byte) []byte { b[0] = 4; return b }, sgx.ErrVersion},
		"version high":     {func(b []byte) []byte { b[1] = 1; return b }, sgx.ErrVersion},
		"key type":         {func(b []byte) []byte { b[2] = 3; return b }, sgx.ErrKeyType},
		"tee type":         {func(b []byte) []byte { b[4] = 0x81; return b }, sgx.ErrTEEType},
		"auth size +1":     {func(b []byte) []byte { b[auth]++; return b }, sgx.ErrShort},
		"auth size -1":     {func(b []byte) []byte { b[auth]--; return b }, sgx.ErrTrailing},
		"auth size huge":   {func(b []byte) []byte { copy(b[auth:], "\xff\xff\xff\xff"); return b }, sgx.ErrShort},
		"auth data huge":   {func(b []byte) []byte { copy(b[auth+4+576:], "\xff\xff"); return b }, sgx.ErrLength},
		"cert data size+1": {func(b []byte) []byte { b[len(b)-12-4]++; return b }, sgx.ErrLength},
		"cert data huge":   {func(b []byte) []byte { copy(b[len(b)-12-4:], "\xff\xff\xff\xff"); return b }, sgx.ErrLength},
		"oversized":        {func(b []byte) []byte { return make([]byte, sgx.MaxQuoteSize+1) }, sgx.ErrTooLarge},
	} {
		if q, err := sgx.ParseQuote(tc.change(sample().Append(nil))); !errors.Is(err, tc.want) || q != nil {
			t.Errorf("%s: got %v, %v; want %v", name, q, err, tc.want)
		}
	}
	const auth5 = auth + 6
	for name, tc := range map[string]struct {
		change func([]byte) []byte
		want   error
	}{
		"version 3 header": {func(b []byte) []byte { b[0] = 3; return b }, sgx.ErrShort},
		"trailing byte":    {func(b []byte) []byte { return append(b, 0) }, sgx.ErrTrailing},
		"tee type":         {func(b []byte) []byte { b[4] = 0x81; return b }, sgx.ErrTEEType},
		"body type 0":      {func(b []byte) []byte { b[48] = 0; return b }, sgx.ErrBodyType},
		"body type 2":      {func(b []byte) []byte { b[48] = 2; return b }, sgx.ErrBodyType},
		"body type high":   {func(b []byte) []byte { b[49] = 1; return b }, sgx.ErrBodyType},
		"body size":        {func(b []byte) []byte { b[50]++; return b }, sgx.ErrBodyType},
		"body size huge":   {func(b []byte) []byte { b[53] = 0xff; return b }, sgx.ErrBodyType},
		"auth size huge":   {func(b []byte) []byte { copy(b[auth5:], "\xff\xff\xff\xff"); return b }, sgx.ErrShort},
		"auth size -1":     {func(b []byte) []byte { b[auth5]--; return b }, sgx.ErrTrailing},
		"auth too small":   {func(b []byte) []byte { b = b[:auth5+4+100]; copy(b[auth5:], "\x64\x00\x00\x00"); return b }, sgx.ErrLength},
		"outer type 5":     {func(b []byte) []byte { b[auth5+4+128] = 5; return b }, sgx.ErrCertType},
		"outer size":       {func(b []byte) []byte { b[auth5+4+130]++; return b }, sgx.ErrLength},
		"auth data huge":   {func(b []byte) []byte { copy(b[auth5+4+134+448:], "\xff\xff"); return b }, sgx.ErrLength},
		"cert data size+1": {func(b []byte) []byte { b[len(b)-12-4]++; return b }, sgx.ErrLength},
	} {
		if q, err := sgx.ParseQuote(tc.change(sample5().Append(nil))); !errors.Is(err, tc.want) || q != nil {
			t.Errorf("version 5, %s: got %v, %v; want %v", name, q, err, tc.want)
		}
	}
}

func TestReport(t *testing.T) {
	t.Parallel()
	for _, n := range []int{0, 383, 385} {
		if r, err := sgx.ParseReport(make([]byte, n)); !errors.Is(err, sgx.ErrReportSize) || r != nil {
			t.Errorf("%d bytes: %v, %v", n, r, err)
		}
	}
	var r sgx.Report
	if r.Debug() {
		t.Error("zero report is debug")
	}
	if r.Attributes[0] = 2; !r.Debug() {
		t.Error("ATTRIBUTES.DEBUG not seen")
	}
}

func FuzzParseQuote(f *testing.F) {
	f.Add(sample().Append(nil))
	f.Add(sample5().Append(nil))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := sgx.ParseQuote(raw)
		if err != nil {
			if q != nil {
				t.Fatal("a quote beside an error")
			}
			return
		}
		if !bytes.Equal(q.Append(nil), raw) {
			t.Fatal("accepted a quote that does not round-trip")
		}
	})
}

// TestVectors round-trips the real version 3 quotes of the reference vectors.
func TestVectors(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("CLAVIGER_VECTORS")
	if dir == "" {
		dir = filepath.Join("..", "..", "..", "shared", "vectors")
	}
	names, _ := filepath.Glob(filepath.Join(dir, "quotes", "*.bin"))
	if len(names) == 0 {
		t.Skip("reference vectors are absent: set CLAVIGER_VECTORS to their folder")
	}
	count := 0
	for _, name := range names {
		raw, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		q, err := sgx.ParseQuote(raw)
		if errors.Is(err, sgx.ErrVersion) || errors.Is(err, sgx.ErrTEEType) {
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", filepath.Base(name), err)
			continue
		}
		if !bytes.Equal(q.Append(nil), raw) {
			t.Errorf("%s does not round-trip", filepath.Base(name))
		}
		count++
	}
	if count == 0 {
		t.Fatal("no version 3 quote among the vectors")
	}
	t.Logf("%d version 3 quotes round-trip", count)
}
