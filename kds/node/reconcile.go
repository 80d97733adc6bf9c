package node

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

const reconcileLimit = 30 * time.Second // of one look at the configuration, the change included

// errMinority says that a change would leave too few holders of the roots that answer.
var errMinority = errors.New("too few of the servers that would stay answer, or satisfy the node policy; " +
	"let the other nodes become healthy first")

// reconciles makes the configuration follow the state while this node leads:
// from time to time, and when something is applied that may call for it.
func (n *Node) reconciles() {
	last := ""
	for {
		timer := time.NewTimer(n.tune.reconcileEvery)
		select {
		case <-n.ctx.Done():
			timer.Stop()
			return
		case <-timer.C:
		case <-n.reconcileNow:
			timer.Stop()
		}
		if !n.IsLeader() {
			continue
		}
		err := n.reconcile(n.ctx)
		if err == nil {
			last = ""
		} else if text := err.Error(); text != last && n.ctx.Err() == nil {
			last = text
			n.log.Warn("the configuration does not follow the state yet", "reason", err)
		}
	}
}

// askReconcile asks for a look now; one that is asked for already will do.
func (n *Node) askReconcile() {
	select {
	case n.reconcileNow <- struct{}{}:
	default:
	}
}

// reconcile takes out one server that has no place any more, by a change of its
// own, and never while an admission runs. It returns nil when there is nothing to do.
func (n *Node) reconcile(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, reconcileLimit)
	defer cancel()
	view := n.machine.View()
	members, _ := n.store.Load().Members()
	if n.levelDue(view, members) == 0 && !rootsDue(view) && len(n.due(view, members)) == 0 { // the usual look takes nobody's turn
		return nil
	}
	select {
	case n.admitSem <- struct{}{}:
		defer func() { <-n.admitSem }()
	case <-ctx.Done():
		return ctx.Err()
	}
	s := n.store.Load()
	if err := s.SafeRead(ctx); err != nil {
		return err
	}
	if err := n.commitRoots(ctx); err != nil { // a removal may wait for a node that is not admitted before
		return err
	}
	view = n.machine.View()
	members, index := s.Members()
	due := n.due(view, members)
	if len(due) == 0 {
		return n.raiseLevel(ctx, view, members)
	}
	who, err := n.next(ctx, members, due)
	if err != nil {
		return err
	}
	if who.ID == n.boot.id {
		return n.passOn(ctx, members, due, who)
	}
	if _, err := s.Remove(ctx, who.ID, index); err != nil {
		return err
	}
	n.metrics.expelled.Inc()
	n.log.Warn("took a server out of the configuration", "server", who.ID, "reason", who.reason)
	n.askReconcile() // there may be more
	return nil
}

// next is the first of due that may leave now. Whom the operators have removed
// comes first, and does not wait for those whom a policy puts out, who may have to
// stay for long; ourselves last: whoever takes over finds less to do.
func (n *Node) next(ctx context.Context, members []raftstore.Member, due []leaver) (leaver, error) {
	rank := func(l leaver) int {
		switch {
		case l.ID == n.boot.id:
			return 2
		case l.removed:
			return 0
		}
		return 1
	}
	due = slices.SortedStableFunc(slices.Values(due), func(a, b leaver) int { return cmp.Compare(rank(a), rank(b)) })
	var err error
	for _, l := range due {
		if err = n.mayRemove(ctx, members, due, l); err == nil {
			return l, nil
		}
	}
	return leaver{}, err
}

// leaver is a server that must leave the configuration.
type leaver struct {
	raftstore.Member
	reason  string
	removed bool // by a statement of the operators; else its code is not accepted any more
}

// due lists the servers of the configuration that no slot has any more, and
// those whose code the node policy no longer accepts. The older boot of a slot
// is neither: it stays until the newer one holds the roots, and the admission
// removes it. Nor is a member whose platform alone fails: sources of collateral
// are reached through hosts, and a host must not be able to shrink a quorum.
func (n *Node) due(view state.View, members []raftstore.Member) []leaver {
	var due []leaver
	for _, m := range members {
		switch place := placeOf(view, m.ID); {
		case len(members) == 1: // the boot that opens an epoch may not have been admitted yet
		case place == noPlace:
			due = append(due, leaver{m, "the operators have removed its slot", true})
		case place == hasSlot && n.foreign(m.ID):
			due = append(due, leaver{m, "the node policy no longer accepts its code", false})
		}
	}
	return due
}

