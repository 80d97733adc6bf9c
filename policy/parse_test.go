package policy

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

var (
	codeA = strings.Repeat("a1", 32)
	codeB = strings.Repeat("b2", 32)
	signA = strings.Repeat("49", 32)
	mrtd  = strings.Repeat("d0", 48)
	rtmr  = strings.Repeat("e7", 48)
)

func mustParse(t testing.TB, text string) Constraint {
	t.Helper()
	c, err := ParseConstraint(text)
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	return c
}

func TestCanonicalForm(t *testing.T) {
	t.Parallel()
	cases := map[string]string{
		"C:" + codeA:                           "C:" + codeA + " SEC:STALE",
		"C:" + strings.ToUpper(codeA):          "C:" + codeA + " SEC:STALE",
		"\n C:" + codeB + "\t\r\nC:" + codeA:   "C:" + codeA + " C:" + codeB + " SEC:STALE",
		"SEC:SECURE PROD:10 S:" + signA:        "S:" + signA + " PROD:10 SEC:SECURE",
		"SEC:STALE C:" + codeA:                 "C:" + codeA + " SEC:STALE",
		"EXPIRE:P12M C:" + codeA:               "C:" + codeA + " SEC:STALE EXPIRE:P1Y",
		"EXPIRE:P1Y2M3W4D C:" + codeA:          "C:" + codeA + " SEC:STALE EXPIRE:P1Y2M25D",
		"REVOKE:0 C:" + codeA:                  "C:" + codeA + " REVOKE:0 SEC:STALE",
		"PROD:3 C:" + codeA + " S:" + signA:    "C:" + codeA + " S:" + signA + " PROD:3 SEC:STALE",
		"FIRMWARE_ONLY_UNSAFE TD:" + mrtd:      "TD:" + mrtd + " FIRMWARE_ONLY_UNSAFE SEC:STALE",
		"SEC:INSECURE C:" + codeA + " PROD:10": "C:" + codeA + " PROD:10 SEC:INSECURE",
		"XFAM:E702060000000000 SERVICETD:" + rtmr + " MROWNERCONFIG:" + rtmr + " MROWNER:" + rtmr + " MRCONFIGID:" + rtmr +
			" SEAM:" + rtmr + " RTMR3:" + rtmr + " RTMR2:" + rtmr + " RTMR1:" + rtmr + " RTMR0:" + rtmr + " TD:" + mrtd: "TD:" + mrtd +
			" RTMR0:" + rtmr + " RTMR1:" + rtmr + " RTMR2:" + rtmr + " RTMR3:" + rtmr + " SEAM:" + rtmr + " MRCONFIGID:" + rtmr +
			" MROWNER:" + rtmr + " MROWNERCONFIG:" + rtmr + " SERVICETD:" + rtmr + " XFAM:e702060000000000 SEC:STALE",
	}
	for text, want := range cases {
		c := mustParse(t, text)
		if c.String() != want {
			t.Errorf("%q\n got %q\nwant %q", text, c, want)
		}
		if again := mustParse(t, c.String()); again != c {
			t.Errorf("%q does not round-trip", want)
		}
		if c.Insecure() != strings.Contains(text, "INSECURE") {
			t.Errorf("%q: Insecure = %v", text, c.Insecure())
		}
	}
}

