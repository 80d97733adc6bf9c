package kds

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/policy"
)

// Replica is the replicated log as the service needs it. Its errors are
// *NotLeaderError, ErrNoQuorum, ErrBusy, those of the context, or others, which
// count as internal; an adapter translates.
type Replica interface {
	// Propose commits entry and applies it to the Machine. It returns the
	// index and what Machine.Apply returned. On an error the entry may or may
	// not have been committed.
	Propose(ctx context.Context, entry []byte) (index uint64, result any, err error)
	// SafeRead returns nil once a leader, this node or another, has proved by
	// answers newer than the call that it leads, and this node has applied all
	// that was committed before.
	SafeRead(ctx context.Context) error
}

// CollateralSource fetches collateral for a raw quote. What it returns is
// verified like anybody's.
type CollateralSource interface {
	Collateral(ctx context.Context, quote []byte) (*attest.Collateral, error)
}

// Peers is what the replication knows of its servers.
type Peers struct {
	Leader   api.ID            // zero if unknown
	Voters   []api.ID          // of the last configuration that was committed
	Last     uint64            // index of the last entry here
	Progress map[api.ID]uint64 // leader: last index that each of the others has told; nil elsewhere
}

// Errors of a Replica.
var (
	ErrNoQuorum = errors.New("kds: too few nodes answer")
	// ErrBusy says that as many proposals as the replica takes at once are under
	// way; nothing was written.
	ErrBusy = errors.New("kds: too many proposals are under way")
)

// NotLeaderError says that another node leads.
type NotLeaderError struct {
	Leader  api.ID // zero if unknown
	APIAddr string // may be empty: the service then looks up the member's address
}

// Error names the leader if it is known.
func (e *NotLeaderError) Error() string {
	if e.Leader.IsZero() {
		return "kds: this node does not lead and knows no leader"
	}
	return fmt.Sprintf("kds: node %s leads", e.Leader)
}

// ErrConfig says that a Service cannot be made of a Config.
var ErrConfig = errors.New("kds: configuration refused")

// Config is what a Service is made of. Replica, Machine, Verifier, Secrets
// and Clock are required.
type Config struct {
	Replica    Replica
	Machine    *state.Machine        // the machine that Replica applies to
	Verifier   *attest.Verifier      // its root must be the one of the genesis manifest
	Secrets    *Secrets              // of the cluster that Machine holds
	Collateral CollateralSource      // nil: only evidence and the replicated set supply collateral; not used if there is an Assessor
	Assessor   *Assessor             // shared with all that judges evidence in this node; nil: made of Machine, Verifier, Collateral, Clock and Logger
	Clock      func() time.Time      // local clock; never moves the time floor
	Peers      func() Peers          // nil: Cluster shows no voters and no leader
	Logger     *slog.Logger          // nil: silent
	Registerer prometheus.Registerer // nil: metrics are not exported
}

// Service answers the requests of kds/api. It is safe for concurrent use.
type Service struct {
	Config
	metrics *metrics
	founded atomic.Pointer[founded]
}

// founded is what a service has checked about the cluster it serves.
type founded struct {
	clusterID api.ID
	manifest  *api.Manifest
}

// New returns a service, or ErrConfig.
func New(c Config) (*Service, error) {
	if c.Replica == nil || c.Machine == nil || c.Verifier == nil || c.Secrets == nil || c.Clock == nil {
		return nil, fmt.Errorf("%w: Replica, Machine, Verifier, Secrets and Clock are required", ErrConfig)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Peers == nil {
		c.Peers = func() Peers { return Peers{} }
	}
	if c.Assessor == nil {
		c.Assessor = &Assessor{Machine: c.Machine, Verifier: c.Verifier, Source: c.Collateral, Clock: c.Clock, Logger: c.Logger}
	}
	if c.Assessor.Machine != c.Machine || c.Assessor.Verifier != c.Verifier || c.Assessor.Clock == nil {
		return nil, fmt.Errorf("%w: the Assessor is of another node", ErrConfig)
	}
	m, err := newMetrics(c.Registerer)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrConfig, err)
	}
	return &Service{Config: c, metrics: m}, nil
}

// ErrNotFounded says that the node has not yet applied the genesis entry.
var ErrNotFounded = errors.New("kds: this node has not joined a cluster yet")

// ErrMismatch says that the node was put together wrongly: the cluster has
// another root of trust or identity key than the verifier or the secrets.
var ErrMismatch = errors.New("kds: node and cluster do not belong together")

// cluster returns the state and the manifest of a cluster this service may
// serve. It refuses a halted machine, one without a cluster, and a cluster of
// another root of trust, other roots or another identity key.
func (s *Service) cluster() (state.View, *api.Manifest, error) {
	if err := s.Machine.Halted(); err != nil {
		return state.View{}, nil, err
	}
	view := s.Machine.View()
	if view.ClusterID.IsZero() {
		return state.View{}, nil, ErrNotFounded
	}
	if err := s.Secrets.Check(view.GenerationIDs); err != nil {
		return state.View{}, nil, fmt.Errorf("%w: %w", ErrMismatch, err)
	}
	if f := s.founded.Load(); f != nil && f.clusterID == view.ClusterID {
		return view, f.manifest, nil
	}
	manifest, err := api.ParseManifest(view.Manifest)
	if err != nil {
		return state.View{}, nil, err
	}
	root := s.Verifier.Root()
	switch {
	case manifest.Root.ID != root.ID() || manifest.Root.Simulated != root.Simulated:
		return state.View{}, nil, fmt.Errorf("%w: the manifest names another root of trust than the verifier's", ErrMismatch)
	case !s.Secrets.Identity().Public().Equal(publicKey(view.IdentityKey)):
		return state.View{}, nil, fmt.Errorf("%w: the identity key is another cluster's", ErrMismatch)
	}
	for _, text := range manifest.NodePolicy {
		if c, err := policy.ParseConstraint(text); err != nil || c.String() != text {
			return state.View{}, nil, fmt.Errorf("%w: node policy constraint %.60q is not canonical", ErrMismatch, text)
		}
	}
	s.founded.Store(&founded{view.ClusterID, manifest})
	return view, manifest, nil
}

