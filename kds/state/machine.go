package state

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/claviger/claviger/kds/api"
)

// Limits of the state.
const (
	MaxCollateralSets = 512 // keys of collateral; Intel publishes fewer
	maxSlots          = api.MaxMembers

	// MaxFormer is how many earlier boots a slot remembers. One of before that
	// could take its slot back, if its process was kept alive and had never been
	// in a configuration that anybody remembers; it would be an ordinary newest
	// boot then, and no older one would come back to life beside it.
	MaxFormer = 256
)

// Reasons for rejecting a well-formed entry.
var (
	ErrNoCluster   = errors.New("state: there is no cluster yet; genesis comes first")
	ErrFounded     = errors.New("state: the cluster has been founded already")
	ErrEpoch       = errors.New("state: the entry is of another epoch")
	ErrNodePolicy  = errors.New("state: the node policy has changed since the decision")
	ErrCollateral  = errors.New("state: the collateral has changed since the decision")
	ErrGeneration  = errors.New("state: no such root generation")
	ErrNotNewer    = errors.New("state: the collateral is not newer than the replicated set")
	ErrIncarnation = errors.New("state: another boot holds or has held this place in the slot")
	ErrPlatform    = errors.New("state: the slot belongs to another platform")
	ErrServerID    = errors.New("state: the server id is in use by another slot")
	ErrSuperseded  = errors.New("state: a newer boot has taken the slot over; this one cannot return")
	ErrOneSlot     = errors.New("state: the platform has another slot already; a platform has one")
	ErrFull        = errors.New("state: a limit of the state is reached")
	ErrHalted      = errors.New("state: halted at an entry this build does not understand; update the node")
	errIndex       = errors.New("state: entries must come with rising indexes")
	errPanic       = errors.New("state: applying the entry failed")
)

// Rejected is the result of an entry that every node refused in the same way.
type Rejected struct {
	Err error // one of the reasons above
}

// Error returns the reason.
func (r *Rejected) Error() string { return "rejected: " + r.Err.Error() }

// Unwrap returns the reason.
func (r *Rejected) Unwrap() error { return r.Err }

// Results of accepted entries, by kind.
type (
	// Founded is the result of Genesis.
	Founded struct{ ClusterID api.ID }
	// Admitted is the result of Admit.
	Admitted struct{ Member Member }
	// Put is the result of PutCollateral: the version now in force.
	Put struct{ Version uint64 }
	// Released is the result of Release: where the leaf is, and the proof.
	Released struct {
		Index, Size uint64
		Root        [32]byte
		Proof       [][32]byte
	}
)

// Member is the holder of a slot.
type Member struct {
	_           struct{} `cbor:",toarray"`
	Slot        string
	Incarnation uint64
	ServerID    [32]byte
	PlatformID  [32]byte
	RaftAddr    string
	APIAddr     string
	Admitted    uint64     // index of the entry
	Former      [][32]byte // server ids that held the slot before, oldest first, at most MaxFormer; read only
}

// Collateral is one replicated set.
type Collateral struct {
	_       struct{} `cbor:",toarray"`
	Key     CollateralKey
	Meta    CollateralMeta
	Version uint64 // from 1, per key
	Bundle  []byte // read only
}

// Head is the head of the release log.
type Head struct {
	Size uint64
	Root [32]byte
}

// View is a consistent copy of what is not per key.
type View struct {
	Applied     uint64 // index of the last entry
	ClusterID   api.ID // zero before genesis
	Manifest    []byte
	IdentityKey []byte
	Epoch       uint64
	Generation  uint64
	NodePolicy  uint64    // version
	TimeFloor   time.Time // the latest signed time seen; zero if none
	Log         Head
	Members     []Member // by slot
}

// data is the state; values reachable from it are never changed in place.
type data struct {
	applied    uint64
	level      uint64
	manifest   []byte
	identity   []byte
	clusterID  api.ID
	epoch      uint64
	generation uint64
	nodePolicy uint64
	floor      int64
	log        frontier
	members    map[string]Member
	collateral map[CollateralKey]Collateral
}

// Machine applies entries. Apply and Restore are called by one goroutine, the
// replication; everything else may be called from any.
type Machine struct {
	mu     sync.RWMutex
	d      data  // guarded by mu
	halted error // guarded by mu; nil while running
}

