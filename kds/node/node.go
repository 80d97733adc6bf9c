package node

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
)

var (
	// ErrClosed is what Run returns after Close.
	ErrClosed = errors.New("node: closed")
	// ErrSuperseded says that a newer boot of the slot was admitted, or that this one was removed.
	ErrSuperseded = errors.New("node: a newer boot has this slot, or the node was removed; this boot is no member any more")
	// ErrNotReady is what readiness says until this boot is a voter.
	ErrNotReady = errors.New("not ready: this boot is not a voter yet")
)

const (
	stopGrace     = 3 * time.Second // for leadership transfer and open requests at a graceful stop
	supersedeLook = 100 * time.Millisecond
	askLimit      = 5 * time.Second // of one question to one peer
)

// tuning holds the times that tests shorten.
type tuning struct {
	channelAge     time.Duration // of a raft channel, after which both ends are judged anew
	sweepEvery     time.Duration // between two looks at the members' last evidence
	supersedeGrace time.Duration // of the leader's silence, after which a superseded boot asks its peers
}

var defaultTuning = tuning{channelAge: 15 * time.Minute, sweepEvery: 10 * time.Minute, supersedeGrace: 3 * time.Second}

// Node is one boot of one node.
type Node struct {
	cfg      Config
	log      *slog.Logger
	registry *prometheus.Registry
	metrics  *metrics
	verifier *attest.Verifier
	machine  *state.Machine
	judge    *kds.Assessor // decides for peers, joiners and clients alike
	boot     *boot
	prover   *prover

	peerLn, apiLn, adminLn net.Listener
	peerAddr, apiAddr      string

	ctx      context.Context // ends when the node stops, with the reason as cause
	cancel   context.CancelCauseFunc
	running  atomic.Bool
	work     sync.WaitGroup // goroutines of the peer listener
	web      sync.WaitGroup // goroutines of the http servers
	store    atomic.Pointer[raftstore.Store]
	member   atomic.Pointer[membership]
	secrets  *kds.Secrets // set once before member
	ready    chan struct{}
	finished chan struct{} // closed when Run has torn everything down
	admitSem chan struct{} // one admission at a time
	replaced chan struct{} // closed when the state gives our slot to another boot
	replace  sync.Once

	channels  *channels     // raft/1, in both directions
	standings standings     // what this node thinks of its peers
	newSets   chan struct{} // has room for one: collateral was replicated
	tune      tuning
	archives  int // directories taken by this boot
	openStore func(raftstore.Config) (*raftstore.Store, error)
}

// New checks the configuration, makes the boot key and binds the listeners, so
// that addresses are known; nothing is served before Run.
func New(cfg Config) (*Node, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	verifier, err := attest.NewVerifier(attest.Config{Root: cfg.Root})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	n := &Node{cfg: cfg, log: cfg.Logger, registry: cfg.Registry, verifier: verifier, machine: state.New(),
		ready: make(chan struct{}), finished: make(chan struct{}), admitSem: make(chan struct{}, 1), replaced: make(chan struct{}),
		channels: newChannels(), newSets: make(chan struct{}, 1), tune: defaultTuning, openStore: raftstore.Open}
	if n.cfg.Clock == nil {
		n.cfg.Clock = time.Now
	}
	if n.log == nil {
		n.log = slog.New(slog.DiscardHandler)
	}
	n.log = n.log.With("slot", cfg.Slot)
	if n.registry == nil {
		n.registry = prometheus.NewRegistry()
	}
	n.metrics = newMetrics(n.registry)
	n.judge = &kds.Assessor{Machine: n.machine, Verifier: verifier, Source: source(cfg.Collateral), Clock: n.cfg.Clock, Logger: n.log}
	n.prover = newProver(&n.cfg, verifier, n.log)
	if n.boot, err = newBoot(); err != nil {
		return nil, err
	}
	if err := n.listen(); err != nil {
		n.closeListeners()
		return nil, err
	}
	n.ctx, n.cancel = context.WithCancelCause(context.Background())
	return n, nil
}

