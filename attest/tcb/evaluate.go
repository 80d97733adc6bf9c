package tcb

import (
	"fmt"
	"slices"
	"time"
)

// Platform is what an evaluation compares with the levels of a TCB info document.
type Platform struct {
	Components [16]byte // SGX TCB component SVNs of the PCK certificate
	PCESVN     uint16   // of the PCK certificate
	QEISVSVN   uint16   // of the QE report
	TD         *TD      // nil for SGX
}

// TD is the part of a TD report that an evaluation looks at.
type TD struct {
	TEETCBSVN      [16]byte
	TEETCBSVN2     *[16]byte // TDX 1.5 bodies only: the TCB in force now, TEETCBSVN is that at launch
	MRSignerSEAM   [48]byte
	SEAMAttributes [8]byte
}

// Part is the evaluation of one part of the TCB. Date is zero and Advisories empty when no level matched, and for a TDX
// module of major version 0, which the platform's level covers.
type Part struct {
	Status     Status
	Date       time.Time
	Advisories []string
}

// Result is an evaluation.
type Result struct {
	Status     Status
	Date       time.Time // the oldest of the parts' dates
	Advisories []string  // sorted union of the parts'
	Platform   Part
	QE         Part
	Module     *Part // TDX only
}

// Evaluate compares a platform with TCB info and QE identity. The documents must match the platform: same TEE, FMSPC and
// PCEID. An error means that the TDX module is not a genuine one; a platform without a matching level is not an error but
// has the status NotSupported.
//
// Source: Intel SGX DCAP Quote Verification Library, "checkTcbLevel" and the checks it calls.
func Evaluate(info *Info, identity *Identity, p Platform) (Result, error) {
	var r Result
	r.QE = matchISV(identity.Levels, p.QEISVSVN)
	sgx, matched := info.matchLevels(p)
	r.Platform = matched
	if p.TD == nil {
		r.Status = Merge(r.Platform.Status, r.QE.Status)
		r.collect()
		return r, nil
	}
	module, err := info.evaluateModule(p.TD)
	if err != nil {
		return Result{}, err
	}
	r.Module = &module
	td := Merge(r.Platform.Status, module.Status)
	if p.TD.TEETCBSVN2 != nil {
		if td, err = info.relaunch(*p.TD.TEETCBSVN2, sgx, td, module.Status, r.QE.Status); err != nil {
			return Result{}, err
		}
	}
	// A revoked TD ends Intel's evaluation before the QE is looked at.
	if r.Status = td; td != Revoked {
		r.Status = Merge(td, r.QE.Status)
	}
	r.collect()
	return r, nil
}

// collect fills in the date and the advisories of the whole.
func (r *Result) collect() {
	parts := []Part{r.Platform, r.QE}
	if r.Module != nil {
		parts = append(parts, *r.Module)
	}
	for _, p := range parts {
		if !p.Date.IsZero() && (r.Date.IsZero() || p.Date.Before(r.Date)) {
			r.Date = p.Date
		}
		r.Advisories = append(r.Advisories, p.Advisories...)
	}
	slices.Sort(r.Advisories)
	r.Advisories = slices.Compact(r.Advisories)
}

// matchLevels finds the level of a platform: the highest of which every SVN is at most the platform's. SVNs are compared
// one by one, never as one number: a higher first component does not make up for a lower second. For a TD it also returns
// the status of the highest level that the SGX part alone reaches.
func (info *Info) matchLevels(p Platform) (sgx Status, part Part) {
	sgx, part.Status = NotSupported, NotSupported
	for i := range info.Levels {
		level := &info.Levels[i]
		if level.PCESVN > p.PCESVN || !reaches(p.Components[:], level.SGX[:]) {
			continue
		}
		if sgx == NotSupported {
			sgx = level.Status
		}
		if p.TD != nil {
			// From module major version 1 on, the first two SVNs belong to the module and are evaluated with its identity.
			first := 0
			if p.TD.TEETCBSVN[1] > 0 {
				first = 2
			}
			if !reaches(p.TD.TEETCBSVN[first:], level.TDX[first:]) {
				continue
			}
		}
		return sgx, Part{level.Status, level.Date, slices.Clone(level.Advisories)}
	}
	return sgx, part
}

