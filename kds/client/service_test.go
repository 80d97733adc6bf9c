package client

import (
	"context"
	"slices"
	"sync"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/kds/api"
)

// service answers as a key derivation service would, with real receipts and signatures, and lies where a test says so.
type service struct {
	cluster cluster
	epoch   uint64

	mu       sync.Mutex
	before   func(ctx context.Context) error // runs first; an error is the answer
	key      func(*api.KeyReply)             // changes a key reply after it is complete
	public   func(*api.PublicKeyReply)
	verdict  func(*api.Verdict)
	describe func(*api.Cluster)
	operated func(*api.AdminReply)
	calls    int
	seen     api.Evidence
}

func (s *service) enter(ctx context.Context) error {
	s.mu.Lock()
	s.calls++
	before := s.before
	s.mu.Unlock()
	if before != nil {
		return before(ctx)
	}
	return nil
}

func (s *service) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.calls
}

var keyBytes = []byte("thirty-two bytes of derived key!")

// firstVersion is that of all keys here.
var firstVersion = api.Version{Generation: 1, Counter: 1, GenerationID: api.ID{7}}

func (s *service) Release(ctx context.Context, ev api.Evidence, req api.KeyRequest) (api.KeyReply, error) {
	s.mu.Lock()
	s.seen = ev
	s.mu.Unlock()
	if err := s.enter(ctx); err != nil {
		return api.KeyReply{}, err
	}
	reply := api.KeyReply{
		Key: slices.Clone(keyBytes), Purpose: req.Purpose, Constraint: req.Constraint, Name: req.Name, Realm: "sim",
		Version: firstVersion, ClusterID: s.cluster.id, Epoch: s.epoch,
	}
	if s.key != nil {
		s.key(&reply)
	}
	var err error
	reply.Receipt, err = s.receipt(reply)
	return reply, err
}

// receipt logs the release as the only leaf of a tree.
func (s *service) receipt(r api.KeyReply) (api.Receipt, error) {
	record := api.Record{
		Label: api.RecordLabel, ClusterID: r.ClusterID, Epoch: r.Epoch, Realm: r.Realm, Constraint: r.Constraint, Name: r.Name,
		Purpose: r.Purpose, Generation: r.Version.Generation, Counter: r.Version.Counter, TEE: "tdx",
	}
	raw, err := record.Marshal()
	if err != nil {
		return api.Receipt{}, err
	}
	out := api.Receipt{Record: raw, Opening: api.ID{9}, TreeSize: 1, Epoch: r.Epoch, ClusterID: r.ClusterID, Proof: []api.ID{}}
	leaf := api.Commitment(out.Opening, raw)
	out.RootHash = api.ID(tlog.RecordHash(leaf[:]))
	out.Signature, err = api.SignCheckpoint(s.cluster.identity, r.ClusterID, r.Epoch, 1, out.RootHash)
	return out, err
}

func (s *service) PublicKey(ctx context.Context, req api.PublicKeyRequest) (api.PublicKeyReply, error) {
	if err := s.enter(ctx); err != nil {
		return api.PublicKeyReply{}, err
	}
	reply := api.PublicKeyReply{
		PublicKey: slices.Clone(keyBytes), Purpose: req.Purpose, Constraint: req.Constraint, Name: req.Name, Realm: "sim",
		Version: firstVersion, ClusterID: s.cluster.id, Epoch: s.epoch,
	}
	var err error
	if reply.PolicyHash, err = api.PolicyHash(req.Constraint); err != nil {
		return api.PublicKeyReply{}, err
	}
	if err := reply.Sign(s.cluster.identity); err != nil {
		return api.PublicKeyReply{}, err
	}
	if s.public != nil {
		s.public(&reply)
	}
	return reply, nil
}

// Attest answers for a TD that satisfies every constraint, with a token of the cluster's.
func (s *service) Attest(ctx context.Context, req api.AttestRequest) (api.Verdict, error) {
	v := api.Verdict{OK: true, Status: "UpToDate", ClusterID: s.cluster.id, Epoch: s.epoch, Time: instant, Constraint: req.Constraint}
	var err error
	if v.Token, err = s.cluster.token(req, s.epoch); err != nil {
		return api.Verdict{}, err
	}
	if s.verdict != nil {
		s.verdict(&v)
	}
	return v, s.enter(ctx)
}

// token issues the result for a TD. The changes are lies of the cluster's, or faults.
func (c cluster) token(req api.AttestRequest, epoch uint64, changes ...func(*attest.Claims, *ear.Statement)) (string, error) {
	claims := attest.Claims{TEE: attest.TDX, TDX: &attest.TDXClaims{TDAttributes: [8]byte{3: 0x10}}, Root: world().Root()}
	claims.TCB.Status = attest.StatusUpToDate
	if req.ReportData != nil {
		claims.ReportData = *req.ReportData
	}
	st := ear.Statement{
		Issuer: api.ClusterURN(c.id), Verifier: ear.VerifierID{Developer: "d", Build: "b"}, IssuedAt: instant,
		Expires: instant.Add(ear.DefaultLifetime), Nonce: req.Nonce,
	}
	for _, change := range changes {
		change(&claims, &st)
	}
	var said ear.Policy
	if req.Constraint != "" {
		id, err := api.PolicyURN(req.Constraint)
		if err != nil {
			return "", err
		}
		said = ear.Policy{ID: id, Accepted: true, Executables: ear.ApprovedAtBoot}
	}
	var err error
	if st.Appraisal, err = ear.Appraise(claims, said); err != nil {
		return "", err
	}
	st.Appraisal.Verdict.Epoch, st.Appraisal.Verdict.Constraint = epoch, req.Constraint
	return ear.Issue(c.identity, st)
}

func (s *service) KeySet(ctx context.Context) (api.KeySet, error) {
	v, err := NewTokenVerifier(s.cluster.id, s.cluster.manifest, s.cluster.identity.Public())
	if err != nil {
		return api.KeySet{}, err
	}
	return v.KeySet(), s.enter(ctx)
}

func (s *service) Operate(ctx context.Context, req api.AdminRequest) (api.AdminReply, error) {
	st, err := api.ParseAdmin(req.Statement)
	if err != nil {
		return api.AdminReply{}, err
	}
	reply := api.AdminReply{ClusterID: st.ClusterID, Epoch: st.Epoch, Sequence: st.Sequence, Kind: st.Kind, Index: 9}
	if s.operated != nil {
		s.operated(&reply)
	}
	return reply, s.enter(ctx)
}

func (s *service) Cluster(ctx context.Context) (api.Cluster, error) {
	if err := s.enter(ctx); err != nil {
		return api.Cluster{}, err
	}
	out := api.Cluster{
		ClusterID: s.cluster.id, Epoch: s.epoch, Generation: 1, NodePolicy: 1, Manifest: s.cluster.manifest,
		IdentityKey: s.cluster.identity.Public(), Members: []api.Member{}, Tickets: []api.PendingTicket{},
	}
	m, err := api.ParseManifest(s.cluster.manifest)
	if err != nil {
		return api.Cluster{}, err
	}
	out.NodePolicyNow = m.NodePolicy
	out.Checkpoint, err = api.SignCheckpoint(s.cluster.identity, out.ClusterID, out.Epoch, out.LogSize, out.LogRoot)
	if s.describe != nil {
		s.describe(&out)
	}
	return out, err
}
