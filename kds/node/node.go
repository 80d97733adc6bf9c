package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

var (
	// ErrClosed is what Run returns after Close.
	ErrClosed = errors.New("node: closed")
	// ErrSuperseded says that a newer boot of the slot was admitted, or that this one was removed.
	ErrSuperseded = errors.New("node: a newer boot has this slot, or the node was removed; this boot is no member any more")
	// ErrRemoved says that the operators have removed this node's slot.
	ErrRemoved = errors.New("node: the operators have removed this slot; this boot is no member any more")
	// ErrExpelled says that the node policy no longer accepts the code of this node.
	ErrExpelled = errors.New("node: the node policy no longer accepts this code; start a build that it names, in the same slot")
	errStopping = errors.New("not ready: the node is stopping")
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
	expelGrace     time.Duration // between a change of the node policy and the end of channels to members of code that it refuses
	supersedeGrace time.Duration // of the leader's silence, after which a superseded boot asks its peers
	paceBurst      int           // new boots of one slot in a row
	paceRefill     time.Duration // until another one may come
	reconcileEvery time.Duration // between two looks of a leader at the configuration
	aliveLook      time.Duration // of a survivor for a majority, before it takes part in a recovery
}

var defaultTuning = tuning{channelAge: 15 * time.Minute, sweepEvery: 10 * time.Minute, supersedeGrace: 3 * time.Second,
	expelGrace: 15 * time.Second, paceBurst: paceBurst, paceRefill: paceRefill, reconcileEvery: time.Second, aliveLook: 5 * time.Second}

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
	peerPorch, apiPorch    *porch
	peerAddr, apiAddr      string

	ctx        context.Context // ends when the node stops, with the reason as cause
	cancel     context.CancelCauseFunc
	running    atomic.Bool
	work       sync.WaitGroup // goroutines of the peer listener
	web        sync.WaitGroup // goroutines of the http servers
	store      atomic.Pointer[raftstore.Store]
	member     atomic.Pointer[membership]
	secrets    *kds.Secrets // set once before member
	ready      chan struct{}
	epochEnded chan struct{} // closed when the operators' stop has been applied here
	endOnce    sync.Once
	level      uint64        // highest feature level of this build
	draining   chan struct{} // closed when the API takes no more requests
	drained    chan struct{} // closed when the last one has been answered
	finished   chan struct{} // closed when Run has torn everything down
	admitSem   chan struct{} // one admission at a time
	admitQueue chan struct{} // those that run or wait for their turn
	surviving  chan struct{} // one recovering boot at a time
	fenced     *fenced       // whether the operators have stopped this boot for a recovery
	replaced   chan struct{} // closed when the state gives our slot to another boot, or takes it away
	replace    sync.Once
	outcome    error // ErrSuperseded or ErrRemoved; written before replaced is closed

	channels     *channels     // raft/1, in both directions
	pace         pace          // of new boots, by slot
	standings    standings     // what this node thinks of its peers
	newSets      chan struct{} // has room for one: collateral was replicated, or the node policy changed
	inForce      atomic.Pointer[policyInForce]
	showing      sync.Mutex // orders what we show with what is in force
	started      time.Time
	reconcileNow chan struct{} // has room for one: something was applied that the configuration must follow
	tune         tuning
	archives     int                 // directories taken by this boot
	atFence      func()              // does nothing; tests let something happen here
	atPlace      func(peer [32]byte) // as atFence
	openStore    func(raftstore.Config) (*raftstore.Store, error)
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
		ready: make(chan struct{}), finished: make(chan struct{}), draining: make(chan struct{}), drained: make(chan struct{}), admitSem: make(chan struct{}, 1), admitQueue: make(chan struct{}, maxAdmitQueue), surviving: make(chan struct{}, 1), fenced: newFenced(), replaced: make(chan struct{}), epochEnded: make(chan struct{}), level: state.Level,
		channels: newChannels(), newSets: make(chan struct{}, 1), reconcileNow: make(chan struct{}, 1), started: time.Now(), tune: defaultTuning, atFence: func() {}, atPlace: func([32]byte) {}, openStore: raftstore.Open}
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
	newStateMetrics(n.registry, n.machine.View)
	newCacheMetrics(n.registry, verifier.Stats)
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
	n.peerPorch, n.apiPorch = newPorch(n.peerLn), newPorch(n.apiLn)
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
	switch {
	case n.cfg.Genesis != nil:
		err = n.found(n.ctx)
	case n.cfg.Recovery != nil:
		err = n.reopen(n.ctx)
	default:
		err = n.join(n.ctx)
	}
	if err != nil {
		return n.reason(err)
	}
	n.keepWrapped()
	if err := n.serveAPI(); err != nil {
		return n.reason(err)
	}
	n.metrics.rejoin.Set(time.Since(n.started).Seconds())
	close(n.ready)
	n.work.Go(n.awaitRemoval)
	n.log.Info("ready", "server", n.boot.id, "api", n.apiAddr, "peer", n.peerAddr)
	interrupt() // from here on the end of ctx hands over before anything closes
	n.watch(ctx)
	if ctx.Err() != nil && n.ctx.Err() == nil {
		n.handOver()
		n.drain()
		n.handOver() // leadership may have come back meanwhile
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
			n.cancel(cmp.Or(n.leaver(), ErrSuperseded))
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-n.ctx.Done():
			return
		case <-s.Done():
			if n.fenced.up() {
				n.outlastRecovery(ctx)
				return
			}
			if err := s.Err(); err != nil {
				n.outlast(ctx, err)
				return
			}
			n.cancel(raftstore.ErrStopped) // no failure: somebody has shut it down
			return
		case <-replaced:
			replaced = nil
			n.log.Warn("this boot stops when it is out of the configuration", "reason", n.outcome)
		case <-changed:
		}
	}
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

// drain lets the requests in progress finish while replication goes on: one
// that was sent on to the leader waits until it is applied here.
func (n *Node) drain() {
	close(n.draining)
	select {
	case <-n.drained:
	case <-n.ctx.Done():
	}
}

// Close kills the node at once, as a crash would: nothing is handed over. Run
// returns ErrClosed. It returns when everything has stopped, and may be called
// again, before Run and after it.
func (n *Node) Close() error {
	n.cancel(ErrClosed)
	if !n.running.Swap(true) { // Run was never called and cannot be any more
		n.closeListeners()
		close(n.finished)
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
