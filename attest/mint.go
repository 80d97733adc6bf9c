package attest

import (
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/tcb"
	"github.com/claviger/claviger/attest/tdx"
)

// claims states what the verified parts prove. It shares no memory with the quote.
func (v *Verifier) claims(q *Quote, chain *pck.Chain, set *collateralSet, result tcb.Result) Claims {
	claims := Claims{
		TEE:          q.TEE(),
		QuoteVersion: q.Version(),
		Root:         v.Root(),
		ReportData:   q.ReportData(),
		Platform:     platform(chain),
		TCB:          tcbClaims(result, set.info.EvaluationNumber),
		Collateral:   set.claims(chain.NotAfter()),
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

// tcbClaims takes over the slices of r, which Evaluate made for this one call.
func tcbClaims(r tcb.Result, evaluation int) TCBClaims {
	part := func(p tcb.Part) TCBPart { return TCBPart{p.Status, p.Date, p.Advisories} }
	c := TCBClaims{
		Status: r.Status, Advisories: r.Advisories, Date: r.Date, EvaluationNumber: evaluation,
		Platform: part(r.Platform), QE: part(r.QE),
	}
	if r.Module != nil {
		c.Module = new(part(*r.Module))
	}
	return c
}
