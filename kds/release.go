package kds

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/derive"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/policy"
)

// ErrVersion says that a request names a version which does not exist.
var ErrVersion = errors.New("kds: no such key version")

// currentCounter is the only counter of an inline constraint; governed
// policies will raise theirs.
const currentCounter = 1

// attempts bounds how often a release decides, if the state moves underneath
// it. Each round uses the state that won, so one more is the rule.
const attempts = 3

// Release releases one key to the enclave whose evidence is bound to the
// channel the request came over. Refusals are *api.Problem; with any error
// the reply is zero.
func (s *Service) Release(ctx context.Context, ev api.Evidence, req api.KeyRequest) (api.KeyReply, error) {
	var reply api.KeyReply
	var err error
	for again, round := true, 0; again && round < attempts; round++ {
		applied := s.Machine.Applied()
		reply, err = s.release(ctx, ev, req)
		again, err = s.reconsider(ctx, applied, err)
	}
	return reply, s.finish("release", err)
}

// reconsider says whether a decision is worth making again: its record was
// rejected, because something moved underneath it; or it is a refusal, and
// this node turns out to have been behind when it decided. A refusal counts
// only by state that is not old.
func (s *Service) reconsider(ctx context.Context, applied uint64, err error) (bool, error) {
	if _, moved := errors.AsType[*state.Rejected](err); moved || err == nil {
		return moved, err
	}
	if p := problemOf(err); p.Code != api.CodeEvidenceRefused && p.Code != api.CodePolicyDenied {
		return false, err
	}
	if readErr := s.Replica.SafeRead(ctx); readErr != nil {
		return false, readErr
	}
	return s.Machine.Applied() != applied, err
}

// release is the whole of a release: everything that stands between evidence
// and a key is in these lines, in this order.
func (s *Service) release(ctx context.Context, ev api.Evidence, req api.KeyRequest) (api.KeyReply, error) {
	ask, err := parseAsk(req.Check(), req.Constraint, req.Name, req.Purpose)
	if err != nil {
		return api.KeyReply{}, err
	}
	view, _, err := s.live()
	if err != nil {
		return api.KeyReply{}, err
	}
	// 1. Authenticate: the evidence is genuine, by collateral that cannot go
	// back, and made for this very channel, so nobody relays another's.
	a, err := s.assess(ctx, ev.Quote, ev.Collateral, s.now(view))
	if err != nil {
		return api.KeyReply{}, err
	}
	claims := a.verified.Claims()
	if err := checkBinding(claims, ev.Binding); err != nil {
		return api.KeyReply{}, err
	}
	// 2. Check: what is genuine is also what the constraint asks for. Only
	// evidence that passes may write to the log.
	if err := ask.constraint.Check(a.verified, a.now); err != nil {
		return api.KeyReply{}, err
	}
	if err := a.Replicate(ctx, s.Replica, view.Epoch); err != nil {
		return api.KeyReply{}, err
	}
	// 3. Derive, in the realm that follows from the evidence.
	realm := derive.RealmOf(claims.Root.Simulated, claims.Debug)
	version, key, err := s.derive(view, ask, realm, req.Version)
	if err != nil {
		return api.KeyReply{}, err
	}
	defer key.Destroy()
	// 4. Record: committed by a majority under unchanged policy, collateral
	// and epoch, or there is no key.
	receipt, err := s.record(ctx, view, a, api.Record{
		Label: api.RecordLabel, ClusterID: view.ClusterID, Epoch: view.Epoch, Realm: string(realm),
		Constraint: ask.constraint.String(), Name: ask.name, Purpose: ask.purpose.String(),
		Generation: version.Generation, Counter: version.Counter, Collateral: a.version, NodePolicy: view.NodePolicy,
		TEE: string(claims.TEE), Measurement: measurement(claims), Platform: claims.Platform.ID(),
		Status: string(claims.TCB.Status), Time: a.now.Unix(),
	})
	if err != nil {
		return api.KeyReply{}, err
	}
	// 5. Reply.
	return api.KeyReply{
		Key: key.Reveal(), Purpose: ask.purpose.String(), Constraint: ask.constraint.String(), Name: ask.name,
		Realm: string(realm), Version: version, ClusterID: view.ClusterID, Epoch: view.Epoch, Receipt: *receipt,
	}, nil
}

// ask is a parsed request for a key.
type ask struct {
	constraint policy.Constraint
	name       string
	purpose    derive.Purpose
}

// parseAsk parses the parts of a request whose bounds were checked with the
// result bounds.
func parseAsk(bounds error, constraint, name, purpose string) (ask, error) {
	if bounds != nil {
		return ask{}, bounds
	}
	c, err := policy.ParseConstraint(constraint)
	if err != nil {
		return ask{}, err
	}
	p, err := derive.ParsePurpose(purpose)
	if err != nil {
		return ask{}, err
	}
	return ask{c, name, p}, nil
}

