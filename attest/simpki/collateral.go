package simpki

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
)

// Lifetimes of collateral, as Intel's.
const (
	collateralLife = 30 * day
	rootCRLLife    = year
)

// timeFormat is the only form of a time in Intel's collateral.
const timeFormat = "2006-01-02T15:04:05Z"

// Collateral returns what Intel would serve at the instant at for the platform family fmspc (any): TCB info version 3
// and QE identity version 2 in signed envelopes, their signing chain, the root's revocation list and that of the
// platform CA. It is issued at the start of at's UTC day and expires 30 days later (the root's list after a year), so it
// is the same, byte for byte, for a whole day unless a script acts. It fails with ErrTime more than a year before the
// PKI's birth or after its certificates expired, and with ErrConfig for an unknown TEE.
func (p *PKI) Collateral(tee attest.TEE, fmspc [6]byte, at time.Time) (*attest.Collateral, error) {
	return p.CollateralFor(tee, fmspc, PlatformCA, at)
}

// CollateralFor is Collateral with the revocation list of a CA of choice.
func (p *PKI) CollateralFor(tee attest.TEE, fmspc [6]byte, ca CA, at time.Time) (*attest.Collateral, error) {
	issuer, ok := p.ca[ca]
	if !ok {
		return nil, fmt.Errorf("%w: no CA %.32q; use platform or processor", ErrConfig, ca)
	}
	at = at.UTC()
	issued := at.Truncate(day)
	if issued.Before(p.signing().cert.NotBefore) || at.After(p.signing().cert.NotAfter) {
		return nil, fmt.Errorf("%w: collateral of %s; this PKI serves from %s to %s", ErrTime, at.Format(timeFormat),
			p.signing().cert.NotBefore.Format(timeFormat), p.signing().cert.NotAfter.Format(timeFormat))
	}
	e := p.until(at)
	r := request{tee, fmspc, ca, issued, len(e.recoveries), len(e.revoked), e.script}
	if c := p.remembered(r); c != nil {
		return c, nil
	}
	c, err := p.serve(r, issuer, e)
	if err != nil {
		return nil, err
	}
	p.remember(r, c)
	return c, nil
}

// request is everything that an answer depends on. The script only grows, so its length names it, and with that the
// numbers of events up to an instant name those events.
type request struct {
	tee                 attest.TEE
	fmspc               [6]byte
	ca                  CA
	issued              time.Time
	recoveries, revoked int
	script              int
}

// maxServed bounds the answers that a PKI remembers.
const maxServed = 64

// remembered returns a copy of the answer to r, nil if there is none.
func (p *PKI) remembered(r request) *attest.Collateral {
	p.mu.Lock()
	defer p.mu.Unlock()
	return clone(p.served[r])
}

// remember keeps a copy of the answer to r.
func (p *PKI) remember(r request, c *attest.Collateral) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.served == nil || len(p.served) >= maxServed {
		p.served = map[request]*attest.Collateral{}
	}
	p.served[r] = clone(c)
}

// clone copies collateral, nil to nil.
func clone(c *attest.Collateral) *attest.Collateral {
	if c == nil {
		return nil
	}
	return &attest.Collateral{
		TCBInfo: bytes.Clone(c.TCBInfo), QEIdentity: bytes.Clone(c.QEIdentity),
		TCBSigningChain: bytes.Clone(c.TCBSigningChain), PCKCRL: bytes.Clone(c.PCKCRL), RootCRL: bytes.Clone(c.RootCRL),
	}
}

// serve makes the answer to r.
func (p *PKI) serve(r request, issuer authority, e events) (*attest.Collateral, error) {
	info, err := p.tcbInfo(r.tee, r.fmspc, r.issued, e)
	if err != nil {
		return nil, err
	}
	c := &attest.Collateral{TCBSigningChain: pemOf(p.signing().cert, p.root.cert)}
	if c.TCBInfo, err = p.envelope("tcbInfo", info); err != nil {
		return nil, err
	}
	if c.QEIdentity, err = p.envelope("enclaveIdentity", p.qeIdentity(r.tee, r.issued, e)); err != nil {
		return nil, err
	}
	if c.RootCRL, err = crl(p.root, rootIssuer, r.issued, rootCRLLife, e); err != nil {
		return nil, err
	}
	c.PCKCRL, err = crl(issuer, string(r.ca), r.issued, collateralLife, e)
	return c, err
}

