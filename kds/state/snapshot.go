package state

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/claviger/claviger/kds/api"
)

// Bounds in bytes. MaxState is for the snapshot of a cluster, MaxSnapshot for
// any: also of one whose recovery has received a part of such a snapshot.
const (
	MaxState    = (MaxCollateralSets + 16) * (api.MaxCollateral + 512)
	MaxSnapshot = MaxState + 2*MaxEntry
)

// ErrSnapshot says that a snapshot is not one that this build writes.
var ErrSnapshot = errors.New("state: snapshot refused")

const (
	snapshotLabel = "claviger/state/v2"
	rootsLabel    = "claviger/state/v3"
)

// rootsSnapshot is the encoded form of data from LevelRoots on. What is below it
// keeps the form that builds of before read and write.
type rootsSnapshot struct {
	_     struct{} `cbor:",toarray"`
	Label string
	State snapshot
	Roots [][32]byte
}

// arrayOfThree begins the encoding of a rootsSnapshot, and of no other.
const arrayOfThree = 0x83

// snapshot is the encoded form of data: lists sorted by their keys.
type snapshot struct {
	_             struct{} `cbor:",toarray"`
	Label         string
	Level         uint64
	Applied       uint64
	Manifest      []byte
	IdentityKey   []byte
	RecoveryKey   []byte
	Epoch         uint64
	Generation    uint64
	Ended         bool
	Sequence      uint64
	NodePolicy    uint64
	Policy        []string
	PolicySigned  []byte
	LastStatement [32]byte
	TimeFloor     int64
	LogSize       uint64
	LogPeaks      [][32]byte
	Members       []Member
	Founding      bool
	Founder       [32]byte
	Opened        uint64
	Tickets       []api.Ticket
	Removed       [][32]byte
	Expelled      [][32]byte
	Collateral    []Collateral
	Recover       []byte // an encoded Recover that is not complete; empty if there is none
	Received      []byte // what has arrived for it
}

// frozen is a state that no longer changes.
type frozen struct{ d data }

// Snapshot freezes the state: it copies one struct, whatever the size of the
// state, because nothing that the struct leads to ever changes in place. The
// returned writer encodes it when asked and may run beside Apply. The bytes
// depend on the applied entries only. A halted machine has no snapshot: its
// state misses an entry.
func (m *Machine) Snapshot() (io.WriterTo, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.halted != nil {
		return nil, m.halted
	}
	return &frozen{m.d}, nil
}

func (d *data) form() (*snapshot, error) {
	s := &snapshot{
		Label: snapshotLabel, Level: d.level, Applied: d.applied, Manifest: d.manifest, IdentityKey: d.identity, RecoveryKey: d.recoveryKey,
		Epoch: d.epoch, Generation: d.generation, Ended: d.ended, Sequence: d.sequence, NodePolicy: d.nodePolicy, Policy: d.policy, PolicySigned: d.policySigned, LastStatement: d.lastStatement,
		TimeFloor: d.floor, LogSize: d.log.size, LogPeaks: d.log.peaks, Members: d.members,
		Founding: d.founding, Founder: d.founder, Opened: d.opened, Tickets: d.tickets, Removed: d.removed, Expelled: d.expelled,
		Collateral: slices.Collect(d.collateral.all()),
	}
	if d.pending != nil {
		raw, err := Encode(d.pending.entry)
		if err != nil {
			return nil, err
		}
		s.Recover, s.Received = raw, d.pending.received
	}
	return s, nil
}

// encode is the snapshot of a state in the form of its level.
func (d *data) encode() ([]byte, error) {
	s, err := d.form()
	if err != nil {
		return nil, err
	}
	if d.level < LevelRoots {
		return api.MarshalCanonical(s)
	}
	return api.MarshalCanonical(rootsSnapshot{Label: rootsLabel, State: *s, Roots: d.roots})
}

// WriteTo writes the snapshot.
func (f *frozen) WriteTo(w io.Writer) (int64, error) {
	raw, err := f.d.encode()
	if err != nil {
		return 0, err
	}
	n, err := w.Write(raw)
	return int64(n), err
}

// Restore replaces the whole state by a snapshot of at most MaxSnapshot
// bytes. On any error the machine is as before. A halted machine stays
// halted.
func (m *Machine) Restore(r io.Reader) error {
	raw, err := io.ReadAll(io.LimitReader(r, MaxSnapshot+1))
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	d, err := parseSnapshot(raw, MaxSnapshot, m.level)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted != nil {
		return m.halted
	}
	m.d = *d
	return nil
}

