package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

// MaxSlots bounds the slots of a cluster. It is in measured code because a host
// may run any number of genuine enclaves: without a bound it could fill the
// configuration with voters of its own. A slot belongs for ever to the platform
// that took it first, and a platform has no second one.
const MaxSlots = 9

// ErrConfig wraps every fault of a Config.
var ErrConfig = errors.New("node: configuration")

// Config describes a node. TEE, Root, Collateral, Slot, PeerListen, APIListen
// and DataDir are required, and exactly one of Genesis and ClusterID.
type Config struct {
	// TEE is the enclave this process runs in.
	TEE enclave.TEE
	// Root is the one root of trust; it must be the one in the manifest.
	Root attest.Root
	// Collateral fetches what Intel publishes for the platform of a quote. It may
	// go through the host: collateral is signed.
	Collateral func(ctx context.Context, quote []byte) (*attest.Collateral, error)

	// Slot names this node's place: see api.ValidSlot. Each boot is a new incarnation of it.
	Slot string
	// Genesis founds a cluster. Nothing else ever does.
	Genesis *Genesis
	// Recovery opens a new epoch of the cluster that ClusterID pins, from archives.
	Recovery *Recovery
	// ClusterID pins the cluster to join. It belongs in measured bytes: an id from
	// the host's configuration makes this a node of whichever cluster the host
	// names, which harms no cluster but misleads who believes the host.
	ClusterID api.ID
	// MinEpoch is the lowest epoch of that cluster to accept from members that
	// this boot joins through; 0 means 1. Members of epochs before a recovery hold
	// genuine statements of the same cluster id, so a host can lead a node to a
	// cluster that was given up, unless somebody remembers the epoch: measured
	// bytes of a build after the recovery, or the operators. From the host's
	// configuration it protects against mistakes only.
	MinEpoch uint64
	// MinNodePolicy is the lowest version of the node policy that members must
	// know of; 0 means any. A member shows the newest change that it knows, signed
	// by the operators; a host that keeps a server of an older day alive could
	// lead a node to it, unless somebody remembers the version, as with MinEpoch.
	MinNodePolicy uint64
	// Join lists peer addresses to ask for admission.
	Join []string

	// PeerListen and APIListen are host:port of the attested listeners, AdminListen
	// of the plain one for /healthz, /readyz and /metrics; empty: no admin listener.
	PeerListen, APIListen, AdminListen string
	// PeerAdvertise and APIAdvertise are the addresses others reach this node at;
	// empty means the address the listener is bound to.
	PeerAdvertise, APIAdvertise string

	// DataDir takes the archives, one fresh directory per boot.
	DataDir string
	// Archive makes the archive of this boot below DataDir; nil means
	// raftstore/archive/file. It is a constructor that the binary chooses and never
	// a name that a host writes into a file: a database that maps its file, or
	// follows pointers in it, must not be reachable inside a TEE.
	Archive func(dataDir string, id raftstore.ServerID) (raftstore.Archive, error)

	// NoFsyncUnsafe acknowledges before the archive is durable: see raftstore.Config.
	NoFsyncUnsafe bool

	Timeouts raftstore.Timeouts
	// Clock is the host's clock; nil means time.Now. Decisions use the later of it
	// and the cluster's time floor.
	Clock  func() time.Time
	Logger *slog.Logger // nil: nothing is logged
	// Registry receives the metrics and is what the admin listener exports; nil means a private one.
	Registry *prometheus.Registry
}

// Genesis is what the operators decide once.
type Genesis struct {
	Name       string   // a label for people; see api.Manifest
	NodePolicy []string // constraints of which a node must satisfy one; SEC:INSECURE is refused
	Operators  api.Operators
	OpenSlots  uint64 // slots that any platform may take without a ticket, 0 to api.MaxOpenSlots; the founder's is not counted
	// Approve is shown the statement with its evidence and returns signatures of
	// at least the threshold of operators over its Message. It is called before the
	// node serves anything and may wait for people until ctx ends.
	Approve func(ctx context.Context, s *Statement) ([]Approval, error)
	// Shares takes the shares of the recovery key, one for each operator, of whom
	// Operators.Threshold give back the roots. It is called after Approve and before
	// the cluster exists; an error stops the node. Nil means that the cluster has no
	// recovery key: once a majority of its nodes is lost, its roots are, too.
	Shares func([]kds.Share) error
	// Founded, where set, is told the pins of the new cluster before it serves; an error stops the node.
	Founded func(Pins) error
}

// Pins is what identifies a cluster, and where this node serves it.
type Pins struct {
	ClusterID   api.ID
	Manifest    []byte // canonical CBOR
	IdentityKey []byte // ed25519, 32 bytes
	APIAddr     string // of this node
	PeerAddr    string // of this node
}

func (c *Config) check() error {
	missing := func(name string) error { return fmt.Errorf("%w: %s is missing", ErrConfig, name) }
	switch {
	case c.TEE == nil:
		return missing("TEE")
	case c.Root.Key == nil:
		return missing("Root")
	case c.Collateral == nil:
		return missing("Collateral")
	case !api.ValidSlot(c.Slot):
		return fmt.Errorf("%w: slot %.40q: use 1 to %d of a-z, 0-9 and '-'", ErrConfig, c.Slot, api.MaxSlot)
	case c.DataDir == "":
		return missing("DataDir")
	case (c.Genesis != nil) == !c.ClusterID.IsZero():
		return fmt.Errorf("%w: give either Genesis, to found a cluster, or ClusterID, to join one", ErrConfig)
	case c.Genesis != nil && c.Recovery != nil:
		return fmt.Errorf("%w: a cluster is founded once; Genesis and Recovery exclude each other", ErrConfig)
	case c.Recovery != nil:
		if err := c.Recovery.check(c.ClusterID); err != nil {
			return err
		}
	case c.Genesis == nil && len(c.Join) == 0:
		return fmt.Errorf("%w: Join needs the peer address of at least one member", ErrConfig)
	case c.Genesis != nil && c.Genesis.Approve == nil:
		return missing("Genesis.Approve")
	}
	return c.checkAddresses()
}

func (c *Config) checkAddresses() error {
	for name, a := range map[string]string{"PeerListen": c.PeerListen, "APIListen": c.APIListen} {
		if a == "" {
			return fmt.Errorf("%w: %s is missing", ErrConfig, name)
		}
	}
	all := append([]string{c.PeerListen, c.APIListen, c.AdminListen, c.PeerAdvertise, c.APIAdvertise}, c.Join...)
	for _, a := range all {
		if a == "" {
			continue
		}
		if _, port, err := net.SplitHostPort(a); err != nil || port == "" || !api.ValidAddress(a) {
			return fmt.Errorf("%w: address %.80q is not host:port", ErrConfig, a)
		}
	}
	return nil
}
