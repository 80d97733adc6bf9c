package client

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// node is what a channel proved about its other end.
type node struct {
	epoch    uint64
	identity ed25519.PublicKey // determined by the cluster id
	issued   time.Time         // latest signed time in its collateral
	policy   api.NodePolicy    // that its evidence satisfies
}

// refusedError is a refusal in the handshake by a node that had proved itself; anyone may send the same words before that.
// To callers it is the same kind of thing as a refused request: it unwraps to an *api.Problem too.
type refusedError struct {
	error
	problem *api.Problem
}

func (e *refusedError) Unwrap() []error { return []error{e.error, e.problem} }

// refusedBy turns the channel's codes into the service's where they mean the same; the others pass as they are.
func refusedBy(err error, r *ratls.RefusedError) error {
	code := api.Code(r.Code)
	stage := ""
	switch r.Code {
	case ratls.CodeNoEvidence:
		code = api.CodeEvidenceMissing
	case ratls.CodeUnbound:
		code, stage = api.CodeEvidenceRefused, "binding"
	case ratls.CodeInternal:
		code = api.CodeInternal
	}
	p := api.NewProblem(code, r.Message)
	p.Stage = stage
	return &refusedError{err, p}
}

// dial opens a channel and proves its other end. The transport calls it for each connection of its pool.
func (c *Client) dial(ctx context.Context, network, addr string) (*ratls.Conn, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(c.ctx, func() { cancel(ErrClosed) })()

	raw, err := c.cfg.Net(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	var proved *node
	conn, err := ratls.Client(ctx, raw, &ratls.Config{
		Protocols: []string{Protocol},
		ClusterID: c.cfg.ClusterID,
		Epoch:     c.Epoch(),
		Key:       c.key,
		Attest:    c.cfg.Attest,
		Verify: func(_ context.Context, hello ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
			v, n, err := c.judge(hello, ev)
			if err != nil {
				return nil, fmt.Errorf("%w: %w", ErrNode, err)
			}
			proved = n
			return v, nil
		},
		HandshakeTimeout: c.cfg.AttemptTimeout,
	})
	if err != nil {
		if r, ok := errors.AsType[*ratls.RefusedError](err); ok && proved != nil {
			return nil, refusedBy(err, r)
		}
		return nil, err
	}
	c.met(proved)
	return conn, nil
}

// judge is the list in the package comment from step 2 on. The binding of the evidence to the channel is ratls's part.
func (c *Client) judge(hello ratls.Hello, ev ratls.Evidence) (*attest.Verified, *node, error) {
	statement, err := api.ParseNodeStatement(ev.Attachment)
	if err != nil {
		return nil, nil, err
	}
	manifest, err := statement.Verify(c.cfg.ClusterID, c.Epoch(), hello.PeerKey)
	if err != nil {
		return nil, nil, err
	}
	if statement.Membership.Epoch != hello.Epoch {
		return nil, nil, fmt.Errorf("%w: member of epoch %d, the channel is of epoch %d", api.ErrMembership, statement.Membership.Epoch, hello.Epoch)
	}
	if manifest.Root.ID != c.cfg.Root.ID() || manifest.Root.Simulated != c.cfg.Root.Simulated {
		return nil, nil, fmt.Errorf("%w: the cluster trusts root %x, this client %s", ErrConfig, manifest.Root.ID[:8], c.cfg.Root.Name)
	}
	now := c.now()
	verified, err := c.verify(ev, now)
	if err != nil {
		return nil, nil, err
	}
	policy, err := c.policy(manifest, statement)
	if err != nil {
		return nil, nil, err
	}
	if err := satisfies(policy.Constraints, verified, now); err != nil && !c.cfg.AnyMember {
		return nil, nil, err
	}
	issued := verified.Claims().Collateral.LatestIssue
	return verified, &node{epoch: hello.Epoch, identity: statement.IdentityKey, issued: issued, policy: policy}, nil
}

// policy is the node policy to judge a node by: the newest that this client has proof of. The operators of the pinned
// manifest have signed it, so a node shows a change of it where the manifest's own policy names older code.
func (c *Client) policy(m *api.Manifest, s *api.NodeStatement) (api.NodePolicy, error) {
	shown, err := s.NodePolicy(m)
	if err != nil {
		return api.NodePolicy{}, err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.nodePolicy.Newer(shown) {
		shown = c.nodePolicy
	}
	if shown.Version < c.cfg.MinNodePolicy {
		return api.NodePolicy{}, fmt.Errorf("%w: the node knows the node policy up to version %d, %d was seen", api.ErrMembership, shown.Version, c.cfg.MinNodePolicy)
	}
	return shown, nil
}

// NodePolicy is the version of the newest node policy that a node proved to this client, 0 before the first. An app that
// keeps it, sealed, and passes it as MinNodePolicy cannot be led to a node of code that the operators no longer accept.
func (c *Client) NodePolicy() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.nodePolicy.Version
}

func (c *Client) verify(ev ratls.Evidence, now time.Time) (*attest.Verified, error) {
	quote, err := attest.Parse(ev.Quote)
	if err != nil {
		return nil, err
	}
	collateral, err := attest.ParseCollateral(ev.Collateral)
	if err != nil {
		return nil, err
	}
	return c.verifier.Verify(quote, collateral, now)
}

// satisfies checks the evidence against the node policy: one constraint must hold. All denials are reported, since nobody
// knows which one the node was meant to satisfy.
func satisfies(nodePolicy []string, v *attest.Verified, now time.Time) error {
	denials := []error{errors.New("the evidence satisfies no constraint of the cluster's node policy")}
	for _, text := range nodePolicy {
		constraint, err := policy.ParseConstraint(text)
		if err == nil {
			err = constraint.CheckNode(v, now)
		}
		if err == nil {
			return nil
		}
		denials = append(denials, err)
	}
	return errors.Join(denials...)
}

// met remembers what a finished channel proved. The epoch and the time floor only rise.
func (c *Client) met(n *node) {
	c.mu.Lock()
	rose := c.identity != nil && n.epoch > c.epoch
	c.epoch = max(c.epoch, n.epoch)
	c.identity = n.identity
	if n.policy.Newer(c.nodePolicy) {
		c.nodePolicy = n.policy
	}
	if n.issued.After(c.floor) {
		c.floor = n.issued
	}
	c.mu.Unlock()
	if rose {
		c.transport.Renew() // pooled connections lead to nodes of an epoch that has been left
	}
}

// now is the clock, but not before the latest signed time seen: the host may set its clock back to revive old collateral.
func (c *Client) now() time.Time {
	now := c.cfg.Clock()
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Before(c.floor) {
		return c.floor
	}
	return now
}

// Epoch is the highest epoch that a node proved to this client, or Config.MinEpoch. An app that keeps it, sealed, and
// passes it as MinEpoch when it starts again cannot be led back to an older cluster.
func (c *Client) Epoch() uint64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.epoch
}

func (c *Client) identityKey() ed25519.PublicKey {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.identity
}
