package simpki

import (
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
)

// The simulated processors have one TCB with three dials, placed in the components where Intel's have theirs:
//
//   - microcode (SGX components 0 and 1, TDX component 2): raised by every TCB recovery;
//   - hardening (SGX component 5): 2 when software mitigations are not needed any more;
//   - configuration (SGX component 6): 1 when the firmware is configured as recommended, as on Ice Lake.
//
// The ladder of levels over them reaches every status that collateral can carry.
const (
	microcodeTop      = 10 // before any TCB recovery
	microcodeOldest   = 8  // out of date, still listed
	microcodeRevoked  = 5
	microcodeUnlisted = 4
	pceSVN            = 13

	evaluationBase = 17 // TCB evaluation data number before any TCB recovery
)

// SVNs of the quoting enclaves and of the TDX module, by the status they evaluate to.
const (
	qeTop, qeOld, qeRevoked, qeUnlisted                 = 8, 6, 3, 2
	moduleTop, moduleOld, moduleRevoked, moduleUnlisted = 11, 6, 2, 1
	moduleMajor                                         = 1 // TEE_TCB_SVN[1] by default: selects the identity TDX_01
)

// dials is one position of the three dials.
type dials struct{ microcode, hardening, configuration byte }

// sgx returns the 16 SGX TCB components.
func (d dials) sgx() [16]byte {
	return [16]byte{d.microcode, d.microcode, 3, 3, 255, d.hardening, d.configuration, 5}
}

// tdx returns the 16 TDX TCB components as TEE_TCB_SVN holds them.
func (d dials) tdx(module, major byte) [16]byte { return [16]byte{module, major, d.microcode} }

// level is one rung of the ladder.
type level struct {
	dials      dials
	status     attest.Status
	date       time.Time
	advisories []string
}

// Dates of TCB levels relative to the PKI's birth, at which the newest level is a month old.
const (
	newestAge  = 30 * day
	oldAge     = 2 * year
	revokedAge = 5 * year
)

// ladder returns the levels in force after the recoveries, newest first, in the order of Intel's files: descending by
// component.
func (p *PKI) ladder(recoveries []time.Time) []level {
	top := byte(microcodeTop + len(recoveries))
	date := p.microcodeDate(top, recoveries)
	levels := []level{
		{dials{top, 2, 1}, attest.StatusUpToDate, date, nil},
		{dials{top, 2, 0}, attest.StatusConfigurationNeeded, date, []string{"INTEL-SA-00657", "INTEL-SA-00767"}},
		{dials{top, 1, 1}, attest.StatusSWHardeningNeeded, date, []string{"INTEL-SA-00334", "INTEL-SA-00615"}},
		{dials{top, 1, 0}, attest.StatusConfigurationAndSWHardeningNeeded, date,
			[]string{"INTEL-SA-00334", "INTEL-SA-00615", "INTEL-SA-00657"}},
	}
	for microcode := top - 1; microcode >= microcodeOldest; microcode-- {
		date := p.microcodeDate(microcode, recoveries)
		levels = append(levels,
			level{dials{microcode, 1, 1}, attest.StatusOutOfDate, date, []string{"INTEL-SA-00828", "INTEL-SA-01153"}},
			level{dials{microcode, 1, 0}, attest.StatusOutOfDateConfigurationNeeded, date,
				[]string{"INTEL-SA-00657", "INTEL-SA-00828", "INTEL-SA-01153"}})
	}
	return append(levels, level{dials{microcodeRevoked, 1, 0}, attest.StatusRevoked, p.birth.Add(-revokedAge),
		[]string{"INTEL-SA-00106", "INTEL-SA-00289"}})
}

// microcodeDate returns the TCB date of a microcode: that of the recovery that brought it, if one did.
func (p *PKI) microcodeDate(microcode byte, recoveries []time.Time) time.Time {
	switch {
	case microcode > microcodeTop:
		return recoveries[microcode-microcodeTop-1].UTC().Truncate(day)
	case microcode == microcodeTop:
		return p.birth.Add(-newestAge)
	}
	return p.birth.Add(-oldAge)
}

// dialsFor returns the position that evaluates to status after n recoveries. The zero status means UpToDate.
func dialsFor(status attest.Status, n int) (dials, error) {
	top := byte(microcodeTop + n)
	switch status {
	case "", attest.StatusUpToDate:
		return dials{top, 2, 1}, nil
	case attest.StatusConfigurationNeeded:
		return dials{top, 2, 0}, nil
	case attest.StatusSWHardeningNeeded:
		return dials{top, 1, 1}, nil
	case attest.StatusConfigurationAndSWHardeningNeeded:
		return dials{top, 1, 0}, nil
	case attest.StatusOutOfDate:
		return dials{microcodeOldest, 2, 1}, nil
	case attest.StatusOutOfDateConfigurationNeeded:
		return dials{microcodeOldest, 2, 0}, nil
	case attest.StatusRevoked:
		return dials{microcodeRevoked, 2, 1}, nil
	case attest.StatusNotSupported:
		return dials{microcodeUnlisted, 2, 1}, nil
	}
	return dials{}, fmt.Errorf("%w: no platform evaluates to TCB status %q", ErrConfig, status)
}

// componentSVN picks the SVN of a quoting enclave or TDX module that evaluates to status.
func componentSVN(what string, status attest.Status, top, old, revoked, unlisted byte) (byte, error) {
	switch status {
	case "", attest.StatusUpToDate:
		return top, nil
	case attest.StatusOutOfDate:
		return old, nil
	case attest.StatusRevoked:
		return revoked, nil
	case attest.StatusNotSupported:
		return unlisted, nil
	}
	return 0, fmt.Errorf("%w: no %s evaluates to status %q; use UpToDate, OutOfDate, Revoked or NotSupported",
		ErrConfig, what, status)
}