// envelope signs the JSON of body, byte for byte as it then stands in the envelope.
func (p *PKI) envelope(name string, body any) ([]byte, error) {
	inner, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	signature, err := sign(p.signing().key, inner)
	if err != nil {
		return nil, err
	}
	return fmt.Appendf(nil, `{%q:%s,"signature":"%x"}`, name, inner, signature), nil
}

// crl issues the revocation list of an authority. Its number is always 1, as that of Intel's lists has always been: only
// the dates order them. A revocation makes a new list at once.
func crl(issuer authority, name string, issued time.Time, life time.Duration, e events) ([]byte, error) {
	var entries []x509.RevocationListEntry
	for _, r := range e.revoked {
		if r.issuer == name {
			entries = append(entries, x509.RevocationListEntry{SerialNumber: r.serial, RevocationTime: issued, ReasonCode: 1})
			if at := r.from.UTC().Truncate(time.Second); at.After(issued) {
				issued = at
			}
		}
	}
	return x509.CreateRevocationList(nil, &x509.RevocationList{
		Number: big.NewInt(1), ThisUpdate: issued, NextUpdate: issued.Add(life), RevokedCertificateEntries: entries,
		SignatureAlgorithm: x509.ECDSAWithSHA256,
	}, issuer.cert, issuer.key)
}

// The JSON of TCB info version 3, with Intel's names and order.
type (
	tcbInfo struct {
		ID               string      `json:"id"`
		Version          int         `json:"version"`
		IssueDate        string      `json:"issueDate"`
		NextUpdate       string      `json:"nextUpdate"`
		FMSPC            string      `json:"fmspc"`
		PCEID            string      `json:"pceId"`
		TCBType          int         `json:"tcbType"`
		EvaluationNumber int         `json:"tcbEvaluationDataNumber"`
		Module           *tdxModule  `json:"tdxModule,omitempty"`
		Modules          []tdxModule `json:"tdxModuleIdentities,omitempty"`
		Levels           []tcbLevel  `json:"tcbLevels"`
	}
	tdxModule struct {
		ID             string     `json:"id,omitempty"`
		MRSigner       string     `json:"mrsigner"`
		Attributes     string     `json:"attributes"`
		AttributesMask string     `json:"attributesMask"`
		Levels         []tcbLevel `json:"tcbLevels,omitempty"`
	}
	tcbLevel struct {
		TCB        any      `json:"tcb"` // platformTCB or enclaveTCB
		Date       string   `json:"tcbDate"`
		Status     string   `json:"tcbStatus"`
		Advisories []string `json:"advisoryIDs,omitempty"`
	}
	platformTCB struct {
		SGX    []component `json:"sgxtcbcomponents"`
		PCESVN int         `json:"pcesvn"`
		TDX    []component `json:"tdxtcbcomponents,omitempty"`
	}
	enclaveTCB struct {
		ISVSVN int `json:"isvsvn"`
	}
	component struct {
		SVN      int    `json:"svn"`
		Category string `json:"category,omitempty"`
		Type     string `json:"type,omitempty"`
	}
	enclaveIdentity struct {
		ID               string     `json:"id"`
		Version          int        `json:"version"`
		IssueDate        string     `json:"issueDate"`
		NextUpdate       string     `json:"nextUpdate"`
		EvaluationNumber int        `json:"tcbEvaluationDataNumber"`
		MiscSelect       string     `json:"miscselect"`
		MiscSelectMask   string     `json:"miscselectMask"`
		Attributes       string     `json:"attributes"`
		AttributesMask   string     `json:"attributesMask"`
		MRSigner         string     `json:"mrsigner"`
		ProductID        int        `json:"isvprodid"`
		Levels           []tcbLevel `json:"tcbLevels"`
	}
)

