package client

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// Client is a connection pool to one cluster. It is safe for concurrent use. Close it when done.
type Client struct {
	cfg       Config
	verifier  *attest.Verifier
	key       *ecdsa.PrivateKey // leaf of all channels; lives and dies with the client
	transport *ratls.Transport
	ctx       context.Context // ends with Close
	cancel    context.CancelFunc

	mu         sync.Mutex // guards what follows
	epoch      uint64
	floor      time.Time
	identity   ed25519.PublicKey
	nodePolicy api.NodePolicy  // the newest seen
	preferred  string          // the endpoint that answered last, usually the leader
	mute       map[string]bool // configured endpoints whose last attempt gave no answer
	renewed    time.Time       // when the pool was last emptied
}

// New returns a client. It opens no connection.
func New(cfg Config) (*Client, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: cfg.Root})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	key, err := ratls.NewKey()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg.withDefaults(), verifier: verifier, key: key, epoch: cfg.MinEpoch, mute: map[string]bool{}}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	c.renewed = c.cfg.Clock()
	c.transport = ratls.DialFunc(c.dial).HTTP2Transport()
	return c, nil
}

// Close ends calls in progress and closes the pool. Further calls fail with ErrClosed.
func (c *Client) Close() error {
	c.cancel()
	c.transport.CloseIdleConnections()
	return nil
}

// Key asks for the key that req names. The reply holds everything but the key: its Constraint is the canonical form and
// its Version the one in force; keep both with the data that the key protects, and ask with them again. The receipt has been
// verified. The caller destroys the key.
func (c *Client) Key(ctx context.Context, req api.KeyRequest) (secret.Key, api.KeyReply, error) {
	if c.cfg.Attest == nil {
		return secret.Key{}, api.KeyReply{}, ErrNoEvidence
	}
	constraint, err := checkRequest(&req, req.Constraint)
	if err != nil {
		return secret.Key{}, api.KeyReply{}, err
	}
	var reply api.KeyReply
	err = c.do(ctx, call{http.MethodPost, "/v1/keys", req, &reply, func(epoch uint64) error {
		if err := c.checkKey(&reply, constraint, epoch); err != nil {
			return err
		}
		return matches(asked(req), answered{reply.Constraint, reply.Name, reply.Purpose, reply.Version}, constraint)
	}})
	defer func() { clear(reply.Key) }()
	if err != nil {
		return secret.Key{}, api.KeyReply{}, err
	}
	key, err := secret.New(reply.Key)
	if err != nil {
		return secret.Key{}, api.KeyReply{}, fmt.Errorf("%w: %w", ErrReply, err)
	}
	meta := reply
	meta.Key = nil
	return key, meta, nil
}

// PublicKey asks for the public half of an asymmetric key. The reply is for exactly what was asked and signed by the
// cluster identity key: it may be stored and shown to others, who can verify it from the cluster id alone.
func (c *Client) PublicKey(ctx context.Context, req api.PublicKeyRequest) (api.PublicKeyReply, error) {
	constraint, err := checkRequest(&req, req.Constraint)
	if err != nil {
		return api.PublicKeyReply{}, err
	}
	var reply api.PublicKeyReply
	err = c.do(ctx, call{http.MethodPost, "/v1/keys/public", req, &reply, func(epoch uint64) error {
		if err := reply.Verify(c.identityKey(), c.cfg.ClusterID); err != nil {
			return err
		}
		if err := c.checkPlace(reply.Realm, reply.Epoch, constraint, epoch); err != nil {
			return err
		}
		return matches(asked(req), answered{reply.Constraint, reply.Name, reply.Purpose, reply.Version}, constraint)
	}})
	if err != nil {
		return api.PublicKeyReply{}, err
	}
	return reply, nil
}

// Attest asks for a verdict on someone's quote. That the verdict is negative is not an error: see Verdict.OK. Its token has
// been verified and says the same; it may be shown to others, who check it with a TokenVerifier.
func (c *Client) Attest(ctx context.Context, req api.AttestRequest) (api.Verdict, error) {
	if err := req.Check(); err != nil {
		return api.Verdict{}, err
	}
	if req.Constraint != "" {
		if _, err := policy.ParseConstraint(req.Constraint); err != nil {
			return api.Verdict{}, err
		}
	}
	var reply api.Verdict
	err := c.do(ctx, call{http.MethodPost, "/v1/attest", req, &reply, func(epoch uint64) error {
		return c.checkVerdict(&reply, &req, epoch)
	}})
	if err != nil {
		return api.Verdict{}, err
	}
	return reply, nil
}

