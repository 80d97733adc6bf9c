package kds

import (
	"context"
	"encoding/json"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// Attest gives a verdict on a quote, for relying parties that do not verify
// themselves, and signs it as an attestation result. Evidence that is refused
// is a verdict, not an error, and signed too; errors are *api.Problem and mean
// that there is no verdict. It writes nothing.
func (s *Service) Attest(ctx context.Context, req api.AttestRequest) (api.Verdict, error) {
	v, err := s.attest(ctx, req)
	return v, s.finish("attest", err)
}

func (s *Service) attest(ctx context.Context, req api.AttestRequest) (api.Verdict, error) {
	if err := req.Check(); err != nil {
		return api.Verdict{}, err
	}
	var constraint policy.Constraint
	if req.Constraint != "" {
		var err error
		if constraint, err = policy.ParseConstraint(req.Constraint); err != nil {
			return api.Verdict{}, err
		}
	}
	if err := s.Replica.SafeRead(ctx); err != nil { // a removed node must not answer
		return api.Verdict{}, err
	}
	view, _, err := s.live()
	if err != nil {
		return api.Verdict{}, err
	}
	verdict := api.Verdict{ClusterID: view.ClusterID, Epoch: view.Epoch, Time: s.now(view), Constraint: constraint.String()}
	verified, err := s.verifiedQuote(ctx, req, verdict)
	if err != nil {
		return s.rejected(req, verdict, err)
	}
	return s.appraised(req, verdict, verified, constraint)
}

// verifiedQuote verifies the request's quote for the verdict's instant.
func (s *Service) verifiedQuote(ctx context.Context, req api.AttestRequest, verdict api.Verdict) (*attest.Verified, error) {
	quote, err := unwrapReport(req.Quote)
	if err != nil {
		return nil, err
	}
	a, err := s.assess(ctx, quote, req.Collateral, verdict.Time)
	if err != nil {
		return nil, err
	}
	return a.verified, nil
}

// rejected is the verdict on evidence that is not genuine.
func (s *Service) rejected(req api.AttestRequest, verdict api.Verdict, err error) (api.Verdict, error) {
	verdict, err = verdictOn(verdict, err)
	if err != nil {
		return api.Verdict{}, err
	}
	return s.sign(req, verdict, ear.Reject(attest.Stage(verdict.Stage)), verdict.Time.Add(ear.DefaultLifetime))
}

// appraised is the verdict on genuine evidence: the report data that was asked
// for comes first, because the constraint is about the enclave that was meant.
func (s *Service) appraised(req api.AttestRequest, verdict api.Verdict, v *attest.Verified, c policy.Constraint) (api.Verdict, error) {
	claims := v.Claims()
	var err error
	if verdict.Claims, err = json.Marshal(claims); err != nil {
		return api.Verdict{}, err
	}
	verdict.Status, verdict.Advisories, verdict.TCBDate = string(claims.TCB.Status), claims.TCB.Advisories, claims.TCB.Date
	verdict.OK = true
	var said ear.Policy
	if req.ReportData != nil && claims.ReportData != [64]byte(*req.ReportData) {
		verdict, err = verdictOn(verdict, ErrBinding)
	} else if !c.IsZero() {
		denied := c.Check(v, verdict.Time)
		if said, err = policyOf(c, claims, denied); err == nil && denied != nil {
			verdict, err = verdictOn(verdict, denied)
		}
	}
	if err != nil {
		return api.Verdict{}, err
	}
	appraisal, err := ear.Appraise(claims, said)
	if err != nil {
		return api.Verdict{}, err
	}
	if req.ReportData != nil && claims.ReportData == [64]byte(*req.ReportData) {
		appraisal.EvidenceNonce = req.ReportData[:]
	}
	return s.sign(req, verdict, appraisal, tokenExpiry(verdict.Time, claims))
}

// verdictOn turns a refusal of evidence into a verdict and passes on every
// other error.
func verdictOn(v api.Verdict, err error) (api.Verdict, error) {
	p := problemOf(err)
	if p.Code != api.CodeEvidenceRefused && p.Code != api.CodePolicyDenied {
		return api.Verdict{}, err
	}
	v.OK, v.Code, v.Stage, v.Error, v.Failures = false, p.Code, p.Stage, p.Detail, p.Failures
	return v, nil
}
