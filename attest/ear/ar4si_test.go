package ear

import (
	"encoding/json"
	"errors"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/claviger/claviger/attest"
)

// TestMapping is the table of DESIGN.md in AR4SI's numbers, which are written out here so that a changed constant shows.
func TestMapping(t *testing.T) {
	t.Parallel()
	advisory := func(c *attest.Claims) { c.TCB.Advisories = []string{"INTEL-SA-00334"} }
	attributes := func(bytes ...byte) func(*attest.Claims) {
		return func(c *attest.Claims) { copy(c.TDX.TDAttributes[:], bytes) }
	}
	simulated := func(c *attest.Claims) { c.Root = attest.SimulatedRoot(c.Root.Key) }
	none, refused := Policy{}, Policy{ID: "p", Executables: Unrecognized, Failures: []Failure{{Clause: "C"}}}
	for _, tc := range []struct {
		name                                          string
		tee                                           attest.TEE
		status                                        attest.Status
		change                                        func(*attest.Claims)
		policy                                        Policy
		hardware, configuration, executables, runtime Value
		want                                          Status
	}{
		{"current", attest.SGX, "UpToDate", nil, accepted, 2, 3, 3, 2, 2},
		{"current, no policy", attest.SGX, "UpToDate", nil, none, 2, 3, 0, 2, 0},
		{"current, refused", attest.SGX, "UpToDate", nil, refused, 2, 3, 33, 2, 96},
		{"current, revoked version", attest.SGX, "UpToDate", nil, Policy{ID: "p", Executables: 96}, 2, 3, 96, 2, 96},
		{"current, firmware only", attest.TDX, "UpToDate", nil, Policy{ID: "p", Accepted: true, Executables: 33}, 2, 3, 33, 2, 32},
		{"current with advisories", attest.SGX, "UpToDate", advisory, accepted, 32, 0, 3, 2, 32},
		{"SW hardening", attest.SGX, "SWHardeningNeeded", advisory, accepted, 32, 3, 3, 2, 32},
		{"configuration", attest.SGX, "ConfigurationNeeded", advisory, accepted, 2, 32, 3, 2, 32},
		{"configuration, SW hardening", attest.SGX, "ConfigurationAndSWHardeningNeeded", nil, accepted, 32, 32, 3, 2, 32},
		{"out of date", attest.SGX, "OutOfDate", nil, accepted, 32, 0, 3, 2, 32},
		{"out of date, no policy", attest.SGX, "OutOfDate", nil, none, 32, 0, 0, 2, 32},
		{"out of date, configuration", attest.SGX, "OutOfDateConfigurationNeeded", nil, accepted, 32, 32, 3, 2, 32},
		{"relaunch", attest.TDX, "TDRelaunchAdvised", nil, accepted, 32, 0, 3, 2, 32},
		{"relaunch, configuration", attest.TDX, "TDRelaunchAdvisedConfigurationNeeded", nil, accepted, 32, 32, 3, 2, 32},
		{"revoked", attest.SGX, "Revoked", nil, none, 96, 0, 0, 2, 96},
		{"not supported", attest.SGX, "NotSupported", nil, none, 97, 0, 0, 2, 96},
		{"no status", attest.SGX, "", nil, accepted, 97, 0, 3, 2, 96},
		{"unknown status", attest.SGX, "uptodate", nil, accepted, 97, 0, 3, 2, 96},
		{"debug", attest.SGX, "UpToDate", func(c *attest.Claims) { c.Debug = true }, accepted, 2, 96, 3, 96, 96},
		{"debug attribute", attest.SGX, "UpToDate", func(c *attest.Claims) { c.SGX.Attributes[0] |= 2 }, accepted, 2, 96, 3, 96, 96},
		{"debug TD", attest.TDX, "UpToDate", attributes(1, 0, 0, 0x10), accepted, 2, 96, 3, 96, 96},
		{"TD", attest.TDX, "UpToDate", nil, accepted, 2, 3, 3, 2, 2},
		{"TD with PKS, LASS, key locker, perfmon", attest.TDX, "UpToDate", attributes(0, 0, 0, 0xd8, 0, 0, 0, 0x80), accepted, 2, 3, 3, 2, 2},
		{"SEPT_VE_DISABLE cleared", attest.TDX, "UpToDate", attributes(0, 0, 0, 0), accepted, 2, 32, 3, 2, 32},
		{"unknown attribute", attest.TDX, "UpToDate", attributes(0, 1, 0, 0x10), accepted, 2, 36, 3, 2, 32},
		{"unknown attribute, configuration", attest.TDX, "ConfigurationNeeded", attributes(0, 1, 0, 0x10), accepted, 2, 32, 3, 2, 32},
		{"migratable", attest.TDX, "UpToDate", attributes(0, 0, 0, 0x30), none, 2, 36, 0, 2, 32},
		{"migratable, service TD named", attest.TDX, "UpToDate", attributes(0, 0, 0, 0x30), accepted, 2, 3, 3, 2, 2},
		{"simulated", attest.SGX, "UpToDate", simulated, accepted, -2, -2, -2, -2, 2},
		{"simulated, out of date", attest.SGX, "OutOfDate", simulated, accepted, 32, 0, -2, -2, 32},
		{"simulated, no policy", attest.SGX, "UpToDate", simulated, none, -2, -2, 0, -2, 0},
	} {
		c := sgxClaims(tc.status)
		if tc.tee == attest.TDX {
			c = tdxClaims(tc.status)
		}
		if tc.change != nil {
			tc.change(&c)
		}
		a, err := Appraise(c, tc.policy)
		if err != nil {
			t.Errorf("%s: %v", tc.name, err)
			continue
		}
		want := Vector{Hardware: tc.hardware, Configuration: tc.configuration, Executables: tc.executables, RuntimeOpaque: tc.runtime}
		if a.Vector != want || a.Status != tc.want {
			t.Errorf("%s: %+v %s, want %+v %s", tc.name, a.Vector, a.Status, want, tc.want)
		}
		if err := a.check(); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
	}
	if len(ofTCB) != 10 {
		t.Errorf("%d TCB statuses", len(ofTCB))
	}
}

