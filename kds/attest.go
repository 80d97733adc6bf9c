package kds

import (
	"context"
	"encoding/json"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// Attest gives a verdict on a quote, for relying parties that do not verify
// themselves. Evidence that is refused is a verdict, not an error; errors are
// *api.Problem and mean that there is no verdict. It writes nothing.
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
	view, _, err := s.cluster()
	if err != nil {
		return api.Verdict{}, err
	}
	verdict := api.Verdict{ClusterID: view.ClusterID, Epoch: view.Epoch, Time: s.now(view), Constraint: constraint.String()}
	a, err := s.assess(ctx, req.Quote, req.Collateral, verdict.Time)
	if err != nil {
		return verdictOn(verdict, err)
	}
	claims := a.verified.Claims()
	if verdict.Claims, err = json.Marshal(claims); err != nil {
		return api.Verdict{}, err
	}
	verdict.Status, verdict.Advisories, verdict.TCBDate = string(claims.TCB.Status), claims.TCB.Advisories, claims.TCB.Date
	if req.ReportData != nil && claims.ReportData != [64]byte(*req.ReportData) {
		return verdictOn(verdict, ErrBinding)
	}
	if req.Constraint != "" {
		if err := constraint.Check(a.verified, a.now); err != nil {
			return verdictOn(verdict, err)
		}
	}
	verdict.OK = true
	return verdict, nil
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
