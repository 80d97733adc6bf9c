package client

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/httpapi"
)

// instant is the time at which all evidence of these tests is made and judged.
var instant = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var (
	nodeImage  = sim.Image{Kind: enclave.SGX, Name: "clavigerd", Version: "1", Signer: "claviger"}
	otherImage = sim.Image{Kind: enclave.SGX, Name: "clavigerd-with-a-leak", Version: "1", Signer: "claviger"}
	appImage   = sim.Image{Kind: enclave.TDX, Name: "app", Version: "1"}
)

// world is one simulated Intel for all tests; sharing it saves the making of its keys.
var world = sync.OnceValue(func() *sim.World {
	return sim.NewWorld([32]byte{1}, func() time.Time { return instant })
})

// signer is a cluster identity key.
type signer struct{ key ed25519.PrivateKey }

func newSigner(seed byte) signer {
	return signer{ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize))}
}

func (s signer) Public() ed25519.PublicKey           { return s.key.Public().(ed25519.PublicKey) }
func (s signer) Sign(message []byte) ([]byte, error) { return ed25519.Sign(s.key, message), nil }

// cluster is what genesis fixed.
type cluster struct {
	identity signer
	manifest []byte
	id       api.ID
}

func newCluster(t *testing.T, seed byte, root attest.Root, nodePolicy ...string) cluster {
	t.Helper()
	c := cluster{identity: newSigner(seed)}
	slices.Sort(nodePolicy)
	m := api.Manifest{
		Version: api.ManifestVersion, Name: "test", Root: api.RootOfTrust{ID: root.ID(), Simulated: root.Simulated},
		NodePolicy: nodePolicy, Operators: api.Operators{Threshold: 1, Keys: [][]byte{newSigner(99).Public()}}, Nonce: [32]byte{seed},
	}
	var err error
	if c.manifest, err = m.Marshal(); err != nil {
		t.Fatal(err)
	}
	if c.id, err = api.ClusterID(c.manifest, c.identity.Public()); err != nil {
		t.Fatal(err)
	}
	return c
}

// network is the host's: it carries connections by address, and tests redirect them.
type network struct {
	mu    sync.Mutex
	hosts map[string]*pipes
	dials []string
}

func (n *network) dial(_ context.Context, _, addr string) (net.Conn, error) {
	n.mu.Lock()
	n.dials = append(n.dials, addr)
	p := n.hosts[addr]
	n.mu.Unlock()
	if p == nil {
		return nil, &net.OpError{Op: "dial", Net: "pipe", Err: errors.New("connection refused")}
	}
	return p.connect()
}

func (n *network) listen(addr string) *pipes {
	p := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[addr] = p
	return p
}

func (n *network) dialled() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Clone(n.dials)
}

// pipes is a net.Listener over net.Pipe.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) connect() (net.Conn, error) {
	near, far := net.Pipe()
	select {
	case p.conns <- far:
		return near, nil
	case <-p.closed:
		return nil, &net.OpError{Op: "dial", Net: "pipe", Err: errors.New("connection refused")}
	}
}

func (p *pipes) Close() error {
	p.once.Do(func() { close(p.closed) })
	return nil
}

func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// site is a cluster with a network, inside one synctest bubble: its time passes only when everything waits.
type site struct {
	*testing.T
	cluster
	net   *network
	nodes []*member
}

// inSite runs test in a bubble; every goroutine of nodes and clients must end by itself, or the bubble fails.
func inSite(t *testing.T, test func(s *site)) {
	t.Parallel()
	w := world()
	c := newCluster(t, 1, w.Root(), nodeImage.Constraint(), otherNodeConstraint)
	synctest.Test(t, func(t *testing.T) {
		s := &site{T: t, cluster: c, net: &network{hosts: map[string]*pipes{}}}
		defer func() {
			for _, n := range s.nodes {
				n.stop()
			}
		}()
		test(s)
	})
}

// otherNodeConstraint makes the node policy have more than one entry.
var otherNodeConstraint = sim.Image{Kind: enclave.TDX, Name: "clavigerd", Version: "1"}.Constraint()

// member is one simulated node: the real channel and the real HTTP adapter over a service that answers what tests want.
type member struct {
	addr    string
	service *service
	server  *http.Server
	channel *ratls.Listener
}

func (n *member) stop() {
	n.server.Close()
	n.channel.Close()
}

// nodeConfig is what tests change in a node to attack the client.
type nodeConfig struct {
	cluster   cluster
	image     sim.Image
	machine   string
	epoch     uint64
	statement func(*api.NodeStatement) // forge what the node says about itself
	evidence  func(*ratls.Evidence)    // or what it attests
	channel   func(*ratls.Config)      // or how it speaks
	key       *ecdsa.PrivateKey        // boot key
}

