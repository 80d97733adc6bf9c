package attest

import (
	"fmt"
	"time"

	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/tcb"
)

// CollateralReport says what a set of collateral is for and which set it is. It is for those who fetch, keep and carry
// collateral; it is no evidence, and nothing that verifies a quote takes it.
type CollateralReport struct {
	TEE   TEE
	FMSPC [6]byte
	PCEID [2]byte
	CA    string // of the PCK revocation list: "platform" or "processor"
	Set   CollateralClaims
}

// VerifyCollateral verifies collateral at the time now without a quote: the steps revocation and collateral of Verify,
// except for what depends on a platform. A revoked PCK CA or TCB signing certificate is refused; whether one platform is
// revoked only Verify can tell.
//
// Collateral does not hold the certificate that signs the PCK revocation list, because every quote carries it. Here it
// comes as pckIssuer: PEM, PCK CA then root, as PCS serves it in SGX-PCK-CRL-Issuer-Chain and as PCKIssuer takes it from a
// quote. It is untrusted too. Set.EarliestExpiry covers it and the parts, not the PCK certificate of any platform.
func (v *Verifier) VerifyCollateral(c *Collateral, pckIssuer []byte, now time.Time, opts ...Option) (*CollateralReport, error) {
	if v == nil || !v.root.usable() {
		return nil, refuse(StageParse, "make the verifier with NewVerifier", ErrConfig)
	}
	if c == nil || len(pckIssuer) == 0 || now.IsZero() {
		return nil, refuse(StageParse, "pass collateral, the chain of the PCK CA and the time", ErrInput)
	}
	if err := c.check(); err != nil {
		return nil, refuse(StageParse, "fetch the collateral again", fmt.Errorf("%w: %w", ErrBundle, err))
	}
	var o options
	for _, opt := range opts {
		if opt != nil {
			opt(&o)
		}
	}
	set, issuer, err := v.verifyLists(c, pckIssuer, now, o.grace)
	if err != nil {
		return nil, refuse(StageRevocation, "fetch both revocation lists again, with the chain of the PCK CA", err)
	}
	if set, err = v.verifyDocuments(c, set, now, o.grace); err != nil {
		return nil, refuse(StageCollateral, "fetch the collateral again, and keep the bytes as they were served", err)
	}
	r := &CollateralReport{TEE: SGX, FMSPC: set.info.FMSPC, PCEID: set.info.PCEID, CA: string(issuer.CA())}
	if set.info.ID == tcb.TDX {
		r.TEE = TDX
	}
	r.Set = set.claims(issuer.NotAfter())
	return r, nil
}

// PCKIssuer returns the chain of the PCK CA inside the quote, PEM, PCK CA then root. It is NOT verified: it is input for
// VerifyCollateral.
func PCKIssuer(q *Quote) ([]byte, error) {
	if q == nil || (q.sgx == nil) == (q.tdx == nil) {
		return nil, refuse(StageParse, "pass a parsed quote", ErrInput)
	}
	chain, err := pck.ParseChain(q.parts().certData)
	if err != nil {
		return nil, refuse(StageChain, "the quote must carry its PCK certificate chain", err)
	}
	return chain.Issuer().PEM(), nil
}

// verifyLists verifies both revocation lists with the chain of a PCK CA.
func (v *Verifier) verifyLists(c *Collateral, pckIssuer []byte, now time.Time, grace time.Duration) (*collateralSet, *pck.IssuerChain, error) {
	set, err := v.openLists(c)
	if err != nil {
		return nil, nil, err
	}
	issuer, err := v.store.IssuerChain(pckIssuer)
	if err != nil {
		return nil, nil, err
	}
	if err = issuer.Check(set.rootCRL, now, grace); err == nil {
		err = issuer.CheckCRL(set.pckCRL, now, grace)
	}
	v.keepLists(c, set)
	return set, issuer, err
}
