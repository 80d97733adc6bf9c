package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

// joinDial bounds the connection to one of the listed addresses: the machine behind it may be gone, and the next one is not.
const joinDial = 3 * time.Second

// join asks the listed members, and the leaders they name, until one admits
// this boot, all refuse it for good or are refused, or ctx ends.
func (n *Node) join(ctx context.Context) error {
	wait := joinBackoff
	var last error
	for {
		hopeless := true // one address of a host's making must not stop us from asking the next
		for _, addr := range n.cfg.Join {
			err := n.joinVia(ctx, addr)
			if err == nil {
				return nil
			}
			if errors.Is(err, ErrSuperseded) || errors.Is(err, kds.ErrRoots) { // this boot holds what nobody must
				return err
			}
			last, hopeless = err, hopeless && final(err)
			n.log.Info("not admitted", "via", addr, "reason", err)
		}
		if n.isVoter() { // the last word of the admission was lost, and this boot counts
			return nil
		}
		if hopeless {
			return last
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), last)
		case <-n.storeDone():
			return n.store.Load().Err()
		case <-time.After(wait):
			wait = min(2*wait, maxJoinWait)
		}
	}
}

// isVoter reports whether the committed configuration counts on this boot.
func (n *Node) isVoter() bool {
	s := n.store.Load()
	if s == nil {
		return false
	}
	members, _ := s.Members()
	return slices.ContainsFunc(members, func(m raftstore.Member) bool { return m.ID == n.boot.id && m.Voter })
}

func (n *Node) storeDone() <-chan struct{} {
	if s := n.store.Load(); s != nil {
		return s.Done()
	}
	return nil
}

// errLeaderUnfit is about a leader that this node refuses. Another one may lead
// in a moment: leaders of code that is not accepted any more hand over.
var errLeaderUnfit = errors.New("node: the cluster's present leader is refused")

// final tells what another attempt cannot cure: a refusal of ours or of theirs.
func final(err error) bool {
	if r, ok := errors.AsType[*RefusedError](err); ok {
		return !r.Retry
	}
	if r, ok := errors.AsType[*ratls.RefusedError](err); ok {
		return r.Code != ratls.CodeInternal
	}
	if errors.Is(err, kds.ErrStale) || errors.Is(err, errLeaderUnfit) || errors.Is(err, errBehind) {
		return false
	}
	return errors.Is(err, state.ErrHalted) || errors.Is(err, kds.ErrRoots) || errors.Is(err, ratls.ErrEvidence) || errors.Is(err, ratls.ErrClusterID) || errors.Is(err, ratls.ErrEpoch) ||
		errors.Is(err, ErrJoin) || errors.Is(err, ErrNotMember)
}

// joinVia follows redirects from addr.
func (n *Node) joinVia(ctx context.Context, addr string) error {
	for hop := range maxRedirects {
		next, err := n.joinAt(ctx, addr)
		if err != nil && hop > 0 && errors.Is(err, ErrNodePolicy) {
			return fmt.Errorf("%w: %w", errLeaderUnfit, err)
		}
		if err != nil || next == "" {
			return err
		}
		addr = next
	}
	return fmt.Errorf("node: more than %d redirects", maxRedirects)
}

// joinAt speaks join/1 with one member; next is set when it is not the leader.
func (n *Node) joinAt(ctx context.Context, addr string) (next string, err error) {
	raw, err := (&net.Dialer{Timeout: joinDial}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return "", err
	}
	c, err := ratls.Client(ctx, raw, &ratls.Config{Protocols: []string{protocolJoin}, ClusterID: n.cfg.ClusterID,
		Epoch: max(n.cfg.MinEpoch, 1), Key: n.boot.key, Attest: n.proveJoiner, Verify: n.verifyMember})
	if err != nil {
		return "", err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if err := send(c, kindRequest, joinRequest{Version: 1, Slot: n.cfg.Slot, RaftAddr: n.peerAddr, APIAddr: n.apiAddr, Level: n.level}); err != nil {
		return "", err
	}
	k, body, err := receive(c)
	if err != nil {
		return "", err
	}
	if k == kindRedirect {
		var r joinRedirect
		if err := decode(k, body, kindRedirect, &r); err != nil {
			return "", err
		}
		if _, _, err := net.SplitHostPort(r.Addr); err != nil {
			return "", fmt.Errorf("%w: redirect to %.80q", ErrJoin, r.Addr)
		}
		return r.Addr, nil
	}
	var g joinGrant
	if err := decode(k, body, kindGrant, &g); err != nil {
		return "", err
	}
	return "", n.enter(ctx, c, &g)
}

// proveJoiner is our evidence without an attachment: a joiner is nobody yet.
func (n *Node) proveJoiner(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
	ev, err := n.prover.prove(ctx, reportData)
	ev.Attachment = nil
	return ev, err
}

// enter takes the grant, follows the log to the target and waits for the vote.
func (n *Node) enter(ctx context.Context, c *ratls.Conn, g *joinGrant) error {
	defer clear(g.Secrets)
	m, err := parseMembership(g.Statement, n.cfg.ClusterID, c.Peer().Epoch, n.boot.id)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrJoin, err)
	}
	if m.Slot != n.cfg.Slot || m.Epoch != c.Peer().Epoch {
		return fmt.Errorf("%w: the statement is for another slot or epoch", ErrJoin)
	}
	s, err := kds.ParseSecrets(g.Secrets, m.identity)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrJoin, err)
	}
	if err := n.become(s, m); err != nil {
		return err
	}
	if err := send(c, kindAck, joinIndex{}); err != nil {
		return err
	}
	var target joinIndex
	if err := expect(c, kindTarget, &target); err != nil {
		return err
	}
	if err := n.reportProgress(ctx, c, target.Index); err != nil {
		return err
	}
	var done joinIndex
	return expect(c, kindPromoted, &done)
}

// reportProgress tells the leader what has really been applied here.
func (n *Node) reportProgress(ctx context.Context, c *ratls.Conn, target uint64) error {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	store := n.store.Load()
	last := time.Now()
	for {
		at := store.AppliedIndex()
		if err := n.machine.Halted(); err != nil { // it has not applied what the index says
			return err
		}
		if err := n.secrets.Check(n.machine.View().GenerationIDs); err != nil {
			return fmt.Errorf("%w: what this member handed over is not the cluster's: %w", ErrJoin, err)
		}
		if at >= target || time.Since(last) > time.Second { // also when a snapshot keeps it where it is
			if err := send(c, kindProgress, joinIndex{Index: at}); err != nil {
				return err
			}
			last = time.Now()
		}
		if at >= target {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-store.Done():
			return store.Err()
		case <-tick.C:
		}
	}
}
