package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
)

// Protocol is what a client opens its channels for; a node's API listener offers it.
const Protocol = "app/1"

// Defaults and limits.
const (
	// DefaultAttemptTimeout bounds one attempt at one endpoint, its handshake included.
	DefaultAttemptTimeout = 15 * time.Second
	// DefaultReattest is the age at which pooled connections are replaced by freshly attested ones.
	DefaultReattest = 15 * time.Minute
	// MaxEndpoints bounds Config.Endpoints.
	MaxEndpoints = 64
)

// Errors. What was refused, and why, is wrapped in them: *attest.Error, *policy.Denied, api.ErrMembership and others.
var (
	// ErrConfig says that a Config lacks or contradicts something.
	ErrConfig = errors.New("kds client: unusable configuration")
	// ErrNode says that an endpoint did not prove to be a node of the pinned cluster.
	ErrNode = errors.New("kds client: not a node of the pinned cluster")
	// ErrReply says that a genuine node gave an answer that does not hold: another key than asked for, or not signed.
	ErrReply = errors.New("kds client: reply refused")
	// ErrNoEvidence says that the call needs evidence and Config.Attest is nil.
	ErrNoEvidence = errors.New("kds client: this call needs Config.Attest")
	// ErrClosed says that the client has been closed.
	ErrClosed = errors.New("kds client: closed")
)

// Config says which cluster to trust and how to reach it.
type Config struct {
	// ClusterID is the pinned id. It must come from measured bytes, never from the environment or the host. Required.
	ClusterID api.ID
	// Endpoints are API addresses, host:port, in any order. They need not be all nodes, and are not trusted. Required.
	Endpoints []string
	// Root of trust for the nodes' evidence; the manifest must name the same one. Required.
	Root attest.Root
	// MinEpoch is the lowest epoch to accept: the highest that the app saw before, if it keeps it. See Client.Epoch.
	MinEpoch uint64
	// MinNodePolicy is the lowest version of the node policy to accept: the highest that the app saw before. See Client.NodePolicy.
	MinNodePolicy uint64
	// AnyMember accepts a member whose code the node policy does not name: for operators who look at the cluster and sign, and
	// must be able to mend a policy that none of the members satisfies. Its evidence must be genuine, and the cluster's identity
	// key must have signed for it, all the same. With it, calls for keys and verdicts are refused.
	AnyMember bool
	// Attest produces the app's evidence: a quote over exactly reportData and the collateral that its host fetched, if any.
	// Nil is enough for calls that need no evidence.
	Attest func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error)
	// Clock tells the time for the nodes' collateral; nil is the local clock. Signed times seen on the way are a floor to it.
	Clock func() time.Time
	// Net opens plain connections; nil means a net.Dialer.
	Net func(ctx context.Context, network, addr string) (net.Conn, error)
	// AttemptTimeout bounds one attempt at one endpoint; zero means DefaultAttemptTimeout.
	AttemptTimeout time.Duration
	// Reattest is the age of connections at which they are replaced; zero means DefaultReattest.
	Reattest time.Duration
}

func (c *Config) check() error {
	switch {
	case c.ClusterID == api.ID{}:
		return fmt.Errorf("%w: ClusterID is zero; pin the id that the cluster's genesis printed", ErrConfig)
	case c.Root.Key == nil:
		return fmt.Errorf("%w: Root is empty; use attest.IntelRoot()", ErrConfig)
	case len(c.Endpoints) == 0 || len(c.Endpoints) > MaxEndpoints:
		return fmt.Errorf("%w: %d endpoints, want 1 to %d", ErrConfig, len(c.Endpoints), MaxEndpoints)
	}
	for _, e := range c.Endpoints {
		if !validEndpoint(e) {
			return fmt.Errorf("%w: endpoint %q is not host:port", ErrConfig, e)
		}
	}
	return nil
}

// validEndpoint also bounds what a node's hint may make us dial.
func validEndpoint(addr string) bool {
	if !api.ValidAddress(addr) {
		return false
	}
	host, port, err := net.SplitHostPort(addr)
	return err == nil && host != "" && port != ""
}

func (c Config) withDefaults() Config {
	c.Endpoints = slices.Clone(c.Endpoints)
	if c.Clock == nil {
		c.Clock = time.Now
	}
	if c.Net == nil {
		c.Net = (&net.Dialer{}).DialContext
	}
	if c.AttemptTimeout <= 0 {
		c.AttemptTimeout = DefaultAttemptTimeout
	}
	if c.Reattest <= 0 {
		c.Reattest = DefaultReattest
	}
	return c
}