func TestParseRefusals(t *testing.T) {
	t.Parallel()
	c, s, td := "C:"+codeA, "S:"+signA, "TD:"+mrtd
	pinned := td + " RTMR1:" + rtmr + " RTMR2:" + rtmr
	cases := []struct {
		text  string
		want  error
		token string
	}{
		{"", ErrMissing, ""},
		{" \n\t ", ErrMissing, ""},
		{"SEC:SECURE", ErrMissing, ""},
		{strings.Repeat(" ", MaxConstraint+1), ErrTooLong, ""},
		{s, ErrMissing, "S"},
		{c + " " + s, ErrMissing, "S"},
		{"PROD:1 " + pinned, ErrUnused, "PROD"},
		{"REVOKE:1 " + pinned, ErrUnused, "REVOKE"},
		{c + " RTMR1:" + rtmr, ErrUnused, "RTMR1"},
		{c + " SERVICETD:" + rtmr, ErrUnused, "SERVICETD"},
		{c + " XFAM:0000000000000000", ErrUnused, "XFAM"},
		{c + " FIRMWARE_ONLY_UNSAFE", ErrUnused, "FIRMWARE_ONLY_UNSAFE"},
		{td, ErrMissing, "TD"},
		{td + " RTMR1:" + rtmr, ErrMissing, "TD"},
		{td + " RTMR0:" + rtmr + " RTMR3:" + rtmr, ErrMissing, "TD"},
		{pinned + " FIRMWARE_ONLY_UNSAFE", ErrUnused, "FIRMWARE_ONLY_UNSAFE"},
		{pinned + " FIRMWARE_ONLY_UNSAFE:1", ErrValue, "FIRMWARE_ONLY_UNSAFE"},
		{c + " FIRMWARE_ONLY_UNSAFE FIRMWARE_ONLY_UNSAFE", ErrDuplicate, "FIRMWARE_ONLY_UNSAFE"},
		{c + " " + c, ErrDuplicate, "C"},
		{c + " C:" + strings.ToUpper(codeA), ErrDuplicate, "C"},
		{s + " " + s + " PROD:1", ErrDuplicate, "S"},
		{c + " PROD:1 PROD:1", ErrDuplicate, "PROD"},
		{c + " SEC:STALE SEC:SECURE", ErrDuplicate, "SEC"},
		{c + " EXPIRE:P1D EXPIRE:P1D", ErrDuplicate, "EXPIRE"},
		{"C:", ErrEmpty, "C"},
		{"C", ErrEmpty, "C"},
		{"C: " + codeA, ErrEmpty, "C"},
		{c + " SEC:", ErrEmpty, "SEC"},
		{"c:" + codeA, ErrUnknown, "c"},
		{c + " FOO:1", ErrUnknown, "FOO"},
		{c + " :1", ErrUnknown, ""},
		{c + " RTMR4:" + rtmr, ErrUnknown, "RTMR4"},
		{c + "\u00a0SEC:SECURE", ErrValue, "C"},
		{"C:" + codeA[:62], ErrValue, "C"},
		{c + "00", ErrValue, "C"},
		{"C:" + codeA[:63] + "g", ErrValue, "C"},
		{"C:" + strings.Repeat("00", 32), ErrValue, "C"},
		{"TD:" + strings.Repeat("00", 48) + " FIRMWARE_ONLY_UNSAFE", ErrValue, "TD"},
		{s + " PROD:-1", ErrValue, "PROD"},
		{s + " PROD:+1", ErrValue, "PROD"},
		{s + " PROD:01", ErrValue, "PROD"},
		{s + " PROD:65536", ErrValue, "PROD"},
		{s + " PROD:99999999999999999999", ErrValue, "PROD"},
		{c + " REVOKE:65535", ErrValue, "REVOKE"},
		{c + " REVOKE:1:2", ErrValue, "REVOKE"},
		{c + " SEC:secure", ErrValue, "SEC"},
		{c + " SEC:UNSAFE", ErrValue, "SEC"},
		{c + " EXPIRE:30D", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P0D", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P1D1Y", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P1D1D", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P-1D", ErrValue, "EXPIRE"},
		{c + " EXPIRE:PT12H", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P1.5D", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P01D", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P101Y", ErrValue, "EXPIRE"},
		{c + " EXPIRE:P99999D", ErrValue, "EXPIRE"},
		{c + " EXPIRE:p1y", ErrValue, "EXPIRE"},
		{pinned + " XFAM:" + rtmr, ErrValue, "XFAM"},
		{strings.Repeat("X", 2000), ErrUnknown, strings.Repeat("X", 32)},
	}
	for _, c := range cases {
		got, err := ParseConstraint(c.text)
		perr, ok := errors.AsType[*ParseError](err)
		if !ok || !errors.Is(err, c.want) || perr.Token != c.token || perr.Hint == "" {
			t.Errorf("%.80q: %v, want %v at token %q", c.text, err, c.want, c.token)
		}
		if !got.IsZero() {
			t.Errorf("%.80q: a usable constraint beside the error", c.text)
		}
	}
}

// genTokens draws a valid constraint as its tokens, all in canonical spelling.
func genTokens(rt *rapid.T) []string {
	hexOf := func(n int, label string) string {
		return rapid.StringMatching(fmt.Sprintf(`[1-9a-f][0-9a-f]{%d}`, 2*n-1)).Draw(rt, label)
	}
	var tokens []string
	many := func(key string, size, least int) int {
		set := map[string]bool{}
		for range rapid.IntRange(least, 3).Draw(rt, key) {
			set[hexOf(size, key)] = true
		}
		for v := range set {
			tokens = append(tokens, key+":"+v)
		}
		return len(set)
	}
	codes, signers := many("C", 32, 0), many("S", 32, 0)
	least := 0
	if codes+signers == 0 {
		least = 1
	}
	tds := many("TD", 48, least)
	maybe := func(label string) bool { return rapid.Bool().Draw(rt, label) }
	if signers > 0 || codes > 0 && maybe("prod") {
		tokens = append(tokens, fmt.Sprintf("PROD:%d", rapid.Uint16().Draw(rt, "prod value")))
	}
	if codes+signers > 0 && maybe("revoke") {
		tokens = append(tokens, fmt.Sprintf("REVOKE:%d", rapid.Uint16Max(65534).Draw(rt, "revoke value")))
	}
	if tds > 0 {
		tokens = append(tokens, genTDX(rt, hexOf)...)
	}
	sec := rapid.SampledFrom([]Security{Secure, Stale, Insecure}).Draw(rt, "sec")
	tokens = append(tokens, "SEC:"+string(sec))
	if maybe("expire") {
		p := period{rapid.IntRange(0, maxPeriodMonths).Draw(rt, "months"), rapid.IntRange(1, maxPeriodDays).Draw(rt, "days")}
		tokens = append(tokens, "EXPIRE:"+p.String())
	}
	return tokens
}

func genTDX(rt *rapid.T, hexOf func(int, string) string) []string {
	var tokens []string
	kernel := rapid.Bool().Draw(rt, "kernel")
	for key, size := range map[string]int{"RTMR0": 48, "RTMR3": 48, "SEAM": 48, "MROWNER": 48, "SERVICETD": 48, "XFAM": 8} {
		if rapid.Bool().Draw(rt, key) {
			tokens = append(tokens, key+":"+hexOf(size, key))
		}
	}
	if kernel {
		return append(tokens, "RTMR1:"+hexOf(48, "rtmr1"), "RTMR2:"+hexOf(48, "rtmr2"))
	}
	return append(tokens, firmwareOnlyToken)
}

// Order, case of hexadecimal and white space never change a constraint, so
// they never change a key; and parse and String are inverse.
func TestPropertyOneCanonicalForm(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(rt *rapid.T) {
		tokens := genTokens(rt)
		first, err := ParseConstraint(strings.Join(tokens, " "))
		if err != nil {
			rt.Fatalf("%v: %v", tokens, err)
		}
		if again, err := ParseConstraint(first.String()); err != nil || again != first {
			rt.Fatalf("no round trip: %q %v", first, err)
		}
		written := strings.Fields(first.String())
		slices.Sort(written)
		sorted := slices.Sorted(slices.Values(tokens))
		if !slices.Equal(written, sorted) {
			rt.Fatalf("canonical form %v of tokens %v", written, sorted)
		}
		seed := rapid.Uint64().Draw(rt, "shuffle")
		rand.New(rand.NewPCG(seed, 0)).Shuffle(len(tokens), func(i, j int) { tokens[i], tokens[j] = tokens[j], tokens[i] })
		var messy strings.Builder
		for _, token := range tokens {
			key, value, colon := strings.Cut(token, ":")
			if colon && key != "SEC" && key != "EXPIRE" && rapid.Bool().Draw(rt, "upper") {
				value = strings.ToUpper(value)
			}
			messy.WriteString(rapid.SampledFrom([]string{" ", "\t", "\n", "\r\n", "   "}).Draw(rt, "space") + key)
			if colon {
				messy.WriteString(":" + value)
			}
		}
		second, err := ParseConstraint(messy.String())
		if err != nil || second != first {
			rt.Fatalf("%q and %q differ: %v", messy.String(), first, err)
		}
	})
}

func FuzzParseConstraint(f *testing.F) {
	f.Add("C:" + codeA)
	f.Add("S:" + signA + " PROD:1 REVOKE:3 SEC:SECURE EXPIRE:P1Y2M3W")
	f.Add("TD:" + mrtd + " FIRMWARE_ONLY_UNSAFE XFAM:e702060000000000")
	f.Add("SEC:INSECURE C: EXPIRE:P")
	f.Add("C:" + codeA + " EXPIRE:P2000W") // five digits in days
	f.Fuzz(func(t *testing.T, text string) {
		c, err := ParseConstraint(text)
		if err != nil {
			if _, ok := errors.AsType[*ParseError](err); !ok || !c.IsZero() {
				t.Fatalf("%q: %v beside %q", text, err, c)
			}
			return
		}
		if again, err := ParseConstraint(c.String()); err != nil || again != c {
			t.Fatalf("%q: canonical %q does not parse to itself: %v", text, c, err)
		}
	})
}
