package node

import (
	"io"
	"log/slog"

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
	}
	return result
}

// Halted makes it a raftstore.Halter: the store stops serving with the machine.
func (w watched) Halted() bool { return w.Machine.Halted() != nil }

// Restore may skip the entry that gave our slot away.
func (w watched) Restore(r io.Reader) error {
	err := w.Machine.Restore(r)
	if err == nil {
		for _, m := range w.View().Members {
			w.n.onAdmitted(m)
		}
	}
	return err
}

func (n *Node) onAdmitted(m state.Member) {
	level := slog.LevelDebug
	if n.IsLeader() {
		level = slog.LevelInfo
	}
	n.log.Log(n.ctx, level, "admitted", "member", m.Slot, "incarnation", m.Incarnation, "server", api.ID(m.ServerID))
	if mine := n.membership(); m.Slot == n.cfg.Slot && m.ServerID != n.boot.id && mine != nil && m.Incarnation > mine.Incarnation {
		n.replace.Do(func() { close(n.replaced) })
	}
}
