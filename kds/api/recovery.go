package api

import (
	"bytes"
	"crypto/ed25519"
	"errors"
	"fmt"
	"strings"
)

// RecoveryLabel begins every statement that opens a new epoch.
const RecoveryLabel = "claviger/recovery/v1"

// What operators sign, in these words, when a recovery costs something. They are
// two things: who accepts one has not accepted the other.
const (
	// AcceptServersSentence is for a server of the old epoch of which they cannot
	// say that it is stopped or destroyed.
	AcceptServersSentence = "A server of the old epoch may still run. We accept that it may go on answering those who have not seen the new epoch, and that what it acknowledges is lost."
	// AcceptEntriesSentence is for a source beside which the recovering enclave was
	// shown more: a newer history, one with other committed entries, or a later epoch.
	AcceptEntriesSentence = "The history that we continue is not the newest that was shown, or something was committed beside it. We accept that what was acknowledged there, and is not in this history, is lost."
)

// Accept is what a statement says the operators accept: nothing, lost servers,
// lost entries, or both.
func Accept(servers, entries bool) string {
	switch {
	case servers && entries:
		return AcceptServersSentence + " " + AcceptEntriesSentence
	case servers:
		return AcceptServersSentence
	case entries:
		return AcceptEntriesSentence
	}
	return ""
}

// What became of a server of the old epoch.
const (
	FateStopped   = "stopped"   // its final checkpoint was shown
	FateDestroyed = "destroyed" // the operators saw to it that it runs no more
	FateLost      = "lost"      // nobody knows
)

// ErrRecovery says that a recovery statement opens no epoch.
var ErrRecovery = errors.New("api: recovery refused")

// RecoverySource is the history that a new epoch continues.
type RecoverySource struct {
	_           struct{} `cbor:",toarray"`
	Epoch       uint64   `json:"epoch"`
	ServerID    ID       `json:"server_id"`    // whose archive or memory it is
	Applied     uint64   `json:"applied"`      // index of the last entry in it
	Term        uint64   `json:"term"`         // of that entry
	Chain       ID       `json:"chain"`        // running hash over all commands, see raftstore.Store.Chain
	StateSHA256 ID       `json:"state_sha256"` // of the machine's snapshot after that entry
	LogSize     uint64   `json:"log_size"`     // of the release log
	LogRoot     ID       `json:"log_root"`
	NodePolicy  uint64   `json:"node_policy"` // version
}

// OldServer says what became of one server of the old epoch.
type OldServer struct {
	_        struct{} `cbor:",toarray"`
	Slot     string   `json:"slot"`
	ServerID ID       `json:"server_id"`
	Fate     string   `json:"fate"` // FateStopped, FateDestroyed or FateLost
}

// RecoveryStatement opens a new epoch from one history in one enclave. The
// operators sign its canonical encoding, after that enclave has shown them what
// it found.
type RecoveryStatement struct {
	_          struct{}       `cbor:",toarray"`
	Label      string         `json:"label"` // RecoveryLabel
	ClusterID  ID             `json:"cluster_id"`
	Epoch      uint64         `json:"epoch"`      // the new one
	Generation uint64         `json:"generation"` // of the new root
	Source     RecoverySource `json:"source"`
	Enclave    ID             `json:"enclave"` // server id of the recovering boot: else a host opens one statement in two enclaves
	Old        []OldServer    `json:"old"`     // sorted by server id, distinct
	Accept     string         `json:"accept"`  // see the function of that name
}

// AcceptsServers reports whether the operators accept that lost servers may go on.
func (s *RecoveryStatement) AcceptsServers() bool {
	return strings.HasPrefix(s.Accept, AcceptServersSentence)
}

// AcceptsEntries reports whether the operators accept that a history beside the
// source is lost.
func (s *RecoveryStatement) AcceptsEntries() bool {
	return strings.HasSuffix(s.Accept, AcceptEntriesSentence)
}

// check reports what is wrong with the statement by itself.
func (s *RecoveryStatement) check() error {
	switch {
	case s.Label != RecoveryLabel:
		return fmt.Errorf("%w: label %.40q", ErrRecovery, s.Label)
	case s.ClusterID.IsZero() || s.Enclave.IsZero() || s.Source.ServerID.IsZero() || s.Source.StateSHA256.IsZero():
		return fmt.Errorf("%w: zero cluster id, enclave, source or state hash", ErrRecovery)
	case s.Source.Epoch == 0 || s.Source.Applied == 0 || s.Source.LogSize == 0 || s.Source.NodePolicy == 0:
		return fmt.Errorf("%w: the source has no epoch, index, log or node policy", ErrRecovery)
	case s.Epoch <= s.Source.Epoch:
		return fmt.Errorf("%w: epoch %d does not follow the source's epoch %d", ErrRecovery, s.Epoch, s.Source.Epoch)
	case s.Epoch > MaxEpoch:
		return fmt.Errorf("%w: epoch %d; epochs end at %d, beyond which no archive could be opened again", ErrRecovery, s.Epoch, MaxEpoch)
	case s.Generation < 2:
		return fmt.Errorf("%w: a new epoch has a new root generation", ErrRecovery)
	case s.Accept != Accept(s.AcceptsServers(), s.AcceptsEntries()):
		return fmt.Errorf("%w: a loss is accepted in the fixed words or not at all", ErrRecovery)
	}
	return s.checkOld()
}

