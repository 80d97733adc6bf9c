package node

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

const (
	admitTurn     = 3 * time.Second        // to wait for the admission before this one
	maxAdmitQueue = 8                      // admissions that run or wait; the rest try again
	admitLimit    = 2 * time.Minute        // one admission from request to promotion
	aliveTimeout  = 500 * time.Millisecond // for an older boot of the slot to answer
	catchUpLimit  = time.Minute            // for a nonvoter to catch up
	maxRedirects  = 8
	joinBackoff   = 100 * time.Millisecond
	maxJoinWait   = 2 * time.Second
	progressEvery = 10 * time.Millisecond
)

// admit answers one join/1 channel. The channel is attested in both directions
// and the joiner satisfies the node policy: ratls and verifyInbound saw to that.
func (n *Node) admit(c *ratls.Conn) {
	ctx, cancel := context.WithTimeout(n.ctx, admitLimit)
	defer cancel()
	var req joinRequest
	if err := expect(c, kindRequest, &req); err != nil {
		n.log.Warn("join: bad request", "reason", err)
		return
	}
	if s := n.store.Load(); !s.IsLeader() {
		n.redirect(c, s)
		return
	}
	err := n.oneAdmission(ctx, c, req)
	if err == nil {
		n.metrics.admissions.Inc()
		return
	}
	n.log.Warn("join: admission failed", "joiner", req.Slot, "reason", err)
	n.refuseJoin(c, refusalOf(err))
}

// refusalOf is what the joiner hears. Rejections of the state are final for
// this boot, unless something moved during the admission; the rest may pass.
func refusalOf(err error) *RefusedError {
	if r, ok := errors.AsType[*RefusedError](err); ok {
		return r
	}
	rejected, ok := errors.AsType[*state.Rejected](err)
	if !ok {
		return &RefusedError{Retry: true, Text: "the cluster could not complete the admission; try again"}
	}
	r := &RefusedError{Text: rejected.Error(), Superseded: errors.Is(rejected, state.ErrSuperseded) || errors.Is(rejected, state.ErrRemoved)}
	for _, moved := range []error{state.ErrIncarnation, state.ErrCollateral, state.ErrNodePolicy, state.ErrNotNewer, state.ErrTicket, state.ErrUncommitted} {
		r.Retry = r.Retry || errors.Is(rejected, moved)
	}
	return r
}

// oneAdmission lets one admission run at a time. Its place is free again before
// the joiner hears of the outcome, so that an answer never races the next try.
func (n *Node) oneAdmission(ctx context.Context, c *ratls.Conn, req joinRequest) error {
	busy := &RefusedError{Retry: true, Text: "another admission is in progress; try again in a moment"}
	select {
	case n.admitQueue <- struct{}{}:
		defer func() { <-n.admitQueue }()
	default:
		return busy
	}
	select {
	case n.admitSem <- struct{}{}:
		defer func() { <-n.admitSem }()
	case <-time.After(admitTurn):
		return busy
	case <-ctx.Done():
		return ctx.Err()
	}
	return n.admission(ctx, c, req)
}

func (n *Node) redirect(c *ratls.Conn, s *raftstore.Store) {
	id, addr, ok := s.Leader()
	if !ok || id == n.boot.id {
		n.refuseJoin(c, &RefusedError{Retry: true, Text: "no leader is known; try again when a majority of the nodes is up"})
		return
	}
	send(c, kindRedirect, joinRedirect{Addr: addr})
}

func (n *Node) refuseJoin(c *ratls.Conn, r *RefusedError) {
	send(c, kindRefusal, joinRefusal{Retry: r.Retry, Superseded: r.Superseded, Text: r.Text})
}

