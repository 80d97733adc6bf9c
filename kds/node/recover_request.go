package node

import (
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
)

const (
	recoveryRequestLabel = "claviger/recovery-request/v1"
	recoveryShareLabel   = "claviger/recovery-share/v1"
	recoveryReportLabel  = "claviger/recovery-report/v1"
)

// ErrRecovery wraps every refusal of a recovery.
var ErrRecovery = errors.New("node: recovery refused")

// Quoted is the evidence beside something that an enclave says in a file.
type Quoted struct {
	Quote      []byte `json:"quote"`      // over the report data of what is said
	Collateral []byte `json:"collateral"` // bundle for the quote
}

// Judge is what people judge a recovering enclave by.
type Judge struct {
	Verifier *attest.Verifier
	// Constraints are the node policy that they know to be in force; nil means the
	// manifest's.
	Constraints []string
	// Collateral is a bundle that they have fetched themselves. Nil means the one
	// beside the evidence, which the enclave's host has had a hand in; it counts for
	// kds.RootsAge, as with all who hand over roots.
	Collateral []byte
	Now        time.Time
}

// verify proves that an enclave of this cluster's node policy says what want is
// the report data of.
func (q *Quoted) verify(j Judge, m *api.Manifest, want [64]byte) error {
	if root := j.Verifier.Root(); m.Root.ID != root.ID() || m.Root.Simulated != root.Simulated {
		return fmt.Errorf("%w: the cluster's root of trust is not the verifier's", ErrRecovery)
	}
	bundle := q.Collateral
	if len(j.Collateral) > 0 {
		bundle = j.Collateral
	}
	verified, err := verifyWith(j.Verifier, q.Quote, bundle, j.Now)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	if err := checkRecent(verified, j.Now); err != nil {
		return fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	if verified.Claims().ReportData != want {
		return fmt.Errorf("%w: the quote is over something else", ErrRecovery)
	}
	constraints := j.Constraints
	if constraints == nil {
		constraints = m.NodePolicy
	}
	if err := checkConstraints(constraints, verified, j.Now); err != nil {
		return fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	return nil
}

// RecoveryRequest is the first thing a recovering enclave says: which cluster it
// is about, who it is, and to which key operators may seal their shares. Both
// keys live and die with this boot, so shares sealed to it, and approvals that
// name it, are of no use to any other enclave and after a restart.
type RecoveryRequest struct {
	Manifest    []byte `json:"manifest"`     // of the cluster, canonical CBOR
	IdentityKey []byte `json:"identity_key"` // of the cluster, ed25519
	Enclave     api.ID `json:"enclave"`      // server id of the recovering boot
	HPKEKey     []byte `json:"hpke_key"`     // for the shares
	Quoted
}

// ClusterID is the cluster that the request is about.
func (r *RecoveryRequest) ClusterID() (api.ID, error) {
	return api.ClusterID(r.Manifest, r.IdentityKey)
}

// message is what the quote covers and what shares are sealed for.
func (r *RecoveryRequest) message(label string) ([]byte, error) {
	id, err := r.ClusterID()
	if err != nil {
		return nil, err
	}
	return api.MarshalCanonical([]any{label, [32]byte(id), [32]byte(r.Enclave), r.HPKEKey})
}

// ReportData is what the quote must carry: SHA-512 of CBOR
// ["claviger/recovery-request/v1", cluster id, enclave, HPKE key].
func (r *RecoveryRequest) ReportData() ([64]byte, error) {
	msg, err := r.message(recoveryRequestLabel)
	return sha512.Sum512(msg), err
}

// ShareInfo is the HPKE info of every share sealed for this request: a share
// sealed for one request opens for no other.
func (r *RecoveryRequest) ShareInfo() ([]byte, error) { return r.message(recoveryShareLabel) }

// Verify is what a holder of a share does before sealing it: an enclave that
// satisfies the node policy asks, and it holds the key. Whether
// the cluster is the holder's is for the holder to compare, by the id.
func (r *RecoveryRequest) Verify(j Judge) (*api.Manifest, error) {
	m, err := api.ParseManifest(r.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	want, err := r.ReportData()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	return m, r.verify(j, m, want)
}

// SealedShare is one operator's share, sealed to the enclave of a request.
type SealedShare struct {
	Sealed []byte `json:"sealed"`
}

// RecoveryApprovals is what operators bring to the enclave: one statement, and
// signatures of it.
type RecoveryApprovals struct {
	Statement []byte         `json:"statement"` // api.RecoveryStatement, canonical CBOR
	Approvals []api.Approval `json:"approvals"`
}

// RecoveryReport is what the recovering enclave has found in the archives that
// the host has shown it, and in the memory of servers that still live. It proves what lies in them and that this enclave read
// them, and never that there is nothing newer elsewhere.
type RecoveryReport struct {
	Manifest    []byte `json:"manifest"`
	IdentityKey []byte `json:"identity_key"`
	Enclave     api.ID `json:"enclave"` // the only one that an approval may name
	Roots       bool   `json:"roots"`   // whether this enclave holds the roots; without them no archive is open, and a survivor must be the source

	Archives []ArchiveReport  `json:"archives"`
	Servers  []ReportedServer `json:"servers"`  // that any history knows: an approval says what has become of those that AccountFor gives
	Newest   api.ID           `json:"newest"`   // server whose archive is the newest by (epoch, term, index); zero if none can be used
	Receipts []WitnessReport  `json:"receipts"` // what the new epoch must not fall below
	Finals   []WitnessReport  `json:"finals"`
	Quoted   `cbor:"-"`
}

// ArchiveReport is one archive, or the memory of a server that lives. Where Problem is set only Path is meaningful, and
// Epoch, if it is not 0: a record opened under it.
type ArchiveReport struct {
	Path    string `json:"path"`              // as the host named it
	Kind    string `json:"kind"`              // KindArchive, KindAlive or KindStopped
	Problem string `json:"problem,omitempty"` // why nothing in it can be used

	Epoch       uint64 `json:"epoch"`
	Slot        string `json:"slot"` // of the server, by the state in the archive; empty if that names none
	Incarnation uint64 `json:"incarnation"`
	ServerID    api.ID `json:"server_id"`
	Begin       uint64 `json:"begin"`    // sequence number of the first record
	Sequence    uint64 `json:"sequence"` // and of the last
	Head        api.ID `json:"head"`     // hash of the last
	Torn        string `json:"torn,omitempty"`

	Index       uint64   `json:"index"` // of the last log entry
	Term        uint64   `json:"term"`  // of the last log entry
	Applied     uint64   `json:"applied"`
	AppliedTerm uint64   `json:"applied_term"`
	Chain       api.ID   `json:"chain"` // running hash of the applied entries
	State       api.ID   `json:"state_sha256"`
	LogSize     uint64   `json:"log_size"` // releases
	LogRoot     api.ID   `json:"log_root"`
	NodePolicy  uint64   `json:"node_policy_version"`
	Constraints []string `json:"node_policy"`
	Generation  uint64   `json:"generation"`     // newest root generation that is held for it, here or by the survivor; an epoch that continues it takes the next; 0: its roots are not held
	IDs         []api.ID `json:"generation_ids"` // of the roots in its state, by generation from 1
	Ended       bool     `json:"ended"`          // a planned stop
	Final       bool     `json:"final"`          // this server's signed final checkpoint has been shown

	Verdict string `json:"verdict"`           // "newest", "equal to the newest", "behind …", "diverged …", "FORKED …"
	Refused string `json:"refused,omitempty"` // why this archive cannot be the source
	Leaves  string `json:"leaves,omitempty"`  // what is lost if this archive is the source, which operators must accept in words
}

// ReportedServer is one server of an old epoch.
type ReportedServer struct {
	Slot     string `json:"slot"`
	ServerID api.ID `json:"server_id"`
	Epoch    uint64 `json:"epoch"`   // the last in which it is known: it may be of an earlier one, and hold a slot still
	Archive  bool   `json:"archive"` // its archive is in the report
	Final    bool   `json:"final"`   // its signed final checkpoint has been shown
	Alive    bool   `json:"alive"`   // it has answered; a statement that says it is stopped makes it stop
	Stopped  bool   `json:"stopped"` // it has stopped for good and has said so, which is proof
}

// AccountFor are the servers of which a statement must say what has become of
// them if it goes on from a history of an epoch: those of that epoch and of later ones.
func AccountFor(list []ReportedServer, epoch uint64) []ReportedServer {
	return slices.DeleteFunc(slices.Clone(list), func(s ReportedServer) bool { return s.Epoch < epoch })
}

// WitnessReport is a receipt or a final checkpoint that was shown and verified.
type WitnessReport struct {
	Path     string `json:"path"`
	Problem  string `json:"problem,omitempty"`
	Epoch    uint64 `json:"epoch"`
	ServerID api.ID `json:"server_id"` // of a final checkpoint
	Applied  uint64 `json:"applied"`   // of a final checkpoint
	LogSize  uint64 `json:"log_size"`
}

// ClusterID is the cluster that the report is about.
func (r *RecoveryReport) ClusterID() (api.ID, error) { return api.ClusterID(r.Manifest, r.IdentityKey) }

// ReportData is what the quote must carry: SHA-512 of CBOR
// ["claviger/recovery-report/v1", SHA-256 of the report's canonical CBOR].
func (r *RecoveryReport) ReportData() ([64]byte, error) {
	content, err := api.MarshalCanonical(r)
	if err != nil {
		return [64]byte{}, err
	}
	msg, err := api.MarshalCanonical([]any{recoveryReportLabel, sha256.Sum256(content)})
	return sha512.Sum512(msg), err
}

// Verify is what an operator does before reading the report.
func (r *RecoveryReport) Verify(j Judge) (*api.Manifest, error) {
	m, err := api.ParseManifest(r.Manifest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	if len(r.IdentityKey) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("%w: identity key of %d bytes", ErrRecovery, len(r.IdentityKey))
	}
	want, err := r.ReportData()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRecovery, err)
	}
	return m, r.verify(j, m, want)
}

// Archive returns the report's archive of a server, or nil.
func (r *RecoveryReport) Archive(id api.ID) *ArchiveReport {
	for i := range r.Archives {
		if a := &r.Archives[i]; a.Problem == "" && a.ServerID == id {
			return a
		}
	}
	return nil
}

// Source is the archive as a recovery statement names it.
func (a *ArchiveReport) Source() api.RecoverySource {
	return api.RecoverySource{Epoch: a.Epoch, ServerID: a.ServerID, Applied: a.Applied, Term: a.AppliedTerm, Chain: a.Chain,
		StateSHA256: a.State, LogSize: a.LogSize, LogRoot: a.LogRoot, NodePolicy: a.NodePolicy}
}