// Cluster describes the cluster. Manifest, identity key, log head and node policy are proved; the list of members is what the answering
// node believes.
func (c *Client) Cluster(ctx context.Context) (api.Cluster, error) {
	var reply api.Cluster
	err := c.do(ctx, call{http.MethodGet, pathCluster, nil, &reply, func(epoch uint64) error {
		manifest, err := reply.Verify(c.cfg.ClusterID)
		if err != nil {
			return err
		}
		if _, err := reply.Policy(manifest); err != nil {
			return err
		}
		if reply.Epoch < epoch {
			return fmt.Errorf("it is of epoch %d, %d was seen", reply.Epoch, epoch)
		}
		return reply.CheckForm()
	}})
	if err != nil {
		return api.Cluster{}, err
	}
	return reply, nil
}

// Operate submits a statement that the operators have signed. Any node takes it. A statement of a sequence that the cluster
// has accepted already, word for word, is accepted again and changes nothing, so that a call whose end was lost may be repeated.
func (c *Client) Operate(ctx context.Context, req api.AdminRequest) (api.AdminReply, error) {
	if err := req.Check(); err != nil {
		return api.AdminReply{}, err
	}
	st, err := api.ParseAdmin(req.Statement)
	if err != nil {
		return api.AdminReply{}, err
	}
	var reply api.AdminReply
	err = c.do(ctx, call{http.MethodPost, pathAdmin, req, &reply, func(epoch uint64) error {
		if reply.ClusterID != c.cfg.ClusterID || reply.Epoch != st.Epoch || reply.Sequence != st.Sequence || reply.Kind != st.Kind {
			return fmt.Errorf("it answers for statement %d of epoch %d, %.40q", reply.Sequence, reply.Epoch, reply.Kind)
		}
		return nil
	}})
	if err != nil {
		return api.AdminReply{}, err
	}
	return reply, nil
}

// checkRequest refuses here what the service would refuse, before anything is sent.
func checkRequest(req interface{ Check() error }, constraint string) (policy.Constraint, error) {
	if err := req.Check(); err != nil {
		return policy.Constraint{}, err
	}
	return policy.ParseConstraint(constraint)
}

// checkKey proves a key's reply by its receipt, and its place in cluster, epoch and realm.
func (c *Client) checkKey(reply *api.KeyReply, constraint policy.Constraint, epoch uint64) error {
	if _, err := reply.CheckReceipt(c.identityKey(), c.cfg.ClusterID); err != nil {
		return err
	}
	return c.checkPlace(reply.Realm, reply.Epoch, constraint, epoch)
}

// checkPlace: a debug key never answers for a production constraint, nor a simulated one for hardware, nor an old epoch's
// for the present one.
func (c *Client) checkPlace(realm string, got uint64, constraint policy.Constraint, epoch uint64) error {
	want := "hw"
	if c.cfg.Root.Simulated {
		want = "sim"
	}
	if constraint.Insecure() {
		want += "-debug"
	}
	if realm != want {
		return fmt.Errorf("key of realm %q, want %q", realm, want)
	}
	if got < epoch {
		return fmt.Errorf("key of epoch %d, %d was seen", got, epoch)
	}
	return nil
}

// asked and answered are what a request and its reply have in common.
type (
	asked    api.KeyRequest
	answered struct {
		constraint, name, purpose string
		version                   api.Version
	}
)

// matches refuses an answer to another question.
func matches(q asked, a answered, constraint policy.Constraint) error {
	sameVersion := (q.Version.Generation == 0 || q.Version.Generation == a.version.Generation) &&
		(q.Version.Counter == 0 || q.Version.Counter == a.version.Counter) &&
		(q.Version.GenerationID.IsZero() || q.Version.GenerationID == a.version.GenerationID)
	if a.constraint != constraint.String() || a.name != q.Name || a.purpose != q.Purpose || !sameVersion {
		return fmt.Errorf("it answers for %q %q %q version %d.%d, id %.16s", a.constraint, a.name, a.purpose, a.version.Generation, a.version.Counter, a.version.GenerationID)
	}
	return nil
}
