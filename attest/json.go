package attest

import (
	"encoding/hex"
	"encoding/json"
	"time"
)

// hexBytes is a byte string that JSON shows as lower-case hex.
type hexBytes []byte

// MarshalText encodes b as lower-case hex.
func (b hexBytes) MarshalText() ([]byte, error) { return []byte(hex.EncodeToString(b)), nil }

type claimsJSON struct {
	TEE          TEE              `json:"tee"`
	QuoteVersion int              `json:"quote_version"`
	Root         rootJSON         `json:"root"`
	Debug        bool             `json:"debug"`
	ReportData   hexBytes         `json:"report_data"`
	SGX          *SGXClaims       `json:"sgx,omitempty"`
	TDX          *TDXClaims       `json:"tdx,omitempty"`
	Platform     Platform         `json:"platform"`
	TCB          TCBClaims        `json:"tcb"`
	Collateral   CollateralClaims `json:"collateral"`
}

type rootJSON struct {
	ID        hexBytes `json:"id"`
	Name      string   `json:"name"`
	Simulated bool     `json:"simulated"`
}

// MarshalJSON encodes claims with snake-case names, bytes as hex and times as RFC 3339, for people and for other
// programs. Nothing reads it back: claims come from verification only.
func (c Claims) MarshalJSON() ([]byte, error) {
	id := c.Root.ID()
	return json.Marshal(claimsJSON{
		TEE: c.TEE, QuoteVersion: c.QuoteVersion, Root: rootJSON{id[:], c.Root.Name, c.Root.Simulated},
		Debug: c.Debug, ReportData: c.ReportData[:], SGX: c.SGX, TDX: c.TDX,
		Platform: c.Platform, TCB: c.TCB, Collateral: c.Collateral,
	})
}

// MarshalJSON encodes the claims with bytes as hex.
func (c SGXClaims) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		MREnclave    hexBytes `json:"mrenclave"`
		MRSigner     hexBytes `json:"mrsigner"`
		ISVProdID    uint16   `json:"isv_prod_id"`
		ISVSVN       uint16   `json:"isv_svn"`
		Attributes   hexBytes `json:"attributes"`
		MiscSelect   uint32   `json:"misc_select"`
		CPUSVN       hexBytes `json:"cpu_svn"`
		ConfigID     hexBytes `json:"config_id"`
		ConfigSVN    uint16   `json:"config_svn"`
		ISVFamilyID  hexBytes `json:"isv_family_id"`
		ISVExtProdID hexBytes `json:"isv_ext_prod_id"`
	}{
		c.MREnclave[:], c.MRSigner[:], c.ISVProdID, c.ISVSVN, c.Attributes[:], c.MiscSelect, c.CPUSVN[:],
		c.ConfigID[:], c.ConfigSVN, c.ISVFamilyID[:], c.ISVExtProdID[:],
	})
}

// MarshalJSON encodes the claims with bytes as hex.
func (c TDXClaims) MarshalJSON() ([]byte, error) {
	var svn2, service hexBytes
	if c.TEETCBSVN2 != nil {
		svn2 = c.TEETCBSVN2[:]
	}
	if c.MRServiceTD != nil {
		service = c.MRServiceTD[:]
	}
	return json.Marshal(struct {
		MRTD           hexBytes    `json:"mrtd"`
		RTMR           [4]hexBytes `json:"rtmr"`
		MRSEAM         hexBytes    `json:"mrseam"`
		MRSignerSEAM   hexBytes    `json:"mrsignerseam"`
		SEAMAttributes hexBytes    `json:"seam_attributes"`
		TDAttributes   hexBytes    `json:"td_attributes"`
		XFAM           hexBytes    `json:"xfam"`
		MRConfigID     hexBytes    `json:"mrconfigid"`
		MROwner        hexBytes    `json:"mrowner"`
		MROwnerConfig  hexBytes    `json:"mrownerconfig"`
		TEETCBSVN      hexBytes    `json:"tee_tcb_svn"`
		TEETCBSVN2     hexBytes    `json:"tee_tcb_svn_2,omitempty"`
		MRServiceTD    hexBytes    `json:"mrservicetd,omitempty"`
	}{
		c.MRTD[:], [4]hexBytes{c.RTMR[0][:], c.RTMR[1][:], c.RTMR[2][:], c.RTMR[3][:]}, c.MRSEAM[:], c.MRSignerSEAM[:],
		c.SEAMAttributes[:], c.TDAttributes[:], c.XFAM[:], c.MRConfigID[:], c.MROwner[:], c.MROwnerConfig[:],
		c.TEETCBSVN[:], svn2, service,
	})
}

// MarshalJSON encodes the platform with bytes as hex, and its ID beside them.
func (p Platform) MarshalJSON() ([]byte, error) {
	id := p.ID()
	return json.Marshal(struct {
		ID     hexBytes `json:"id"`
		FMSPC  hexBytes `json:"fmspc"`
		PCEID  hexBytes `json:"pce_id"`
		CPUSVN hexBytes `json:"cpu_svn"`
		PCESVN uint16   `json:"pce_svn"`
		PPID   hexBytes `json:"ppid"`
		CA     string   `json:"ca"`
	}{id[:], p.FMSPC[:], p.PCEID[:], p.CPUSVN[:], p.PCESVN, p.PPID[:], p.CA})
}

// MarshalJSON encodes the evaluation.
func (c TCBClaims) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Status           Status    `json:"status"`
		Advisories       []string  `json:"advisories"`
		Date             time.Time `json:"date,omitzero"`
		EvaluationNumber int       `json:"evaluation_number"`
		Platform         TCBPart   `json:"platform"`
		QE               TCBPart   `json:"qe"`
		Module           *TCBPart  `json:"module,omitempty"`
	}{c.Status, notNil(c.Advisories), c.Date, c.EvaluationNumber, c.Platform, c.QE, c.Module})
}

// MarshalJSON encodes the evaluation of one part.
func (p TCBPart) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		Status     Status    `json:"status"`
		Date       time.Time `json:"date,omitzero"`
		Advisories []string  `json:"advisories"`
	}{p.Status, p.Date, notNil(p.Advisories)})
}

// MarshalJSON encodes the claims about collateral.
func (c CollateralClaims) MarshalJSON() ([]byte, error) {
	return json.Marshal(struct {
		EarliestExpiry      time.Time `json:"earliest_expiry"`
		LatestIssue         time.Time `json:"latest_issue"`
		TCBInfoIssueDate    time.Time `json:"tcb_info_issue_date"`
		QEIdentityIssueDate time.Time `json:"qe_identity_issue_date"`
		TCBEvaluation       int       `json:"tcb_evaluation"`
		QEEvaluation        int       `json:"qe_evaluation"`
		RootCRLIssueDate    time.Time `json:"root_crl_issue_date"`
		PCKCRLIssueDate     time.Time `json:"pck_crl_issue_date"`
		RootCRLNumber       string    `json:"root_crl_number"`
		PCKCRLNumber        string    `json:"pck_crl_number"`
		Hash                hexBytes  `json:"hash"`
	}{
		c.EarliestExpiry, c.LatestIssue, c.TCBInfoIssueDate, c.QEIdentityIssueDate, c.TCBEvaluation, c.QEEvaluation,
		c.RootCRLIssueDate, c.PCKCRLIssueDate, c.RootCRLNumber, c.PCKCRLNumber, c.Hash[:],
	})
}

// notNil makes an absent list an empty one, which JSON shows as [] and not as null.
func notNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}
