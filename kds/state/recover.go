package state

import (
	"crypto/sha256"
	"fmt"
	"slices"

	"github.com/claviger/claviger/kds/api"
)

// pending is a recovery whose snapshot has not arrived whole. It is a value:
// what is received is appended to behind the length that others see.
type pending struct {
	entry     *Recover
	statement *api.RecoveryStatement
	received  []byte
}

// open verifies who signed a recovery, and that it is for this state.
func (e *Recover) open() (*pending, error) {
	id, err := api.ClusterID(e.Manifest, e.IdentityKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	m, err := api.ParseManifest(e.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	s, err := api.ParseRecovery(e.Statement)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	if err := s.Check(id, &m.Operators, e.Approvals); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	if s.AcceptsEntries() && e.Level < LevelRoots { // builds of before know no such words
		return nil, fmt.Errorf("%w: that entries are lost is accepted from level %d on", ErrRecovery, LevelRoots)
	}
	if s.Source.StateSHA256 != e.SHA256 {
		return nil, fmt.Errorf("%w: the operators signed for another state", ErrRecovery)
	}
	return &pending{entry: e, statement: s}, nil
}

// recover begins a recovery on an empty machine.
func (d *data) recover(e *Recover) (any, error) {
	switch {
	case d.pending != nil:
		return nil, ErrRecovering
	case !d.clusterID.IsZero():
		return nil, ErrFounded
	}
	p, err := e.open()
	if err != nil {
		return nil, err
	}
	d.pending = p
	return Recovering{}, nil
}

// part takes the next piece; the last one completes the recovery, or ends it
// and leaves an empty machine.
func (d *data) part(e *RecoverPart, known uint64) (any, error) {
	p := d.pending
	if p == nil {
		return nil, fmt.Errorf("%w: a part, and no recovery has begun", ErrRecovery)
	}
	have, size := uint64(len(p.received)), p.entry.Size
	if e.Offset != have || uint64(len(e.Data)) > size-have {
		return nil, fmt.Errorf("%w: a part of %d bytes at %d, where %d of %d have been received", ErrRecovery, len(e.Data), e.Offset, have, size)
	}
	next := &pending{p.entry, p.statement, append(p.received, e.Data...)}
	if uint64(len(next.received)) < size {
		d.pending = next
		return Recovering{uint64(len(next.received))}, nil
	}
	n, err := next.complete(known)
	if err != nil {
		*d = data{applied: d.applied}
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	n.applied = d.applied
	*d = *n
	return Recovered{d.clusterID, d.epoch, d.generation}, nil
}

// complete is the state that the new epoch begins with.
func (p *pending) complete(known uint64) (*data, error) {
	if sha256.Sum256(p.received) != p.entry.SHA256 {
		return nil, fmt.Errorf("the snapshot has another hash than the operators signed")
	}
	d, err := parseSnapshot(p.received, MaxState, known)
	if err != nil {
		return nil, err
	}
	if err := p.matches(d); err != nil {
		return nil, err
	}
	s := p.statement
	d.level, d.epoch, d.generation, d.ended = p.entry.Level, s.Epoch, s.Generation, false
	d.founding, d.founder, d.tickets = true, s.Enclave, nil
	d.members = slices.Clone(d.members)
	for i := range d.members {
		d.members[i].Admitted = 0 // an index of the old epoch's log
	}
	return d, d.openLog()
}

// matches compares the state with what the operators read and signed. That the
// hash is theirs says that they were shown it by the enclave; this says that
// what they were shown about it is true.
func (p *pending) matches(d *data) error {
	s, src := p.statement, p.statement.Source
	switch {
	case d.clusterID != s.ClusterID:
		return fmt.Errorf("the snapshot is of cluster %s, or of none", d.clusterID)
	case d.epoch != src.Epoch || d.applied > src.Applied || d.nodePolicy != src.NodePolicy:
		return fmt.Errorf("the snapshot is of epoch %d, index %d, node policy %d", d.epoch, d.applied, d.nodePolicy)
	case d.log.size != src.LogSize || d.log.root() != src.LogRoot:
		return fmt.Errorf("the snapshot's log has another head")
	case s.Generation <= d.generation:
		return fmt.Errorf("generation %d exists already", s.Generation)
	case p.entry.Level < d.level:
		return fmt.Errorf("the feature level would fall from %d to %d", d.level, p.entry.Level)
	case slices.Contains(d.removed, [32]byte(s.Enclave)):
		return ErrRemoved
	}
	for _, m := range d.members {
		if !s.Names(m.Slot, m.ServerID) {
			return fmt.Errorf("the operators do not say what became of server %s in slot %s", api.ID(m.ServerID), m.Slot)
		}
		if slices.Contains(m.Former, [32]byte(s.Enclave)) {
			return ErrSuperseded
		}
	}
	return nil
}