// admission is DESIGN §6 step by step. Until the joiner's Admit entry of this
// very attempt is committed, by collateral that is still current then, it
// receives nothing; until it holds the roots it is in no configuration; until
// it has caught up it has no vote; and the older boot of its slot is gone before
// it gets one. Each change names the configuration it is based on. The same boot
// may try again after an interruption: it is judged again, and admitted again.
func (n *Node) admission(ctx context.Context, c *ratls.Conn, req joinRequest) error {
	s := n.store.Load()
	if req.Version != 1 {
		return &RefusedError{Text: "join version 1 is spoken here"}
	}
	if n.machine.View().Ended {
		return &RefusedError{Text: "the operators have ended this epoch; a recovery opens the next one"}
	}
	if req.Level == 0 || !api.ValidSlot(req.Slot) || !api.ValidAddress(req.RaftAddr) || !api.ValidAddress(req.APIAddr) {
		return &RefusedError{Text: "the request's slot, addresses or feature level are malformed"}
	}
	if err := s.SafeRead(ctx); err != nil { // we lead, and our state is current
		return err
	}
	view := n.machine.View() // before the judgement, so that Apply sees a change in between
	a, err := n.judgeAgain(ctx, c, view)
	if err != nil {
		return err
	}
	if err := n.checkSlot(ctx, req.Slot, c.Peer().Key, a.Verified().Claims().Platform.ID()); err != nil {
		return err
	}
	if err := a.Replicate(ctx, replica{s}, n.membership().Epoch); err != nil {
		return err
	}
	member, err := n.commitAdmission(ctx, c.Peer().Key, view.NodePolicy, a, req)
	if err != nil {
		return err
	}
	if !n.holds(member) { // another leader gave the slot away while this one had lost the lead: see raftstore/model
		return &RefusedError{Retry: true, Text: "the slot went to another boot meanwhile; try again"}
	}
	if err := n.grant(c, member); err != nil {
		return fmt.Errorf("handing over the secrets: %w", err)
	}
	return n.promote(ctx, c, member, view.NodePolicy)
}

// promote moves a joiner that holds the secrets into the configuration.
func (n *Node) promote(ctx context.Context, c *ratls.Conn, member state.Member, policyVersion uint64) error {
	index, err := n.catchUp(ctx, c, member)
	if err != nil {
		return fmt.Errorf("catching up: %w", err)
	}
	// The slot may be another boot's by now, admitted by a leader in between. A
	// boot that no slot names never gets a vote: that is what lets a superseded
	// one believe a peer who says that it is out.
	if !n.holds(member) {
		return &RefusedError{Superseded: true, Text: state.ErrSuperseded.Error()}
	}
	if n.machine.View().NodePolicy != policyVersion { // its code may not be accepted any more
		return &RefusedError{Retry: true, Text: "the node policy has changed during the admission; try again"}
	}
	if index, err = n.removeSuperseded(ctx, member.Slot, index); err != nil {
		return err
	}
	if _, err := n.store.Load().AddVoter(ctx, raftstore.ServerID(member.ServerID), member.RaftAddr, index); err != nil {
		return err
	}
	n.log.Info("promoted", "member", member.Slot, "incarnation", member.Incarnation)
	return send(c, kindPromoted, joinIndex{})
}

// holds reports whether the slot is still this boot's.
func (n *Node) holds(member state.Member) bool {
	return slices.ContainsFunc(n.machine.View().Members, func(m state.Member) bool {
		return m.Slot == member.Slot && m.ServerID == member.ServerID
	})
}

// judgeAgain judges the evidence with the state as it is now and not as it was
// at the handshake: the joiner may have waited, and collateral moved.
func (n *Node) judgeAgain(ctx context.Context, c *ratls.Conn, view state.View) (*kds.Assessment, error) {
	peer := c.Peer()
	a, err := n.judge.Assess(ctx, peer.Evidence.Quote, peer.Evidence.Collateral, kds.ForRoots)
	if err != nil {
		return nil, &RefusedError{Retry: errors.Is(err, kds.ErrStale), Text: err.Error()}
	}
	if a.Verified().Claims().ReportData != peer.ReportData {
		return nil, &RefusedError{Text: "the evidence is of another channel"}
	}
	if err := checkConstraints(view.NodePolicyText, a.Verified(), a.Now()); err != nil {
		return nil, &RefusedError{Text: err.Error()}
	}
	return a, nil
}

