package tcb

import (
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"fmt"
	"slices"
	"strings"
	"time"
)

// TEE identifiers of TCB info documents.
const (
	SGX = "SGX"
	TDX = "TDX"
)

// Info is a verified TCB info document: which SVNs of one platform family have which status. It does not change after
// VerifyInfo.
type Info struct {
	ID               string // SGX or TDX; documents of version 2 have no id and are SGX
	Version          int    // 2 or 3
	IssueDate        time.Time
	NextUpdate       time.Time
	FMSPC            [6]byte
	PCEID            [2]byte
	EvaluationNumber int           // rises with each evaluation of vulnerabilities by Intel
	Levels           []Level       // highest first
	Module           *Module       // TDX only: the module of major version 0
	Modules          []ModuleLevel // TDX only: the modules of higher major versions
}

// Level is one TCB level.
type Level struct {
	SGX        [16]byte // the least SVN of each component
	TDX        [16]byte // TDX documents only
	PCESVN     uint16
	Date       time.Time
	Status     Status
	Advisories []string
}

// Module says how a genuine TDX module identifies itself.
type Module struct {
	MRSigner       [48]byte
	Attributes     [8]byte
	AttributesMask [8]byte
}

// ModuleLevel is the identity of the TDX modules of one major version.
type ModuleLevel struct {
	ID string // TDX_ and the major version as two upper-case hexadecimal digits
	Module
	Levels []ISVLevel // highest first
}

// ISVLevel is a TCB level of an enclave or module, which has a single SVN.
type ISVLevel struct {
	ISVSVN     uint16
	Date       time.Time
	Status     Status
	Advisories []string
}

// VerifyInfo verifies the signature by signer over the raw inner object of a TCB info envelope of at most 64 KiB and then
// decodes it. Validity in time is separate: see CheckValidity.
func VerifyInfo(envelope []byte, signer *ecdsa.PublicKey) (*Info, error) {
	d := decoders.Get().(*decoder)
	defer d.release()
	v, err := d.envelope(envelope, "tcbInfo", signer)
	if err != nil {
		return nil, err
	}
	return parseInfo(v)
}

func parseInfo(v value) (*Info, error) {
	r := newReader(v, root("tcbInfo"))
	info := &Info{ID: SGX, Version: int(r.uint("version", 1<<16))}
	switch {
	case r.err != nil:
		return nil, r.err
	case info.Version == 3:
		info.ID = r.str("id")
	case info.Version != 2:
		return nil, fmt.Errorf("%w: TCB info version %d", ErrUnsupported, info.Version)
	}
	if r.err == nil && info.ID != SGX && info.ID != TDX {
		return nil, fmt.Errorf("%w: TCB info for %q", ErrUnsupported, info.ID)
	}
	info.IssueDate, info.NextUpdate = r.time("issueDate"), r.time("nextUpdate")
	r.hex("fmspc", info.FMSPC[:])
	r.hex("pceId", info.PCEID[:])
	if tcbType := r.uint("tcbType", 1<<16); tcbType != 0 {
		return nil, fmt.Errorf("%w: TCB type %d", ErrUnsupported, tcbType)
	}
	info.EvaluationNumber = int(r.uint("tcbEvaluationDataNumber", 1<<31-1))
	info.parseModules(r)
	for i, member := range r.list("tcbLevels", maxLevels) {
		level, err := parseLevel(member, r.where.element("tcbLevels", i), info.ID, info.Version)
		if err != nil {
			return nil, err
		}
		info.Levels = append(info.Levels, level)
	}
	if r.err != nil {
		return nil, r.err
	}
	if err := info.sortLevels(); err != nil {
		return nil, err
	}
	return info, nil
}

// sortLevels orders the levels as Intel's library does: by SGX components, then PCESVN, then TDX components, highest first.
// Two levels with the same SVNs would leave the status to the order of the document, so they are refused.
func (info *Info) sortLevels() error {
	order := func(a, b Level) int {
		return cmp.Or(bytes.Compare(b.SGX[:], a.SGX[:]), cmp.Compare(b.PCESVN, a.PCESVN), bytes.Compare(b.TDX[:], a.TDX[:]))
	}
	slices.SortStableFunc(info.Levels, order)
	for i := 1; i < len(info.Levels); i++ {
		if order(info.Levels[i-1], info.Levels[i]) == 0 {
			return fmt.Errorf("%w: two TCB levels with the same SVNs", ErrFormat)
		}
	}
	return nil
}

