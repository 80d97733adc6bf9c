package raftstore

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/enclave/secret"
)

// Config assembles a Store. Machine, Dialer, Archive, ArchiveKey, ID, Address
// and ClusterID are required; a zero Config is refused.
type Config struct {
	ID        ServerID // of this boot's key; never used before
	Address   string   // where peers reach this server, handed to their Dialer
	ClusterID [32]byte
	Epoch     uint64

	Machine Machine
	Dialer  Dialer

	// Archive takes the sealed records and is closed by Shutdown. ArchiveKey has
	// ArchiveKeySize bytes and must belong to this server id alone.
	Archive    Archive
	ArchiveKey secret.Key
	// NoFsyncUnsafe acknowledges before the archive is durable: after a loss of
	// a majority's power, recovery may then miss acknowledged entries.
	NoFsyncUnsafe bool

	Timeouts   Timeouts
	Compaction Compaction
	Logger     *slog.Logger          // nil: nothing is logged
	Registerer prometheus.Registerer // nil: no metrics
}

func (c *Config) check() error {
	switch {
	case c.ID.IsZero():
		return fmt.Errorf("%w: ID is zero", ErrConfig)
	case c.Address == "" || len(c.Address) > MaxAddress:
		return fmt.Errorf("%w: Address must have 1 to %d bytes", ErrConfig, MaxAddress)
	case c.ClusterID == [32]byte{}:
		return fmt.Errorf("%w: ClusterID is zero", ErrConfig)
	case c.Machine == nil:
		return fmt.Errorf("%w: Machine is missing", ErrConfig)
	case c.Dialer == nil:
		return fmt.Errorf("%w: Dialer is missing", ErrConfig)
	case c.Archive == nil:
		return fmt.Errorf("%w: Archive is missing", ErrConfig)
	}
	return nil
}

// Store is one server of a replicated machine, for one boot.
type Store struct {
	cfg      Config
	log      *slog.Logger
	raft     *raft.Raft
	trans    *transport
	journal  *journal
	logs     *logStore
	stable   *stableStore
	snaps    *snapshotStore
	fsm      *fsm
	reads    reads // rounds of acknowledgements, on the leader
	asks     reads // questions to the leader, elsewhere
	forwards *forwarder
	hints    hints
	handing  atomic.Bool // leadership is being handed over: no entry is taken
	backlog  backlog
	beats    chan struct{} // a token for each call of beat that waits for raft
	leaders  *leaderWatch
	fence    *fence
	metrics  *metrics

	stopping atomic.Bool // who sets it stops the store; the others wait for stopped
	stopErr  error
	stopped  chan struct{}
}

// Open starts a server without any history: it follows nobody and serves
// nothing until Genesis, or until a leader adds it. On error the archive is
// left open for the caller.
func Open(cfg Config) (*Store, error) {
	return open(cfg, func(t *transport) raft.Transport { return t })
}

// open lets a test put something between raft and the transport; nothing else does.
func open(cfg Config, between func(*transport) raft.Transport) (*Store, error) {
	if err := cfg.check(); err != nil {
		return nil, err
	}
	cfg.Timeouts, cfg.Compaction = cfg.Timeouts.withDefaults(), cfg.Compaction.withDefaults()
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	seal, err := newSealer(cfg.ArchiveKey, Chain{ClusterID: cfg.ClusterID, Epoch: cfg.Epoch, Server: cfg.ID})
	if err != nil {
		return nil, err
	}
	s := &Store{cfg: cfg, log: log, fence: newFence(), stopped: make(chan struct{}), beats: make(chan struct{}, maxBeats)}
	s.journal = &journal{seal: seal, archive: cfg.Archive, fence: s.fence, relaxed: cfg.NoFsyncUnsafe}
	s.trans = newTransport(cfg.ID, cfg.Address, cfg.Dialer, cfg.Timeouts, s.fence, log)
	s.fsm = newFSM(cfg.Machine, s.trans.members, log)
	s.trans.settling = &s.fsm.settling
	s.logs = &logStore{journal: s.journal, campaigns: func() bool { return s.raft != nil && s.raft.State() == raft.Candidate }}
	s.reads.prove, s.asks.prove = s.proveLeadership, s.askLeader
	s.forwards, s.leaders, s.hints.s = newForwarder(s), newLeaderWatch(), s
	s.trans.host = s
	s.metrics = newMetrics(s, cfg.Registerer)
	s.trans.batches = func(n int) { s.metrics.batches.Observe(float64(n)) }
	s.journal.took = func(d time.Duration) { s.metrics.archived.Observe(d.Seconds()) }
	s.stable = &stableStore{journal: s.journal, fence: s.fence}
	s.snaps = &snapshotStore{journal: s.journal, members: s.trans.members, logs: s.logs, stable: s.stable, warn: log.Warn}
	s.raft, err = raft.NewRaft(s.raftConfig(), s.fsm, s.logs, s.stable, s.snaps, between(s.trans))
	if err != nil {
		s.trans.Close()
		return nil, fmt.Errorf("raftstore: starting raft: %w", err)
	}
	leader := func() raft.ServerID { _, id := s.raft.LeaderWithID(); return id }
	s.trans.leader.Store(&leader)
	s.watchLeader()
	s.metrics.register()
	go s.guard()
	go (&warmer{t: s.trans}).run()
	return s, nil
}

