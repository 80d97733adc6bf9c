package policy

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func fill(b []byte, text string) {
	raw, err := hex.DecodeString(text)
	if err != nil || len(raw) != len(b) {
		panic("test data of the wrong size")
	}
	copy(b, raw)
}

func sgxClaims() attest.Claims {
	c := attest.Claims{
		TEE: attest.SGX, QuoteVersion: 3, SGX: &attest.SGXClaims{ISVProdID: 7, ISVSVN: 3},
		TCB: attest.TCBClaims{Status: attest.StatusUpToDate, Date: now.AddDate(-1, 0, 0)},
	}
	fill(c.SGX.MREnclave[:], codeA)
	fill(c.SGX.MRSigner[:], signA)
	c.Collateral.TCBInfoIssueDate = now.AddDate(0, 0, -10)
	return c
}

func tdxClaims() attest.Claims {
	c := sgxClaims()
	c.TEE, c.QuoteVersion, c.SGX, c.TDX = attest.TDX, 4, nil, &attest.TDXClaims{}
	fill(c.TDX.MRTD[:], mrtd)
	for i := range c.TDX.RTMR {
		fill(c.TDX.RTMR[i][:], rtmr)
	}
	setAttributes(&c, tdSeptVEDisable)
	return c
}

func setAttributes(c *attest.Claims, bits uint64) {
	binary.LittleEndian.PutUint64(c.TDX.TDAttributes[:], bits)
	c.Debug = bits&tdDebug != 0
}

// denied returns the failed clauses in order, nil if the check passes.
func denied(t *testing.T, text string, claims attest.Claims) []string {
	t.Helper()
	return clausesOf(t, mustParse(t, text).check(claims, now, false))
}

func clausesOf(t *testing.T, err error) []string {
	t.Helper()
	if err == nil {
		return nil
	}
	d, ok := errors.AsType[*Denied](err)
	if !ok || len(d.Failures) == 0 {
		t.Fatalf("%v is not a *Denied with failures", err)
	}
	var out []string
	for _, f := range d.Failures {
		if f.Want == "" || f.Got == "" || f.Hint == "" {
			t.Errorf("%s: want %q got %q hint %q", f.Clause, f.Want, f.Got, f.Hint)
		}
		out = append(out, f.Clause)
	}
	return out
}

func TestCheckSGX(t *testing.T) {
	t.Parallel()
	a, b, s := "C:"+codeA, "C:"+codeB, "S:"+signA
	other := "S:" + strings.Repeat("11", 32)
	td := "TD:" + mrtd + " FIRMWARE_ONLY_UNSAFE"
	cases := []struct {
		text   string
		change func(*attest.Claims)
		want   []string
	}{
		{a, nil, nil},
		{b, nil, []string{"C"}},
		{a + " " + b, nil, nil},
		{s + " PROD:7", nil, nil},
		{s + " PROD:8", nil, []string{"PROD"}},
		{other + " PROD:7", nil, []string{"S"}},
		{b + " " + s + " PROD:7", nil, nil},
		{b + " " + other + " PROD:7", nil, []string{"C", "S"}},
		{b + " " + other + " PROD:8 REVOKE:9 " + td + " SEC:SECURE EXPIRE:P1D", outOfDate,
			[]string{"C", "S", "TD", "PROD", "REVOKE", "SEC:SECURE", "EXPIRE"}},
		{a + " PROD:8", nil, []string{"PROD"}},
		{a + " REVOKE:2", nil, nil}, // ISVSVN 3 is at least 2+1
		{a + " REVOKE:3", nil, []string{"REVOKE"}},
		{a + " REVOKE:0", func(c *attest.Claims) { c.SGX.ISVSVN = 0 }, []string{"REVOKE"}},
		{a + " " + td, nil, nil}, // the TDX clauses do not concern SGX evidence
		{td, nil, []string{"TD"}},
		{a, debug, []string{"SEC:STALE"}},
		{a + " SEC:SECURE", debug, []string{"SEC:SECURE"}},
		{a + " SEC:INSECURE", debug, nil},
		{a + " SEC:INSECURE", nil, []string{"SEC:INSECURE"}},
		{a + " EXPIRE:P10D", nil, nil},
		{a + " EXPIRE:P9D", nil, []string{"EXPIRE"}},
		{a + " EXPIRE:P1M", func(c *attest.Claims) { c.Collateral.TCBInfoIssueDate = time.Time{} }, []string{"EXPIRE"}},
		{a, func(c *attest.Claims) { c.SGX = nil }, []string{"TEE"}},
		{a, func(c *attest.Claims) { c.TEE = "" }, []string{"TEE"}},
		{a, func(c *attest.Claims) { c.TEE = attest.TDX }, []string{"TEE"}},
	}
	for _, c := range cases {
		claims := sgxClaims()
		if c.change != nil {
			c.change(&claims)
		}
		if got := denied(t, c.text, claims); !slices.Equal(got, c.want) {
			t.Errorf("%s: failed %v, want %v", c.text, got, c.want)
		}
	}
}

