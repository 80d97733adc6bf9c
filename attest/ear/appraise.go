package ear

import (
	"encoding/binary"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/attest"
)

// Labels of the one submodule of a result. Evidence that was not verified has no kind that could be believed.
const (
	LabelSGX        = string(attest.SGX)
	LabelTDX        = string(attest.TDX)
	LabelUnverified = "evidence"
)

// Failure is one clause of a policy that the evidence did not meet. The JSON names are those of the service's API.
type Failure struct {
	Alternative string    `json:"alternative,omitempty"`
	Clause      string    `json:"clause"`
	Want        string    `json:"want"`
	Got         string    `json:"got"`
	Advisories  []string  `json:"advisories,omitempty"`
	TCBDate     time.Time `json:"tcb_date,omitzero"`
	Hint        string    `json:"hint"`
}

// Policy is what an appraisal policy said about genuine evidence. The zero Policy is that of nobody: the result can
// then warn and contraindicate, but not affirm.
type Policy struct {
	ID          string    // collision-resistant name of the policy; empty: there was none
	Accepted    bool      // the policy accepts the evidence
	Executables Value     // what the policy's reference values say about the code: ApprovedAtBoot, Unrecognized, Contraindicating or NoClaim
	Failures    []Failure // why it was not accepted
}

// Refusal says why evidence was refused, in the words of the verdict that goes with the result.
type Refusal struct {
	Code   string // one word
	Stage  string // one of attest's stages, or "binding"; empty if a policy refused
	Detail string // a sentence
}

// Appraisal is the result for one piece of evidence, before it is signed or after it was verified.
type Appraisal struct {
	Label         string // LabelSGX, LabelTDX or LabelUnverified
	Status        Status
	Vector        Vector
	PolicyIDs     []string        // of the policies applied, in order; none if there was none
	EvidenceNonce []byte          // the report data that the request demanded and the evidence carries; nil if none was demanded
	Claims        json.RawMessage // JSON form of attest.Claims without the PPID; nil unless the evidence is genuine
	Verdict       Verdict
}

// Verdict is the claim ClaimVerdict: the service's answer beside AR4SI's numbers.
type Verdict struct {
	OK         bool      `json:"ok"` // genuine, of the demanded report data, and accepted by the policy if there was one
	Code       string    `json:"code,omitempty"`
	Stage      string    `json:"stage,omitempty"`
	Error      string    `json:"error,omitempty"`
	Constraint string    `json:"constraint,omitempty"` // canonical text of the policy
	Failures   []Failure `json:"failures,omitempty"`
	Epoch      uint64    `json:"epoch,omitempty"` // of the cluster that answers
}

// Appraise maps the claims of genuine evidence and the word of a policy to a result. The claims must come from
// attest.Verified: others are ErrInput.
func Appraise(c attest.Claims, p Policy) (Appraisal, error) {
	if (c.TEE != attest.SGX || c.SGX == nil) && (c.TEE != attest.TDX || c.TDX == nil) {
		return Appraisal{}, fmt.Errorf("%w: claims of TEE %q", ErrInput, c.TEE)
	}
	switch p.Executables {
	case NoClaim, ApprovedAtBoot, Unrecognized, Contraindicating:
	default:
		return Appraisal{}, fmt.Errorf("%w: executables of %d", ErrInput, p.Executables)
	}
	if p.ID == "" && (p.Accepted || p.Executables != NoClaim || len(p.Failures) > 0) {
		return Appraisal{}, fmt.Errorf("%w: a policy without a name", ErrInput)
	}
	raw, err := redacted(c)
	if err != nil {
		return Appraisal{}, err
	}
	a := Appraisal{Label: string(c.TEE), Vector: vectorOf(c, p), Claims: raw}
	a.Verdict = Verdict{OK: p.ID == "" || p.Accepted, Failures: p.Failures}
	if p.ID != "" {
		a.PolicyIDs = []string{p.ID}
	}
	a.Status = statusOf(a.Vector.Worst(), p)
	return a, nil
}

