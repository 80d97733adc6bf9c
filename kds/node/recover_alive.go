package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/history"
)

// MaxSurvivors bounds the live servers that one recovery asks.
const MaxSurvivors = 16

const (
	stopTries = 5 // of one request to stop; the same one again is answered again
	stopPause = time.Second
)

// What a history in a report comes from.
const (
	KindArchive = "archive" // a disk
	KindAlive   = "alive"   // the memory of a server that lives
	KindStopped = "stopped" // the memory of a server that has stopped for good, which counts as proof
)

// survivor is one address at which an old server may live.
type survivor struct {
	addr     string
	a        *inspected       // what it holds; nil or with a Problem while that is not known
	verified *attest.Verified // its evidence, when it was last visited
	stopped  bool             // it has said, over a channel to its key, that it is stopped for good
}

// known reports whether its history is here.
func (s *survivor) known() bool { return s.a != nil && s.a.report.Problem == "" }

// survivorOf is the live server with an id, or nil.
func (r *recovery) survivorOf(id api.ID) *survivor {
	for _, s := range r.alive {
		if s.known() && s.a.report.ServerID == id {
			return s
		}
	}
	return nil
}

// visitAll asks every survivor what it holds, as it is now. One that has stopped
// holds what it held.
func (r *recovery) visitAll(ctx context.Context) {
	for _, s := range r.alive {
		if ctx.Err() != nil || s.known() && s.stopped {
			continue
		}
		a := &inspected{report: ArchiveReport{Path: printable("survivor " + s.addr), Kind: KindAlive}}
		who, err := r.visit(ctx, s.addr, a)
		if err != nil {
			a.unusable(err)
		} else if old := r.survivorOf(a.report.ServerID); old != nil && old != s {
			a.unusable(errors.New("another address has led to the same server"))
		}
		// What the last look saw may have been another server: an address is the host's.
		s.a, s.verified, s.stopped = a, who.verified, who.stopped
	}
}

// met is who answered at an address: its evidence, and whether it says, over a
// channel to its key, that it is stopped for good.
type met struct {
	verified *attest.Verified
	stopped  bool
}

