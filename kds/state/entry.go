package state

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"

	"github.com/fxamacker/cbor/v2"

	"github.com/claviger/claviger/kds/api"
)

// MaxEntry is the largest entry in bytes: a collateral bundle, a manifest or
// a statement of 64 KiB, the operators' signatures and some fields.
const MaxEntry = 96 << 10

// Level is the highest feature level of this build. Genesis fixes the level
// that a cluster starts with; RaiseLevel raises it once every member's build
// knows the next. Level 2 has everything after Release, level 3 CommitRoots and
// recoveries in which the operators accept that entries are lost, level 4 the
// RTMRs of members.
const Level = LevelRTMRs

const (
	// LevelRoots is the feature level from which the state has the ids of the roots.
	LevelRoots = 3
	// LevelRTMRs is the feature level from which the measurement of a member that is
	// a TD covers more than its firmware.
	LevelRTMRs = 4
)

// Lengths of Admit.Measurement in bytes.
const (
	lenMRENCLAVE = 32
	lenMRTD      = 48
	lenTD        = lenMRTD + 4*48 // with RTMR0 to RTMR3
)

// MeasurementAt is what an Admit says at a feature level of a member's code, of
// which measurement is all that is known: MRENCLAVE (32 bytes), or MRTD and RTMR0
// to RTMR3 (240 bytes).
func MeasurementAt(level uint64, measurement []byte) []byte {
	if level < LevelRTMRs && len(measurement) == lenTD {
		return measurement[:lenMRTD]
	}
	return measurement
}

// Errors of decoding an entry. Both halt a machine that meets them.
var (
	ErrEntry = errors.New("state: malformed entry")
	ErrKind  = errors.New("state: unknown kind of entry")
)

// The kinds of entries. Numbers are for ever.
const (
	kindGenesis       = 1
	kindAdmit         = 2
	kindPutCollateral = 3
	kindRelease       = 4
	kindRaiseLevel    = 5
	kindOperate       = 6
	kindRecover       = 7
	kindRecoverPart   = 8
	kindCommitRoots   = 9
)

// Entry is one replicated change. Its implementations are in this package.
type Entry interface {
	kind() uint64
	needs() uint64 // the feature level without which a build cannot read it
	check() error  // bounds that need no state; a failure halts on Apply
}

// Genesis founds a cluster; it is the first entry and there is only one.
type Genesis struct {
	_           struct{} `cbor:",toarray"`
	Level       uint64
	Manifest    []byte // canonical, see api.Manifest
	IdentityKey []byte // ed25519 public key of the cluster
	Epoch       uint64 // 1 at genesis
	Generation  uint64 // of the first root, 1 at genesis
	RecoveryKey []byte // public key that roots are wrapped to, see kds.WrapSecrets; empty where there is no recovery
}

// Admit gives a slot to one boot of a node. The newest admission of a slot
// supersedes the older one, for ever. The boot that holds the slot may be
// admitted again, by the same incarnation: that changes nothing, and proves
// that policy and collateral of the new decision are current.
//
// Like Release it is rejected unless what the decision was made under is still
// current: roots follow it, and a revocation committed in between wins.
type Admit struct {
	_                 struct{} `cbor:",toarray"`
	Epoch             uint64
	NodePolicy        uint64        // version of the node policy that the node's evidence was checked against
	CollateralKey     CollateralKey // and the collateral that judged it
	CollateralVersion uint64
	Slot              string   // see api.ValidSlot
	Incarnation       uint64   // 1 for a new slot, else one more than the slot's; the slot's own for its present holder
	ServerID          [32]byte // SHA-256 of the boot key
	PlatformID        [32]byte // attest.Platform.ID; fixed for a slot by its first admission, and in no other slot
	RaftAddr          string
	APIAddr           string
	Level             uint64 // highest feature level of the boot's build
	TEE               string // "sgx" or "tdx", as in CollateralKey
	Measurement       []byte // MRENCLAVE (32 bytes), or MRTD and from LevelRTMRs on RTMR0 to RTMR3 (48 or 240 bytes)
	TCBStatus         string // Intel's spelling
}

// CollateralKey says what a set of collateral is for.
type CollateralKey struct {
	_     struct{} `cbor:",toarray"`
	TEE   string   // "sgx" or "tdx"
	FMSPC [6]byte
	CA    string // "platform" or "processor": which PCK CA the revocation list is of
}