type place int

const (
	noPlace place = iota
	hasSlot
	wasSuperseded
)

func placeOf(view state.View, id raftstore.ServerID) place {
	if slices.ContainsFunc(view.Members, func(m state.Member) bool { return m.ServerID == id }) {
		return hasSlot
	}
	if _, superseded := formerSlot(view, id); superseded {
		return wasSuperseded
	}
	return noPlace
}

// foreign reports whether the node policy in force accepts no longer what the
// server runs, by its last evidence: for ourselves, by our own.
func (n *Node) foreign(id raftstore.ServerID) bool {
	n.standings.mu.Lock()
	defer n.standings.mu.Unlock()
	return errors.Is(n.standings.of[id].unfit, errCode)
}

// mayRemove refuses a removal after which the cluster could not decide, or
// would lose too many holders of its roots.
//
// Who stays is asked, over channels to the very keys, since the change counts
// from the moment it is in the log: one that the rest cannot commit would stop
// the cluster. For a removal by the operators a majority of those who stay must
// answer. An expulsion, which nobody has ordered server by server, needs more:
// of those who stay, as many must answer and satisfy the policy as are a majority
// now. A cluster that would lose most of its roots by a policy keeps them, says
// so, and waits for nodes that the policy accepts.
func (n *Node) mayRemove(ctx context.Context, members []raftstore.Member, due []leaver, who leaver) error {
	if !who.Voter {
		return nil
	}
	var stay []raftstore.Member
	voters := 0
	for _, m := range members {
		if m.Voter {
			voters++
		}
		leaves := slices.ContainsFunc(due, func(l leaver) bool { return l.ID == m.ID && !who.removed })
		if m.Voter && m.ID != who.ID && !leaves {
			stay = append(stay, m)
		}
	}
	need := voters/2 + 1
	if who.removed {
		need = (voters-1)/2 + 1
	}
	if n.answering(ctx, stay) < need {
		return errMinority
	}
	return nil
}

// answering counts the servers that answer over a channel to their own key now.
func (n *Node) answering(ctx context.Context, list []raftstore.Member) int {
	ctx, cancel := context.WithTimeout(ctx, askLimit)
	defer cancel()
	var asked sync.WaitGroup
	answers := make([]bool, len(list))
	for i, m := range list {
		if m.ID == n.boot.id {
			answers[i] = true
			continue
		}
		asked.Go(func() {
			if c, err := n.dialPeer(ctx, m.ID, m.Address); err == nil {
				c.Close()
				answers[i] = true
			}
		})
	}
	asked.Wait()
	count := 0
	for _, yes := range answers {
		if yes {
			count++
		}
	}
	return count
}

// passOn is for a leader that must leave: somebody who stays takes over, and
// takes it out. The choice is not left to who is most advanced, which may be
// another one that leaves. Where nobody else stays, a leader that the operators have
// removed hands over to a server that only a policy puts out.
func (n *Node) passOn(ctx context.Context, members []raftstore.Member, due []leaver, self leaver) error {
	n.log.Warn("this node must leave the configuration; another one takes over")
	var stay, foreign []raftstore.Member
	for _, m := range members {
		i := slices.IndexFunc(due, func(l leaver) bool { return l.ID == m.ID })
		switch {
		case !m.Voter:
		case i < 0:
			stay = append(stay, m)
		case self.removed && !due[i].removed:
			foreign = append(foreign, m)
		}
	}
	err := errMinority
	for _, m := range slices.Concat(stay, foreign) {
		if n.answering(ctx, []raftstore.Member{m}) == 0 {
			continue
		}
		if err = n.store.Load().TransferLeadershipTo(ctx, m.ID); err == nil {
			return nil
		}
	}
	return err
}