// reaches says whether each of have is at least its counterpart in need.
func reaches(have, need []byte) bool {
	for i := range have {
		if have[i] < need[i] {
			return false
		}
	}
	return true
}

// matchISV returns the first level whose SVN is at most svn, in the order of the document.
func matchISV(levels []ISVLevel, svn uint16) Part {
	for _, l := range levels {
		if l.ISVSVN <= svn {
			return Part{l.Status, l.Date, slices.Clone(l.Advisories)}
		}
	}
	return Part{Status: NotSupported}
}

// CheckModule verifies that the TDX module that measured the TD is one that the document describes, by its signer and
// attributes.
func (info *Info) CheckModule(td *TD) error {
	_, err := info.findModule(td)
	return err
}

// findModule checks the TDX module and returns the identity of its major version, nil for version 0, which has no levels of
// its own.
func (info *Info) findModule(td *TD) (*ModuleLevel, error) {
	if info.Module == nil {
		return nil, fmt.Errorf("%w: the document describes none", ErrModule)
	}
	want, identity := info.Module, (*ModuleLevel)(nil)
	if version := td.TEETCBSVN[1]; version > 0 {
		if identity = info.module("TDX_" + hexID(version)); identity == nil {
			return nil, fmt.Errorf("%w: no identity TDX_%s", ErrModule, hexID(version))
		}
		want = &identity.Module
	}
	// Intel's library requires SEAMATTRIBUTES to be zero and does not apply the mask; so do we.
	if td.SEAMAttributes != want.Attributes || td.SEAMAttributes != [8]byte{} {
		return nil, fmt.Errorf("%w: SEAMATTRIBUTES are %x", ErrModule, td.SEAMAttributes)
	}
	if td.MRSignerSEAM != want.MRSigner {
		return nil, fmt.Errorf("%w: MRSIGNERSEAM is %x", ErrModule, td.MRSignerSEAM)
	}
	return identity, nil
}

// evaluateModule returns the part of the TDX module. A module of major version 0 is covered by the platform's level.
func (info *Info) evaluateModule(td *TD) (Part, error) {
	identity, err := info.findModule(td)
	if err != nil {
		return Part{}, err
	}
	if identity == nil {
		return Part{Status: UpToDate}, nil
	}
	return matchISV(identity.Levels, uint16(td.TEETCBSVN[0])), nil
}

// relaunch turns an out-of-date TD into TDRelaunchAdvised when only what it was launched with is out of date: the module
// has been updated since, and svn2, the TCB in force, reaches the latest level. The TD then needs no more than a new start.
func (info *Info) relaunch(svn2 [16]byte, sgx, td, module, qe Status) (Status, error) {
	switch sgx {
	case UpToDate, SWHardeningNeeded, ConfigurationNeeded, ConfigurationAndSWHardeningNeeded:
	default:
		return td, nil
	}
	if qe != UpToDate || module != OutOfDate || td != OutOfDate && td != OutOfDateConfigurationNeeded {
		return td, nil
	}
	latest := &info.Levels[0]
	need := latest.TDX[0]
	if svn2[1] > 0 {
		identity := info.module("TDX_" + hexID(svn2[1]))
		if identity == nil {
			return "", fmt.Errorf("%w: no identity TDX_%s for the module in force", ErrModule, hexID(svn2[1]))
		}
		need = byte(identity.Levels[0].ISVSVN)
	}
	if svn2[0] < need || svn2[2] < latest.TDX[2] {
		return td, nil
	}
	if sgx == ConfigurationNeeded || sgx == ConfigurationAndSWHardeningNeeded || td == OutOfDateConfigurationNeeded {
		return TDRelaunchAdvisedConfigurationNeeded, nil
	}
	return TDRelaunchAdvised, nil
}