// parseSnapshot reads a snapshot as a build of the given level does.
func parseSnapshot(raw []byte, limit int, level uint64) (*data, error) {
	s, roots, err := decodeSnapshot(raw, limit)
	if err != nil {
		return nil, err
	}
	switch {
	case s.Level > level:
		return nil, fmt.Errorf("%w: feature level %d, this build knows %d", ErrKind, s.Level, level)
	case len(s.Recover) > 0 || len(s.Received) > 0:
		return s.recovering(level)
	case s.Level == 0:
		return s.empty()
	}
	return s.data(roots)
}

// decodeSnapshot reads the form that belongs to the level of the state in it.
func decodeSnapshot(raw []byte, limit int) (*snapshot, [][32]byte, error) {
	var later rootsSnapshot
	if len(raw) == 0 || raw[0] != arrayOfThree {
		s := &later.State
		if err := api.UnmarshalCanonical(raw, limit, s); err != nil {
			return nil, nil, err
		}
		if s.Label != snapshotLabel || s.Level >= LevelRoots {
			return nil, nil, fmt.Errorf("label %.40q at level %d", s.Label, s.Level)
		}
		return s, nil, nil
	}
	if err := api.UnmarshalCanonical(raw, limit, &later); err != nil {
		return nil, nil, err
	}
	if later.Label != rootsLabel || later.State.Label != snapshotLabel || later.State.Level < LevelRoots {
		return nil, nil, fmt.Errorf("label %.40q at level %d", later.Label, later.State.Level)
	}
	return &later.State, later.Roots, nil
}

// empty is a state before genesis, with nothing in it but an index.
func (s *snapshot) empty() (*data, error) {
	d := &data{applied: s.Applied}
	if err := s.same(d); err != nil {
		return nil, errors.New("state without a cluster")
	}
	return d, nil
}

// recovering is a state whose recovery is not complete.
func (s *snapshot) recovering(level uint64) (*data, error) {
	e, err := decode(s.Recover, level)
	if err != nil {
		return nil, err
	}
	r, ok := e.(*Recover)
	if !ok || uint64(len(s.Received)) >= r.Size {
		return nil, errors.New("a recovery that is none, or that is complete")
	}
	p, err := r.open()
	if err != nil {
		return nil, err
	}
	p.received = s.Received
	d := &data{applied: s.Applied, pending: p}
	return d, s.same(d)
}

// same reports whether the snapshot is what d would write, so that nothing in
// it is left unread.
func (s *snapshot) same(d *data) error {
	form, err := d.form()
	if err != nil {
		return err
	}
	a, err := api.MarshalCanonical(s)
	if err != nil {
		return err
	}
	b, err := api.MarshalCanonical(form)
	if err != nil {
		return err
	}
	if !bytes.Equal(a, b) {
		return errors.New("it holds more than belongs into it")
	}
	return nil
}

// data checks what Apply would have guaranteed and builds the state of a cluster.
func (s *snapshot) data(roots [][32]byte) (*data, error) {
	if err := checkIDs(roots); err != nil {
		return nil, err
	}
	if uint64(len(roots)) > s.Generation {
		return nil, fmt.Errorf("ids of %d root generations, and there are %d", len(roots), s.Generation)
	}
	d := &data{roots: orNil(roots),
		applied: s.Applied, level: s.Level, recoveryKey: orNil(s.RecoveryKey), epoch: s.Epoch, generation: s.Generation,
		ended: s.Ended, sequence: s.Sequence, nodePolicy: s.NodePolicy, policy: s.Policy, policySigned: orNil(s.PolicySigned), lastStatement: s.LastStatement, floor: s.TimeFloor,
		log:      frontier{s.LogSize, s.LogPeaks},
		founding: s.Founding, founder: s.Founder, opened: s.Opened, tickets: orNil(s.Tickets), removed: orNil(s.Removed), expelled: orNil(s.Expelled),
	}
	if err := s.checkCluster(d); err != nil {
		return nil, err
	}
	if err := s.addMembers(d); err != nil {
		return nil, err
	}
	if err := d.checkOperated(); err != nil {
		return nil, err
	}
	return d, s.addCollateral(d)
}

// orNil makes a restored list equal to the one that was never filled.
func orNil[S ~[]E, E any](s S) S {
	if len(s) == 0 {
		return nil
	}
	return s
}

func (s *snapshot) addMembers(d *data) error {
	if len(s.Members) > maxSlots {
		return ErrFull
	}
	for i, m := range s.Members {
		if i > 0 && s.Members[i-1].Slot >= m.Slot {
			return errors.New("members are not sorted")
		}
		if err := m.check(s.Level); err != nil {
			return err
		}
		if err := d.elsewhere(&Admit{Slot: m.Slot, ServerID: m.ServerID, PlatformID: m.PlatformID}); err != nil {
			return err
		}
		if m.Admitted > s.Applied {
			return fmt.Errorf("slot %s was given away at index %d", m.Slot, m.Admitted)
		}
		m.Former = orNil(m.Former)
		d.members = append(d.members, m)
	}
	return nil
}

