package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/history"
)

// ErrFenced is what readiness says once this node has stopped for a recovery.
var ErrFenced = errors.New("not ready: the operators have stopped this node for a recovery of the cluster into a later epoch; it takes part in nothing any more and keeps its roots in memory. " +
	"Stop it when the new epoch serves, and start it again to join that")

// fenced is the stop of a survivor: for good, and for the highest epoch that it
// was stopped for. It lives and dies with the boot, whose identity it ends.
type fenced struct {
	done chan struct{} // closed when this boot has given up its place

	mu        sync.Mutex
	statement []byte // of the highest epoch so far; nil before
	epoch     uint64
}

func newFenced() *fenced { return &fenced{done: make(chan struct{})} }

// up reports whether this boot has stopped.
func (f *fenced) up() bool { return isClosed(f.done) }

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// allow refuses a statement beside the one that this boot was stopped for, unless
// its epoch is higher: two enclaves must not open one epoch. The same again is
// a connection that was lost.
func (f *fenced) allow(statement []byte, epoch uint64) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.statement == nil || bytes.Equal(f.statement, statement) || epoch > f.epoch {
		return nil
	}
	return &RefusedError{Text: fmt.Sprintf("this server was stopped for epoch %d by another statement of the operators; sign one for epoch %d or higher", f.epoch, f.epoch+1)}
}

// raise puts the fence up; it never comes down.
func (f *fenced) raise(statement []byte, epoch uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.statement == nil {
		close(f.done)
	}
	f.statement, f.epoch = bytes.Clone(statement), epoch
}

// problem is what clients of a fenced node hear.
func (f *fenced) problem() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return api.NewProblem(api.CodeEnded, fmt.Sprintf("the operators have stopped this node for a recovery of the cluster into epoch %d; ask a node of that epoch", f.epoch))
}

// survive answers one recover/1 channel: a recovering boot of code that the node
// policy accepts, judged by recent collateral, asks what this server holds, or
// brings the operators' statement that it is to stop.
func (n *Node) survive(c *ratls.Conn) {
	ctx, cancel := context.WithTimeout(n.ctx, surviveStep)
	defer cancel()
	defer context.AfterFunc(ctx, func() { c.Close() })() // nobody keeps the next one waiting
	var req surviveRequest
	if err := expect(c, kindSurvive, &req); err != nil {
		n.log.Warn("recover: bad request", "reason", err)
		return
	}
	err := n.oneSurvival(ctx, c, &req)
	if err == nil {
		return
	}
	n.log.Warn("recover: refused", "enclave", api.ID(c.Peer().Key), "reason", err)
	r, ok := errors.AsType[*RefusedError](err)
	if !ok {
		r = &RefusedError{Retry: true, Text: "this server could not answer; see its log, and try again"}
	}
	n.refuseJoin(c, r)
}

func (n *Node) oneSurvival(ctx context.Context, c *ratls.Conn, req *surviveRequest) error {
	if req.Version != 1 {
		return &RefusedError{Text: fmt.Sprintf("version %d of recover/1 is not known here", req.Version)}
	}
	select {
	case n.surviving <- struct{}{}:
		defer func() { <-n.surviving }()
	case <-time.After(askLimit): // one that has just been answered is about to go
		return &RefusedError{Retry: true, Text: "another recovery asks this server; try again in a moment"}
	case <-ctx.Done():
		return ctx.Err()
	}
	if len(req.Statement) > 0 {
		return n.surrender(ctx, c, req)
	}
	if err := n.survives(ctx); err != nil {
		return err
	}
	// Asked before the records are: what has stopped has no more of them. The fence
	// alone is the intention, and the store may be taking entries still.
	store := n.store.Load()
	if err := send(c, kindHead, survivorHead{Stopped: n.fenced.up() && isClosed(store.Done())}); err != nil {
		return err
	}
	return sendRecords(c, store.Export())
}