func debug(c *attest.Claims)     { c.Debug = true }
func outOfDate(c *attest.Claims) { c.TCB.Status = attest.StatusOutOfDate }

func TestSecurityLevels(t *testing.T) {
	t.Parallel()
	type verdicts struct{ secure, stale, insecure bool }
	cases := map[attest.Status]verdicts{
		attest.StatusUpToDate:                             {true, true, true},
		attest.StatusSWHardeningNeeded:                    {false, true, true},
		attest.StatusConfigurationNeeded:                  {false, true, true},
		attest.StatusConfigurationAndSWHardeningNeeded:    {false, true, true},
		attest.StatusOutOfDate:                            {false, true, true},
		attest.StatusOutOfDateConfigurationNeeded:         {false, true, true},
		attest.StatusTDRelaunchAdvised:                    {false, true, true},
		attest.StatusTDRelaunchAdvisedConfigurationNeeded: {false, true, true},
		attest.StatusRevoked:                              {},
		attest.StatusNotSupported:                         {},
		"":                                                {},
		"uptodate":                                        {},
		"Future":                                          {},
	}
	for status, want := range cases {
		for sec, pass := range map[Security]bool{Secure: want.secure, Stale: want.stale, Insecure: want.insecure} {
			claims := sgxClaims()
			claims.TCB.Status, claims.Debug = status, sec == Insecure
			got := denied(t, "C:"+codeA+" SEC:"+string(sec), claims)
			if (got == nil) != pass {
				t.Errorf("%s with status %q: %v", sec, status, got)
			}
		}
	}
}

// A refusal for the TCB names advisories and the date reached.
func TestDenialNamesAdvisories(t *testing.T) {
	t.Parallel()
	claims := sgxClaims()
	outOfDate(&claims)
	claims.TCB.Advisories = []string{"INTEL-SA-00615"}
	err := mustParse(t, "C:"+codeA+" SEC:SECURE").check(claims, now, false)
	d, ok := errors.AsType[*Denied](err)
	if !ok || len(d.Failures) != 1 {
		t.Fatalf("%v", err)
	}
	f := d.Failures[0]
	if f.Want != "UpToDate" || f.Got != "OutOfDate" || !slices.Equal(f.Advisories, []string{"INTEL-SA-00615"}) || !f.TCBDate.Equal(claims.TCB.Date) {
		t.Errorf("%+v", f)
	}
	for _, part := range []string{"SEC:SECURE", "want UpToDate", "got OutOfDate", "INTEL-SA-00615", f.Hint} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q misses %q", err, part)
		}
	}
}

