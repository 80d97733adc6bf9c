package tdx_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/claviger/claviger/attest/tdx"
	"github.com/google/go-tdx-guest/testing/testdata"
)

const realQuoteSize = 4935 // go-tdx-guest's file has 39 bytes of text after the quote

func realQuote() []byte { return bytes.Clone(testdata.RawQuote[:realQuoteSize]) }

// sample5 is a version 5 quote made from the real one; its signatures do not matter to a codec.
func sample5(bodyType uint16) []byte {
	q, err := tdx.ParseQuote(realQuote())
	if err != nil {
		panic(err)
	}
	q.Header.Version, q.BodyType = tdx.Version5, bodyType
	if bodyType >= tdx.BodyTD15 {
		q.Body15 = &tdx.Body15{TEETCBSVN2: [16]byte{1, 2, 3}, MRServiceTD: [48]byte{4, 5, 6}}
	}
	if bodyType == tdx.BodyTD15Ex {
		q.Body15Ex = &tdx.Body15Ex{
			VMID: 1, TDID: [32]byte{2}, DeviceInfo: [48]byte{3}, InitServiceTDHash: [48]byte{4}, InitServiceTDAttributes: [8]byte{5},
			InitCPUSVN: [16]byte{6}, InitTEETCBSVN: [16]byte{7}, InitTEEFMSPC: [12]byte{8}, ServiceTDHash: [48]byte{9}, ServiceTDAttributes: [8]byte{10},
		}
	}
	return q.Append(nil)
}

func TestRealQuote(t *testing.T) {
	t.Parallel()
	raw := realQuote()
	q, err := tdx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(q.Append(nil), raw) {
		t.Fatal("round trip differs")
	}
	if !bytes.Equal(q.AppendSigned(nil), raw[:tdx.HeaderSize+tdx.BodySize10]) {
		t.Fatal("signed part is not header and body")
	}
	if q.BodyType != 0 || q.Body15 != nil || q.Auth.CertType != tdx.CertTypePCKChain || q.Body.Debug() {
		t.Fatalf("unexpected %d %v %d %v", q.BodyType, q.Body15, q.Auth.CertType, q.Body.Debug())
	}
	if !bytes.Equal(q.Body.ReportData[:], raw[48+520:48+584]) || !bytes.Equal(q.Body.MRTD[:], raw[48+136:48+184]) {
		t.Fatal("fields are shifted")
	}
	if _, err := tdx.ParseQuote(testdata.RawQuote); !errors.Is(err, tdx.ErrTrailing) {
		t.Fatalf("trailing text accepted: %v", err)
	}
}

func TestVersion5(t *testing.T) {
	t.Parallel()
	for _, bodyType := range []uint16{tdx.BodyTD10, tdx.BodyTD15, tdx.BodyTD15Ex} {
		raw := sample5(bodyType)
		q, err := tdx.ParseQuote(raw)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(q.Append(nil), raw) || (q.Body15 != nil) != (bodyType >= tdx.BodyTD15) || (q.Body15Ex != nil) != (bodyType == tdx.BodyTD15Ex) {
			t.Errorf("body type %d does not round-trip", bodyType)
		}
	}
}

// TestBody15Ex compares offsets with those of Intel's sgx_report2_body_v1_5_ex_t, 885 bytes.
func TestBody15Ex(t *testing.T) {
	t.Parallel()
	if tdx.BodySize15Ex != 885 {
		t.Fatalf("%d bytes", tdx.BodySize15Ex)
	}
	raw := sample5(tdx.BodyTD15Ex)
	body := raw[54:]
	for i, at := range []int{648, 649, 681, 729, 777, 785, 801, 817, 829, 877} {
		if body[at] != byte(i+1) {
			t.Errorf("field %d is not at %d", i, at)
		}
	}
	q, err := tdx.ParseQuote(raw)
	if err != nil {
		t.Fatal(err)
	}
	if q.Body15Ex.VMID != 1 || q.Body15Ex.TDID[0] != 2 || q.Body15Ex.InitTEEFMSPC[0] != 8 || q.Body15Ex.ServiceTDAttributes[0] != 10 {
		t.Errorf("%+v", q.Body15Ex)
	}
	if signed := q.AppendSigned(nil); !bytes.Equal(signed, raw[:54+885]) {
		t.Error("signed part is not header, descriptor and body")
	}
}

func TestTruncatedAtEveryLength(t *testing.T) {
	t.Parallel()
	for _, raw := range [][]byte{realQuote(), sample5(tdx.BodyTD15), sample5(tdx.BodyTD15Ex)} {
		for n := range raw {
			if q, err := tdx.ParseQuote(raw[:n]); err == nil || q != nil {
				t.Fatalf("accepted %d of %d bytes", n, len(raw))
			}
		}
	}
}

