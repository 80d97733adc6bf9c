package attest

import (
	"slices"
	"time"

	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tcb"
	"github.com/claviger/claviger/attest/tdx"
)

// claims states what the verified parts prove. It shares no memory with the quote.
func (v *Verifier) claims(q *Quote, chain *pck.Chain, set *collateralSet, result tcb.Result, c *Collateral) Claims {
	claims := Claims{
		TEE:          q.TEE(),
		QuoteVersion: q.Version(),
		Root:         v.Root(),
		ReportData:   q.ReportData(),
		Platform:     platform(chain),
		TCB:          tcbClaims(result, set.info.EvaluationNumber),
		Collateral:   set.claims(chain.NotAfter(), c.Hash()),
	}
	if q.tdx != nil {
		claims.TDX, claims.Debug = tdxClaims(q.tdx), q.tdx.Body.Debug()
	} else {
		claims.SGX, claims.Debug = sgxClaims(&q.sgx.Report), q.sgx.Report.Debug()
	}
	return claims
}

func sgxClaims(r *sgx.Report) *SGXClaims {
	return &SGXClaims{
		MREnclave: r.MREnclave, MRSigner: r.MRSigner, ISVProdID: r.ISVProdID, ISVSVN: r.ISVSVN,
		Attributes: r.Attributes, MiscSelect: r.MiscSelect, CPUSVN: r.CPUSVN,
		ConfigID: r.ConfigID, ConfigSVN: r.ConfigSVN, ISVFamilyID: r.ISVFamilyID, ISVExtProdID: r.ISVExtProdID,
	}
}

func tdxClaims(q *tdx.Quote) *TDXClaims {
	b := &q.Body
	c := &TDXClaims{
		MRTD: b.MRTD, RTMR: b.RTMR, MRSEAM: b.MRSEAM, MRSignerSEAM: b.MRSignerSEAM, SEAMAttributes: b.SEAMAttributes,
		TDAttributes: b.TDAttributes, XFAM: b.XFAM, MRConfigID: b.MRConfigID, MROwner: b.MROwner,
		MROwnerConfig: b.MROwnerConfig, TEETCBSVN: b.TEETCBSVN,
	}
	if q.Body15 != nil {
		c.TEETCBSVN2, c.MRServiceTD = new(q.Body15.TEETCBSVN2), new(q.Body15.MRServiceTD)
	}
	return c
}

func tcbClaims(r tcb.Result, evaluation int) TCBClaims {
	part := func(p tcb.Part) TCBPart { return TCBPart{p.Status, p.Date, slices.Clone(p.Advisories)} }
	c := TCBClaims{
		Status: r.Status, Advisories: slices.Clone(r.Advisories), Date: r.Date, EvaluationNumber: evaluation,
		Platform: part(r.Platform), QE: part(r.QE),
	}
	if r.Module != nil {
		c.Module = new(part(*r.Module))
	}
	return c
}

// claims describes a verified set; chainEnd is the end of validity of the chain that the PCK revocation list belongs to.
func (s *collateralSet) claims(chainEnd time.Time, hash [32]byte) CollateralClaims {
	return CollateralClaims{
		EarliestExpiry: slices.MinFunc([]time.Time{
			s.info.NextUpdate, s.identity.NextUpdate, s.rootCRL.NextUpdate(), s.pckCRL.NextUpdate(), chainEnd, s.signing.NotAfter(),
		}, time.Time.Compare).UTC(),
		LatestIssue: slices.MaxFunc([]time.Time{
			s.info.IssueDate, s.identity.IssueDate, s.rootCRL.ThisUpdate(), s.pckCRL.ThisUpdate(),
		}, time.Time.Compare).UTC(),
		TCBInfoIssueDate:    s.info.IssueDate,
		QEIdentityIssueDate: s.identity.IssueDate,
		TCBEvaluation:       s.info.EvaluationNumber,
		QEEvaluation:        s.identity.EvaluationNumber,
		RootCRLNumber:       s.rootCRL.Number().String(),
		PCKCRLNumber:        s.pckCRL.Number().String(),
		Hash:                hash,
	}
}