// visit reads one survivor's whole log, and replays it here: nothing of what is
// shown to the operators is its word.
func (r *recovery) visit(ctx context.Context, addr string, a *inspected) (met, error) {
	ctx, cancel := context.WithTimeout(ctx, surviveStep)
	defer cancel()
	c, err := r.n.dialSurvivor(ctx, addr, nil)
	if err != nil {
		return met{}, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := send(c, kindSurvive, surviveRequest{Version: 1}); err != nil {
		return met{}, err
	}
	var head survivorHead
	if err := answered(c, kindHead, &head); err != nil {
		return met{}, err
	}
	peer := c.Peer()
	id := raftstore.ServerID(peer.Key)
	a.epoch, a.server = peer.Epoch, api.ID(id)
	chain := raftstore.Chain{ClusterID: r.n.cfg.ClusterID, Epoch: peer.Epoch, Server: id}
	if a.history, err = history.Collect(receiveRecords(c), chain); err != nil {
		return met{}, err
	}
	if err := (&inspector{clusterID: r.n.cfg.ClusterID, self: r.n.boot.id}).replay(a); err != nil {
		return met{}, err
	}
	if !contains(a.servers, id) {
		return met{}, errors.New("it is not in the configuration that its log ends with: the cluster went on without it")
	}
	a.report.Kind = KindAlive
	if head.Stopped {
		a.report.Kind = KindStopped
	}
	return met{peer.Verified, head.Stopped}, nil
}

// dialSurvivor opens recover/1, to exactly the key if one is given: a member
// of this cluster, judged as a joiner judges who gives it roots.
func (n *Node) dialSurvivor(ctx context.Context, addr string, key *[32]byte) (*ratls.Conn, error) {
	raw, err := (&net.Dialer{Timeout: joinDial}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return nil, err
	}
	return ratls.Client(ctx, raw, &ratls.Config{Protocols: []string{protocolRecover}, ClusterID: n.cfg.ClusterID,
		Epoch: max(n.cfg.MinEpoch, 1), Key: n.boot.key, PeerKey: key, Attest: n.proveJoiner, Verify: n.verifyMember})
}

// answered receives what may take long to say.
func answered(c net.Conn, want kind, v any) error {
	k, body, err := receiveUpTo(c, maxMessage, surviveStep)
	if err != nil {
		return err
	}
	err = decode(k, body, want, v)
	if refused, ok := errors.AsType[*RefusedError](err); ok {
		return survivorRefusal{refused}
	}
	return err
}

// survivorRefusal is a *RefusedError that is not about an admission.
type survivorRefusal struct{ *RefusedError }

func (e survivorRefusal) Error() string { return "it refuses: " + e.Text }
func (e survivorRefusal) Unwrap() error { return e.RefusedError }

// checkDestroyed asks servers once more that the operators call destroyed and that
// have answered before: a statement must not say what this enclave knows better.
func (r *recovery) checkDestroyed(ctx context.Context, s *api.RecoveryStatement) error {
	for _, v := range r.alive {
		if !v.known() || v.stopped || !says(s, v.a.report.ServerID, api.FateDestroyed) {
			continue
		}
		again := &inspected{report: ArchiveReport{Path: v.a.report.Path, Kind: KindAlive}}
		if _, err := r.visit(ctx, v.addr, again); err == nil && again.server == v.a.server {
			return fmt.Errorf("%w: server %.16s is said to be destroyed, and answers at %s; name it as stopped, or end it", ErrRecovery, again.server, v.addr)
		}
	}
	return nil
}

// errSurvivor wraps what keeps a survivor from stopping.
var errSurvivor = fmt.Errorf("%w: a survivor", ErrRecovery)

// stopSurvivors brings the statement to every survivor that it names as stopped,
// the source last: when that has handed over, nobody else is left to ask.
func (r *recovery) stopSurvivors(ctx context.Context, brought *RecoveryApprovals, s *api.RecoveryStatement) error {
	for _, sourceToo := range []bool{false, true} {
		for _, v := range r.alive {
			if !v.known() || (v.a.report.ServerID == s.Source.ServerID) != sourceToo || !says(s, v.a.report.ServerID, api.FateStopped) {
				continue
			}
			if v.stopped && (!sourceToo || r.rootsOf(v.a) != nil) {
				continue
			}
			if err := r.stopOne(ctx, v, brought); err != nil {
				return fmt.Errorf("%w at %s, server %.16s: %w", errSurvivor, v.addr, v.a.report.ServerID, err)
			}
		}
	}
	return nil
}

func says(s *api.RecoveryStatement, id api.ID, fate string) bool {
	return slices.ContainsFunc(s.Old, func(o api.OldServer) bool { return o.ServerID == id && o.Fate == fate })
}

// stopOne asks until there is an answer: a connection may be lost after the
// survivor has stopped, and the same statement is answered again.
func (r *recovery) stopOne(ctx context.Context, v *survivor, brought *RecoveryApprovals) error {
	for try := 1; ; try++ {
		err := r.askToStop(ctx, v, brought)
		refused, is := errors.AsType[*RefusedError](err)
		if err == nil || try == stopTries || is && !refused.Retry || final(err) || errors.Is(err, errMoved) {
			return err
		}
		r.n.log.Info("a survivor has not answered the operators' statement; asking again", "address", v.addr, "reason", err)
		select {
		case <-ctx.Done():
			return err
		case <-time.After(stopPause):
		}
	}
}

var errMoved = errors.New("it has gone on since the report, and is stopped now; look at a new report, and sign a statement for a higher epoch")

func (r *recovery) askToStop(ctx context.Context, v *survivor, brought *RecoveryApprovals) error {
	ctx, cancel := context.WithTimeout(ctx, surviveStep)
	defer cancel()
	key := [32]byte(v.a.report.ServerID)
	c, err := r.n.dialSurvivor(ctx, v.addr, &key)
	if err != nil {
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := send(c, kindSurvive, surviveRequest{Version: 1, Statement: brought.Statement, Approvals: brought.Approvals}); err != nil {
		return err
	}
	var answer survivorStopped
	if err := answered(c, kindStopped, &answer); err != nil {
		return err
	}
	defer clear(answer.Secrets)
	if v.stopped, v.a.report.Kind = true, KindStopped; answer.Head != v.a.report.Source() {
		v.a.unusable(errMoved) // until it is visited again
		return errMoved
	}
	if len(answer.Secrets) == 0 {
		return nil
	}
	secrets, err := kds.ParseSecrets(answer.Secrets, r.IdentityKey)
	if err != nil {
		return err
	}
	if err := fitting(secrets, v.a.machine.View()); err != nil {
		return err
	}
	r.hold(secrets)
	return nil
}

// errClosed is about archives while nobody has given back the roots.
var errClosed = errors.New("not opened yet: no shares were asked for, and a survivor has the roots; it is opened, and compared, before the epoch opens")

// openArchives opens the disks once the roots are here.
func (r *recovery) openArchives(ctx context.Context) {
	if len(r.held) == 0 {
		r.disks = nil
		for _, dir := range r.Archives {
			a := &inspected{report: ArchiveReport{Path: printable(dir), Kind: KindArchive}}
			a.unusable(errClosed)
			r.disks = append(r.disks, a)
		}
		return
	}
	if !r.looked {
		r.disks = nil
		r.inspectAll(ctx)
		r.looked = true
	}
}

// leaveOut takes the word from survivors of code that operators have expelled: it
// was accepted by a policy of before, and some history shows a newer one, signed.
// Neither what such a server holds nor that it has stopped is believed. A later
// epoch that went on without that policy does not lift it: expelled code has held
// the keys to make one up. Who names archives can leave out those of epochs that
// were left behind.
func (r *recovery) leaveOut() {
	learn := func(a *inspected) {
		if a == nil || a.report.Problem != "" {
			return
		}
		signed := a.machine.View().NodePolicySigned
		if p, err := api.ParseNodePolicy(r.manifest, r.n.cfg.ClusterID, signed); err == nil {
			r.n.learnPolicy(p, signed)
		}
	}
	for _, a := range r.disks {
		learn(a)
	}
	for _, s := range r.alive {
		learn(s.a)
	}
	p := r.n.policy(r.manifest)
	for _, s := range r.alive {
		if err := s.fits(p.Constraints, r.n.judge.Now()); err != nil {
			s.a.unusable(fmt.Errorf("the operators have expelled its code, by version %d of the node policy, of epoch %d, which another history shows; "+
				"if a recovery has left that epoch behind, start again and do not name its archives: %w", p.Version, p.Epoch, err))
		}
	}
}

// fits refuses a survivor whose code the policy does not accept.
func (s *survivor) fits(constraints []string, now time.Time) error {
	if !s.known() {
		return nil
	}
	if err := checkConstraints(constraints, s.verified, now); errors.Is(err, errCode) {
		return err
	}
	return nil
}

// gather puts together all histories that count now: a server that lives speaks
// for itself, and its own archive says nothing beyond it.
func (r *recovery) gather(ctx context.Context) {
	r.openArchives(ctx)
	r.leaveOut()
	r.archives = nil
	for _, s := range r.alive {
		if s.a != nil {
			r.archives = append(r.archives, s.a)
		}
	}
	for _, a := range r.disks {
		if a.report.Problem == "" && r.survivorOf(a.report.ServerID) != nil {
			shadow := *a
			shadow.unusable(errors.New("its server lives, and its memory is in this report"))
			a = &shadow
		}
		r.archives = append(r.archives, a)
	}
	r.compare()
}

// checkSurvivors checks number and form of the survivors' addresses.
func (r *Recovery) checkSurvivors() error {
	if len(r.Survivors) > MaxSurvivors {
		return fmt.Errorf("%w: Recovery: %d survivors, at most %d", ErrConfig, len(r.Survivors), MaxSurvivors)
	}
	for _, addr := range r.Survivors {
		if _, port, err := net.SplitHostPort(addr); err != nil || port == "" || !api.ValidAddress(addr) || strings.TrimSpace(addr) != addr {
			return fmt.Errorf("%w: Recovery: survivor %.80q is not host:port", ErrConfig, addr)
		}
	}
	return nil
}