func (s *Store) raftConfig() *raft.Config {
	t, c := s.cfg.Timeouts, s.cfg.Compaction
	rc := raft.DefaultConfig()
	rc.LocalID = s.cfg.ID.raftID()
	rc.HeartbeatTimeout, rc.ElectionTimeout = t.Heartbeat, max(t.Election, t.Heartbeat)
	rc.LeaderLeaseTimeout, rc.CommitTimeout = min(t.Lease, t.Heartbeat), t.Commit
	rc.MaxAppendEntries = maxAppendEntries
	rc.SnapshotThreshold, rc.TrailingLogs, rc.SnapshotInterval = c.Threshold, c.Trailing, c.Interval
	// Only Shutdown ends raft: a removed leader becomes a follower that nobody
	// hears and that, outside its own configuration, never campaigns.
	rc.ShutdownOnRemove = false
	rc.NoLegacyTelemetry = true
	rc.Logger = newHclog(s.log)
	return rc
}

// guard stops the store when the fence goes up, and keeps a halted one from leading.
func (s *Store) guard() {
	halted, wait := s.fsm.haltedCh, s.cfg.Timeouts.Election
	var look <-chan time.Time
	for {
		select {
		case <-s.fence.done:
			s.log.Error("the store stops", "reason", s.fence.err)
			s.Shutdown()
			return
		case <-s.stopped:
			return
		case <-halted:
			halted = nil
		case <-look:
		}
		if s.IsLeader() {
			// Backing off: where every voter is halted, leadership would go in circles and fill the log.
			s.abdicate()
			wait = min(2*wait, maxHaltedLead)
		}
		look = time.After(wait)
	}
}

// maxHaltedLead bounds how long a halted server leads before it tries again to hand over.
const maxHaltedLead = 10 * time.Second

// abdicate hands leadership to a server that may be able to apply and serve.
func (s *Store) abdicate() {
	if err := s.yield(s.trans.ctx, func(raft.Server) bool { return true }); err != nil {
		s.log.Warn("halted, and leadership was not handed over", "reason", err)
	}
}

// Genesis makes this server the only voter of a new cluster, once; it becomes
// leader within the election timeout. It is the caller who answers for there
// being one genesis per cluster id.
func (s *Store) Genesis() error {
	f := s.raft.BootstrapCluster(raft.Configuration{Servers: []raft.Server{{
		Suffrage: raft.Voter, ID: s.cfg.ID.raftID(), Address: s.trans.addr,
	}}})
	switch err := f.Error(); {
	case err == nil:
		return s.fence.check()
	case errors.Is(err, raft.ErrCantBootstrap):
		return ErrNotFresh
	default:
		return s.translate(err)
	}
}

// Serve answers raft requests on an inbound channel that the caller has
// authenticated as peer, until it ends. It closes conn.
func (s *Store) Serve(conn net.Conn, peer ServerID) { s.trans.serve(conn, peer) }

// Done is closed when the store has stopped, by Shutdown or by a failure.
func (s *Store) Done() <-chan struct{} { return s.stopped }

// Err is why the store stopped by itself: an *ArchiveError or a broken rule of
// the stable store; nil while it runs and after an ordinary Shutdown.
func (s *Store) Err() error { return s.fence.check() }

// Halted reports whether the machine panicked or said that it has halted: see ErrHalted.
func (s *Store) Halted() bool { return s.fsm.isHalted() }

// Shutdown stops the server at once, without handing over leadership (see
// TransferLeadership), and closes the archive. It returns the archive's error.
func (s *Store) Shutdown() error {
	if s.stopping.CompareAndSwap(false, true) {
		s.trans.Close() // first: raft waits for its requests in flight
		s.raft.Shutdown().Error()
		s.reads.close()
		s.asks.close()
		s.forwards.close()
		s.hints.close()
		if s.Err() == nil { // a store that failed by itself goes on saying so
			s.metrics.unregister()
		}
		s.stopErr = s.journal.close()
		close(s.stopped)
	}
	<-s.stopped
	return s.stopErr
}
