package node

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/httpapi"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

// replica shows the store to admission, which is the leader's, and translates
// its errors.
type replica struct{ store *raftstore.Store }

var _ kds.Replica = replica{}

// Propose commits entry.
func (r replica) Propose(ctx context.Context, entry []byte) (uint64, any, error) {
	index, result, err := r.store.Propose(ctx, entry)
	return index, result, translate(err)
}

// SafeRead proves leadership and waits for what is committed.
func (r replica) SafeRead(ctx context.Context) error { return translate(r.store.SafeRead(ctx)) }

// anywhere shows the store to the service, on any member: the leader decides
// over the raft channel, and this member answers from its own machine. Only
// where the leader is known and cannot be reached from here is the client sent on.
type anywhere struct {
	store  *raftstore.Store
	fenced *fenced
}

var _ kds.Replica = anywhere{}

// Propose commits entry through the leader and returns the result of Apply here.
func (r anywhere) Propose(ctx context.Context, entry []byte) (uint64, any, error) {
	index, result, err := r.store.Submit(ctx, entry)
	return index, result, r.say(err)
}

// SafeRead waits for what was committed before the call, which the leader proves.
func (r anywhere) SafeRead(ctx context.Context) error { return r.say(r.store.Read(ctx)) }

// say tells clients of a node that was stopped for a recovery where to go, and
// nothing else, whatever came of what they asked.
func (r anywhere) say(err error) error {
	if r.fenced.up() {
		return r.fenced.problem()
	}
	return translate(err)
}

func translate(err error) error {
	if e, ok := errors.AsType[*raftstore.NotLeaderError](err); ok {
		return &kds.NotLeaderError{Leader: api.ID(e.Leader)}
	}
	if errors.Is(err, raftstore.ErrHalted) {
		return errors.Join(state.ErrHalted, err)
	}
	if errors.Is(err, raftstore.ErrBusy) {
		return errors.Join(kds.ErrBusy, err)
	}
	if errors.Is(err, raftstore.ErrNoQuorum) || errors.Is(err, raftstore.ErrStopped) {
		return errors.Join(kds.ErrNoQuorum, err)
	}
	return err
}

type source func(context.Context, []byte) (*attest.Collateral, error)

// Collateral fetches collateral for a quote.
func (s source) Collateral(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	return s(ctx, quote)
}

// serveAPI starts the key derivation service. It runs from promotion on:
// before it, this boot is nobody's to ask.
func (n *Node) serveAPI() error {
	m, store := n.membership(), n.store.Load()
	service, err := kds.New(kds.Config{Replica: anywhere{store, n.fenced}, Machine: n.machine, Verifier: n.verifier, Secrets: n.secrets,
		Assessor: n.judge, Clock: n.cfg.Clock, Peers: n.peers, Logger: n.log, Registerer: n.registry})
	if err != nil {
		return err
	}
	handler, err := httpapi.New(httpapi.Config{Service: service, Logger: n.log, Registerer: n.registry})
	if err != nil {
		return err
	}
	l := ratls.NewListener(n.apiPorch.open(), &ratls.Config{
		Protocols: []string{protocolApp}, ClusterID: m.clusterID, Epoch: m.Epoch, Key: n.boot.key,
		Attest: n.prover.prove, PeerOptional: true, OnRefused: n.refused,
		Verify: func(ctx context.Context, hello ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
			v, err := service.Verify(ctx, api.Evidence{Quote: ev.Quote, Collateral: ev.Collateral, Binding: hello.ReportData})
			return v, asRefusal(err)
		},
	})
	n.serveHTTP("api", httpapi.Server(handler, n.log), l, n.draining, n.drained)
	return nil
}

// asRefusal sends a problem's own code and words to the peer of a handshake.
func asRefusal(err error) error {
	if p, ok := errors.AsType[*api.Problem](err); ok {
		return &ratls.RefusedError{Code: ratls.Code(p.Code), Message: p.Error()}
	}
	return err
}

// peers is what the configuration says of voters and leader.
func (n *Node) peers() kds.Peers {
	store := n.store.Load()
	var p kds.Peers
	if id, _, ok := store.Leader(); ok {
		p.Leader = api.ID(id)
	}
	p.Last = store.CommitIndex()
	if store.IsLeader() {
		p.Progress = map[api.ID]uint64{}
	}
	for id, index := range store.Progress() {
		if p.Progress != nil {
			p.Progress[api.ID(id)] = index
		}
	}
	members, _ := store.Members()
	for _, m := range members {
		if m.Voter {
			p.Voters = append(p.Voters, api.ID(m.ID))
		}
	}
	return p
}

// serveAdmin starts the plain listener for the host's probes.
func (n *Node) serveAdmin() {
	if n.adminLn == nil {
		return
	}
	n.serveHTTP("admin", httpapi.Server(httpapi.Admin(n.readiness, n.registry, n.log), n.log), n.adminLn, nil, nil)
}

// readiness is nil while this boot is a voter of a cluster with a leader, of a
// slot that nobody newer has taken, and its machine runs.
func (n *Node) readiness(context.Context) error {
	select {
	case <-n.ready:
	default:
		return ErrNotReady
	}
	select {
	case <-n.draining:
		return errStopping
	default:
	}
	if n.fenced.up() {
		return ErrFenced
	}
	if why := n.leaver(); why != nil {
		return why
	}
	select {
	case <-n.epochEnded:
		return ErrEnded
	default:
	}
	store := n.store.Load()
	if store.Err() != nil {
		return ErrStoreFailed
	}
	if store.Halted() || n.machine.Halted() != nil {
		return errors.New("not ready: this build does not understand an entry of the log; update it")
	}
	members, _ := store.Members()
	for _, m := range members {
		if m.ID == n.boot.id && m.Voter {
			if _, _, ok := store.Leader(); !ok {
				return errors.New("not ready: no leader is known")
			}
			return nil
		}
	}
	return ErrNotReady
}

// serveHTTP runs a server until the node stops, or until drain is closed; then
// requests in progress get stopGrace, or nothing after a Close. At the end it
// closes done, if there is one.
func (n *Node) serveHTTP(what string, srv *http.Server, l net.Listener, drain <-chan struct{}, done chan<- struct{}) {
	n.web.Go(func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			n.ended(what, err)
		}
	})
	n.web.Go(func() {
		if done != nil {
			defer close(done)
		}
		select {
		case <-n.ctx.Done():
		case <-drain:
		}
		if cause := context.Cause(n.ctx); cause == nil || errors.Is(cause, context.Canceled) {
			ctx, cancel := context.WithTimeout(context.Background(), stopGrace)
			defer cancel()
			if srv.Shutdown(ctx) == nil {
				return
			}
		}
		srv.Close()
	})
}
