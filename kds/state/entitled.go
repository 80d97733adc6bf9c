package state

import (
	"fmt"
	"slices"
)

// Entitled says what Admit would say of a boot on a platform that asks for a
// slot, as far as tickets and removals go: nil, or an error that matches
// ErrTicket, ErrRemoved, ErrSuperseded or ErrOneSlot. It lets a leader refuse
// a stranger before anything is written; Apply decides.
func (m *Machine) Entitled(slot string, server, platform [32]byte) error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d := &m.d
	at, taken := d.slot(slot)
	var old Member
	if taken {
		old = d.members[at]
	}
	switch {
	case slices.Contains(d.removed, server):
		return ErrRemoved
	case slices.Contains(old.Former, server):
		return ErrSuperseded
	}
	for _, m := range d.members {
		if m.Slot != slot && m.PlatformID == platform {
			return fmt.Errorf("%w: slot %s", ErrOneSlot, m.Slot)
		}
	}
	_, err := d.entitled(&Admit{Slot: slot, ServerID: server, PlatformID: platform}, old)
	return err
}