func (n *Node) listen() (err error) {
	if n.peerLn, err = net.Listen("tcp", n.cfg.PeerListen); err != nil {
		return fmt.Errorf("node: peer listener: %w", err)
	}
	if n.apiLn, err = net.Listen("tcp", n.cfg.APIListen); err != nil {
		return fmt.Errorf("node: api listener: %w", err)
	}
	if n.cfg.AdminListen != "" {
		if n.adminLn, err = net.Listen("tcp", n.cfg.AdminListen); err != nil {
			return fmt.Errorf("node: admin listener: %w", err)
		}
	}
	n.peerAddr, n.apiAddr = n.cfg.PeerAdvertise, n.cfg.APIAdvertise
	if n.peerAddr == "" {
		n.peerAddr = n.peerLn.Addr().String()
	}
	if n.apiAddr == "" {
		n.apiAddr = n.apiLn.Addr().String()
	}
	return nil
}

func (n *Node) closeListeners() {
	for _, l := range []net.Listener{n.peerLn, n.apiLn, n.adminLn} {
		if l != nil {
			l.Close()
		}
	}
}

// ServerID is the hash of this boot's key.
func (n *Node) ServerID() raftstore.ServerID { return n.boot.id }

// PeerAddr and APIAddr are the advertised addresses.
func (n *Node) PeerAddr() string { return n.peerAddr }

// APIAddr is where clients reach this node.
func (n *Node) APIAddr() string { return n.apiAddr }

// AdminAddr is where the admin listener is bound; empty without one.
func (n *Node) AdminAddr() string {
	if n.adminLn == nil {
		return ""
	}
	return n.adminLn.Addr().String()
}

// Ready is closed when this boot has become a voter.
func (n *Node) Ready() <-chan struct{} { return n.ready }

// Pins returns the cluster's pins; ok is false before this boot is a member.
func (n *Node) Pins() (pins Pins, ok bool) {
	m := n.membership()
	if m == nil {
		return Pins{}, false
	}
	return Pins{ClusterID: m.clusterID, Manifest: m.raw, IdentityKey: m.identity, APIAddr: n.apiAddr, PeerAddr: n.peerAddr}, true
}

// IsLeader reports whether this node believes to lead. It proves nothing.
func (n *Node) IsLeader() bool {
	s := n.store.Load()
	return s != nil && s.IsLeader()
}

func (n *Node) membership() *membership { return n.member.Load() }

// Run founds or joins the cluster, serves, and blocks until ctx ends, which is
// a graceful stop and returns nil, or until the node fails. It is called once.
func (n *Node) Run(ctx context.Context) error {
	if n.running.Swap(true) {
		return fmt.Errorf("%w: a node runs once", ErrClosed)
	}
	interrupt := context.AfterFunc(ctx, func() { n.cancel(nil) })
	defer interrupt()
	defer n.teardown()
	if n.ctx.Err() != nil {
		return n.reason(nil)
	}
	n.serveAdmin()
	var err error
	if n.cfg.Genesis != nil {
		err = n.found(n.ctx)
	} else {
		err = n.join(n.ctx)
	}
	if err != nil {
		return n.reason(err)
	}
	if err := n.serveAPI(); err != nil {
		return n.reason(err)
	}
	close(n.ready)
	n.log.Info("ready", "server", n.boot.id, "api", n.apiAddr, "peer", n.peerAddr)
	interrupt() // from here on the end of ctx hands over before anything closes
	n.watch(ctx)
	if ctx.Err() != nil && n.ctx.Err() == nil {
		n.handOver()
		n.cancel(nil)
	}
	return n.reason(nil)
}

// reason turns the end of the node into Run's result.
func (n *Node) reason(err error) error {
	cause := context.Cause(n.ctx)
	if cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	if cause != nil {
		return nil // a graceful stop, whatever it interrupted
	}
	return err
}

