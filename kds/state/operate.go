package state

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/claviger/claviger/kds/api"
)

type ticket = api.Ticket

// operate carries out one statement of the operators, if it is the next one for
// this cluster and epoch and enough of them signed it. A rejected one uses no
// sequence number up.
func (d *data) operate(e *Operate) (any, error) {
	s, err := api.ParseAdmin(e.Statement)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	switch {
	case s.ClusterID != d.clusterID:
		return nil, fmt.Errorf("%w: it is of cluster %s", ErrStatement, s.ClusterID)
	case s.Epoch != d.epoch:
		return nil, ErrEpoch
	case s.Sequence != d.sequence+1:
		return nil, fmt.Errorf("%w: it has %d, the next is %d", ErrSequence, s.Sequence, d.sequence+1)
	}
	body, err := s.Open()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	if err := d.operators.Check(e.Statement, e.Approvals); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStatement, err)
	}
	if err := d.perform(e, body); err != nil {
		return nil, err
	}
	d.sequence, d.lastStatement = d.sequence+1, sha256.Sum256(e.Statement)
	return Operated{s.Sequence, s.Kind}, nil
}

func (d *data) perform(e *Operate, body api.AdminBody) error {
	switch b := body.(type) {
	case *api.NodePolicyChange:
		if b.Parent != d.nodePolicy {
			return fmt.Errorf("%w: it is at version %d, the statement replaces %d", ErrNodePolicy, d.nodePolicy, b.Parent)
		}
		signed, err := (&api.SignedAdmin{Statement: e.Statement, Approvals: e.Approvals}).Marshal()
		if err != nil {
			return fmt.Errorf("%w: %w", ErrStatement, err)
		}
		d.nodePolicy, d.policy, d.policySigned = d.nodePolicy+1, b.Constraints, signed
		return nil
	case *api.Ticket:
		return d.issue(*b)
	case *api.RemoveSlot:
		return d.remove(b.Slot)
	case *api.Stop:
		d.ended = true
		return nil
	}
	return fmt.Errorf("%w: unknown kind", ErrStatement)
}

// issue keeps a ticket until it is used. A newer one for the same boot replaces it.
func (d *data) issue(t ticket) error {
	for _, m := range d.members {
		switch {
		case m.ServerID == t.ServerID:
			return fmt.Errorf("%w: the boot holds slot %s", ErrServerID, m.Slot)
		case slices.Contains(m.Former, [32]byte(t.ServerID)):
			return ErrSuperseded
		case m.PlatformID == t.PlatformID && m.Slot != t.Slot:
			return fmt.Errorf("%w: slot %s", ErrOneSlot, m.Slot)
		}
	}
	if slices.Contains(d.removed, [32]byte(t.ServerID)) {
		return ErrRemoved
	}
	kept := without(d.tickets, func(old ticket) bool { return old.ServerID == t.ServerID })
	kept = append(slices.Clone(kept), t)
	d.tickets = kept[max(0, len(kept)-MaxTickets):]
	return nil
}

// remove gives a slot up for good. Its platform returns with a ticket only:
// else the host of a removed machine would start it anew in an open slot.
func (d *data) remove(slot string) error {
	at, taken := d.slot(slot)
	switch {
	case !taken:
		return ErrSlot
	case len(d.members) == 1:
		return ErrLastSlot
	}
	m := d.members[at]
	d.members = slices.Delete(slices.Clone(d.members), at, at+1)
	d.removed = keepLast(MaxRemoved, d.removed, append(slices.Clone(m.Former), m.ServerID)...)
	d.expelled = keepLast(MaxRemoved, without(d.expelled, func(p [32]byte) bool { return p == m.PlatformID }), m.PlatformID)
	d.tickets = without(d.tickets, func(t ticket) bool { return t.Slot == slot })
	return nil
}
