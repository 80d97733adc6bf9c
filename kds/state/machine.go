package state

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
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
	// MaxRemoved is how many boots, and how many platforms, of removed slots are
	// remembered; beyond it the oldest is forgotten, as with MaxFormer.
	MaxRemoved = 1024
	// MaxTickets is how many tickets may wait to be used; the oldest gives way.
	MaxTickets = 64
)

// Reasons for rejecting a well-formed entry.
var (
	ErrNoCluster   = errors.New("state: there is no cluster yet; genesis or recovery comes first")
	ErrFounded     = errors.New("state: the cluster has been founded already")
	ErrEpoch       = errors.New("state: the entry is of another epoch")
	ErrEnded       = errors.New("state: the operators have ended this epoch; a recovery opens the next")
	ErrLevel       = errors.New("state: the feature level does not allow it")
	ErrNodePolicy  = errors.New("state: the node policy has changed since the decision")
	ErrCollateral  = errors.New("state: the collateral has changed since the decision")
	ErrGeneration  = errors.New("state: no such root generation")
	ErrRoots       = errors.New("state: the roots are others than those that the cluster has committed to; somebody holds roots of another epoch")
	ErrUncommitted = errors.New("state: the cluster has not committed to its newest root yet; nobody is admitted and nothing is released before that")
	ErrNotNewer    = errors.New("state: the collateral is not newer than the replicated set")
	ErrIncarnation = errors.New("state: another boot holds or has held this place in the slot")
	ErrPlatform    = errors.New("state: the slot belongs to another platform")
	ErrServerID    = errors.New("state: the server id is in use by another slot")
	ErrSuperseded  = errors.New("state: a newer boot has taken the slot over; this one cannot return")
	ErrOneSlot     = errors.New("state: the platform has another slot already; a platform has one")
	ErrTicket      = errors.New("state: this platform needs a ticket of the operators for the slot: claviger cluster join")
	ErrRemoved     = errors.New("state: the operators removed this boot's slot; it cannot return")
	ErrSlot        = errors.New("state: there is no such slot")
	ErrLastSlot    = errors.New("state: the last slot cannot be removed; stop the cluster instead")
	ErrStatement   = errors.New("state: the operators' statement is refused")
	ErrSequence    = errors.New("state: the operators' statement is not the next; ask the cluster for the sequence and sign again")
	ErrRecovery    = errors.New("state: the recovery is refused")
	ErrFounder     = errors.New("state: the enclave that the operators named comes first in a recovered epoch; until it is admitted nobody else is, and nothing is released")
	ErrRecovering  = errors.New("state: the new epoch is being opened; nothing else is accepted until it is complete")
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
	// Raised is the result of RaiseLevel.
	Raised struct{ Level uint64 }
	// Operated is the result of Operate.
	Operated struct {
		Sequence uint64
		Kind     string // see api.AdminStatement
	}
	// Recovering is the result of Recover and of every RecoverPart but the last.
	Recovering struct{ Received uint64 } // bytes of the snapshot
	// Recovered is the result of the last RecoverPart: the new epoch has begun.
	Recovered struct {
		ClusterID         api.ID
		Epoch, Generation uint64
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
	Admitted    uint64     // index of the entry; 0 if it was in an epoch before this one
	Former      [][32]byte // server ids that held the slot before, oldest first, at most MaxFormer; read only
	Level       uint64     // highest feature level of its build
	TEE         string
	Measurement []byte // as in Admit; read only
	TCBStatus   string // at its admission
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
	Applied          uint64 // index of the last entry
	Level            uint64 // feature level; 0 before genesis
	ClusterID        api.ID // zero before genesis, and until a recovery is complete
	Manifest         []byte
	IdentityKey      []byte
	RecoveryKey      []byte // empty where there is no recovery
	Epoch            uint64
	Generation       uint64
	GenerationIDs    [][32]byte // of the roots, by generation from 1; fewer while CommitRoots has not come; read only
	Ended            bool       // the operators have ended the epoch
	Sequence         uint64     // of the last admin statement; the next is one more
	NodePolicy       uint64     // version
	NodePolicyText   []string   // of that version; a node must satisfy one
	NodePolicySigned []byte     // api.SignedAdmin, encoded, that made it; empty while it is the manifest's
	LastStatement    [32]byte   // SHA-256 of the last admin statement
	TimeFloor        time.Time
	Log              Head
	Members          []Member     // by slot
	Tickets          []api.Ticket // not used yet, oldest first
	Removed          [][32]byte   // server ids of removed slots, which never return, oldest first
	Recovering       bool         // a recovery has begun and is not complete
	Received         uint64       // bytes of its snapshot
}

// data is the state. It is a value: whatever is reachable from it is never
// changed in place, so that a copy of the struct is a snapshot.
type data struct {
	applied       uint64
	level         uint64
	manifest      []byte
	identity      []byte
	recoveryKey   []byte
	clusterID     api.ID
	operators     api.Operators // of the manifest
	openSlots     uint64        // of the manifest
	epoch         uint64
	generation    uint64
	roots         [][32]byte // ids, by generation from 1; see uncommitted
	ended         bool
	sequence      uint64
	nodePolicy    uint64
	policy        []string
	policySigned  []byte   // what made it; empty for version 1
	lastStatement [32]byte // SHA-256
	floor         int64
	log           frontier
	members       []Member     // by slot
	founding      bool         // the boot that opened the epoch has not been admitted yet
	founder       [32]byte     // which boot that is; zero at genesis, where there is no other
	opened        uint64       // slots ever taken without a ticket
	tickets       []api.Ticket // oldest first
	removed       [][32]byte   // server ids, oldest first
	expelled      [][32]byte   // platforms of removed slots, oldest first
	collateral    sets
	pending       *pending // a recovery that is not complete; nothing else is set then
}

// Machine applies entries. Apply and Restore are called by one goroutine, the
// replication; everything else may be called from any.
type Machine struct {
	level  uint64 // the highest that this build knows
	mu     sync.RWMutex
	d      data  // guarded by mu
	halted error // guarded by mu; nil while running
}

// New returns an empty machine, which waits for Genesis or Recover.
func New() *Machine { return NewAt(Level) }

// NewAt returns a machine as a build has it whose highest feature level is
// level: it does not know what came later. It is for tests of upgrades.
func NewAt(level uint64) *Machine { return &Machine{level: level} }

// Apply applies the entry at index and returns one of the results above, or an
// error: *Rejected, the same on every node, or one that
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
			m.d = before
			m.halted = fmt.Errorf("%w: index %d: %w: %v", ErrHalted, index, errPanic, r)
			result = m.halted
		}
	}()
	if index <= m.d.applied {
		return m.halt(index, fmt.Errorf("%w: after %d", errIndex, m.d.applied))
	}
	e, err := decode(entry, m.level)
	if err != nil {
		return m.halt(index, err)
	}
	m.d.applied = index
	out, err := m.d.apply(e, m.level)
	switch {
	case errors.Is(err, ErrKind): // what every build that knows it accepts
		m.d = before
		return m.halt(index, err)
	case err != nil:
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

func (d *data) apply(e Entry, known uint64) (any, error) {
	switch e := e.(type) {
	case *Recover:
		return d.recover(e)
	case *RecoverPart:
		return d.part(e, known)
	}
	if d.pending != nil {
		return nil, ErrRecovering
	}
	if g, ok := e.(*Genesis); ok {
		return d.found(g)
	}
	switch {
	case d.clusterID.IsZero():
		return nil, ErrNoCluster
	case d.ended:
		return nil, ErrEnded
	case e.needs() > d.level:
		return nil, fmt.Errorf("%w: it needs %d, the cluster is at %d", ErrLevel, e.needs(), d.level)
	}
	if d.founding && d.founder != [32]byte{} && !d.opens(e) {
		return nil, ErrFounder
	}
	switch e := e.(type) {
	case *Admit:
		return d.admit(e)
	case *PutCollateral:
		return d.put(e)
	case *Release:
		return d.release(e)
	case *RaiseLevel:
		return d.raise(e, known)
	case *CommitRoots:
		return d.commit(e)
	case *Operate:
		return d.operate(e)
	}
	return nil, ErrKind
}

// opens reports whether an entry belongs to the opening of a recovered epoch:
// were a second enclave to run the same statement, its log would end here.
func (d *data) opens(e Entry) bool {
	switch e := e.(type) {
	case *Admit:
		return e.ServerID == d.founder
	case *PutCollateral, *CommitRoots:
		return true
	}
	return false
}

func (d *data) found(g *Genesis) (any, error) {
	if !d.clusterID.IsZero() {
		return nil, ErrFounded
	}
	n := data{applied: d.applied, level: g.Level, epoch: g.Epoch, generation: g.Generation, recoveryKey: g.RecoveryKey,
		nodePolicy: 1, founding: true}
	if err := n.setManifest(g.Manifest, g.IdentityKey); err != nil {
		return nil, err
	}
	if err := n.openLog(); err != nil {
		return nil, err
	}
	*d = n
	return Founded{d.clusterID}, nil
}

// setManifest takes over what the manifest says.
func (d *data) setManifest(raw, identity []byte) error {
	id, err := api.ClusterID(raw, identity)
	if err != nil {
		return err
	}
	m, err := api.ParseManifest(raw)
	if err != nil {
		return err
	}
	d.manifest, d.identity, d.clusterID = raw, identity, id
	d.operators, d.openSlots = m.Operators, m.OpenSlots
	if d.nodePolicy == 1 {
		d.policy = m.NodePolicy
	}
	return nil
}

// openLog appends the first leaf of the epoch.
func (d *data) openLog() error {
	if d.log.size >= maxLeaves {
		return ErrFull
	}
	leaf, err := firstLeaf(d.clusterID, d.epoch, Head{d.log.size, d.log.root()})
	if err != nil {
		return err
	}
	d.log, _ = d.log.append(leaf)
	return nil
}

// raise is the same on every build until it is accepted: a build that does not
// know the level halts only then.
func (d *data) raise(e *RaiseLevel, known uint64) (any, error) {
	switch {
	case e.Epoch != d.epoch:
		return nil, ErrEpoch
	case e.Level != d.level+1:
		return nil, fmt.Errorf("%w: from %d to %d, levels rise one by one", ErrLevel, d.level, e.Level)
	}
	for _, m := range d.members {
		if m.Level < e.Level {
			return nil, fmt.Errorf("%w: slot %s knows level %d only", ErrLevel, m.Slot, m.Level)
		}
	}
	if e.Level > known {
		return nil, fmt.Errorf("%w: feature level %d, this build knows %d", ErrKind, e.Level, known)
	}
	d.level = e.Level
	return Raised{e.Level}, nil
}

// firstLeaf is the first leaf of an epoch: it commits to the head that the epoch
// before ended with, so that epochs form one history.
func firstLeaf(id api.ID, epoch uint64, old Head) ([32]byte, error) {
	raw, err := api.MarshalCanonical([]any{"claviger/log/epoch/v1", [32]byte(id), epoch, old.Size, old.Root})
	if err != nil {
		return [32]byte{}, err
	}
	return sha256.Sum256(raw), nil
}

// put replaces a set if no part of the new one is older and some part is
// newer. The same set again is accepted and changes nothing.
func (d *data) put(e *PutCollateral) (any, error) {
	if e.Epoch != d.epoch {
		return nil, ErrEpoch
	}
	old, have := d.collateral.get(e.Key)
	switch {
	case have && old.Meta.CollateralSHA256 == e.Meta.CollateralSHA256:
		return Put{old.Version}, nil
	case have && !e.Meta.Newer(old.Meta):
		return nil, ErrNotNewer
	case !have && d.collateral.n >= MaxCollateralSets:
		return nil, fmt.Errorf("%w: %d sets of collateral", ErrFull, MaxCollateralSets)
	}
	d.collateral = d.collateral.put(Collateral{Key: e.Key, Meta: e.Meta, Version: old.Version + 1, Bundle: e.Bundle})
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
	case d.uncommitted():
		return nil, ErrUncommitted
	case !d.collateral.current(e.CollateralKey, e.CollateralVersion):
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

// View returns a consistent copy of the general state. Its slices are shared:
// read only.
func (m *Machine) View() View {
	m.mu.RLock()
	defer m.mu.RUnlock()
	d := &m.d
	v := View{
		Applied: d.applied, Level: d.level, ClusterID: d.clusterID, Manifest: d.manifest, IdentityKey: d.identity, RecoveryKey: orNil(d.recoveryKey),
		Epoch: d.epoch, Generation: d.generation, GenerationIDs: orNil(d.roots), Ended: d.ended, Sequence: d.sequence,
		NodePolicy: d.nodePolicy, NodePolicyText: d.policy, NodePolicySigned: orNil(d.policySigned), LastStatement: d.lastStatement, Log: Head{d.log.size, d.log.root()},
		Members: slices.Clone(d.members), Tickets: orNil(d.tickets), Removed: orNil(d.removed),
	}
	if d.pending != nil {
		v.Recovering, v.Received = true, uint64(len(d.pending.received))
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
	return m.d.collateral.get(key)
}