// statusOf: a refusal contraindicates whatever the vector says, and only a policy's acceptance makes a clean vector an
// affirmation.
func statusOf(worst Status, p Policy) Status {
	switch {
	case p.ID != "" && !p.Accepted:
		return Contraindicated
	case worst == Affirming && !p.Accepted:
		return None
	}
	return worst
}

// Reject is the result for evidence that is not genuine, or could not be judged: stage says at which of attest's
// stages it failed.
func Reject(stage attest.Stage) Appraisal {
	a := Appraisal{Label: LabelUnverified}
	switch stage {
	case attest.StageParse:
		a.Vector = all(UnknownElements)
	case attest.StageCollateral: // nothing is wrong with the evidence: what it would be judged by is missing
	case attest.StageTCB:
		a.Vector.Hardware = HardwareUnknown
	default: // chain, revocation, qe, signature; and what is not known denies most
		a.Vector = all(CryptoFailed)
	}
	a.Status = a.Vector.Worst()
	return a
}

func all(v Value) Vector {
	return Vector{Configuration: v, Executables: v, Hardware: v, RuntimeOpaque: v}
}

// Refused returns the appraisal with a refusal that the vector does not show: it contraindicates.
func (a Appraisal) Refused(r Refusal) Appraisal {
	a.Verdict.OK = false
	a.Verdict.Code, a.Verdict.Stage, a.Verdict.Error = r.Code, r.Stage, r.Detail
	if a.Label != LabelUnverified {
		a.Status = Contraindicated
	}
	return a
}

// ofTCB is the table of DESIGN.md: what a TCB status says about hardware and configuration.
var ofTCB = map[attest.Status][2]Value{
	attest.StatusUpToDate:                             {Genuine, NoKnownVulnerabilities},
	attest.StatusSWHardeningNeeded:                    {KnownVulnerabilities, NoKnownVulnerabilities},
	attest.StatusConfigurationNeeded:                  {Genuine, KnownVulnerabilities},
	attest.StatusConfigurationAndSWHardeningNeeded:    {KnownVulnerabilities, KnownVulnerabilities},
	attest.StatusOutOfDate:                            {KnownVulnerabilities, NoClaim},
	attest.StatusOutOfDateConfigurationNeeded:         {KnownVulnerabilities, KnownVulnerabilities},
	attest.StatusTDRelaunchAdvised:                    {KnownVulnerabilities, NoClaim},
	attest.StatusTDRelaunchAdvisedConfigurationNeeded: {KnownVulnerabilities, KnownVulnerabilities},
	attest.StatusRevoked:                              {HardwareRefused, NoClaim},
	attest.StatusNotSupported:                         {HardwareUnknown, NoClaim},
}

func vectorOf(c attest.Claims, p Policy) Vector {
	tcb, known := ofTCB[c.TCB.Status]
	if !known {
		tcb = [2]Value{HardwareUnknown, NoClaim}
	}
	v := Vector{Hardware: tcb[0], Configuration: tcb[1], Executables: p.Executables, RuntimeOpaque: Opaque}
	if c.TCB.Status == attest.StatusUpToDate && len(c.TCB.Advisories) > 0 {
		// Intel's advisories name what a level is vulnerable to, whatever its status.
		v.Hardware, v.Configuration = KnownVulnerabilities, NoClaim
	}
	if c.TDX != nil {
		v.Configuration = worse(v.Configuration, ofTDAttributes(c.TDX, p))
	}
	if debuggable(c) {
		v.Configuration, v.RuntimeOpaque = Unsupportable, Visible
	}
	if c.Root.Simulated {
		for _, value := range v.fields() {
			if value.Tier() == Affirming {
				*value = UnderSimulatedRoot
			}
		}
	}
	return v
}

