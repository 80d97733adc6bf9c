package attest

import (
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/tcb"
)

// collateralSet is verified collateral. It depends on the five parts and the root and neither on a quote nor on the time,
// so it can be used again; which platforms its lists revoke, and whether it is in force, must be asked every time. While
// signing is nil the set holds lists only.
type collateralSet struct {
	rootCRL, pckCRL *pck.CRL
	signing         *pck.SigningChain
	info            *tcb.Info
	identity        *tcb.Identity
	facts           CollateralClaims // EarliestExpiry without the PCK chain's
}

func (c *Collateral) content() content {
	return content{c.TCBInfo, c.QEIdentity, c.TCBSigningChain, c.PCKCRL, c.RootCRL}
}

// openLists returns the known set, or else one that holds only the lists, decoded and not yet verified.
func (v *Verifier) openLists(c *Collateral) (set *collateralSet, err error) {
	if set, ok := v.known.collateral.get(c.content()); ok {
		return set, nil
	}
	set = new(collateralSet)
	if set.rootCRL, err = v.openList(c.RootCRL); err != nil {
		return nil, err
	}
	if set.pckCRL, err = v.openList(c.PCKCRL); err != nil {
		return nil, err
	}
	return set, nil
}

func (v *Verifier) openList(raw []byte) (*pck.CRL, error) {
	if list, ok := v.known.lists.get(content{raw}); ok {
		return list, nil
	}
	return pck.ParseCRL(raw)
}

// keepLists remembers the lists whose signatures verified, also if they refuse the platform in question.
func (v *Verifier) keepLists(c *Collateral, set *collateralSet) {
	if set.signing != nil {
		return // a known set
	}
	if set.rootCRL.Signed() {
		v.known.lists.put(content{c.RootCRL}, set.rootCRL)
	}
	if set.pckCRL.Signed() {
		v.known.lists.put(content{c.PCKCRL}, set.pckCRL)
	}
}

// verifyDocuments verifies the signing chain, TCB info and QE identity, after the lists were found in order. It returns the
// whole set.
func (v *Verifier) verifyDocuments(c *Collateral, set *collateralSet, now time.Time, grace time.Duration) (*collateralSet, error) {
	if set.signing == nil {
		signing, err := v.store.SigningChain(c.TCBSigningChain)
		if err != nil {
			return nil, err
		}
		if err := signing.Check(set.rootCRL, now, grace); err != nil {
			return nil, err
		}
		if set, err = v.openDocuments(c, set, signing); err != nil {
			return nil, err
		}
		v.known.collateral.put(c.content(), set)
	} else if err := set.signing.Check(set.rootCRL, now, grace); err != nil {
		return nil, err
	}
	if err := set.info.CheckValidity(now, grace); err != nil {
		return nil, err
	}
	return set, set.identity.CheckValidity(now, grace)
}

// openDocuments verifies TCB info and QE identity with a signing certificate in force. It returns a new set, since the
// lists of the old one may be known to others.
func (v *Verifier) openDocuments(c *Collateral, lists *collateralSet, signing *pck.SigningChain) (*collateralSet, error) {
	set := &collateralSet{rootCRL: lists.rootCRL, pckCRL: lists.pckCRL, signing: signing}
	verifyInfo, verifyIdentity := tcb.VerifyInfo, tcb.VerifyIdentity
	if v.relaxed {
		verifyInfo, verifyIdentity = tcb.VerifyInfoReserialized, tcb.VerifyIdentityReserialized
	}
	var err error
	if set.info, err = verifyInfo(c.TCBInfo, signing.Key()); err != nil {
		return nil, err
	}
	if set.identity, err = verifyIdentity(c.QEIdentity, signing.Key()); err != nil {
		return nil, err
	}
	if (set.info.ID == tcb.TDX) != (set.identity.ID == tcb.TDQE) {
		return nil, fmt.Errorf("%w: TCB info for %s beside the QE identity of %s", ErrMismatch, set.info.ID, set.identity.ID)
	}
	set.facts = set.gather(c.Hash())
	return set, nil
}

// gather states what the set says about itself.
func (s *collateralSet) gather(hash [32]byte) CollateralClaims {
	return CollateralClaims{
		EarliestExpiry: slices.MinFunc([]time.Time{
			s.info.NextUpdate, s.identity.NextUpdate, s.rootCRL.NextUpdate(), s.pckCRL.NextUpdate(), s.signing.NotAfter(),
		}, time.Time.Compare).UTC(),
		LatestIssue: slices.MaxFunc([]time.Time{
			s.info.IssueDate, s.identity.IssueDate, s.rootCRL.ThisUpdate(), s.pckCRL.ThisUpdate(),
		}, time.Time.Compare).UTC(),
		TCBInfoIssueDate:    s.info.IssueDate,
		QEIdentityIssueDate: s.identity.IssueDate,
		TCBEvaluation:       s.info.EvaluationNumber,
		QEEvaluation:        s.identity.EvaluationNumber,
		RootCRLIssueDate:    s.rootCRL.ThisUpdate().UTC(),
		PCKCRLIssueDate:     s.pckCRL.ThisUpdate().UTC(),
		RootCRLNumber:       s.rootCRL.Number().String(),
		PCKCRLNumber:        s.pckCRL.Number().String(),
		Hash:                hash,
	}
}

// claims describes the set; chainEnd is the end of validity of the chain that the PCK revocation list belongs to.
func (s *collateralSet) claims(chainEnd time.Time) CollateralClaims {
	c := s.facts
	if chainEnd.Before(c.EarliestExpiry) {
		c.EarliestExpiry = chainEnd.UTC()
	}
	return c
}