func TestRejections(t *testing.T) {
	t.Parallel()
	for stage, tc := range map[attest.Stage]struct {
		vector Vector
		status Status
	}{
		attest.StageParse:      {Vector{Configuration: 1, Executables: 1, Hardware: 1, RuntimeOpaque: 1}, 0},
		attest.StageCollateral: {Vector{}, 0},
		attest.StageTCB:        {Vector{Hardware: 97}, 96},
		attest.StageChain:      {all(99), 96},
		attest.StageRevocation: {all(99), 96},
		attest.StageQE:         {all(99), 96},
		attest.StageSignature:  {all(99), 96},
		"a later stage":        {all(99), 96},
		"":                     {all(99), 96},
	} {
		a := Reject(stage).Refused(Refusal{Code: "evidence_refused", Stage: string(stage), Detail: "no"})
		if a.Vector != tc.vector || a.Status != tc.status || a.Verdict.OK || a.Label != LabelUnverified || a.Claims != nil {
			t.Errorf("%s: %+v", stage, a)
		}
		if err := a.check(); err != nil {
			t.Errorf("%s: %v", stage, err)
		}
	}
	a := must[Appraisal](t)(Appraise(sgxClaims(attest.StatusUpToDate), Policy{}))
	if a = a.Refused(Refusal{Stage: "binding"}); a.Status != Contraindicated || a.check() != nil {
		t.Errorf("genuine evidence of another channel: %+v", a)
	}
}

func TestAppraiseRefuses(t *testing.T) {
	t.Parallel()
	good := sgxClaims(attest.StatusUpToDate)
	crossed := good
	crossed.TEE = attest.TDX
	for name, tc := range map[string]struct {
		claims attest.Claims
		policy Policy
	}{
		"zero claims": {attest.Claims{}, accepted}, "no report": {attest.Claims{TEE: attest.SGX}, accepted}, "crossed": {crossed, accepted},
		"nameless policy": {good, Policy{Accepted: true}}, "nameless failures": {good, Policy{Failures: []Failure{{}}}},
		"odd executables": {good, Policy{ID: "p", Executables: 2}},
	} {
		if a, err := Appraise(tc.claims, tc.policy); !errors.Is(err, ErrInput) || a.Status != None || a.Claims != nil {
			t.Errorf("%s: %+v %v", name, a, err)
		}
	}
}

// The ranges of AR4SI, at their ends.
func TestTiers(t *testing.T) {
	t.Parallel()
	for want, values := range map[Status][]Value{
		None: {-1, 0, 1}, Affirming: {2, 31, -2, -32}, Warning: {32, 95, -33, -96}, Contraindicated: {96, 127, -97, -128},
	} {
		for _, v := range values {
			if v.Tier() != want {
				t.Errorf("%d is %s, want %s", v, v.Tier(), want)
			}
		}
	}
	var zero *Result
	if zero.Affirms("p") || new(Result).Affirms("p") || new(Result).Affirms("") {
		t.Error("a zero result affirms")
	}
	var s Status
	for _, bad := range []string{"", "Affirming", "2", "affirming "} {
		if err := s.UnmarshalText([]byte(bad)); !errors.Is(err, ErrMalformed) || s != None {
			t.Errorf("%q: %v", bad, err)
		}
	}
	if _, err := Status(3).MarshalText(); !errors.Is(err, ErrInput) {
		t.Errorf("status 3: %v", err)
	}
}

func TestVectorJSON(t *testing.T) {
	t.Parallel()
	full := Vector{1, 2, 3, 4, 5, 6, 7, -128}
	raw := must[[]byte](t)(json.Marshal(full))
	var back Vector
	if err := json.Unmarshal(raw, &back); err != nil || back != full {
		t.Errorf("%s: %+v %v", raw, back, err)
	}
	if raw := must[[]byte](t)(json.Marshal(Vector{})); string(raw) != `{"hardware":0}` {
		t.Errorf("empty vector: %s", raw)
	}
	for _, good := range []string{`{"hardware":2,"later-claim":2}`, `{"later-claim":0}`} {
		if err := back.UnmarshalJSON([]byte(good)); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{`{}`, `null`, `[]`, `{"hardware":128}`, `{"hardware":-129}`, `{"hardware":2.5}`, `{"hardware":"2"}`, `{"later-claim":96}`, `{"Hardware":96}`} {
		v := full
		if err := v.UnmarshalJSON([]byte(bad)); !errors.Is(err, ErrMalformed) || v != full {
			t.Errorf("%s: %v", bad, err)
		}
	}
}

// The table in DESIGN.md is the one in the code.
func TestDesignTable(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `([A-Za-z]+)` \\| ([0-9–]+)[^|]* \\| ([0-9–]+)[^|]* \\|$")
	rows := row.FindAllStringSubmatch(string(text), -1)
	if len(rows) != len(ofTCB) {
		t.Fatalf("%d rows for %d statuses", len(rows), len(ofTCB))
	}
	value := func(s string) Value {
		n, _ := strconv.Atoi(strings.ReplaceAll(s, "–", "0"))
		return Value(n)
	}
	for _, r := range rows {
		if got, ok := ofTCB[attest.Status(r[1])]; !ok || got != [2]Value{value(r[2]), value(r[3])} {
			t.Errorf("DESIGN.md says %q, the code %v", r[0], got)
		}
	}
}