// watch blocks until the node must stop.
func (n *Node) watch(ctx context.Context) {
	s := n.store.Load()
	replaced := n.replaced
	for {
		changed := s.MembersChanged()
		if members, _ := s.Members(); !contains(members, n.boot.id) {
			n.cancel(ErrSuperseded)
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-n.ctx.Done():
			return
		case <-s.Done():
			if err := s.Err(); err != nil {
				n.outlast(ctx, err)
				return
			}
			n.outlast(ctx, s.Err())
			return
		case <-replaced:
			replaced = nil
			n.log.Warn("a newer boot of this slot was admitted; this one stops when it is removed")
			n.work.Go(n.awaitRemoval)
		case <-changed:
		}
	}
}

// awaitRemoval is for a superseded boot. Until it is removed it stays a voter,
// since the admission of the newer boot may never finish, and its roots may be
// the last. The leader stops talking to a removed server before that can learn
// of its removal, so silence makes it ask; but only an answer makes it stop.
func (n *Node) awaitRemoval() {
	s := n.store.Load()
	tick := time.NewTicker(min(supersedeLook, n.tune.supersedeGrace))
	defer tick.Stop()
	for heard := time.Now(); ; {
		select {
		case <-n.ctx.Done():
			return
		case <-tick.C:
		}
		if _, _, ok := s.Leader(); ok {
			heard = time.Now()
		} else if time.Since(heard) > n.tune.supersedeGrace {
			if n.peerSaysRemoved() {
				n.cancel(ErrSuperseded)
				return
			}
			n.metrics.waiting.Inc()
			heard = time.Now()
		}
	}
}

// peerSaysRemoved asks those who are, or were, members with this boot. One that
// has applied the newer boot's admission and does not have this boot in its
// configuration refuses with codeSuperseded. No vote can be given to this boot
// after that admission (promote), so what one peer has committed is final.
func (n *Node) peerSaysRemoved() bool {
	peers := map[raftstore.ServerID]string{}
	for _, m := range n.machine.View().Members {
		peers[m.ServerID] = m.RaftAddr
	}
	members, _ := n.store.Load().Members()
	for _, m := range members {
		peers[m.ID] = m.Address
	}
	delete(peers, n.boot.id)
	for id, addr := range peers {
		ctx, cancel := context.WithTimeout(n.ctx, askLimit)
		c, err := n.dialPeer(ctx, id, addr)
		cancel()
		if err == nil {
			c.Close()
		}
		if r, ok := errors.AsType[*ratls.RefusedError](err); ok && r.Code == codeSuperseded {
			return true
		}
	}
	return false
}

func contains(members []raftstore.Member, id raftstore.ServerID) bool {
	for _, m := range members {
		if m.ID == id {
			return true
		}
	}
	return false
}

// handOver gives leadership away before a graceful stop.
func (n *Node) handOver() {
	s := n.store.Load()
	if s == nil || !s.IsLeader() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
	defer cancel()
	if err := s.TransferLeadership(ctx); err != nil {
		n.log.Info("leadership was not handed over", "reason", err)
	}
}

// Close kills the node at once, as a crash would: nothing is handed over. Run
// returns ErrClosed. It returns when everything has stopped.
func (n *Node) Close() error {
	n.cancel(ErrClosed)
	if !n.running.Swap(true) { // Run was never called and cannot be any more
		n.closeListeners()
		return nil
	}
	if s := n.store.Load(); s != nil {
		s.Shutdown() // at once, whatever Run is waiting for
	}
	<-n.finished
	return nil
}

// teardown ends everything that Run started.
func (n *Node) teardown() {
	defer close(n.finished)
	n.cancel(nil)
	n.web.Wait() // requests in progress still need the store
	n.closeListeners()
	if s := n.store.Load(); s != nil {
		if err := s.Shutdown(); err != nil {
			n.log.Error("stopping the store", "error", err)
		}
	}
	n.work.Wait()
}