// resolve turns a requested version, in which 0 means current, into one that
// exists.
func resolve(view state.View, v api.Version) (api.Version, error) {
	if v.Generation == 0 && !v.GenerationID.IsZero() {
		v.Generation = uint64(slices.Index(view.GenerationIDs, [32]byte(v.GenerationID)) + 1)
	} else if v.Generation == 0 {
		v.Generation = view.Generation
	}
	if v.Counter == 0 {
		v.Counter = currentCounter
	}
	if v.Generation > view.Generation || v.Counter > currentCounter {
		return api.Version{}, fmt.Errorf("%w: %d.%d; the newest is %d.%d", ErrVersion, v.Generation, v.Counter, view.Generation, currentCounter)
	}
	var id api.ID // zero below the level that has them
	if at := v.Generation - 1; at < uint64(len(view.GenerationIDs)) {
		id = view.GenerationIDs[at]
	}
	if !v.GenerationID.IsZero() && v.GenerationID != id {
		return api.Version{}, fmt.Errorf("%w: the cluster holds no root of that number with id %s; if an epoch made it that a recovery has left behind, it is lost with that epoch",
			ErrVersion, v.GenerationID)
	}
	v.GenerationID = id
	return v, nil
}

// params resolves the version and names the key.
func (s *Service) params(view state.View, a ask, realm derive.Realm, v api.Version) (api.Version, secret.Key, derive.Params, error) {
	v, err := resolve(view, v)
	if err != nil {
		return api.Version{}, secret.Key{}, derive.Params{}, err
	}
	root, err := s.Secrets.root(v.Generation)
	return v, root, derive.Params{
		Realm: realm, Binding: derive.Constraint(a.constraint.String()), Name: a.name, Purpose: a.purpose, Counter: v.Counter,
	}, err
}

func (s *Service) derive(view state.View, a ask, realm derive.Realm, v api.Version) (api.Version, secret.Key, error) {
	version, root, params, err := s.params(view, a, realm, v)
	if err != nil {
		return api.Version{}, secret.Key{}, err
	}
	key, err := derive.Key(root, view.ClusterID, params)
	return version, key, err
}

// record commits a release and returns the receipt. rec gets its request id
// here.
func (s *Service) record(ctx context.Context, view state.View, a *Assessment, rec api.Record) (*api.Receipt, error) {
	id, err := secret.Random(len(rec.RequestID))
	if err != nil {
		return nil, err
	}
	copy(rec.RequestID[:], id.Reveal())
	raw, err := rec.Marshal()
	if err != nil {
		return nil, err
	}
	opening, err := s.Secrets.opening(rec.Generation, rec.RequestID)
	if err != nil {
		return nil, err
	}
	done, err := propose[state.Released](ctx, s.Replica, &state.Release{
		Epoch: view.Epoch, Generation: rec.Generation, NodePolicy: view.NodePolicy,
		CollateralKey: a.key, CollateralVersion: a.version, Leaf: api.Commitment(opening, raw),
	})
	if err != nil {
		return nil, err
	}
	signature, err := api.SignCheckpoint(s.Secrets.Identity(), view.ClusterID, view.Epoch, done.Size, done.Root)
	if err != nil {
		return nil, err
	}
	r := &api.Receipt{
		Record: raw, Opening: opening, Index: done.Index, TreeSize: done.Size, RootHash: done.Root,
		Signature: signature, Epoch: view.Epoch, ClusterID: view.ClusterID, Proof: make([]api.ID, len(done.Proof)),
	}
	for i, h := range done.Proof {
		r.Proof[i] = h
	}
	return r, nil
}

// measurement returns what identifies the code in a record.
func measurement(c attest.Claims) []byte {
	if c.TDX != nil {
		return c.TDX.MRTD[:]
	}
	if c.SGX != nil {
		return c.SGX.MREnclave[:]
	}
	return nil
}

// PublicKey returns the public half of an asymmetric key, signed by the
// identity key, for any constraint: no enclave that satisfies it need exist.
// The realm follows from the cluster's root of trust and SEC:INSECURE.
func (s *Service) PublicKey(ctx context.Context, req api.PublicKeyRequest) (api.PublicKeyReply, error) {
	reply, err := s.publicKey(ctx, req)
	return reply, s.finish("public", err)
}

func (s *Service) publicKey(ctx context.Context, req api.PublicKeyRequest) (api.PublicKeyReply, error) {
	ask, err := parseAsk(req.Check(), req.Constraint, req.Name, req.Purpose)
	if err != nil {
		return api.PublicKeyReply{}, err
	}
	if err := s.Replica.SafeRead(ctx); err != nil { // a removed node must not answer
		return api.PublicKeyReply{}, err
	}
	view, manifest, err := s.live()
	if err != nil {
		return api.PublicKeyReply{}, err
	}
	realm := derive.RealmOf(manifest.Root.Simulated, ask.constraint.Insecure())
	version, root, params, err := s.params(view, ask, realm, req.Version)
	if err != nil {
		return api.PublicKeyReply{}, err
	}
	public, err := derive.Public(root, view.ClusterID, params)
	if err != nil {
		return api.PublicKeyReply{}, err
	}
	reply := api.PublicKeyReply{
		PublicKey: public, Purpose: ask.purpose.String(), Constraint: ask.constraint.String(), Name: ask.name,
		Realm: string(realm), Version: version, ClusterID: view.ClusterID, Epoch: view.Epoch,
	}
	if ask.purpose == derive.Age {
		recipient, err := derive.AgeRecipient(public)
		if err != nil {
			return api.PublicKeyReply{}, err
		}
		reply.Recipient = recipient.String()
	}
	if reply.PolicyHash, err = api.PolicyHash(reply.Constraint); err != nil {
		return api.PublicKeyReply{}, err
	}
	if err := reply.Sign(s.Secrets.Identity()); err != nil {
		return api.PublicKeyReply{}, err
	}
	return reply, nil
}