// parseModules decodes the TDX module identities, which TDX documents have and SGX documents must not.
func (info *Info) parseModules(r *reader) {
	module, hasModule := r.lookup("tdxModule")
	_, hasIdentities := r.lookup("tdxModuleIdentities")
	if info.ID == SGX {
		if info.Version == 3 && (hasModule || hasIdentities) {
			r.fail("tdxModule", "is in a document for SGX")
		}
		return
	}
	if !hasModule {
		r.fail("tdxModule", "is missing")
		return
	}
	mr := newReader(module, r.where.member("tdxModule"))
	info.Module = new(parseModule(mr))
	if r.err = cmp.Or(r.err, mr.err); r.err != nil || !hasIdentities {
		return
	}
	for i, member := range r.list("tdxModuleIdentities", maxIdentities) {
		mr := newReader(member, r.where.element("tdxModuleIdentities", i))
		// Intel's library compares the id without regard to case.
		m := ModuleLevel{ID: strings.ToUpper(mr.str("id")), Module: parseModule(mr), Levels: parseISVLevels(mr, 255)}
		slices.SortStableFunc(m.Levels, func(a, b ISVLevel) int { return cmp.Compare(b.ISVSVN, a.ISVSVN) })
		if info.module(m.ID) != nil {
			mr.fail("id", "is there twice")
		}
		if r.err = cmp.Or(r.err, mr.err); r.err != nil {
			return
		}
		info.Modules = append(info.Modules, m)
	}
}

func (info *Info) module(id string) *ModuleLevel {
	for i := range info.Modules {
		if info.Modules[i].ID == id {
			return &info.Modules[i]
		}
	}
	return nil
}

func parseModule(r *reader) (m Module) {
	r.hex("mrsigner", m.MRSigner[:])
	r.hex("attributes", m.Attributes[:])
	r.hex("attributesMask", m.AttributesMask[:])
	return m
}

func parseLevel(v value, where *place, id string, version int) (Level, error) {
	r := newReader(v, where)
	level := Level{Date: r.time("tcbDate"), Status: parseStatus(r), Advisories: r.strings("advisoryIDs", maxAdvisories)}
	inner, _ := r.get("tcb", '{')
	t := newReader(inner, r.where.member("tcb"))
	if r.err != nil {
		return Level{}, r.err
	}
	level.PCESVN = uint16(t.uint("pcesvn", 1<<16-1))
	if version == 2 {
		for i := range level.SGX {
			level.SGX[i] = byte(t.uint(fmt.Sprintf("sgxtcbcomp%02dsvn", i+1), 255))
		}
		return level, t.err
	}
	parseComponents(t, "sgxtcbcomponents", &level.SGX)
	if id == TDX {
		parseComponents(t, "tdxtcbcomponents", &level.TDX)
	}
	return level, t.err
}

func parseComponents(t *reader, key string, dst *[16]byte) {
	members := t.list(key, len(dst))
	if t.err == nil && len(members) != len(dst) {
		t.fail(key, "does not have 16 members")
	}
	for i, m := range members {
		svn, _ := m.lookup("svn")
		n, ok := svn.uint(255)
		if !ok {
			t.fail(fmt.Sprintf("%s[%d].svn", key, i), "is not an integer from 0 to 255")
			return
		}
		dst[i] = byte(n)
	}
}

// parseISVLevels decodes the levels of an enclave or module, in the order of the document.
func parseISVLevels(r *reader, limit uint64) (levels []ISVLevel) {
	for i, m := range r.list("tcbLevels", maxLevels) {
		l := newReader(m, r.where.element("tcbLevels", i))
		level := ISVLevel{Date: l.time("tcbDate"), Status: parseStatus(l), Advisories: l.strings("advisoryIDs", maxAdvisories)}
		inner, _ := l.get("tcb", '{')
		t := newReader(inner, l.where.member("tcb"))
		level.ISVSVN = uint16(t.uint("isvsvn", limit))
		if level.Status != UpToDate && level.Status != OutOfDate && level.Status != Revoked {
			l.fail("tcbStatus", "is no status of an enclave or module")
		}
		if r.err = cmp.Or(r.err, l.err, t.err); r.err != nil {
			return nil
		}
		levels = append(levels, level)
	}
	return levels
}

func parseStatus(r *reader) Status {
	s := Status(r.str("tcbStatus"))
	if r.err == nil && !s.signed() {
		r.fail("tcbStatus", "is unknown")
	}
	return s
}

// CheckValidity says whether now lies within [issue date, next update], both ends included; grace extends the later one.
func (info *Info) CheckValidity(now time.Time, grace time.Duration) error {
	return checkValidity("TCB info", info.IssueDate, info.NextUpdate.Add(grace), now)
}

func checkValidity(what string, from, to, now time.Time) error {
	switch {
	case now.Before(from):
		return fmt.Errorf("%w: %s is issued at %s, the time is %s", ErrValidity, what, from.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	case now.After(to):
		return fmt.Errorf("%w: %s was to be replaced by %s, the time is %s", ErrValidity, what, to.Format(time.RFC3339), now.UTC().Format(time.RFC3339))
	}
	return nil
}