func (s *snapshot) addCollateral(d *data) error {
	if len(s.Collateral) > MaxCollateralSets {
		return ErrFull
	}
	for i, c := range s.Collateral {
		if i > 0 && compareKeys(s.Collateral[i-1].Key, c.Key) >= 0 {
			return errors.New("collateral is not sorted")
		}
		e := PutCollateral{Key: c.Key, Meta: c.Meta, Bundle: c.Bundle}
		if err := e.check(); err != nil {
			return err
		}
		if c.Version == 0 || c.Meta.LatestIssue > s.TimeFloor {
			return errors.New("collateral without a version or beyond the time floor")
		}
		d.collateral = d.collateral.put(c)
	}
	return nil
}

// checkOperated finds what no statements of operators would have left behind.
func (d *data) checkOperated() error {
	switch {
	case len(d.tickets) > MaxTickets || len(d.removed) > MaxRemoved || len(d.expelled) > MaxRemoved:
		return ErrFull
	case d.opened > d.openSlots:
		return errors.New("more open slots were taken than there are")
	case !d.founding && len(d.members) == 0:
		return errors.New("an epoch goes on without its founder")
	case d.nodePolicy-1 > d.sequence || uint64(len(d.tickets)) > d.sequence || uint64(len(d.expelled)) > d.sequence || d.ended && d.sequence == 0:
		return errors.New("more was changed than operators have signed")
	}
	gone := map[[32]byte]bool{}
	for _, id := range d.removed {
		if id == [32]byte{} || gone[id] {
			return errors.New("a removed boot is listed twice, or is none")
		}
		gone[id] = true
	}
	for i, p := range d.expelled {
		if p == [32]byte{} || slices.Contains(d.expelled[:i], p) {
			return errors.New("a removed platform is listed twice, or is none")
		}
	}
	for _, m := range d.members {
		if gone[m.ServerID] || slices.Contains(d.expelled, m.PlatformID) {
			return fmt.Errorf("slot %s is held by who was removed", m.Slot)
		}
		gone[m.ServerID] = true
	}
	for _, t := range d.tickets {
		if gone[t.ServerID] || t.Check() != nil {
			return errors.New("a ticket for who has, or had, a slot")
		}
		gone[t.ServerID] = true
	}
	return nil
}

// check finds what no accepted Admit would have left behind in a state of a level.
func (m *Member) check(level uint64) error {
	e := Admit{CollateralKey: CollateralKey{TEE: m.TEE, CA: "platform"}, Slot: m.Slot, Incarnation: m.Incarnation,
		ServerID: m.ServerID, PlatformID: m.PlatformID, RaftAddr: m.RaftAddr, APIAddr: m.APIAddr,
		Level: m.Level, TEE: m.TEE, Measurement: m.Measurement, TCBStatus: m.TCBStatus}
	if err := e.check(); err != nil {
		return err
	}
	if e.needs() > level {
		return fmt.Errorf("slot %s: its measurement needs feature level %d, the state is at %d", m.Slot, e.needs(), level)
	}
	if uint64(len(m.Former)) != min(m.Incarnation-1, MaxFormer) || slices.Contains(m.Former, m.ServerID) {
		return fmt.Errorf("slot %s: %d former boots at incarnation %d", m.Slot, len(m.Former), m.Incarnation)
	}
	return nil
}

// checkCluster derives the cluster id and takes over the manifest.
func (s *snapshot) checkCluster(d *data) error {
	g := Genesis{Level: s.Level, Manifest: s.Manifest, IdentityKey: s.IdentityKey, Epoch: s.Epoch, Generation: s.Generation, RecoveryKey: s.RecoveryKey}
	if err := g.check(); err != nil {
		return err
	}
	switch {
	case s.NodePolicy == 0 || s.LogSize == 0 || s.Applied == 0:
		return errors.New("a founded cluster has a node policy, a log and an entry")
	case !d.log.valid():
		return errors.New("log frontier does not belong to its size")
	}
	if err := api.CheckNodePolicy(s.Policy); err != nil {
		return err
	}
	if err := d.setManifest(s.Manifest, s.IdentityKey); err != nil {
		return err
	}
	return d.checkPolicy(s.Policy)
}

// checkPolicy compares the node policy with what the operators have signed.
func (d *data) checkPolicy(list []string) error {
	m, err := api.ParseManifest(d.manifest)
	if err != nil {
		return err
	}
	p, err := api.ParseNodePolicy(m, d.clusterID, d.policySigned)
	if err != nil {
		return err
	}
	if p.Version != d.nodePolicy || p.Epoch > d.epoch || !slices.Equal(p.Constraints, list) {
		return errors.New("the node policy is another one than the operators have signed")
	}
	if (d.sequence == 0) != (d.lastStatement == [32]byte{}) {
		return errors.New("the last statement is not that of the sequence")
	}
	return nil
}