// survives refuses where there is nothing to recover, or not from this server.
func (n *Node) survives(ctx context.Context) error {
	select {
	case <-n.ready:
	default:
		return &RefusedError{Retry: true, Text: "this boot is no member yet"}
	}
	if n.store.Load().Halted() || n.machine.Halted() != nil {
		return &RefusedError{Text: "this server has halted at an entry that its build does not understand: it cannot say what its log comes to. Recover from another, or from archives"}
	}
	if why := n.leaver(); why != nil && !errors.Is(why, ErrSuperseded) {
		return &RefusedError{Text: "this server has no place any more: " + why.Error()}
	}
	if n.fenced.up() || n.machine.View().Ended {
		return nil
	}
	if n.reachesQuorum(ctx) {
		return &RefusedError{Text: "the cluster is alive: this server reaches a majority of its voters, so there is nothing to recover. Start a node that joins it; to move it into a new epoch, end this one first (claviger cluster stop)"}
	}
	return nil
}

// reachesQuorum proves that a majority answers, for as long as an election may take.
func (n *Node) reachesQuorum(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, n.tune.aliveLook)
	defer cancel()
	s := n.store.Load()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if s.Read(ctx) == nil {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-s.Done(): // it has failed
			return false
		case <-tick.C:
		}
	}
}

