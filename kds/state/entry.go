package state

import (
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"github.com/claviger/claviger/kds/api"
)

// MaxEntry is the largest entry in bytes: a collateral bundle or a manifest
// of 64 KiB and some fields.
const MaxEntry = 72 << 10

// Level is the highest feature level of this build. Genesis fixes the level
// that a cluster starts with; later levels are raised by an entry once all
// voters know them.
const Level = 1

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
)

// Entry is one replicated change. Its implementations are in this package.
type Entry interface {
	kind() uint64
	check() error // bounds that need no state; a failure halts on Apply
}

// Genesis founds a cluster; it is the first entry and there is only one.
type Genesis struct {
	_           struct{} `cbor:",toarray"`
	Level       uint64
	Manifest    []byte // canonical, see api.Manifest
	IdentityKey []byte // ed25519 public key of the cluster
	Epoch       uint64 // 1 at genesis
	Generation  uint64 // of the first root, 1 at genesis
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

func (*Genesis) kind() uint64       { return kindGenesis }
func (*Admit) kind() uint64         { return kindAdmit }
func (*PutCollateral) kind() uint64 { return kindPutCollateral }
func (*Release) kind() uint64       { return kindRelease }

// envelope is what an entry looks like in the log.
type envelope struct {
	_    struct{} `cbor:",toarray"`
	Kind uint64
	Body cbor.RawMessage
}

// Encode returns the canonical bytes of an entry, or ErrEntry for one that no
// machine would accept.
func Encode(e Entry) ([]byte, error) {
	if err := e.check(); err != nil {
		return nil, err
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
func Decode(raw []byte) (Entry, error) {
	var env envelope
	if err := api.UnmarshalCanonical(raw, MaxEntry, &env); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	var e Entry
	switch env.Kind {
	case kindGenesis:
		e = new(Genesis)
	case kindAdmit:
		e = new(Admit)
	case kindPutCollateral:
		e = new(PutCollateral)
	case kindRelease:
		e = new(Release)
	default:
		return nil, fmt.Errorf("%w: %d", ErrKind, env.Kind)
	}
	if err := api.UnmarshalCanonical(env.Body, MaxEntry, e); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrEntry, err)
	}
	if err := e.check(); err != nil {
		return nil, err
	}
	return e, nil
}

func (e *Genesis) check() error {
	switch {
	case e.Level == 0 || e.Level > Level:
		return fmt.Errorf("%w: feature level %d, this build knows %d", ErrKind, e.Level, Level)
	case e.Epoch == 0 || e.Generation == 0:
		return fmt.Errorf("%w: epoch and generation count from 1", ErrEntry)
	}
	if _, err := api.ClusterID(e.Manifest, e.IdentityKey); err != nil {
		return fmt.Errorf("%w: %w", ErrEntry, err)
	}
	return nil
}

func (e *Admit) check() error {
	switch {
	case !api.ValidSlot(e.Slot):
		return fmt.Errorf("%w: slot %.40q", ErrEntry, e.Slot)
	case e.Incarnation == 0 || e.ServerID == [32]byte{} || e.PlatformID == [32]byte{}:
		return fmt.Errorf("%w: zero incarnation, server id or platform id", ErrEntry)
	case !api.ValidAddress(e.RaftAddr) || !api.ValidAddress(e.APIAddr):
		return fmt.Errorf("%w: an address is 1 to %d visible ASCII bytes", ErrEntry, api.MaxAddress)
	}
	return e.CollateralKey.check()
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
