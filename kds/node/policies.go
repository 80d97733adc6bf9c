package node

import (
	"fmt"
	"time"

	"github.com/claviger/claviger/kds/api"
)

// policyInForce is the newest node policy that this node has proof of.
//
// A joiner pins the manifest alone, and the policy may have changed since: so
// every member shows, in its statement, the operators' signatures under the
// newest change it knows of. Nobody believes a policy for any other reason, and
// nobody goes back behind one: a member that lagged while the policy changed must
// understand a leader that is of newer code, and a host that keeps a server of
// expelled code alive must not find a node that takes it for a member again.
// Signed is not committed: what is signed and was never submitted counts only for
// whom a member shows it, and members show only what they have applied.
type policyInForce struct {
	api.NodePolicy
	signed []byte    // api.SignedAdmin, encoded; empty for the manifest's own
	since  time.Time // when this node learnt of it
}

// policy is the node policy to judge by under the manifest m.
func (n *Node) policy(m *api.Manifest) api.NodePolicy {
	if p := n.inForce.Load(); p != nil {
		return p.NodePolicy
	}
	return m.FirstNodePolicy()
}

// shownPolicy is the policy to judge the sender of a verified statement by: the
// one it shows, if that is newer than ours.
func (n *Node) shownPolicy(m *api.Manifest, st *api.NodeStatement) (api.NodePolicy, error) {
	shown, err := st.NodePolicy(m)
	if err != nil {
		return api.NodePolicy{}, fmt.Errorf("%w: %w", ErrNotMember, err)
	}
	known := n.policy(m)
	if shown.Newer(known) {
		known = shown
	}
	if known.Version < n.cfg.MinNodePolicy {
		return api.NodePolicy{}, fmt.Errorf("%w: it knows the node policy up to version %d, this node wants %d at least", ErrNotMember, known.Version, n.cfg.MinNodePolicy)
	}
	return known, nil
}

// learnPolicy adopts a proven policy if it is newer, and shows it from now on.
// The evidence of whoever showed it has been judged by it.
func (n *Node) learnPolicy(p api.NodePolicy, signed []byte) {
	for {
		old := n.inForce.Load()
		if old != nil && !p.Newer(old.NodePolicy) {
			return
		}
		if !n.inForce.CompareAndSwap(old, &policyInForce{p, signed, time.Now()}) {
			continue
		}
		n.log.Info("node policy in force", "version", p.Version, "constraints", len(p.Constraints))
		n.showPolicy()
		n.onCollateral() // look at all members again
		time.AfterFunc(n.tune.expelGrace+time.Second, n.onCollateral)
		return
	}
}

// showPolicy puts the policy in force into the statement that we show.
func (n *Node) showPolicy() {
	n.showing.Lock()
	defer n.showing.Unlock()
	m, p := n.membership(), n.inForce.Load()
	if m == nil {
		return
	}
	statement := m.statement
	if p != nil && len(p.signed) > 0 {
		st, err := api.ParseNodeStatement(statement)
		if err == nil {
			st.Policy = p.signed
			statement, err = st.Marshal()
		}
		if err != nil { // cannot happen: the parts have been checked one by one
			n.log.Error("the node policy cannot be shown", "error", err)
			return
		}
	}
	n.prover.attach(statement)
}
