package kds

import (
	"context"
	"errors"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/derive"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/policy"
)

// finish is the end of every operation: it counts, and turns the error into
// the problem that goes out. Nil stays nil.
func (s *Service) finish(operation string, err error) error {
	if err == nil {
		s.metrics.count(operation, "ok")
		return nil
	}
	p := problemOf(err)
	if p.Code == api.CodeNotLeader {
		p.Leader = s.leader(err)
	}
	if p.Code == api.CodeInternal || p.Code == api.CodeHalted {
		s.Logger.Error("request failed", "operation", operation, "error", err)
	}
	s.metrics.count(operation, string(p.Code))
	return p
}

// leader completes what the replica said with the address of the member.
func (s *Service) leader(err error) *api.Leader {
	e, ok := errors.AsType[*NotLeaderError](err)
	if !ok || e.Leader.IsZero() {
		return nil
	}
	l := &api.Leader{ServerID: e.Leader, APIAddr: e.APIAddr}
	for _, m := range s.Machine.View().Members {
		if l.APIAddr == "" && api.ID(m.ServerID) == e.Leader {
			l.APIAddr = m.APIAddr
		}
	}
	return l
}

// problemOf is the one place where errors get their code and the sentence
// that goes to the outside. An error it does not know is internal and keeps
// its text to the log.
func problemOf(err error) *api.Problem {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return p
	}
	if e, ok := errors.AsType[*attest.Error](err); ok {
		p := api.NewProblem(api.CodeEvidenceRefused, e.Error())
		p.Stage = string(e.Stage)
		return p
	}
	if e, ok := errors.AsType[*policy.Denied](err); ok {
		p := api.NewProblem(api.CodePolicyDenied, "the evidence is genuine, but the constraint does not allow it; each failed clause says what to do")
		for _, f := range e.Failures {
			p.Failures = append(p.Failures, api.Failure(f))
		}
		return p
	}
	if e, ok := errors.AsType[*state.Rejected](err); ok {
		if errors.Is(e, state.ErrFull) {
			return api.NewProblem(api.CodeInternal, "a limit of the cluster is reached; tell its operators")
		}
		return api.NewProblem(api.CodeStale, "policy or collateral changed during the request, and nothing was released; ask again")
	}
	if _, ok := errors.AsType[*NotLeaderError](err); ok {
		return api.NewProblem(api.CodeNotLeader, "another node leads; ask that one")
	}
	if e, ok := errors.AsType[*policy.ParseError](err); ok && !errors.Is(e, policy.ErrTooLong) {
		return api.NewProblem(api.CodeBadRequest, e.Error())
	}
	for _, m := range mapping {
		if errors.Is(err, m.err) {
			detail := m.detail
			if detail == "" {
				detail = err.Error()
			}
			p := api.NewProblem(m.code, detail)
			p.Stage = m.stage
			return p
		}
	}
	return api.NewProblem(api.CodeInternal, "the service failed; the node's log says more")
}

// mapping gives sentinels their code. An empty detail passes on the error's
// own text, which those packages write for outsiders.
var mapping = []struct {
	err    error
	code   api.Code
	stage  string
	detail string
}{
	// First: it wraps whatever was wrong with the entry.
	{state.ErrHalted, api.CodeHalted, "", "this node met an entry that it does not know and stopped serving; ask another node and update this one"},
	{ErrBinding, api.CodeEvidenceRefused, "binding",
		"the quote's report data is not that of this channel; make fresh evidence on the connection that you use"},
	{policy.ErrTooLong, api.CodeTooLarge, "", ""},
	{api.ErrTooLarge, api.CodeTooLarge, "", ""},
	{api.ErrMalformed, api.CodeBadRequest, "", ""},
	{derive.ErrPurpose, api.CodeBadRequest, "", ""},
	{derive.ErrNoHalf, api.CodeBadRequest, "", ""},
	{ErrVersion, api.CodeNotFound, "", ""},
	{ErrNotFounded, api.CodeNoQuorum, "", "this node has not joined a cluster yet; ask another node or try again"},
	{ErrNoQuorum, api.CodeNoQuorum, "", "too few nodes of the cluster answer, and nothing was released; try again"},
	{ErrBusy, api.CodeBusy, "", "as many requests as the cluster takes at once are under way, and nothing was released; try again in a moment"},
	{context.DeadlineExceeded, api.CodeNoQuorum, "", "the cluster did not answer in time, and nothing was released; try again"},
	{context.Canceled, api.CodeNoQuorum, "", "the request was given up, and nothing was released"},
}