// New returns an empty machine, which waits for Genesis.
func New() *Machine {
	return &Machine{d: data{members: map[string]Member{}, collateral: map[CollateralKey]Collateral{}}}
}

// Apply applies the entry at index and returns a Founded, Admitted, Put or
// Released, or an error: *Rejected, the same on every node, or one that
// matches ErrHalted. It never panics and never blocks on anything but
// readers.
func (m *Machine) Apply(index uint64, entry []byte) (result any) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.halted != nil {
		return m.halted
	}
	before := m.d
	defer func() {
		if r := recover(); r != nil {
			m.d = before // handlers change the maps last, so the shallow copy is the old state
			m.halted = fmt.Errorf("%w: index %d: %w: %v", ErrHalted, index, errPanic, r)
			result = m.halted
		}
	}()
	if index <= m.d.applied {
		return m.halt(index, fmt.Errorf("%w: after %d", errIndex, m.d.applied))
	}
	e, err := Decode(entry)
	if err != nil {
		return m.halt(index, err)
	}
	m.d.applied = index
	out, err := m.d.apply(e)
	if err != nil {
		return &Rejected{err}
	}
	return out
}

func (m *Machine) halt(index uint64, err error) error {
	m.halted = fmt.Errorf("%w: index %d: %w", ErrHalted, index, err)
	return m.halted
}

// Halted returns nil, or why the machine stopped; it matches ErrHalted.
func (m *Machine) Halted() error {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.halted
}

func (d *data) apply(e Entry) (any, error) {
	if g, ok := e.(*Genesis); ok {
		return d.found(g)
	}
	if d.clusterID.IsZero() {
		return nil, ErrNoCluster
	}
	switch e := e.(type) {
	case *Admit:
		return d.admit(e)
	case *PutCollateral:
		return d.put(e)
	case *Release:
		return d.release(e)
	}
	return nil, ErrKind
}

func (d *data) found(g *Genesis) (any, error) {
	if !d.clusterID.IsZero() {
		return nil, ErrFounded
	}
	id, err := api.ClusterID(g.Manifest, g.IdentityKey)
	if err != nil {
		return nil, err
	}
	leaf, err := firstLeaf(id, g.Epoch, Head{})
	if err != nil {
		return nil, err
	}
	d.level, d.manifest, d.identity, d.clusterID = g.Level, g.Manifest, g.IdentityKey, id
	d.epoch, d.generation, d.nodePolicy = g.Epoch, g.Generation, 1
	d.log, _ = d.log.append(leaf)
	return Founded{id}, nil
}

// firstLeaf is leaf 0 of an epoch: it commits to the head that the epoch
// before ended with, so that epochs form one history.
func firstLeaf(id api.ID, epoch uint64, old Head) ([32]byte, error) {
	raw, err := api.MarshalCanonical([]any{"claviger/log/epoch/v1", [32]byte(id), epoch, old.Size, old.Root})
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(raw), nil
}

func (d *data) admit(e *Admit) (any, error) {
	old, taken := d.members[e.Slot]
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
	case e.CollateralVersion == 0 || d.collateral[e.CollateralKey].Version != e.CollateralVersion:
		return nil, ErrCollateral
	case !taken && len(d.members) >= maxSlots:
		return nil, fmt.Errorf("%w: %d slots", ErrFull, maxSlots)
	case taken && old.PlatformID != e.PlatformID:
		return nil, ErrPlatform
	case slices.Contains(old.Former, e.ServerID):
		return nil, ErrSuperseded
	case e.Incarnation != next: // two claimants of one slot: the second is refused here
		return nil, fmt.Errorf("%w: slot %s is at incarnation %d", ErrIncarnation, e.Slot, old.Incarnation)
	case again:
		return Admitted{old}, nil
	}
	if err := d.elsewhere(e); err != nil {
		return nil, err
	}
	m := Member{Slot: e.Slot, Incarnation: e.Incarnation, ServerID: e.ServerID, PlatformID: e.PlatformID,
		RaftAddr: e.RaftAddr, APIAddr: e.APIAddr, Admitted: d.applied}
	if taken {
		m.Former = append(slices.Clone(old.Former), old.ServerID)
		m.Former = m.Former[max(0, len(m.Former)-MaxFormer):]
	}
	d.members[e.Slot] = m
	return Admitted{m}, nil
}

