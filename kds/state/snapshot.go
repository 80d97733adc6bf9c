package state

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/claviger/claviger/kds/api"
)

// MaxSnapshot bounds a snapshot in bytes.
const MaxSnapshot = (MaxCollateralSets + 4) * (api.MaxCollateral + 512)

// ErrSnapshot says that a snapshot is not one that this build writes.
var ErrSnapshot = errors.New("state: snapshot refused")

const snapshotLabel = "claviger/state/v1"

// snapshot is the encoded form of data: lists sorted by their keys.
type snapshot struct {
	_           struct{} `cbor:",toarray"`
	Label       string
	Level       uint64
	Applied     uint64
	Manifest    []byte
	IdentityKey []byte
	Epoch       uint64
	Generation  uint64
	NodePolicy  uint64
	TimeFloor   int64
	LogSize     uint64
	LogPeaks    [][32]byte
	Members     []Member
	Collateral  []Collateral
}

// frozen is a state that no longer changes.
type frozen struct{ s snapshot }

// Snapshot freezes the state; the returned writer encodes it when asked and
// may run beside Apply. The bytes depend on the applied entries only. A
// halted machine has no snapshot: its state misses an entry.
func (m *Machine) Snapshot() (io.WriterTo, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	if m.halted != nil {
		return nil, m.halted
	}
	d := &m.d
	sets := slices.SortedFunc(maps.Values(d.collateral), func(a, b Collateral) int { return compareKeys(a.Key, b.Key) })
	return &frozen{snapshot{
		Label: snapshotLabel, Level: d.level, Applied: d.applied, Manifest: d.manifest, IdentityKey: d.identity,
		Epoch: d.epoch, Generation: d.generation, NodePolicy: d.nodePolicy, TimeFloor: d.floor,
		LogSize: d.log.size, LogPeaks: d.log.peaks, Members: d.sortedMembers(), Collateral: sets,
	}}, nil
}

func compareKeys(a, b CollateralKey) int {
	return cmp.Or(cmp.Compare(a.TEE, b.TEE), bytes.Compare(a.FMSPC[:], b.FMSPC[:]), cmp.Compare(a.CA, b.CA))
}

// WriteTo writes the snapshot.
func (f *frozen) WriteTo(w io.Writer) (int64, error) {
	raw, err := api.MarshalCanonical(f.s)
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
	var s snapshot
	if err := api.UnmarshalCanonical(raw, MaxSnapshot, &s); err != nil {
		return fmt.Errorf("%w: %w", ErrSnapshot, err)
	}
	d, err := s.data()
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

// data checks what Apply would have guaranteed and builds the state.
func (s *snapshot) data() (*data, error) {
	d := &data{
		applied: s.Applied, level: s.Level, manifest: s.Manifest, identity: s.IdentityKey, epoch: s.Epoch,
		generation: s.Generation, nodePolicy: s.NodePolicy, floor: s.TimeFloor,
		log:     frontier{s.LogSize, s.LogPeaks},
		members: map[string]Member{}, collateral: map[CollateralKey]Collateral{},
	}
	switch {
	case s.Label != snapshotLabel:
		return nil, fmt.Errorf("label %.40q", s.Label)
	case !d.log.valid():
		return nil, errors.New("log frontier does not belong to its size")
	case len(s.Members) > maxSlots || len(s.Collateral) > MaxCollateralSets:
		return nil, ErrFull
	}
	if err := s.checkCluster(d); err != nil {
		return nil, err
	}
	for i, m := range s.Members {
		if i > 0 && s.Members[i-1].Slot >= m.Slot {
			return nil, errors.New("members are not sorted")
		}
		if err := m.check(); err != nil {
			return nil, err
		}
		if err := d.elsewhere(&Admit{Slot: m.Slot, ServerID: m.ServerID, PlatformID: m.PlatformID}); err != nil {
			return nil, err
		}
		d.members[m.Slot] = m
	}
	for i, c := range s.Collateral {
		if i > 0 && compareKeys(s.Collateral[i-1].Key, c.Key) >= 0 {
			return nil, errors.New("collateral is not sorted")
		}
		e := PutCollateral{Key: c.Key, Meta: c.Meta, Bundle: c.Bundle}
		if err := e.check(); err != nil {
			return nil, err
		}
		if c.Version == 0 || c.Meta.LatestIssue > s.TimeFloor {
			return nil, errors.New("collateral without a version or beyond the time floor")
		}
		d.collateral[c.Key] = c
	}
	return d, nil
}

// check finds what no accepted Admit would have left behind.
func (m *Member) check() error {
	e := Admit{CollateralKey: anyKey, Slot: m.Slot, Incarnation: m.Incarnation, ServerID: m.ServerID, PlatformID: m.PlatformID,
		RaftAddr: m.RaftAddr, APIAddr: m.APIAddr}
	if err := e.check(); err != nil {
		return err
	}
	if uint64(len(m.Former)) != min(m.Incarnation-1, MaxFormer) || slices.Contains(m.Former, m.ServerID) {
		return fmt.Errorf("slot %s: %d former boots at incarnation %d", m.Slot, len(m.Former), m.Incarnation)
	}
	return nil
}

// anyKey passes the check of the one field that a Member does not keep.
var anyKey = CollateralKey{TEE: "sgx", CA: "platform"}

// checkCluster derives the cluster id. A state before genesis is empty.
func (s *snapshot) checkCluster(d *data) error {
	if s.Level == 0 {
		if len(s.Manifest)+len(s.IdentityKey)+len(s.Members)+len(s.Collateral) > 0 || s.LogSize > 0 || s.TimeFloor != 0 {
			return errors.New("state without a cluster")
		}
		return nil
	}
	g := Genesis{Level: s.Level, Manifest: s.Manifest, IdentityKey: s.IdentityKey, Epoch: s.Epoch, Generation: s.Generation}
	if err := g.check(); err != nil {
		return err
	}
	if s.NodePolicy == 0 || s.LogSize == 0 {
		return errors.New("a founded cluster has a node policy and a log")
	}
	id, err := api.ClusterID(s.Manifest, s.IdentityKey)
	d.clusterID = id
	return err
}