// node starts a node at addr.
func (s *site) node(addr string, changes ...func(*nodeConfig)) *member {
	s.Helper()
	key, err := ratls.NewKey()
	if err != nil {
		s.Fatal(err)
	}
	cfg := nodeConfig{cluster: s.cluster, image: nodeImage, machine: addr, epoch: 5, key: key}
	for _, change := range changes {
		change(&cfg)
	}
	n := &member{addr: addr, service: &service{cluster: cfg.cluster, epoch: cfg.epoch}}
	handler, err := httpapi.New(httpapi.Config{Service: n.service, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.Fatal(err)
	}
	n.channel = ratls.NewListener(s.net.listen(addr), s.channelOf(cfg))
	n.server = httpapi.Server(handler, slog.New(slog.DiscardHandler))
	go n.server.Serve(n.channel)
	s.nodes = append(s.nodes, n)
	return n
}

// channelOf is the server side of a node's channel: its evidence with the statement attached, and the client's verified.
func (s *site) channelOf(cfg nodeConfig) *ratls.Config {
	s.Helper()
	hash, err := ratls.KeyHash(cfg.key.Public())
	if err != nil {
		s.Fatal(err)
	}
	statement := api.NodeStatement{
		Manifest: cfg.cluster.manifest, IdentityKey: cfg.cluster.identity.Public(),
		Membership: api.Membership{ClusterID: cfg.cluster.id, Epoch: cfg.epoch, Slot: "a", Incarnation: 1, ServerID: hash},
	}
	if statement.Signature, err = api.SignMembership(cfg.cluster.identity, statement.Membership); err != nil {
		s.Fatal(err)
	}
	if cfg.statement != nil {
		cfg.statement(&statement)
	}
	attachment, err := statement.Marshal()
	if err != nil {
		s.Fatal(err)
	}
	attester := s.attester(cfg.machine, cfg.image)
	channel := &ratls.Config{
		Protocols: []string{Protocol}, ClusterID: cfg.cluster.id, Epoch: cfg.epoch, Key: cfg.key,
		Attest: func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
			ev, err := attester(ctx, reportData)
			ev.Attachment = attachment
			if cfg.evidence != nil {
				cfg.evidence(&ev)
			}
			return ev, err
		},
		Verify: verifyClient, PeerOptional: true,
	}
	if cfg.channel != nil {
		cfg.channel(channel)
	}
	return channel
}

// attester launches an image on a machine and returns its evidence.
func (s *site) attester(machine string, image sim.Image) func(context.Context, [64]byte) (ratls.Evidence, error) {
	s.Helper()
	m, err := world().Machine(machine)
	if err != nil {
		s.Fatal(err)
	}
	tee, err := m.Launch(image)
	if err != nil {
		s.Fatal(err)
	}
	return func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
		quote, err := tee.Quote(ctx, reportData)
		if err != nil {
			return ratls.Evidence{}, err
		}
		bundle, err := world().Collateral(ctx, quote)
		if err != nil {
			return ratls.Evidence{}, err
		}
		raw, err := bundle.Marshal()
		return ratls.Evidence{Quote: quote, Collateral: raw}, err
	}
}

func verifyClient(_ context.Context, _ ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
	verifier, err := attest.NewVerifier(attest.Config{Root: world().Root()})
	if err != nil {
		return nil, err
	}
	quote, err := attest.Parse(ev.Quote)
	if err != nil {
		return nil, err
	}
	bundle, err := attest.ParseCollateral(ev.Collateral)
	if err != nil {
		return nil, err
	}
	return verifier.Verify(quote, bundle, instant)
}

// client returns an app's client that pins the site's cluster.
func (s *site) client(endpoints []string, changes ...func(*Config)) *Client {
	s.Helper()
	cfg := Config{
		ClusterID: s.id, Endpoints: endpoints, Root: world().Root(),
		Attest: s.attester("app machine", appImage), Clock: func() time.Time { return instant },
		Net: s.net.dial, AttemptTimeout: 5 * time.Second,
	}
	for _, change := range changes {
		change(&cfg)
	}
	c, err := New(cfg)
	if err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { c.Close() })
	return c
}

// drain is a peer that never speaks.
func drain(c net.Conn) { io.Copy(io.Discard, c) }

// selfSigned is a certificate of nobody.
func selfSigned(s *site, key *ecdsa.PrivateKey) tls.Certificate {
	s.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		s.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}
