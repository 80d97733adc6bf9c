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

	"golang.org/x/mod/sumdb/tlog"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ear"
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
	return api.AdminReply{ClusterID: st.ClusterID, Epoch: st.Epoch, Sequence: st.Sequence, Kind: st.Kind, Index: 9}, s.enter(ctx)
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
