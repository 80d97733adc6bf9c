package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// opened are the archives in which there is something.
func (r *recovery) opened() []*inspected {
	return slices.DeleteFunc(slices.Clone(r.archives), func(a *inspected) bool { return a.report.Problem != "" })
}

// accepted is a statement that this enclave may act on.
type accepted struct {
	statement *api.RecoveryStatement
	raw       []byte
	approvals []api.Approval
	state     []byte // of the source
	view      state.View
	secrets   *kds.Secrets // those of the source; nil before a survivor has handed them over
	loss      string       // what is lost by what was known when it was judged first
	next      uint64       // our incarnation in our slot
	evidence  ratls.Evidence
}

// accept judges what the operators have brought, by what is known now.
func (r *recovery) accept(ctx context.Context, brought *RecoveryApprovals) (*accepted, error) {
	s, err := api.ParseRecovery(brought.Statement)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	o := &accepted{statement: s, raw: brought.Statement, approvals: brought.Approvals}
	if err := s.Check(r.n.cfg.ClusterID, &r.manifest.Operators, o.approvals); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	// One manifest opens one epoch, once: this boot ends with its process (finding
	// 2 of raftstore/model).
	if s.Enclave != api.ID(r.n.boot.id) {
		return nil, fmt.Errorf("%w: the operators have signed for enclave %.16s, this one is %.16s; each restart is another enclave, and needs a statement of its own",
			ErrRecovery, s.Enclave, api.ID(r.n.boot.id))
	}
	// All that can be known is looked at before a live server gives up its place for
	// this, and all of it again afterwards: by then archives may have been opened.
	if err := r.judge(ctx, o, false); err != nil {
		return nil, err
	}
	if len(r.alive) == 0 {
		return o, nil
	}
	if err := r.checkDestroyed(ctx, s); err != nil {
		return nil, err
	}
	if err := r.stopSurvivors(ctx, brought, s); err != nil {
		return nil, err
	}
	r.gather(ctx)
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return o, r.judge(ctx, o, true)
}

// judge holds the statement to what is known now. Stopped says that survivors
// have been asked to stop.
func (r *recovery) judge(ctx context.Context, o *accepted, stopped bool) error {
	s := o.statement
	a := r.archive(s.Source.ServerID)
	if a == nil {
		return fmt.Errorf("%w: no history of server %.16s can be used%s", ErrRecovery, s.Source.ServerID, r.whyNot(s.Source.ServerID))
	}
	if s.Source != a.report.Source() {
		return fmt.Errorf("%w: the archive of server %.16s is not the one that the operators have signed", ErrRecovery, s.Source.ServerID)
	}
	if o.secrets = r.rootsOf(a); stopped && o.secrets == nil {
		return fmt.Errorf("%w: nobody has given back the roots of that history", ErrRecovery)
	}
	if err := r.checkRoots(a); err != nil {
		return err
	}
	if want := r.generationFor(a) + 1; s.Generation != want {
		return fmt.Errorf("%w: root generation %d is next, the statement says %d", ErrRecovery, want, s.Generation)
	}
	// Asked again now: a receipt may have come since the report (finding 1).
	if err := r.look(); err != nil {
		return err
	}
	if err := errors.Join(r.usable(a), r.checkEpoch(s), r.checkFates(s, a, stopped), r.checkLoss(s, a)); err != nil {
		return err
	}
	// Archives that were closed when people signed are open now. Their words are
	// about what they were shown.
	loss := r.leaves(a)
	if stopped && loss != "" && loss != o.loss {
		return fmt.Errorf("%w: more is lost than was to be seen when this was signed: %s; look at the new report, and sign a statement for a higher epoch", ErrRecovery, loss)
	}
	o.loss = loss
	return r.prepare(ctx, o, a)
}

// whyNot is what is wrong with the histories of a server, if there are any.
func (r *recovery) whyNot(id api.ID) (why string) {
	for _, a := range r.archives {
		if a.server == id && a.report.Problem != "" {
			why += ": " + a.report.Problem
		}
	}
	return why
}

// checkEpoch refuses an epoch that has been, as far as anything shown here knows:
// one record that opened says so, whatever has become of the rest.
func (r *recovery) checkEpoch(s *api.RecoveryStatement) error {
	for _, a := range r.archives {
		if a.epoch >= s.Epoch {
			return fmt.Errorf("%w: epoch %d has been: archive %s is of epoch %d", ErrRecovery, s.Epoch, a.report.Path, a.epoch)
		}
	}
	return nil
}