// become makes this boot a member: store open, secrets and statement in place,
// peer listener serving. When a grant is repeated after an interrupted
// admission it finds them in place. Nothing is in place after an error, and a
// later grant may try again.
func (n *Node) become(s *kds.Secrets, m *membership) error {
	if n.store.Load() != nil {
		if had := n.membership(); had.Membership != m.Membership || had.clusterID != m.clusterID {
			return fmt.Errorf("%w: this boot has another place already", ErrJoin)
		}
		return nil
	}
	if err := n.checkRoot(m.manifest); err != nil {
		return err
	}
	key, err := s.ArchiveKey(n.boot.id)
	if err != nil {
		return err
	}
	store, err := n.newStore(m, key)
	if err != nil {
		return err
	}
	n.secrets = s
	n.prover.attach(m.statement)
	n.member.Store(m) // before anybody can talk to the store: nothing is served yet
	n.store.Store(store)
	if n.ctx.Err() != nil { // Close ran before it could see the store
		store.Shutdown()
		return n.ctx.Err()
	}
	l := ratls.NewListener(n.peerLn, &ratls.Config{
		Protocols: []string{protocolJoin, protocolRaft}, ClusterID: m.clusterID, Epoch: m.Epoch, Key: n.boot.key,
		Attest: n.prover.prove, Verify: n.verifyInbound, OnRefused: n.refused,
	})
	context.AfterFunc(n.ctx, func() { l.Close() })
	n.work.Go(func() { n.ended("peer listener", n.servePeers(l)) })
	n.work.Go(n.sweeps)
	return nil
}

// newStore opens the store over a directory that no attempt has used before.
func (n *Node) newStore(m *membership, key secret.Key) (*raftstore.Store, error) {
	archive, err := n.openArchive()
	if err != nil {
		return nil, err
	}
	store, err := n.openStore(raftstore.Config{
		ID: n.boot.id, Address: n.peerAddr, ClusterID: m.clusterID, Epoch: m.Epoch,
		Machine: watched{n.machine, n}, Dialer: dialer{n}, Archive: archive, ArchiveKey: key,
		Timeouts: n.cfg.Timeouts, Logger: n.log, Registerer: n.registry,
	})
	if err != nil {
		return nil, errors.Join(err, archive.Close())
	}
	return store, nil
}

func (n *Node) refused(remote net.Addr, err error) {
	n.metrics.refused.Inc()
	n.log.Warn("refused a connection", "remote", remote, "reason", err)
}

// ended reports a server that stopped by itself.
func (n *Node) ended(what string, err error) {
	if n.ctx.Err() == nil {
		n.cancel(fmt.Errorf("node: %s: %w", what, err))
	}
}

// openArchive makes a fresh directory: DataDir itself holds one for each boot,
// and a boot whose store failed to open takes another one below.
func (n *Node) openArchive() (raftstore.Archive, error) {
	dir := n.cfg.DataDir
	if n.archives++; n.archives > 1 {
		dir = filepath.Join(dir, fmt.Sprintf("attempt-%d", n.archives))
	}
	if n.cfg.Archive != nil {
		return n.cfg.Archive(dir, n.boot.id)
	}
	return file.Create(dir, n.boot.id)
}

// watched tells the node when its slot is given to another boot, and the store
// when the machine has halted.
type watched struct {
	*state.Machine
	n *Node
}

// Apply applies the entry and looks at admissions.
func (w watched) Apply(index uint64, entry []byte) any {
	result := w.Machine.Apply(index, entry)
	switch r := result.(type) {
	case state.Admitted:
		w.n.onAdmitted(r.Member)
	case state.Put:
		w.n.onCollateral()
	}
	return result
}

// Halted makes it a raftstore.Halter: the store stops serving with the machine.
func (w watched) Halted() bool { return w.Machine.Halted() != nil }

// Restore may skip the entry that gave our slot away.
func (w watched) Restore(r io.Reader) error {
	err := w.Machine.Restore(r)
	if err == nil {
		for _, m := range w.View().Members {
			w.n.onAdmitted(m)
		}
	}
	return err
}

func (n *Node) onAdmitted(m state.Member) {
	level := slog.LevelDebug
	if n.IsLeader() {
		level = slog.LevelInfo
	}
	n.log.Log(n.ctx, level, "admitted", "member", m.Slot, "incarnation", m.Incarnation, "server", api.ID(m.ServerID))
	if mine := n.membership(); m.Slot == n.cfg.Slot && m.ServerID != n.boot.id && mine != nil && m.Incarnation > mine.Incarnation {
		n.replace.Do(func() { close(n.replaced) })
	}
}
