package kds

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/policy"
)

// The parts of a statement that may be refused, as Problem.Stage names them.
const (
	stageForm       = "form"
	stageCluster    = "cluster"
	stageSignatures = "signatures"
	stageEpoch      = "epoch"
	stageSequence   = "sequence"
	stageContent    = "content"
)

// Operate commits a statement of the operators. Everybody may send one: what
// counts is the signatures, which are checked here, so that nothing unsigned
// reaches the log, and in Apply, which decides. The last statement that was
// accepted is accepted again, word for word, and changes nothing: an answer
// that was lost must not look like a refusal.
func (s *Service) Operate(ctx context.Context, req api.AdminRequest) (api.AdminReply, error) {
	reply, err := s.operate(ctx, api.SignedAdmin{Statement: req.Statement, Approvals: req.Approvals})
	return reply, s.finish("operate", err)
}

func (s *Service) operate(ctx context.Context, signed api.SignedAdmin) (api.AdminReply, error) {
	if _, _, err := s.cluster(); err != nil {
		return api.AdminReply{}, err
	}
	if err := s.Replica.SafeRead(ctx); err != nil { // sequence and epoch are compared with the newest
		return api.AdminReply{}, err
	}
	view, manifest, err := s.cluster()
	if err != nil {
		return api.AdminReply{}, err
	}
	st, err := checkStatement(view, manifest, signed)
	if err != nil {
		return api.AdminReply{}, err
	}
	reply := api.AdminReply{ClusterID: view.ClusterID, Epoch: st.Epoch, Sequence: st.Sequence, Kind: st.Kind, Index: view.Applied}
	if st.Sequence == view.Sequence { // checkStatement: the very same
		return reply, nil
	}
	reply.Index, err = s.commitStatement(ctx, signed)
	if p, ok := errors.AsType[*api.Problem](err); ok && p.Stage == stageContent { // Apply refused it: perhaps because it has been there
		if view, _, again := s.cluster(); again == nil && wasLast(view, st, signed) {
			reply.Index, err = view.Applied, nil
		}
	}
	return reply, err
}

// wasLast reports whether a statement is, word for word, the last one that was
// carried out.
func wasLast(view state.View, st *api.AdminStatement, signed api.SignedAdmin) bool {
	return st.Epoch == view.Epoch && st.Sequence == view.Sequence && sha256.Sum256(signed.Statement) == view.LastStatement
}

// commitStatement proposes the statement; a rejection says which part was late.
func (s *Service) commitStatement(ctx context.Context, signed api.SignedAdmin) (uint64, error) {
	raw, err := state.Encode(&state.Operate{Statement: signed.Statement, Approvals: signed.Approvals})
	if err != nil {
		return 0, refuseStatement(stageForm, err)
	}
	index, result, err := s.Replica.Propose(ctx, raw)
	if err != nil {
		return 0, err
	}
	if r, ok := errors.AsType[*state.Rejected](asError(result)); ok {
		return 0, refuseStatement(stageContent, r.Err)
	}
	return index, asError(result)
}

func asError(result any) error {
	err, _ := result.(error)
	return err
}

// checkStatement says what is wrong with a statement, in the order in which a
// reader would ask.
func checkStatement(view state.View, m *api.Manifest, signed api.SignedAdmin) (*api.AdminStatement, error) {
	st, err := api.ParseAdmin(signed.Statement)
	if err != nil {
		return nil, refuseStatement(stageForm, err)
	}
	if st.ClusterID != view.ClusterID {
		return nil, refuseStatement(stageCluster, fmt.Errorf("it is for cluster %s, this is %s", st.ClusterID, view.ClusterID))
	}
	_, body, err := signed.Verify(&m.Operators, view.ClusterID)
	if errors.Is(err, api.ErrApprovals) {
		return nil, refuseStatement(stageSignatures, err)
	}
	if err != nil {
		return nil, refuseStatement(stageForm, err)
	}
	switch {
	case st.Epoch != view.Epoch:
		return nil, refuseStatement(stageEpoch, fmt.Errorf("it is for epoch %d, the cluster is in epoch %d; make and sign a new one", st.Epoch, view.Epoch))
	case wasLast(view, st, signed):
		return st, nil
	case view.Ended:
		return nil, errEnded
	case st.Sequence != view.Sequence+1:
		return nil, refuseStatement(stageSequence, fmt.Errorf("it is number %d, the next one is %d; look at the cluster again, then make and sign a new one",
			st.Sequence, view.Sequence+1))
	}
	return st, checkContent(body)
}

// checkContent refuses what Apply cannot judge: a line of a node policy that no
// verifier would read, or that accepts debug enclaves.
func checkContent(body api.AdminBody) error {
	change, ok := body.(*api.NodePolicyChange)
	if !ok {
		return nil
	}
	for _, text := range change.Constraints {
		if c, err := policy.ParseConstraint(text); err != nil || c.Insecure() || c.String() != text {
			return refuseStatement(stageContent, fmt.Errorf("%.80q is not a canonical constraint that may govern nodes", text))
		}
	}
	return nil
}

func refuseStatement(stage string, err error) error {
	p := api.NewProblem(api.CodeStatement, err.Error())
	p.Stage = stage
	return p
}
