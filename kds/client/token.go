package client

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// ErrToken says that an attestation result is genuine but not what the relying party expects: of another cluster, policy,
// enclave, epoch or root of trust. What package ear refuses keeps ear's errors.
var ErrToken = errors.New("kds client: attestation result refused")

// TokenVerifier checks attestation results of one cluster without a network. It is what a relying party makes of a
// cluster that it has verified once, or of a cluster file. The zero TokenVerifier refuses everything.
type TokenVerifier struct {
	keys      ear.Keys
	clusterID api.ID
	root      api.RootOfTrust
}

// NewTokenVerifier pins a cluster: its id must come from measured bytes or from people; manifest and identity key may come
// from anywhere, such as Client.Cluster, a cluster file or a stranger, because the id is their hash.
func NewTokenVerifier(clusterID api.ID, manifest []byte, identityKey ed25519.PublicKey) (*TokenVerifier, error) {
	id, err := api.ClusterID(manifest, identityKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	if id != clusterID {
		return nil, fmt.Errorf("%w: manifest and identity key are those of cluster %s, the pinned id is %s", ErrConfig, id, clusterID)
	}
	m, err := api.ParseManifest(manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	keys, err := ear.NewKeys(identityKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return &TokenVerifier{keys: keys, clusterID: clusterID, root: m.Root}, nil
}

// TokenVerifier asks the cluster for its manifest and identity key, which its pinned id proves, and returns what checks its
// attestation results from then on without it.
func (c *Client) TokenVerifier(ctx context.Context) (*TokenVerifier, error) {
	cluster, err := c.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	return NewTokenVerifier(c.cfg.ClusterID, cluster.Manifest, cluster.IdentityKey)
}

// KeySet returns the pinned key as a JWKS document for generic JWT libraries: what GET /.well-known/jwks.json serves, but
// proved.
func (v *TokenVerifier) KeySet() api.KeySet {
	set := api.KeySet{Keys: []api.JSONWebKey{}}
	for _, key := range v.keys.JWKs() {
		set.Keys = append(set.Keys, api.JSONWebKey(key))
	}
	return set
}

// Expect is what a relying party demands of a result. The zero Expect is refused: whoever asked for a result chose nonce
// and constraint, and may have chosen them for an enclave of its own.
type Expect struct {
	// Nonce is the one that the relying party chose. Nil demands a result without a nonce.
	Nonce api.Nonce
	// AnyNonceUnsafe takes a result for any nonce or none: whoever has seen it can show it again until it expires.
	AnyNonceUnsafe bool
	// Constraint is the one that must have been applied, in any spelling. Required, but for the next.
	Constraint string
	// AnyConstraintUnsafe takes a result by any constraint or none; the caller then judges Result.Evidence itself.
	AnyConstraintUnsafe bool
	// ReportData must be in the evidence, if it is set: it ties the result to a channel or key.
	ReportData *api.ReportData
	// MinEpoch is the lowest epoch of the cluster to accept.
	MinEpoch uint64
}

// Verify checks a result at the instant now. That the result is a refusal is not an error: see Appraisal.Status, of which
// only ear.Affirming is an approval.
func (v *TokenVerifier) Verify(token string, now time.Time, want Expect) (*ear.Result, error) {
	policyID, err := want.policyID()
	if err != nil {
		return nil, err
	}
	var r *ear.Result
	if want.AnyNonceUnsafe {
		r, err = ear.VerifyAnyNonce(token, v.keys, now)
	} else {
		r, err = ear.Verify(token, v.keys, now, want.Nonce)
	}
	if err != nil {
		return nil, err
	}
	if err := v.check(r, want, policyID); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrToken, err)
	}
	return r, nil
}

// policyID is the name of the demanded policy; empty: any.
func (e *Expect) policyID() (string, error) {
	switch {
	case e.AnyConstraintUnsafe && e.Constraint != "":
		return "", fmt.Errorf("%w: Constraint and AnyConstraintUnsafe contradict each other", ErrConfig)
	case e.AnyNonceUnsafe && e.Nonce != nil:
		return "", fmt.Errorf("%w: Nonce and AnyNonceUnsafe contradict each other", ErrConfig)
	case e.AnyConstraintUnsafe:
		return "", nil
	case e.Constraint == "":
		return "", fmt.Errorf("%w: Expect.Constraint is empty; name the constraint that the enclave must satisfy", ErrConfig)
	}
	c, err := policy.ParseConstraint(e.Constraint)
	if err != nil {
		return "", err
	}
	return api.PolicyURN(c.String())
}

func (v *TokenVerifier) check(r *ear.Result, want Expect, policyID string) error {
	a := &r.Appraisal
	// Evidence that is not genuine, or not of the channel that was meant, is refused before any policy.
	before := !a.Verdict.OK && len(a.PolicyIDs) == 0
	switch e := r.Evidence; {
	case r.Issuer != api.ClusterURN(v.clusterID):
		return fmt.Errorf("it is issued as %.100s", r.Issuer)
	case a.Verdict.Epoch < want.MinEpoch:
		return fmt.Errorf("it is of epoch %d, %d was seen", a.Verdict.Epoch, want.MinEpoch)
	case policyID != "" && !before && !slices.Equal(a.PolicyIDs, []string{policyID}):
		return fmt.Errorf("it is by policy %.200q, want %s", a.PolicyIDs, policyID)
	case e != nil && (e.Root != v.root.ID || e.Simulated != v.root.Simulated):
		return errors.New("the evidence is under another root of trust than the cluster's manifest names")
	case e != nil && want.ReportData != nil && e.ReportData != [64]byte(*want.ReportData):
		return errors.New("the evidence carries other report data")
	}
	return nil
}

// checkVerdict proves the answer to req: the token is for this nonce, by this constraint, and says what the verdict says.
// It is checked at the verdict's own instant, since the answer came this moment over an attested channel.
func (c *Client) checkVerdict(v *api.Verdict, req *api.AttestRequest, epoch uint64) error {
	if v.ClusterID != c.cfg.ClusterID || v.Epoch < epoch {
		return fmt.Errorf("verdict of cluster %s, epoch %d", v.ClusterID, v.Epoch)
	}
	keys, err := ear.NewKeys(c.identityKey())
	if err != nil {
		return err
	}
	tokens := TokenVerifier{keys: keys, clusterID: c.cfg.ClusterID, root: api.RootOfTrust{ID: c.cfg.Root.ID(), Simulated: c.cfg.Root.Simulated}}
	want := Expect{Nonce: req.Nonce, Constraint: req.Constraint, AnyConstraintUnsafe: req.Constraint == "", MinEpoch: epoch}
	if v.OK {
		want.ReportData = req.ReportData
	}
	r, err := tokens.Verify(v.Token, v.Time, want)
	if err != nil {
		return err
	}
	said := r.Appraisal.Verdict
	if said.OK != v.OK || said.Code != string(v.Code) || said.Stage != v.Stage || said.Constraint != v.Constraint || said.Epoch != v.Epoch {
		return fmt.Errorf("%w: verdict and token differ", ErrToken)
	}
	if r.Evidence != nil && string(r.Evidence.Status) != v.Status {
		return fmt.Errorf("%w: TCB status %q in the verdict, %q in the token", ErrToken, v.Status, r.Evidence.Status)
	}
	return nil
}