// errEnded refuses what only an epoch that goes on may answer.
var errEnded = api.NewProblem(api.CodeEnded, "the operators have ended this epoch; what comes next is a recovery into a new one, whose nodes answer")

// live is cluster, and refuses an epoch that the operators have ended: nothing
// that it says about keys and evidence may be taken for the cluster's word any
// more, since the epoch that follows may say otherwise, and its final
// checkpoints need a machine that rests.
func (s *Service) live() (state.View, *api.Manifest, error) {
	view, manifest, err := s.cluster()
	if err == nil && view.Ended {
		err = errEnded
	}
	return view, manifest, err
}

// now is the instant that decisions are made for: the local clock, but never
// before the latest signed time the cluster has seen.
func (s *Service) now(view state.View) time.Time { return s.Assessor.instant(view) }

// Cluster describes the cluster as this node knows it. It needs no quorum, so
// that clients find the leader from any node; everything in it that matters
// is signed or hashed into the cluster id. A node says that it leads itself, which
// shows by its lag, only after a majority has said so, and then what it describes
// is no older than the call.
func (s *Service) Cluster(ctx context.Context) (api.Cluster, error) {
	c, err := s.describe(s.proved(ctx))
	return c, s.finish("cluster", err)
}

// leaderProof bounds the wait for a majority to say that this node leads.
const leaderProof = 2 * time.Second

// proved returns the peers, without a leader where this node only takes itself
// for it: one that was cut off does so for as long as its host holds its clock
// back, and operators delete old archives by the leader's word.
func (s *Service) proved(ctx context.Context) Peers {
	p := s.Peers()
	if p.Progress == nil {
		return p
	}
	ctx, cancel := context.WithTimeout(ctx, leaderProof)
	defer cancel()
	if s.Replica.SafeRead(ctx) == nil {
		return s.Peers()
	}
	p.Leader, p.Progress = api.ID{}, nil
	return p
}

func (s *Service) describe(peers Peers) (api.Cluster, error) {
	view, _, err := s.cluster()
	if err != nil {
		return api.Cluster{}, err
	}
	signature, err := api.SignCheckpoint(s.Secrets.Identity(), view.ClusterID, view.Epoch, view.Log.Size, view.Log.Root)
	if err != nil {
		return api.Cluster{}, err
	}
	c := api.Cluster{
		ClusterID: view.ClusterID, Epoch: view.Epoch, Generation: view.Generation, NodePolicy: view.NodePolicy,
		Manifest: view.Manifest, IdentityKey: view.IdentityKey, LogSize: view.Log.Size, LogRoot: view.Log.Root,
		Checkpoint: signature, Members: make([]api.Member, 0, len(view.Members)), Voters: append([]api.ID{}, peers.Voters...),
		Level: view.Level, Ended: view.Ended, AdminSequence: view.Sequence, NodePolicyNow: view.NodePolicyText,
		PolicySigned: view.NodePolicySigned, Tickets: make([]api.PendingTicket, 0, len(view.Tickets)),
		GenerationIDs: make([]api.ID, 0, len(view.GenerationIDs)),
	}
	for _, id := range view.GenerationIDs {
		c.GenerationIDs = append(c.GenerationIDs, id)
	}
	for _, t := range view.Tickets {
		c.Tickets = append(c.Tickets, api.PendingTicket{Slot: t.Slot, ServerID: t.ServerID, PlatformID: t.PlatformID})
	}
	for _, m := range view.Members {
		id, registers := api.ID(m.ServerID), registersOf(m)
		c.Members = append(c.Members, api.Member{
			Slot: m.Slot, Incarnation: m.Incarnation, ServerID: id, APIAddr: m.APIAddr,
			Voter: slices.Contains(peers.Voters, id), Leader: id == peers.Leader && !id.IsZero(),
			TEE: m.TEE, Measurement: registers[0], RTMR: registers[1:], TCBStatus: m.TCBStatus, Level: m.Level,
			Admitted: m.Admitted, Lag: peers.lag(id),
		})
	}
	return c, nil
}

// registersOf lists in hex what identifies a member's code: MRENCLAVE, or MRTD and the RTMRs that were recorded.
func registersOf(m state.Member) (list []string) {
	const size = len(attest.TDXClaims{}.MRTD) // MRENCLAVE is shorter
	for r := range slices.Chunk(m.Measurement, size) {
		list = append(list, hex.EncodeToString(r))
	}
	return list
}

// lag is how far a server is behind this one, where that is known.
func (p *Peers) lag(id api.ID) *uint64 {
	at, known := p.Progress[id]
	if p.Progress != nil && id == p.Leader {
		at, known = p.Last, true
	}
	if !known {
		return nil
	}
	behind := p.Last - min(at, p.Last)
	return &behind
}