// Category and type of the components that have one.
var (
	sgxTypes = map[int]component{
		0: {Category: "BIOS", Type: "Early Microcode Update"}, 1: {Category: "OS/VMM", Type: "SGX Late Microcode Update"},
		2: {Category: "OS/VMM", Type: "TXT SINIT"}, 3: {Category: "BIOS"}, 4: {Category: "BIOS"}, 5: {Category: "BIOS"},
		7: {Category: "OS/VMM", Type: "SEAMLDR ACM"},
	}
	tdxTypes = map[int]component{
		0: {Category: "OS/VMM", Type: "TDX Module"}, 1: {Category: "OS/VMM", Type: "TDX Module"},
		2: {Category: "OS/VMM", Type: "TDX Late Microcode Update"},
	}
)

// components spells out 16 SVNs.
func components(svns [16]byte, types map[int]component) (list []component) {
	for i, svn := range svns {
		c := types[i]
		c.SVN = int(svn)
		list = append(list, c)
	}
	return list
}

// tcbInfo returns the TCB info of a platform family.
func (p *PKI) tcbInfo(tee attest.TEE, fmspc [6]byte, issued time.Time, e events) (*tcbInfo, error) {
	if tee != attest.SGX && tee != attest.TDX {
		return nil, fmt.Errorf("%w: no TCB info for TEE %.32q; use sgx or tdx", ErrConfig, tee)
	}
	info := &tcbInfo{
		ID: strings.ToUpper(string(tee)), Version: 3, IssueDate: issued.Format(timeFormat),
		NextUpdate: issued.Add(collateralLife).Format(timeFormat), FMSPC: fmt.Sprintf("%X", fmspc), PCEID: "0000",
		EvaluationNumber: evaluationBase + len(e.recoveries),
	}
	for _, l := range p.ladder(e.recoveries) {
		tcb := platformTCB{SGX: components(l.dials.sgx(), sgxTypes), PCESVN: pceSVN}
		if tee == attest.TDX {
			svns := l.dials.tdx(5, 0) // the major version selects the module identity, no level asks for one
			tcb.TDX = components(svns, tdxTypes)
		}
		info.Levels = append(info.Levels, tcbLevel{tcb, l.date.Format(timeFormat), string(l.status), l.advisories})
	}
	if tee == attest.TDX {
		base := tdxModule{MRSigner: strings.Repeat("00", 48), Attributes: strings.Repeat("00", 8),
			AttributesMask: strings.Repeat("FF", 8)}
		info.Module = &base
		for _, id := range []string{"TDX_03", fmt.Sprintf("TDX_%02X", moduleMajor)} {
			module := base
			module.ID, module.Levels = id, p.svnLevels(moduleTop, moduleOld, moduleRevoked, "INTEL-SA-01036", "INTEL-SA-01099")
			info.Modules = append(info.Modules, module)
		}
	}
	return info, nil
}

// qeIdentity returns the identity of the quoting enclave of a TEE.
func (p *PKI) qeIdentity(tee attest.TEE, issued time.Time, e events) *enclaveIdentity {
	enclave := qe
	if tee == attest.TDX {
		enclave = tdQE
	}
	signer := enclave.signer()
	return &enclaveIdentity{
		ID: enclave.id, Version: 2, IssueDate: issued.Format(timeFormat),
		NextUpdate: issued.Add(collateralLife).Format(timeFormat), EvaluationNumber: evaluationBase + len(e.recoveries),
		MiscSelect: "00000000", MiscSelectMask: "FFFFFFFF",
		Attributes: "11" + strings.Repeat("00", 15), AttributesMask: "FB" + strings.Repeat("FF", 7) + strings.Repeat("00", 8),
		MRSigner: strings.ToUpper(hex.EncodeToString(signer[:])), ProductID: int(enclave.productID),
		Levels: p.svnLevels(qeTop, qeOld, qeRevoked, "INTEL-SA-00477", "INTEL-SA-00615"),
	}
}

// svnLevels returns the three levels of a component that is measured by one SVN.
func (p *PKI) svnLevels(top, old, revoked int, advisories ...string) []tcbLevel {
	at := func(age time.Duration) string { return p.birth.Add(-age).Format(timeFormat) }
	return []tcbLevel{
		{enclaveTCB{top}, at(newestAge), string(attest.StatusUpToDate), nil},
		{enclaveTCB{old}, at(oldAge), string(attest.StatusOutOfDate), advisories},
		{enclaveTCB{revoked}, at(revokedAge), string(attest.StatusRevoked), advisories},
	}
}