// Bits of TDATTRIBUTES (Intel TDX Module ABI specification, "TD_PARAMS: ATTRIBUTES") and of SGX ATTRIBUTES.FLAGS.
const (
	tdDebug         = 1 << 0
	tdLASS          = 1 << 27
	tdSeptVEDisable = 1 << 28
	tdMigratable    = 1 << 29
	tdPKS           = 1 << 30
	tdKeyLocker     = 1 << 31
	tdPerfmon       = 1 << 63
	tdKnown         = tdDebug | tdLASS | tdSeptVEDisable | tdMigratable | tdPKS | tdKeyLocker | tdPerfmon

	sgxDebug = 1 << 1
)

// ofTDAttributes judges what a TD was allowed to be started with. A policy that accepts a migratable TD has named its
// service TD (package policy denies the others), which makes that element known.
func ofTDAttributes(e *attest.TDXClaims, p Policy) Value {
	bits := binary.LittleEndian.Uint64(e.TDAttributes[:])
	switch {
	case bits&tdSeptVEDisable == 0:
		return KnownVulnerabilities
	case bits&^tdKnown != 0, bits&tdMigratable != 0 && !p.Accepted:
		return ElementsUnavailable
	}
	return NoClaim
}

// debuggable believes whichever field says so.
func debuggable(c attest.Claims) bool {
	return c.Debug || c.SGX != nil && c.SGX.Attributes[0]&sgxDebug != 0 || c.TDX != nil && c.TDX.TDAttributes[0]&tdDebug != 0
}

// worse returns the value of the worse tier; the first of equals.
func worse(a, b Value) Value {
	if b.Tier() > a.Tier() {
		return b
	}
	return a
}

// redacted is the JSON form of the claims without the PPID: it identifies the machine to whoever sees the result for as
// long as the machine lives, and platform.id is enough to recognise one that is known.
func redacted(c attest.Claims) (json.RawMessage, error) {
	raw, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	var claims, platform map[string]json.RawMessage
	if err := json.Unmarshal(raw, &claims); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	if err := json.Unmarshal(claims["platform"], &platform); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInput, err)
	}
	delete(platform, "ppid")
	if claims["platform"], err = json.Marshal(platform); err != nil {
		return nil, err
	}
	return json.Marshal(claims)
}

// check is the consistency that both sides demand: Issue before it signs, Verify before it returns.
func (a *Appraisal) check() error {
	genuine := a.Label == LabelSGX || a.Label == LabelTDX
	switch worst := a.Vector.Worst(); {
	case !genuine && a.Label != LabelUnverified:
		return fmt.Errorf("%w: submodule %.40q", ErrMalformed, a.Label)
	case genuine != (a.Claims != nil):
		return fmt.Errorf("%w: claims and submodule %s", ErrInconsistent, a.Label)
	case statusNames[a.Status] == "" || a.Status != None && a.Status < worst || a.Status == None && worst > Affirming:
		return fmt.Errorf("%w: status %s beside a vector of tier %s", ErrInconsistent, a.Status, worst)
	case a.Status == Affirming && (!genuine || worst != Affirming || !a.Verdict.OK || len(a.PolicyIDs) == 0 || len(a.Verdict.Failures) > 0):
		return fmt.Errorf("%w: affirming without a policy that accepts genuine evidence", ErrInconsistent)
	case genuine && !a.Verdict.OK && a.Status != Contraindicated:
		return fmt.Errorf("%w: refused with status %s", ErrInconsistent, a.Status)
	case !genuine && a.Verdict.OK:
		return fmt.Errorf("%w: evidence that is not genuine was accepted", ErrInconsistent)
	case len(a.PolicyIDs) > maxPolicies || slices.Contains(a.PolicyIDs, ""):
		return fmt.Errorf("%w: %d policies, or one without a name", ErrMalformed, len(a.PolicyIDs))
	case a.EvidenceNonce != nil && !nonceLength(a.EvidenceNonce):
		return fmt.Errorf("%w: nonce of the evidence of %d bytes", ErrMalformed, len(a.EvidenceNonce))
	}
	return nil
}