// checkSlot decides whether the joiner may have the slot. A slot belongs to the
// platform that took it first, or that the operators have signed a ticket for;
// the state enforces that too, but a stranger must not even get as far as the
// clone alarm.
func (n *Node) checkSlot(ctx context.Context, slot string, joiner, platform [32]byte) error {
	if err := n.entitled(slot, joiner, platform); err != nil {
		return err
	}
	v := n.machine.View()
	for _, m := range v.Members {
		switch {
		case m.Slot != slot:
			continue
		case m.ServerID == joiner:
			return nil
		}
		if err := n.paced(m); err != nil {
			return err
		}
		if m.ServerID == n.boot.id {
			return n.yieldSlot(ctx, slot)
		}
		n.work.Go(func() { n.probeOlder(m) }) // beside the admission: at the address may be a silent host
		return nil
	}
	if len(v.Members) >= MaxSlots {
		return &RefusedError{Text: fmt.Sprintf("the cluster has %d slots already, the most this build allows", MaxSlots)}
	}
	return nil
}

// paced makes a new boot wait whose slot has changed hands too often. The alarm
// comes first: a clone that flaps is alarmed at every try, and slowed.
func (n *Node) paced(m state.Member) error {
	wait := n.pace.take(m.Slot, time.Now(), n.tune.paceBurst, n.tune.paceRefill)
	if wait == 0 {
		return nil
	}
	n.metrics.slowed.Inc()
	n.log.Warn("a slot changes hands too often; its next boot has to wait", "claimed", m.Slot, "incarnation", m.Incarnation, "wait", wait)
	if m.ServerID != n.boot.id {
		n.work.Go(func() { n.probeOlder(m) })
	}
	return &RefusedError{Retry: true, Text: fmt.Sprintf("slot %s has changed hands too often; the next boot of it is admitted in %v. "+
		"If you have not restarted it, two machines claim the slot: see the clone alarms", m.Slot, wait.Round(time.Second/10))}
}

// superseded answers a boot whose slot a newer one has. While it is still in
// the configuration its roots may be needed: it must not give up.
func (n *Node) superseded(joiner [32]byte, why error) error {
	if members, _ := n.store.Load().Members(); contains(members, joiner) {
		return &RefusedError{Retry: true, Text: why.Error() + "; it is still in the configuration"}
	}
	return &RefusedError{Superseded: true, Text: why.Error()}
}

// probeOlder raises the clone alarm when the older boot of a slot answers with
// its own key while a new boot asks for the place. The newest still supersedes.
func (n *Node) probeOlder(m state.Member) {
	ctx, cancel := context.WithTimeout(n.ctx, aliveTimeout)
	defer cancel()
	if old, err := n.dialPeer(ctx, m.ServerID, m.RaftAddr); err == nil {
		old.Close()
		n.cloneAlarm(m.Slot, m.Incarnation)
	}
}

func (n *Node) cloneAlarm(slot string, incarnation uint64) {
	n.metrics.clones.Inc()
	n.log.Error("CLONE ALARM: a new boot asks for a slot whose older boot is alive; the newest supersedes",
		"claimed", slot, "alive_incarnation", incarnation)
}

// yieldSlot is for a claim on the leader's own slot: leadership goes to another
// voter first, which then admits the claimant.
func (n *Node) yieldSlot(ctx context.Context, slot string) error {
	n.cloneAlarm(slot, n.membership().Incarnation)
	if err := n.store.Load().TransferLeadership(ctx); err != nil {
		return &RefusedError{Retry: true, Text: "the slot's present boot leads the cluster and nobody can take over; stop it first"}
	}
	return &RefusedError{Retry: true, Text: "the slot's present boot has handed over leadership; try again"}
}

// commitAdmission commits Admit for this attempt. For a boot that holds the
// slot already the entry changes nothing but the proof that it may.
func (n *Node) commitAdmission(ctx context.Context, joiner [32]byte, policyVersion uint64, a *kds.Assessment, req joinRequest) (state.Member, error) {
	incarnation := uint64(1)
	for _, old := range n.machine.View().Members {
		switch {
		case old.Slot != req.Slot:
		case old.ServerID == joiner:
			incarnation = old.Incarnation
		default:
			incarnation = old.Incarnation + 1
		}
	}
	result, err := n.propose(ctx, n.admitEntry(a, policyVersion, req, incarnation, joiner))
	if err != nil {
		return state.Member{}, err
	}
	admitted, ok := result.(state.Admitted)
	if !ok {
		return state.Member{}, fmt.Errorf("node: unexpected result %T of an admission", result)
	}
	return admitted.Member, nil
}