// CollateralMeta is what decides which of two sets is newer. All of it comes
// from signed parts of a bundle that the proposer verified.
type CollateralMeta struct {
	_                struct{} `cbor:",toarray"`
	TCBEvaluation    uint64
	QEEvaluation     uint64
	TCBInfoIssue     int64    // Unix seconds
	QEIdentityIssue  int64    // Unix seconds
	RootCRLNumber    []byte   // big endian without leading zeros, at most 20 bytes (RFC 5280)
	PCKCRLNumber     []byte   // likewise
	PCKCRLIssue      int64    // Unix seconds
	RootCRLIssue     int64    // Unix seconds; this list is rare and does not count as old
	LatestIssue      int64    // Unix seconds: the latest signed time in the set, which moves the time floor
	CollateralSHA256 [32]byte // attest.CollateralClaims.Hash
}

// PutCollateral replaces the collateral of a key by a newer set.
type PutCollateral struct {
	_      struct{} `cbor:",toarray"`
	Epoch  uint64
	Key    CollateralKey
	Meta   CollateralMeta
	Bundle []byte // attest.Collateral.Marshal, at most api.MaxCollateral bytes
}

// Release records one release of a key. It is rejected unless everything the
// decision was made under is still current, so a revocation committed in
// between wins. The leaf reveals nothing; the receipt opens it.
type Release struct {
	_                 struct{} `cbor:",toarray"`
	Epoch             uint64
	Generation        uint64 // of the root the key comes from
	NodePolicy        uint64
	CollateralKey     CollateralKey
	CollateralVersion uint64
	Leaf              [32]byte // api.Commitment
}

// RaiseLevel raises the feature level by one. A build that does not know the
// level halts, if the entry is acceptable.
type RaiseLevel struct {
	_     struct{} `cbor:",toarray"`
	Epoch uint64
	Level uint64 // one more than the present
}

// Operate carries out a statement of the operators, see api.AdminStatement.
// Their signatures are verified in Apply, by every node.
type Operate struct {
	_         struct{} `cbor:",toarray"`
	Statement []byte   // canonical, at most api.MaxAdmin bytes
	Approvals []api.Approval
}

// Recover begins the log of a new epoch, in place of Genesis: RecoverPart
// entries bring a snapshot of an older epoch of the same cluster.
type Recover struct {
	_           struct{} `cbor:",toarray"`
	Level       uint64   // of the new epoch
	Manifest    []byte   // canonical, see api.Manifest
	IdentityKey []byte
	Statement   []byte // canonical api.RecoveryStatement
	Approvals   []api.Approval
	Size        uint64   // of the snapshot in bytes, at most MaxState
	SHA256      [32]byte // of the snapshot, as in the statement
}

// RecoverPart is the next piece of the snapshot that Recover announced.
type RecoverPart struct {
	_      struct{} `cbor:",toarray"`
	Offset uint64
	Data   []byte // 1 to MaxPart bytes
}

// MaxPart bounds one piece of a snapshot in bytes.
const MaxPart = 64 << 10

func (*Genesis) kind() uint64       { return kindGenesis }
func (*Admit) kind() uint64         { return kindAdmit }
func (*PutCollateral) kind() uint64 { return kindPutCollateral }
func (*Release) kind() uint64       { return kindRelease }
func (*RaiseLevel) kind() uint64    { return kindRaiseLevel }
func (*Operate) kind() uint64       { return kindOperate }
func (*Recover) kind() uint64       { return kindRecover }
func (*RecoverPart) kind() uint64   { return kindRecoverPart }

func (e *Genesis) needs() uint64     { return e.Level }
func (*PutCollateral) needs() uint64 { return 1 }
func (*Release) needs() uint64       { return 1 }
func (*RaiseLevel) needs() uint64    { return 2 } // the level itself: see raise
func (*Operate) needs() uint64       { return 2 }
func (e *Recover) needs() uint64     { return max(2, e.Level) }
func (*RecoverPart) needs() uint64   { return 2 }

func (e *Admit) needs() uint64 {
	if len(e.Measurement) == lenTD {
		return LevelRTMRs
	}
	return 1
}

