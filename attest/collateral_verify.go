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
	lists, err := v.verifyLists(c, pckIssuer, now, o.grace)
	if err != nil {
		return nil, refuse(StageRevocation, "fetch both revocation lists again, with the chain of the PCK CA", err)
	}
	docs, err := v.verifyDocuments(c, lists.root, now, o.grace)
	if err != nil {
		return nil, refuse(StageCollateral, "fetch the collateral again, and keep the bytes as they were served", err)
	}
	return report(c, lists, docs), nil
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

// revocationLists are both lists, verified.
type revocationLists struct {
	root, pck *pck.CRL
	issuer    *pck.IssuerChain
}

func (v *Verifier) verifyLists(c *Collateral, pckIssuer []byte, now time.Time, grace time.Duration) (l revocationLists, err error) {
	if l.root, err = pck.ParseCRL(c.RootCRL); err != nil {
		return l, err
	}
	if l.pck, err = pck.ParseCRL(c.PCKCRL); err != nil {
		return l, err
	}
	if l.issuer, err = pck.ParseIssuerChain(pckIssuer); err != nil {
		return l, err
	}
	if err := l.issuer.Verify(v.root.Key, l.root, now, grace); err != nil {
		return l, err
	}
	return l, l.issuer.CheckCRL(l.pck, now, grace)
}

// documents are TCB info and QE identity, verified and of one TEE.
type documents struct {
	signing  *pck.SigningChain
	info     *tcb.Info
	identity *tcb.Identity
}

func (v *Verifier) verifyDocuments(c *Collateral, rootCRL *pck.CRL, now time.Time, grace time.Duration) (d documents, err error) {
	if d.signing, err = pck.ParseSigningChain(c.TCBSigningChain); err != nil {
		return d, err
	}
	if err := d.signing.Verify(v.root.Key, rootCRL, now, grace); err != nil {
		return d, err
	}
	if d.info, err = tcb.VerifyInfo(c.TCBInfo, d.signing.Key()); err != nil {
		return d, err
	}
	if d.identity, err = tcb.VerifyIdentity(c.QEIdentity, d.signing.Key()); err != nil {
		return d, err
	}
	if err := d.info.CheckValidity(now, grace); err != nil {
		return d, err
	}
	if err := d.identity.CheckValidity(now, grace); err != nil {
		return d, err
	}
	if (d.info.ID == tcb.TDX) != (d.identity.ID == tcb.TDQE) {
		return d, fmt.Errorf("%w: TCB info for %s beside the QE identity of %s", ErrMismatch, d.info.ID, d.identity.ID)
	}
	return d, nil
}

func report(c *Collateral, l revocationLists, d documents) *CollateralReport {
	r := &CollateralReport{TEE: SGX, FMSPC: d.info.FMSPC, PCEID: d.info.PCEID, CA: string(l.issuer.CA())}
	if d.info.ID == tcb.TDX {
		r.TEE = TDX
	}
	set := collateralSet{documents: d, rootCRL: l.root, pckCRL: l.pck}
	r.Set = set.claims(l.issuer.NotAfter(), c.Hash())
	return r
}