// elsewhere refuses who has, or had, a place in another slot: one boot holds
// one place, once, and one machine counts once in a majority.
func (d *data) elsewhere(e *Admit) error {
	for _, m := range d.sortedMembers() {
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

// put replaces a set if no part of the new one is older and some part is
// newer. The same set again is accepted and changes nothing.
func (d *data) put(e *PutCollateral) (any, error) {
	if e.Epoch != d.epoch {
		return nil, ErrEpoch
	}
	old, have := d.collateral[e.Key]
	switch {
	case have && old.Meta.CollateralSHA256 == e.Meta.CollateralSHA256:
		return Put{old.Version}, nil
	case have && !e.Meta.Newer(old.Meta):
		return nil, ErrNotNewer
	case !have && len(d.collateral) >= MaxCollateralSets:
		return nil, fmt.Errorf("%w: %d sets of collateral", ErrFull, MaxCollateralSets)
	}
	d.collateral[e.Key] = Collateral{Key: e.Key, Meta: e.Meta, Version: old.Version + 1, Bundle: e.Bundle}
	d.floor = max(d.floor, e.Meta.LatestIssue)
	return Put{old.Version + 1}, nil
}

// Newer reports whether m may replace old: evaluation numbers, issue dates
// and CRL numbers do not fall and one of them rises. The dates of the lists
// carry the order: Intel has numbered all of its lists 1.
func (m CollateralMeta) Newer(old CollateralMeta) bool {
	order := []int{
		cmp.Compare(m.TCBEvaluation, old.TCBEvaluation), cmp.Compare(m.QEEvaluation, old.QEEvaluation),
		cmp.Compare(m.TCBInfoIssue, old.TCBInfoIssue), cmp.Compare(m.QEIdentityIssue, old.QEIdentityIssue),
		compareNumbers(m.RootCRLNumber, old.RootCRLNumber), compareNumbers(m.PCKCRLNumber, old.PCKCRLNumber),
		cmp.Compare(m.RootCRLIssue, old.RootCRLIssue), cmp.Compare(m.PCKCRLIssue, old.PCKCRLIssue),
	}
	return slices.Min(order) >= 0 && slices.Max(order) > 0
}

func compareNumbers(a, b []byte) int {
	if c := cmp.Compare(len(a), len(b)); c != 0 {
		return c
	}
	return bytes.Compare(a, b)
}

func (d *data) release(e *Release) (any, error) {
	switch {
	case e.Epoch != d.epoch:
		return nil, ErrEpoch
	case e.NodePolicy != d.nodePolicy:
		return nil, ErrNodePolicy
	case e.Generation == 0 || e.Generation > d.generation:
		return nil, ErrGeneration
	case e.CollateralVersion == 0 || d.collateral[e.CollateralKey].Version != e.CollateralVersion:
		return nil, ErrCollateral
	case d.log.size >= maxLeaves:
		return nil, ErrFull
	}
	next, proof := d.log.append(e.Leaf)
	d.log = next
	return Released{Index: next.size - 1, Size: next.size, Root: next.root(), Proof: proof}, nil
}

// Applied returns the index of the last entry applied, 0 if none.
func (m *Machine) Applied() uint64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.d.applied
}

// View returns a consistent copy of the general state. The byte slices are
// shared: read only.
func (m *Machine) View() View {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d := &m.d
	v := View{
		Applied: d.applied, ClusterID: d.clusterID, Manifest: d.manifest, IdentityKey: d.identity, Epoch: d.epoch,
		Generation: d.generation, NodePolicy: d.nodePolicy, Log: Head{d.log.size, d.log.root()}, Members: d.sortedMembers(),
	}
	if d.floor != 0 {
		v.TimeFloor = time.Unix(d.floor, 0).UTC()
	}
	return v
}

// Collateral returns the set in force for key.
func (m *Machine) Collateral(key CollateralKey) (Collateral, bool) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	c, ok := m.d.collateral[key]
	return c, ok
}

func (d *data) sortedMembers() []Member {
	return slices.SortedFunc(maps.Values(d.members), func(a, b Member) int { return cmp.Compare(a.Slot, b.Slot) })
}