func (s *RecoveryStatement) checkOld() error {
	if len(s.Old) == 0 || len(s.Old) > MaxOldServers {
		return fmt.Errorf("%w: it names %d servers of the old epoch, want 1 to %d", ErrRecovery, len(s.Old), MaxOldServers)
	}
	for i, o := range s.Old {
		switch {
		case o.ServerID.IsZero() || !ValidSlot(o.Slot):
			return fmt.Errorf("%w: old server %d has no id or slot", ErrRecovery, i)
		case i > 0 && bytes.Compare(s.Old[i-1].ServerID[:], o.ServerID[:]) >= 0:
			return fmt.Errorf("%w: old servers must be sorted by server id and distinct", ErrRecovery)
		case o.ServerID == s.Enclave:
			return fmt.Errorf("%w: the recovering enclave is no server of the old epoch", ErrRecovery)
		case o.Fate == FateLost && !s.AcceptsServers():
			return fmt.Errorf("%w: server %s is lost, so the operators must accept in words that it may go on", ErrRecovery, o.ServerID)
		case o.Fate != FateStopped && o.Fate != FateDestroyed && o.Fate != FateLost:
			return fmt.Errorf("%w: server %s: fate %.20q", ErrRecovery, o.ServerID, o.Fate)
		}
	}
	return nil
}

// Marshal returns the canonical encoding, at most MaxRecovery bytes, which is
// what operators sign.
func (s *RecoveryStatement) Marshal() ([]byte, error) {
	if err := s.check(); err != nil {
		return nil, err
	}
	raw, err := MarshalCanonical(s)
	if err != nil {
		return nil, err
	}
	if len(raw) > MaxRecovery {
		return nil, fmt.Errorf("%w: statement of %d bytes, limit %d", ErrTooLarge, len(raw), MaxRecovery)
	}
	return raw, nil
}

// ParseRecovery reads an encoded statement. It proves nothing about who signed
// it: see Check.
func ParseRecovery(raw []byte) (*RecoveryStatement, error) {
	var s RecoveryStatement
	if err := UnmarshalCanonical(raw, MaxRecovery, &s); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	if err := s.check(); err != nil {
		return nil, err
	}
	return &s, nil
}

// Check reports whether the statement opens its epoch: the rules above, the
// cluster, the threshold of the operators, and more than half of them. Two
// halves could open one epoch twice; with more than half, one operator who
// remembers the highest epoch signed has seen both. Whether the state is the one
// named, and names these servers, is for who holds it.
func (s *RecoveryStatement) Check(clusterID ID, operators *Operators, approvals []Approval) error {
	raw, err := s.Marshal()
	if err != nil {
		return err
	}
	if s.ClusterID != clusterID {
		return fmt.Errorf("%w: it is of cluster %s, not of %s", ErrRecovery, s.ClusterID, clusterID)
	}
	if err := operators.Check(raw, approvals); err != nil {
		return fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	if 2*len(approvals) <= len(operators.Keys) {
		return fmt.Errorf("%w: %d of %d operators have signed; a new epoch needs more than half, whatever the threshold",
			ErrRecovery, len(approvals), len(operators.Keys))
	}
	return nil
}

// Names reports whether the statement says what became of a server.
func (s *RecoveryStatement) Names(slot string, serverID ID) bool {
	for _, o := range s.Old {
		if o.ServerID == serverID {
			return o.Slot == slot
		}
	}
	return false
}

// FinalCheckpoint is what a node signs when it has applied the end of its
// epoch: a new epoch that knows of it cannot begin below it.
type FinalCheckpoint struct {
	_           struct{} `cbor:",toarray"`
	ClusterID   ID       `json:"cluster_id"`
	Epoch       uint64   `json:"epoch"`
	ServerID    ID       `json:"server_id"`
	Applied     uint64   `json:"applied"`
	Chain       ID       `json:"chain"`
	StateSHA256 ID       `json:"state_sha256"`
	LogSize     uint64   `json:"log_size"`
	LogRoot     ID       `json:"log_root"`
}

// SignedFinal is a final checkpoint as a node writes it to a file.
type SignedFinal struct {
	Checkpoint FinalCheckpoint `json:"checkpoint"`
	Signature  []byte          `json:"signature"` // by the cluster's identity key
}

func (c *FinalCheckpoint) message() ([]byte, error) {
	if c.ClusterID.IsZero() || c.ServerID.IsZero() || c.StateSHA256.IsZero() || c.Epoch == 0 || c.Applied == 0 || c.LogSize == 0 {
		return nil, fmt.Errorf("%w: a final checkpoint with an empty field", ErrRecovery)
	}
	return MarshalCanonical([]any{"claviger/final/v1", c})
}

// SignFinal signs a final checkpoint. Call it only with what has been applied
// up to the end of the epoch.
func SignFinal(s Signer, c FinalCheckpoint) (*SignedFinal, error) {
	msg, err := c.message()
	if err != nil {
		return nil, err
	}
	sig, err := s.Sign(msg)
	if err != nil {
		return nil, err
	}
	return &SignedFinal{c, sig}, nil
}

// Verify checks that the identity key of the cluster signed the checkpoint.
func (f *SignedFinal) Verify(identityKey ed25519.PublicKey, clusterID ID) error {
	msg, err := f.Checkpoint.message()
	if err != nil {
		return err
	}
	if f.Checkpoint.ClusterID != clusterID {
		return fmt.Errorf("%w: the final checkpoint is of cluster %s", ErrRecovery, f.Checkpoint.ClusterID)
	}
	return verify(identityKey, msg, f.Signature)
}