// admitEntry says what the admission was decided under.
func (n *Node) admitEntry(a *kds.Assessment, policyVersion uint64, req joinRequest, incarnation uint64, id [32]byte) *state.Admit {
	key, version := a.Collateral()
	measurement := state.MeasurementAt(n.machine.View().Level, a.Measurement())
	return &state.Admit{Epoch: n.membership().Epoch, NodePolicy: policyVersion, CollateralKey: key, CollateralVersion: version,
		Slot: req.Slot, Incarnation: incarnation, ServerID: id, PlatformID: a.Verified().Claims().Platform.ID(),
		RaftAddr: req.RaftAddr, APIAddr: req.APIAddr,
		Level: req.Level, TEE: key.TEE, Measurement: measurement, TCBStatus: a.TCBStatus()}
}

// grant sends statement and secrets and waits for the joiner to hold them.
func (n *Node) grant(c *ratls.Conn, member state.Member) error {
	if n.fenced.up() {
		return &RefusedError{Retry: true, Text: ErrFenced.Error()}
	}
	m := n.membership()
	statement, err := newMembership(n.secrets, m.raw, api.Membership{ClusterID: m.clusterID, Epoch: m.Epoch,
		Slot: member.Slot, Incarnation: member.Incarnation, ServerID: member.ServerID})
	if err != nil {
		return err
	}
	secrets, err := n.secrets.Reveal()
	if err != nil {
		return err
	}
	defer clear(secrets)
	if err := send(c, kindGrant, joinGrant{Statement: statement, Secrets: secrets}); err != nil {
		return err
	}
	var ack joinIndex
	return expect(c, kindAck, &ack)
}

// catchUp adds the joiner as a nonvoter and waits until it has applied that
// very configuration.
func (n *Node) catchUp(ctx context.Context, c *ratls.Conn, member state.Member) (uint64, error) {
	s := n.store.Load()
	_, prev := s.Members()
	index, err := s.AddNonvoter(ctx, raftstore.ServerID(member.ServerID), member.RaftAddr, prev)
	if err != nil {
		return 0, err
	}
	if err := send(c, kindTarget, joinIndex{Index: index}); err != nil {
		return 0, err
	}
	deadline := time.Now().Add(catchUpLimit)
	for {
		var p joinIndex
		if err := expect(c, kindProgress, &p); err != nil {
			return 0, err
		}
		if p.Index >= index {
			return index, nil
		}
		if time.Now().After(deadline) {
			return 0, fmt.Errorf("the joiner is at %d of %d after %v", p.Index, index, catchUpLimit)
		}
	}
}

// removeSuperseded removes the older boot of this slot, then what interrupted
// admissions have left behind in others, one by one. A voter goes only while a
// majority of those who stay answers: if another voter is down, the older boot's
// vote is what keeps the cluster, and the newer one waits. Slots that the
// operators have removed are not this one's concern: see reconcile.
func (n *Node) removeSuperseded(ctx context.Context, slot string, index uint64) (uint64, error) {
	s, view := n.store.Load(), n.machine.View()
	members, at := s.Members()
	if at != index {
		return 0, fmt.Errorf("node: the configuration moved from %d to %d during an admission", index, at)
	}
	for _, ours := range []bool{true, false} {
		for _, m := range slices.Clone(members) {
			if held, superseded := formerSlot(view, m.ID); !superseded || (held == slot) != ours || !ours && m.Voter {
				continue // an older voter of another slot stays until the newer boot of that slot is about to vote
			}
			err := n.mayRemove(ctx, members, nil, leaver{Member: m, removed: true})
			if err != nil {
				return 0, &RefusedError{Retry: true, Text: "the older boot of the slot has a vote that the cluster needs now: " + err.Error()}
			}
			if index, err = s.Remove(ctx, m.ID, index); err != nil {
				return 0, err
			}
			members = slices.DeleteFunc(members, func(other raftstore.Member) bool { return other.ID == m.ID })
			n.log.Info("removed", "server", m.ID)
		}
	}
	return index, nil
}

// formerSlot is the slot in which a newer boot has superseded the server.
func formerSlot(view state.View, id raftstore.ServerID) (slot string, superseded bool) {
	for _, m := range view.Members {
		if slices.Contains(m.Former, [32]byte(id)) {
			return m.Slot, true
		}
	}
	return "", false
}