// head is what this server's whole log comes to, committed or not: an entry may
// have been acknowledged by who is dead, with this server's help, and not be
// known as committed here. Its last configuration must name this server.
func (n *Node) head() (api.RecoverySource, error) {
	m := n.membership()
	records := n.store.Load().Export()
	a := &inspected{}
	var err error
	if a.history, err = history.Collect(func(yield func(raftstore.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}, raftstore.Chain{ClusterID: m.clusterID, Epoch: m.Epoch, Server: n.boot.id}); err != nil {
		return api.RecoverySource{}, err
	}
	if err := (&inspector{clusterID: m.clusterID}).replay(a); err != nil {
		return api.RecoverySource{}, err
	}
	if !contains(a.servers, n.boot.id) {
		return api.RecoverySource{}, &RefusedError{Text: "this server is not in the configuration that its log ends with: the cluster went on without it"}
	}
	return a.report.Source(), nil
}

// surrender stops this server by the operators' word, and gives what it holds to
// the enclave that they have named, if they have named this server as the source.
// The statement decides; the channel only says who brings it:
//
//  1. threshold and more than half of the operators, this cluster, an epoch above,
//     this server among those that are stopped, the peer's very key as the enclave;
//  2. no other statement has stopped it, unless for a lower epoch;
//  3. it reaches no majority, and it may be a source;
//  4. the source that was signed is its present head: if not, nothing is stopped;
//  5. the evidence is judged once more, by the state's policy and by the newest known;
//  6. the fence goes up and the store stops, for good;
//  7. its head is looked at again: what it has acknowledged in between is not in
//     the statement, and then nothing is handed over, and it stays stopped;
//  8. the secrets go.
func (n *Node) surrender(ctx context.Context, c *ratls.Conn, req *surviveRequest) error {
	s, err := n.checkRecovery(c.Peer().Key, req)
	if err != nil {
		return err
	}
	if err := n.fenced.allow(req.Statement, s.Epoch); err != nil {
		return err
	}
	if err := n.survives(ctx); err != nil {
		return err
	}
	source := s.Source.ServerID == api.ID(n.boot.id)
	if source {
		if err := n.isSource(s); err != nil {
			return err
		}
	}
	if err := n.judgeRecovering(ctx, c); err != nil { // before it costs us our place
		return err
	}
	if err := n.stopForGood(ctx, req.Statement, s); err != nil {
		return err
	}
	head, err := n.head()
	if err != nil {
		return err
	}
	answer := survivorStopped{Head: head}
	if source {
		if head != s.Source {
			return &RefusedError{Text: "this server has acknowledged something since the operators looked at it. It is stopped now and stays so: " +
				"look at the recovering enclave's new report, and sign a statement for a higher epoch"}
		}
		if answer.Secrets, err = n.secrets.Reveal(); err != nil {
			return err
		}
		defer clear(answer.Secrets)
		n.log.Warn("the roots and the history of this server go to a recovering enclave that the operators have named", "enclave", s.Enclave, "epoch", s.Epoch)
	}
	return send(c, kindStopped, answer)
}

// checkRecovery judges the statement by itself and by whom it names.
func (n *Node) checkRecovery(peer [32]byte, req *surviveRequest) (*api.RecoveryStatement, error) {
	m := n.membership()
	refuse := func(format string, args ...any) error { return &RefusedError{Text: fmt.Sprintf(format, args...)} }
	s, err := api.ParseRecovery(req.Statement)
	if err != nil {
		return nil, refuse("%v", err)
	}
	if err := s.Check(m.clusterID, &m.manifest.Operators, req.Approvals); err != nil {
		return nil, refuse("%v", err)
	}
	at := slices.IndexFunc(s.Old, func(o api.OldServer) bool { return o.ServerID == api.ID(n.boot.id) })
	switch {
	case s.Enclave != peer:
		return nil, refuse("the operators have signed for enclave %.16s, and this is %.16s", s.Enclave, api.ID(peer))
	case s.Epoch <= m.Epoch:
		return nil, refuse("the statement opens epoch %d, and this server is of epoch %d already", s.Epoch, m.Epoch)
	case at < 0 || s.Old[at].Fate != api.FateStopped:
		return nil, refuse("the operators do not say that this server, %s, is to be stopped; name it with --stopped", api.ID(n.boot.id))
	}
	return s, nil
}

// isSource wants the source that was signed to be what this server holds now.
func (n *Node) isSource(s *api.RecoveryStatement) error {
	head, err := n.head()
	if err != nil {
		return err
	}
	if head != s.Source {
		return &RefusedError{Text: fmt.Sprintf("the statement is about another state of this server: entry %d of term %d with %d releases, and it has entry %d of term %d with %d releases. "+
			"Nothing was stopped; look at a new report, and sign again", s.Source.Applied, s.Source.Term, s.Source.LogSize, head.Applied, head.Term, head.LogSize)}
	}
	if held := n.secrets.Generation(); s.Generation <= held {
		return &RefusedError{Text: fmt.Sprintf("the statement opens root generation %d, and this server has generation %d already", s.Generation, held)}
	}
	return nil
}

// judgeRecovering judges the recovering boot by the state and by the newest
// policy that is known here, with our own source of collateral.
func (n *Node) judgeRecovering(ctx context.Context, c *ratls.Conn) error {
	if _, err := n.judgeAgain(ctx, c, n.machine.View()); err != nil {
		return err
	}
	peer := c.Peer()
	if _, err := n.verifyInbound(ctx, ratls.Hello{Protocol: protocolRecover, PeerKey: peer.Key}, peer.Evidence); err != nil {
		return &RefusedError{Text: err.Error()}
	}
	return nil
}

// stopForGood puts the fence up and stops the store: no vote, no acknowledgement
// and no answer leaves this boot from here on, and its log does not change. If
// the disk hangs, so does this; the fence stands, and the caller may ask again.
func (n *Node) stopForGood(ctx context.Context, statement []byte, s *api.RecoveryStatement) error {
	first := !n.fenced.up()
	n.atFence()
	n.fenced.raise(statement, s.Epoch)
	if first {
		n.log.Error("STOPPED FOR A RECOVERY: the operators open a new epoch without this server; it serves nothing any more and keeps its roots in memory",
			"epoch", s.Epoch, "enclave", s.Enclave)
	}
	done := make(chan error, 1)
	n.work.Go(func() { done <- n.store.Load().Shutdown() })
	select {
	case err := <-done:
		if err != nil { // what counts is in memory
			n.log.Warn("the archive of the stopped store could not be closed", "reason", err)
		}
		return nil
	case <-ctx.Done():
		return &RefusedError{Retry: true, Text: "this server is fenced, and its store does not stop: its disk hangs. Mend that, and try again"}
	}
}

// outlastRecovery keeps the process, and the roots, until an operator stops it: the
// recovering enclave may be lost, and then another one asks.
func (n *Node) outlastRecovery(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-n.ctx.Done():
	}
}