func TestRefused(t *testing.T) {
	t.Parallel()
	const auth = tdx.HeaderSize + tdx.BodySize10
	v4, v5 := realQuote(), sample5(tdx.BodyTD15)
	for name, tc := range map[string]struct {
		from   []byte
		change func([]byte) []byte
		want   error
	}{
		"empty":             {v4, func(b []byte) []byte { return nil }, tdx.ErrShort},
		"trailing byte":     {v4, func(b []byte) []byte { return append(b, 0) }, tdx.ErrTrailing},
		"version 3":         {v4, func(b []byte) []byte { b[0] = 3; return b }, tdx.ErrVersion},
		"version 6":         {v4, func(b []byte) []byte { b[0] = 6; return b }, tdx.ErrVersion},
		"key type":          {v4, func(b []byte) []byte { b[2] = 3; return b }, tdx.ErrKeyType},
		"tee type":          {v4, func(b []byte) []byte { b[4] = 0; return b }, tdx.ErrTEEType},
		"auth size huge":    {v4, func(b []byte) []byte { copy(b[auth:], "\xff\xff\xff\xff"); return b }, tdx.ErrShort},
		"auth size -1":      {v4, func(b []byte) []byte { b[auth]--; return b }, tdx.ErrTrailing},
		"outer type 5":      {v4, func(b []byte) []byte { b[auth+4+128] = 5; return b }, tdx.ErrCertType},
		"outer size":        {v4, func(b []byte) []byte { b[auth+4+130]++; return b }, tdx.ErrLength},
		"auth data huge":    {v4, func(b []byte) []byte { copy(b[auth+4+134+448:], "\xff\xff"); return b }, tdx.ErrLength},
		"cert data size":    {v4, func(b []byte) []byte { b[auth+4+134+448+2+32+2]++; return b }, tdx.ErrLength},
		"auth too small":    {v4, func(b []byte) []byte { b = b[:auth+4+100]; copy(b[auth:], "\x64\x00\x00\x00"); return b }, tdx.ErrLength},
		"oversized":         {v4, func(b []byte) []byte { return make([]byte, tdx.MaxQuoteSize+1) }, tdx.ErrTooLarge},
		"v5 body type 0":    {v5, func(b []byte) []byte { b[48] = 0; return b }, tdx.ErrBodyType},
		"v5 body type 1":    {v5, func(b []byte) []byte { b[48] = 1; return b }, tdx.ErrBodyType},
		"v5 body type 9":    {v5, func(b []byte) []byte { b[48] = 9; return b }, tdx.ErrBodyType},
		"v5 body size":      {v5, func(b []byte) []byte { b[50]++; return b }, tdx.ErrBodyType},
		"v5 body as 1.5 ex": {v5, func(b []byte) []byte { b[48] = 4; return b }, tdx.ErrBodyType},
		"v5 body as 1.0":    {v5, func(b []byte) []byte { b[48] = 2; return b }, tdx.ErrBodyType},
		"v5 body size huge": {v5, func(b []byte) []byte { binary.LittleEndian.PutUint32(b[50:], 1<<31); return b }, tdx.ErrBodyType},
	} {
		if q, err := tdx.ParseQuote(tc.change(bytes.Clone(tc.from))); !errors.Is(err, tc.want) || q != nil {
			t.Errorf("%s: got %v, %v; want %v", name, q, err, tc.want)
		}
	}
}

func TestDebug(t *testing.T) {
	t.Parallel()
	b := tdx.Body{TDAttributes: [8]byte{1}}
	if !b.Debug() {
		t.Error("TDATTRIBUTES.DEBUG not seen")
	}
	if b.TDAttributes[0] = 0; b.Debug() {
		t.Error("zero attributes are debug")
	}
}

func FuzzParseQuote(f *testing.F) {
	f.Add(realQuote())
	f.Add(sample5(tdx.BodyTD10))
	f.Add(sample5(tdx.BodyTD15))
	f.Add(sample5(tdx.BodyTD15Ex))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := tdx.ParseQuote(raw)
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

// TestVectors round-trips the real version 4 and 5 quotes of the reference vectors.
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
		q, err := tdx.ParseQuote(raw)
		if errors.Is(err, tdx.ErrVersion) {
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
		t.Fatal("no version 4 or 5 quote among the vectors")
	}
	t.Logf("%d quotes of versions 4 and 5 round-trip", count)
}
