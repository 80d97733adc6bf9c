package node

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// policyInForce is the newest node policy that this node has proof of.
//
// A joiner pins the manifest alone, and the policy may have changed since: so
// every member shows, in its statement, the operators' signatures under the
// newest change it knows of. Nobody believes a policy for any other reason, and
// nobody goes back behind one: a member that lagged while the policy changed must
// understand a leader that is of newer code, and a host that keeps a server of
// expelled code alive must not find a node that takes it for a member again.
// Signed is not committed: operators sign again when another statement comes first,
// and a host keeps what they signed before. Where the log has come past the place
// that a policy was signed for, the state says what became of it, and a policy that
// is not the state's counts for nothing: see overtaken.
type policyInForce struct {
	api.NodePolicy
	signed []byte    // api.SignedAdmin, encoded; empty for the manifest's own
	since  time.Time // when this node learnt of it
}

// errBehind is beside ErrNotMember where the member may merely lag behind: it
// passes when the member has caught up, or never, at a host's that shows an old one.
var errBehind = errors.New("it may lag behind")

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
	if shown.Newer(known) && !n.overtaken(shown) {
		known = shown
	}
	if known.Version < n.cfg.MinNodePolicy {
		return api.NodePolicy{}, fmt.Errorf("%w: %w: it knows the node policy up to version %d, this node wants %d at least", ErrNotMember, errBehind, known.Version, n.cfg.MinNodePolicy)
	}
	return known, nil
}

// overtaken reports whether the state here has decided on a policy, and for
// another one: it was signed for an epoch that is over, or for a place in the order
// of statements that has been filled, and is not in force.
func (n *Node) overtaken(p api.NodePolicy) bool {
	v := n.machine.View()
	open := v.ClusterID.IsZero() || p.Epoch > v.Epoch || p.Epoch == v.Epoch && p.Sequence > v.Sequence
	return !open && (p.Version != v.NodePolicy || !slices.Equal(p.Constraints, v.NodePolicyText))
}

// followPolicy adopts the policy of the state.
func (n *Node) followPolicy(view state.View) {
	m := n.membership()
	if m == nil || len(view.NodePolicySigned) == 0 && n.inForce.Load() == nil {
		return
	}
	p, err := api.ParseNodePolicy(m.manifest, m.clusterID, view.NodePolicySigned)
	if err != nil { // cannot happen: Apply has checked it
		n.log.Error("the node policy in the state cannot be read", "error", err)
		return
	}
	n.learnPolicy(p, view.NodePolicySigned)
}

// learnPolicy adopts a proven policy if it is newer, or if the one before was
// overtaken, and shows it from now on. The evidence of whoever showed it has been
// judged by it.
func (n *Node) learnPolicy(p api.NodePolicy, signed []byte) {
	for {
		old := n.inForce.Load()
		if n.overtaken(p) || old != nil && !p.Newer(old.NodePolicy) && !n.overtaken(old.NodePolicy) {
			return
		}
		if !n.inForce.CompareAndSwap(old, &policyInForce{p, signed, time.Now()}) {
			continue
		}
		n.log.Info("node policy in force", "version", p.Version, "constraints", len(p.Constraints))
		n.showPolicy()
		n.onCollateral() // look at all members again
		time.AfterFunc(n.tune.expelGrace+time.Second, n.onCollateral)
		if n.overtaken(p) { // by what was applied in between
			n.followPolicy(n.machine.View())
		}
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