// checkFates wants a word on every server that could still acknowledge
// something, and proof where the word is that it was stopped: its final checkpoint,
// or its own answer over a channel to its key. Before survivors are asked, one
// that lives may still give it.
func (r *recovery) checkFates(s *api.RecoveryStatement, a *inspected, asked bool) error {
	for _, server := range AccountFor(r.servers(), a.report.Epoch) {
		i := slices.IndexFunc(s.Old, func(o api.OldServer) bool { return o.ServerID == server.ServerID })
		switch {
		case i < 0:
			return fmt.Errorf("%w: the operators do not say what became of server %.16s of slot %s", ErrRecovery, server.ServerID, server.Slot)
		case server.ServerID == s.Source.ServerID && server.Alive && s.Old[i].Fate != api.FateStopped:
			return fmt.Errorf("%w: server %.16s of slot %s lives and is to be the source; it hands nothing over unless the statement says that it is stopped",
				ErrRecovery, server.ServerID, server.Slot)
		case s.Old[i].Fate == api.FateStopped && server.Alive && asked && !server.Stopped && !server.Final:
			return fmt.Errorf("%w: server %.16s of slot %s is said to be stopped, and lives", ErrRecovery, server.ServerID, server.Slot)
		case s.Old[i].Fate == api.FateStopped && !server.Final && !server.Alive:
			return fmt.Errorf("%w: server %.16s of slot %s is said to be stopped, and its final checkpoint has not been shown; without one it is destroyed or lost",
				ErrRecovery, server.ServerID, server.Slot)
		}
	}
	return nil
}

// prepare takes the source's state and sees that this boot can be the first
// member of the new epoch, before anything is written.
func (r *recovery) prepare(ctx context.Context, o *accepted, a *inspected) (err error) {
	if o.state, err = snapshotBytes(a.machine.Machine); err != nil {
		return err
	}
	o.view = a.machine.View()
	// Of now: people may have taken days.
	if o.evidence, err = r.n.prover.prove(ctx, r.reportData); err != nil {
		return err
	}
	assessed, err := r.n.judge.Assess(ctx, o.evidence.Quote, o.evidence.Collateral, kds.ForChannel)
	if err != nil {
		return err
	}
	if err := checkConstraints(o.view.NodePolicyText, assessed.Verified(), assessed.Now()); err != nil {
		return fmt.Errorf("%w: the node policy of the history, version %d: %w", ErrRecovery, o.view.NodePolicy, err)
	}
	o.next, err = incarnationIn(o.view.Members, r.n.cfg.Slot, assessed.Verified().Claims().Platform.ID())
	return err
}

// incarnationIn is the incarnation that this boot will have in its slot. Any slot will
// do, as the operators sign for this very boot, unless the machine has another.
func incarnationIn(members []state.Member, slot string, platform [32]byte) (uint64, error) {
	next := uint64(1)
	for _, m := range members {
		switch {
		case m.Slot != slot && m.PlatformID == platform:
			return 0, fmt.Errorf("%w: this machine has slot %s; configure that instead of %s", ErrRecovery, m.Slot, slot)
		case m.Slot == slot:
			next = m.Incarnation + 1
		}
	}
	return next, nil
}

// open begins the new epoch: its log starts with the operators' statement and
// the old state, and then this boot's own admission.
func (r *recovery) open(ctx context.Context, o *accepted) error {
	n, s := r.n, o.statement
	r.tellLeftBehind(o)
	secrets, err := o.secrets.NextGeneration()
	if err != nil {
		return err
	}
	// Before anything is served under the new root, its wrapped form is on disk.
	if err := n.writeWrapped(secrets, o.view.RecoveryKey); err != nil {
		return err
	}
	statement, err := newMembership(secrets, r.Manifest, api.Membership{ClusterID: s.ClusterID, Epoch: s.Epoch, Slot: n.cfg.Slot, Incarnation: o.next, ServerID: n.boot.id})
	if err != nil {
		return err
	}
	m, err := parseMembership(statement, n.cfg.ClusterID, s.Epoch, n.boot.id)
	if err != nil {
		return err
	}
	// Until this boot is admitted no slot names the only server there is.
	n.admitSem <- struct{}{}
	defer func() { <-n.admitSem }()
	if err := n.become(secrets, m); err != nil {
		return err
	}
	if err := r.firstEntries(ctx, o, m); err != nil {
		return fmt.Errorf("node: recovery: epoch %d was begun and could not be finished; start again, with a later epoch: %w", s.Epoch, err)
	}
	n.log.Warn("RECOVERED: a new epoch is open", "epoch", s.Epoch, "generation", s.Generation, "source", s.Source.ServerID,
		"source_epoch", s.Source.Epoch, "applied", s.Source.Applied, "releases", s.Source.LogSize)
	return nil
}

func (r *recovery) firstEntries(ctx context.Context, o *accepted, m *membership) error {
	n, s := r.n, o.statement
	if err := n.store.Load().Genesis(); err != nil {
		return err
	}
	if err := n.awaitLeadership(ctx); err != nil {
		return err
	}
	// Who joins the new epoch starts anew, and with a build that knows this level.
	if _, err := n.propose(ctx, &state.Recover{Level: n.level, Manifest: r.Manifest, IdentityKey: r.IdentityKey, Statement: o.raw,
		Approvals: o.approvals, Size: uint64(len(o.state)), SHA256: s.Source.StateSHA256}); err != nil {
		return err
	}
	at := 0
	for part := range slices.Chunk(o.state, state.MaxPart) {
		if _, err := n.propose(ctx, &state.RecoverPart{Offset: uint64(at), Data: bytes.Clone(part)}); err != nil {
			return err
		}
		at += len(part)
	}
	if err := n.commitRoots(ctx); err != nil {
		return err
	}
	return n.admitSelf(ctx, o.evidence, m)
}
