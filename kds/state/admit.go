package state

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
)

// slot returns where a slot is, or belongs, in members.
func (d *data) slot(name string) (at int, taken bool) {
	return slices.BinarySearchFunc(d.members, name, func(m Member, s string) int { return cmp.Compare(m.Slot, s) })
}

func (d *data) admit(e *Admit) (any, error) {
	at, taken := d.slot(e.Slot)
	var old Member
	if taken {
		old = d.members[at]
	}
	again := taken && old.ServerID == e.ServerID
	next := old.Incarnation + 1
	if again {
		next = old.Incarnation
	}
	switch {
	case e.Epoch != d.epoch:
		return nil, ErrEpoch
	case e.NodePolicy != d.nodePolicy:
		return nil, ErrNodePolicy
	case d.uncommitted():
		return nil, ErrUncommitted
	case !d.collateral.current(e.CollateralKey, e.CollateralVersion):
		return nil, ErrCollateral
	case e.Level < d.level:
		return nil, fmt.Errorf("%w: the joining build knows %d, the cluster is at %d; use a newer build", ErrLevel, e.Level, d.level)
	case !taken && len(d.members) >= maxSlots:
		return nil, fmt.Errorf("%w: %d slots", ErrFull, maxSlots)
	case slices.Contains(d.removed, e.ServerID):
		return nil, ErrRemoved
	case slices.Contains(old.Former, e.ServerID):
		return nil, ErrSuperseded
	}
	how, err := d.entitled(e, old)
	switch {
	case err != nil:
		return nil, err
	case e.Incarnation != next: // two claimants of one slot: the second is refused here
		return nil, fmt.Errorf("%w: slot %s is at incarnation %d", ErrIncarnation, e.Slot, old.Incarnation)
	case again:
		return Admitted{old}, nil
	}
	if err := d.elsewhere(e); err != nil {
		return nil, err
	}
	m := Member{Slot: e.Slot, Incarnation: e.Incarnation, ServerID: e.ServerID, PlatformID: e.PlatformID,
		RaftAddr: e.RaftAddr, APIAddr: e.APIAddr, Admitted: d.applied,
		Level: e.Level, TEE: e.TEE, Measurement: e.Measurement, TCBStatus: e.TCBStatus}
	d.members = slices.Clone(d.members)
	if taken {
		m.Former = keepLast(MaxFormer, old.Former, old.ServerID)
		d.members[at] = m
	} else {
		d.members = slices.Insert(d.members, at, m)
	}
	d.use(e, how)
	return Admitted{m}, nil
}

// keepLast appends and forgets the oldest beyond limit; list stays as it is.
func keepLast(limit int, list [][32]byte, more ...[32]byte) [][32]byte {
	out := slices.Concat(list, more)
	return slices.Clone(out[max(0, len(out)-limit):])
}

// title is by what right a boot takes a slot.
type title int

const (
	byPlatform title = iota + 1 // the slot's own
	byTicket                    // signed by the operators
	byFounding                  // the boot that opened the epoch: they signed for its key
	byOpenSlot                  // the manifest lets anybody have it
)

// entitled says by what right the boot may have the slot; old is zero for a
// new one. A ticket names slot, boot and platform; a platform whose slot was
// removed has no other way back.
func (d *data) entitled(e *Admit, old Member) (title, error) {
	switch {
	case old.PlatformID == e.PlatformID:
		return byPlatform, nil
	case d.ticketFor(e) >= 0:
		return byTicket, nil
	case d.founding && (d.founder == [32]byte{} || d.founder == e.ServerID):
		return byFounding, nil
	case old.Slot != "":
		return 0, fmt.Errorf("%w: %w", ErrTicket, ErrPlatform)
	case d.opened < d.openSlots && !slices.Contains(d.expelled, e.PlatformID):
		return byOpenSlot, nil
	}
	return 0, ErrTicket
}

func (d *data) ticketFor(e *Admit) int {
	for i, t := range d.tickets {
		if t.Slot == e.Slot && t.ServerID == e.ServerID && t.PlatformID == e.PlatformID {
			return i
		}
	}
	return -1
}

// use takes away what an admission has used up: an open slot, and every ticket
// of the boot, which has its one place now.
func (d *data) use(e *Admit, how title) {
	if how == byOpenSlot {
		d.opened++
	}
	d.founding = d.founding && d.founder != [32]byte{} && d.founder != e.ServerID
	d.tickets = without(d.tickets, func(t ticket) bool { return t.ServerID == e.ServerID })
	d.expelled = without(d.expelled, func(p [32]byte) bool { return p == e.PlatformID })
}

// without returns list less what gone says; list stays as it is.
func without[T any](list []T, gone func(T) bool) []T {
	if !slices.ContainsFunc(list, gone) {
		return list
	}
	return slices.DeleteFunc(slices.Clone(list), gone)
}

// elsewhere refuses who has, or had, a place in another slot: one boot holds
// one place, once, and one machine counts once in a majority.
func (d *data) elsewhere(e *Admit) error {
	for _, m := range d.members {
		switch {
		case m.Slot == e.Slot:
		case m.ServerID == e.ServerID || slices.Contains(m.Former, e.ServerID):
			return ErrServerID
		case m.PlatformID == e.PlatformID:
			return ErrOneSlot
		}
	}
	return nil
}

func compareKeys(a, b CollateralKey) int {
	return cmp.Or(cmp.Compare(a.TEE, b.TEE), bytes.Compare(a.FMSPC[:], b.FMSPC[:]), cmp.Compare(a.CA, b.CA))
}