func TestCheckTDX(t *testing.T) {
	t.Parallel()
	base := "TD:" + mrtd + " RTMR1:" + rtmr + " RTMR2:" + rtmr
	attributes := func(bits uint64) func(*attest.Claims) {
		return func(c *attest.Claims) { setAttributes(c, bits) }
	}
	service := func(text string) func(*attest.Claims) {
		return func(c *attest.Claims) {
			setAttributes(c, tdSeptVEDisable|tdMigratable)
			c.TDX.MRServiceTD = new([48]byte)
			fill(c.TDX.MRServiceTD[:], text)
		}
	}
	zero48 := strings.Repeat("00", 48)
	cases := []struct {
		text   string
		change func(*attest.Claims)
		want   []string
	}{
		{base, nil, nil},
		{base + " TD:" + rtmr, nil, nil},
		{"TD:" + rtmr + " FIRMWARE_ONLY_UNSAFE", nil, []string{"TD"}},
		{"TD:" + mrtd + " FIRMWARE_ONLY_UNSAFE", func(c *attest.Claims) { c.TDX.RTMR[1][0]++ }, nil},
		{"C:" + codeA, nil, []string{"C"}},
		{"C:" + codeA + " S:" + signA + " PROD:9 REVOKE:9 " + base, nil, nil}, // PROD and REVOKE concern SGX
		{base, func(c *attest.Claims) { c.TDX.RTMR[1][0]++ }, []string{"RTMR1"}},
		{base, func(c *attest.Claims) { c.TDX.RTMR[2][47]++ }, []string{"RTMR2"}},
		{base + " RTMR0:" + rtmr + " RTMR3:" + rtmr, func(c *attest.Claims) { c.TDX.RTMR[0][0]++; c.TDX.RTMR[3][0]++ }, []string{"RTMR0", "RTMR3"}},
		{base + " SEAM:" + zero48 + " MRCONFIGID:" + zero48 + " MROWNER:" + zero48 + " MROWNERCONFIG:" + zero48 + " XFAM:0000000000000000", nil, nil},
		{base + " SEAM:" + rtmr + " MRCONFIGID:" + rtmr + " MROWNER:" + rtmr + " MROWNERCONFIG:" + rtmr + " XFAM:e700000000000000", nil,
			[]string{"SEAM", "MRCONFIGID", "MROWNER", "MROWNERCONFIG", "XFAM"}},
		{base, attributes(0), []string{"SEPT_VE_DISABLE"}},
		{base, attributes(tdSeptVEDisable | tdPKS | tdKeyLocker | tdLASS | tdPerfmon), nil},
		{base, attributes(tdSeptVEDisable | 1<<4), []string{"TDATTRIBUTES"}},
		{base, attributes(tdSeptVEDisable | 1<<40), []string{"TDATTRIBUTES"}},
		{base, attributes(tdSeptVEDisable | tdDebug), []string{"SEC:STALE"}},
		{base + " SEC:INSECURE", attributes(tdSeptVEDisable | tdDebug), nil},
		{base + " SEC:INSECURE", nil, []string{"SEC:INSECURE"}},
		{base, func(c *attest.Claims) { setAttributes(c, tdSeptVEDisable|tdDebug); c.Debug = false }, []string{"DEBUG"}},
		{base, attributes(tdSeptVEDisable | tdMigratable), []string{"MIGRATABLE"}},
		{base + " SERVICETD:" + rtmr, nil, []string{"SERVICETD"}}, // a version 4 quote cannot show it
		{base + " SERVICETD:" + rtmr, service(rtmr), nil},
		{base + " SERVICETD:" + rtmr, service(mrtd), []string{"SERVICETD"}},
		{base, service(rtmr), []string{"MIGRATABLE"}},
	}
	for _, c := range cases {
		claims := tdxClaims()
		if c.change != nil {
			c.change(&claims)
		}
		if got := denied(t, c.text, claims); !slices.Equal(got, c.want) {
			t.Errorf("%s: failed %v, want %v", c.text, got, c.want)
		}
	}
	claims := tdxClaims()
	service(rtmr)(&claims)
	err := mustParse(t, base+" SERVICETD:"+rtmr).check(claims, now, true)
	if got := clausesOf(t, err); !slices.Equal(got, []string{"MIGRATABLE"}) {
		t.Errorf("a migratable cluster node: %v", got)
	}
}

// Nothing, and half of nothing, is denied.
func TestZeroValuesDeny(t *testing.T) {
	t.Parallel()
	if err := (Constraint{}).check(sgxClaims(), now, false); err == nil {
		t.Error("the zero constraint allows")
	}
	c := mustParse(t, "C:"+codeA)
	if err := c.check(attest.Claims{}, now, false); err == nil {
		t.Error("zero claims pass")
	}
	if err := c.Check(nil, now); err == nil {
		t.Error("nil evidence passes")
	}
	if err := c.Check(new(attest.Verified), now); err == nil {
		t.Error("zero evidence passes")
	}
	if err := c.CheckNode(nil, now); err == nil {
		t.Error("nil node evidence passes")
	}
	if got := clausesOf(t, c.check(sgxClaims(), time.Time{}, false)); !slices.Equal(got, []string{"now"}) {
		t.Errorf("zero time: %v", got)
	}
}

func BenchmarkCheck(b *testing.B) {
	c, claims := mustParse(b, "S:"+signA+" PROD:7 REVOKE:1 SEC:SECURE"), sgxClaims()
	for b.Loop() {
		if err := c.check(claims, now, false); err != nil {
			b.Fatal(err)
		}
	}
}