// envelope is what an entry looks like in the log.
type envelope struct {
	_    struct{} `cbor:",toarray"`
	Kind uint64
	Body cbor.RawMessage
}

// Encode returns the canonical bytes of an entry, or ErrEntry for one that no
// machine would accept and ErrKind for a level that this build does not know.
func Encode(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
	}
	if r, raises := e.(*RaiseLevel); e.needs() > Level || raises && r.Level > Level {
		return nil, fmt.Errorf("%w: it needs a feature level above %d, which is this build's", ErrKind, Level)
	}
	body, err := api.MarshalCanonical(e)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	raw, err := api.MarshalCanonical(envelope{Kind: e.kind(), Body: body})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	if len(raw) > MaxEntry {
		return nil, fmt.Errorf("%w: %d bytes, the limit is %d", ErrEntry, len(raw), MaxEntry)
	}
	return raw, nil
}

// Decode reads one entry: ErrKind for a kind of a later build, ErrEntry for
// anything that Encode would not have written.
func Decode(raw []byte) (Entry, error) { return decode(raw, Level) }

// decode reads an entry as a build of the given level does.
func decode(raw []byte, level uint64) (Entry, error) {
	var env envelope
	if err := api.UnmarshalCanonical(raw, MaxEntry, &env); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	e := newEntry(env.Kind)
	if e == nil || env.Kind > kindRelease && level < 2 {
		return nil, fmt.Errorf("%w: %d", ErrKind, env.Kind)
	}
	if err := api.UnmarshalCanonical(env.Body, MaxEntry, e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	if e.needs() > level {
		return nil, fmt.Errorf("%w: feature level %d, this build knows %d", ErrKind, e.needs(), level)
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	return e, nil
}

// newEntry returns nil for a kind of a later build.
func newEntry(kind uint64) Entry {
	switch kind {
	case kindGenesis:
		return new(Genesis)
	case kindAdmit:
		return new(Admit)
	case kindPutCollateral:
		return new(PutCollateral)
	case kindRelease:
		return new(Release)
	case kindRaiseLevel:
		return new(RaiseLevel)
	case kindOperate:
		return new(Operate)
	case kindRecover:
		return new(Recover)
	case kindRecoverPart:
		return new(RecoverPart)
	case kindCommitRoots:
		return new(CommitRoots)
	}
	return nil
}

func (e *Genesis) check() error {
	switch {
	case e.Level == 0 || e.Epoch == 0 || e.Generation == 0:
		return fmt.Errorf("%w: level, epoch and generation count from 1", ErrEntry)
	case len(e.RecoveryKey) > api.MaxRecoveryKey:
		return fmt.Errorf("%w: recovery key of %d bytes, limit %d", ErrEntry, len(e.RecoveryKey), api.MaxRecoveryKey)
	}
	if _, err := api.ClusterID(e.Manifest, e.IdentityKey); err != nil {
		return fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return nil
}

// measurements are the lengths in bytes that a measurement may have, by TEE.
var measurements = map[string][]int{"sgx": {lenMRENCLAVE}, "tdx": {lenMRTD, lenTD}}

func (e *Admit) check() error {
	switch {
	case !api.ValidSlot(e.Slot):
		return fmt.Errorf("%w: slot %.40q", ErrEntry, e.Slot)
	case e.Incarnation == 0 || e.ServerID == [32]byte{} || e.PlatformID == [32]byte{}:
		return fmt.Errorf("%w: zero incarnation, server id or platform id", ErrEntry)
	case !api.ValidAddress(e.RaftAddr) || !api.ValidAddress(e.APIAddr):
		return fmt.Errorf("%w: an address is 1 to %d visible ASCII bytes", ErrEntry, api.MaxAddress)
	case e.TEE != e.CollateralKey.TEE || !slices.Contains(measurements[e.TEE], len(e.Measurement)):
		return fmt.Errorf("%w: a measurement of %d bytes for TEE %.16q", ErrEntry, len(e.Measurement), e.TEE)
	case e.Level == 0 || len(e.TCBStatus) > 64 || !api.ValidName(e.TCBStatus):
		return fmt.Errorf("%w: feature level or TCB status", ErrEntry)
	}
	return e.CollateralKey.check()
}

func (e *RaiseLevel) check() error {
	if e.Epoch == 0 || e.Level < 2 {
		return fmt.Errorf("%w: epochs count from 1, and level 1 is where all begin", ErrEntry)
	}
	return nil
}

func checkApprovals(list []api.Approval) error {
	if len(list) == 0 || len(list) > api.MaxOperators {
		return fmt.Errorf("%w: %d approvals, want 1 to %d", ErrEntry, len(list), api.MaxOperators)
	}
	for _, a := range list {
		if len(a.Key) != ed25519.PublicKeySize || len(a.Signature) != ed25519.SignatureSize {
			return fmt.Errorf("%w: an approval with a key of %d bytes and a signature of %d", ErrEntry, len(a.Key), len(a.Signature))
		}
	}
	return nil
}

func (e *Operate) check() error {
	if len(e.Statement) == 0 || len(e.Statement) > api.MaxAdmin {
		return fmt.Errorf("%w: statement of %d bytes, limit %d", ErrEntry, len(e.Statement), api.MaxAdmin)
	}
	return checkApprovals(e.Approvals)
}

func (e *Recover) check() error {
	switch {
	case e.Level < 2:
		return fmt.Errorf("%w: recovery needs feature level 2", ErrEntry)
	case len(e.Statement) == 0 || len(e.Statement) > api.MaxRecovery:
		return fmt.Errorf("%w: statement of %d bytes, limit %d", ErrEntry, len(e.Statement), api.MaxRecovery)
	case e.Size == 0 || e.Size > MaxState || e.SHA256 == [32]byte{}:
		return fmt.Errorf("%w: a snapshot of %d bytes, want 1 to %d and its hash", ErrEntry, e.Size, MaxState)
	}
	if _, err := api.ClusterID(e.Manifest, e.IdentityKey); err != nil {
		return fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return checkApprovals(e.Approvals)
}

func (e *RecoverPart) check() error {
	if len(e.Data) == 0 || len(e.Data) > MaxPart {
		return fmt.Errorf("%w: a part of %d bytes, want 1 to %d", ErrEntry, len(e.Data), MaxPart)
	}
	return nil
}

// Oldest is the issue time, in Unix seconds, of the oldest part of a set that
// Intel issues daily. Parts are signed one by one, so a host can put a list
// from before a revocation beside TCB info of today; a set is as old as this.
func (m CollateralMeta) Oldest() int64 {
	return min(m.TCBInfoIssue, m.QEIdentityIssue, m.PCKCRLIssue)
}

func (k CollateralKey) check() error {
	if k.TEE != "sgx" && k.TEE != "tdx" || k.CA != "platform" && k.CA != "processor" {
		return fmt.Errorf("%w: collateral for TEE %.16q, CA %.16q", ErrEntry, k.TEE, k.CA)
	}
	return nil
}

func (e *PutCollateral) check() error {
	if err := e.Key.check(); err != nil {
		return err
	}
	m := e.Meta
	switch {
	case len(e.Bundle) == 0 || len(e.Bundle) > api.MaxCollateral:
		return fmt.Errorf("%w: bundle of %d bytes, limit %d", ErrEntry, len(e.Bundle), api.MaxCollateral)
	case !crlNumber(m.RootCRLNumber) || !crlNumber(m.PCKCRLNumber):
		return fmt.Errorf("%w: CRL number", ErrEntry)
	case m.Oldest() <= 0 || m.LatestIssue < max(m.TCBInfoIssue, m.QEIdentityIssue, m.PCKCRLIssue, m.RootCRLIssue) || m.RootCRLIssue <= 0:
		return fmt.Errorf("%w: issue times", ErrEntry)
	case m.LatestIssue > maxUnix:
		return fmt.Errorf("%w: a time beyond the year 9999", ErrEntry)
	case m.CollateralSHA256 == [32]byte{}:
		return fmt.Errorf("%w: no collateral hash", ErrEntry)
	}
	return nil
}

// maxUnix is 9999-12-31T23:59:59Z, the end of X.509 and RFC 3339 time.
const maxUnix = 253402300799

func crlNumber(b []byte) bool { return len(b) <= 20 && (len(b) == 0 || b[0] != 0) }

func (e *Release) check() error {
	if e.Leaf == [32]byte{} {
		return fmt.Errorf("%w: zero leaf", ErrEntry)
	}
	return e.CollateralKey.check()
}
