package node

import (
	"io"
	"log/slog"
	"slices"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// watched tells the node when its slot is given to another boot, and the store
// when the machine has halted.
type watched struct {
	*state.Machine
	n *Node
}

// Apply applies the entry and looks at admissions.
func (w watched) Apply(index uint64, entry []byte) any {
	result := w.Machine.Apply(index, entry)
	switch r := result.(type) {
	case state.Admitted:
		w.n.onAdmitted(r.Member)
	case state.Put:
		w.n.onCollateral()
	case state.Operated:
		w.n.onStatement(r)
	case state.Recovered:
		w.n.onState()
	}
	return result
}

// Halted makes it a raftstore.Halter: the store stops serving with the machine.
func (w watched) Halted() bool { return w.Machine.Halted() != nil }

// Restore may skip the entry that gave our slot away.
func (w watched) Restore(r io.Reader) error {
	err := w.Machine.Restore(r)
	if err == nil {
		w.n.onState()
	}
	return err
}

// onState looks at a state that has come as a whole.
func (n *Node) onState() {
	view := n.machine.View()
	for _, m := range view.Members {
		n.onAdmitted(m)
	}
	n.followState(view)
}

// onStatement is told of every statement of the operators.
func (n *Node) onStatement(s state.Operated) {
	n.log.Info("a statement of the operators was carried out", "kind", s.Kind, "sequence", s.Sequence)
	n.followState(n.machine.View())
}

// followState does here what the operators have decided.
func (n *Node) followState(view state.View) {
	n.followPolicy(view)
	if slices.Contains(view.Removed, [32]byte(n.boot.id)) {
		n.loseSlot(ErrRemoved)
	}
	if view.Ended {
		n.onEnded()
	}
	n.askReconcile()
}

func (n *Node) onAdmitted(m state.Member) {
	level := slog.LevelDebug
	if n.IsLeader() {
		level = slog.LevelInfo
	}
	n.log.Log(n.ctx, level, "admitted", "member", m.Slot, "incarnation", m.Incarnation, "server", api.ID(m.ServerID))
	// Not by the count: a slot that was removed and is taken again counts from 1,
	// and this boot replays who had it before.
	if m.Slot == n.cfg.Slot && m.ServerID != n.boot.id && slices.Contains(m.Former, [32]byte(n.boot.id)) {
		n.loseSlot(ErrSuperseded)
	}
}
