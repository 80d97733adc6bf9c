package kdsd

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

const (
	archiveFile   = "file"
	archiveRemote = "remote"

	fsyncAlways  = "always"
	fsyncRelaxed = "relaxed"
)

// Archive makes the archive of one boot below dir.
type Archive = func(dir string, id raftstore.ServerID) (raftstore.Archive, error)

// Config is the YAML file of a key node. Paths are relative to the file's directory. Every key is listed here; others
// are refused.
type Config struct {
	// Slot names this node's place in the cluster: 1 to 32 of a-z, 0-9 and '-'. Each boot is a new incarnation of it.
	Slot string `yaml:"slot"`
	// Listen has the three addresses, each host:port. Peer and api speak attested TLS; admin is plain HTTP for
	// /healthz, /readyz and /metrics and belongs on a network of the operator's.
	Listen struct {
		Peer  string `yaml:"peer"`
		API   string `yaml:"api"`
		Admin string `yaml:"admin"`
	} `yaml:"listen"`
	// Advertise has the addresses that others reach this node at, where they differ from Listen.
	Advertise struct {
		Peer string `yaml:"peer"`
		API  string `yaml:"api"`
	} `yaml:"advertise"`
	// Data is the directory of the sealed archives. A boot writes below a fresh directory and never reads an old one.
	Data string `yaml:"data"`
	// Archive is the kind of archive: "file" (the default), "remote", which is claviger-archive on the host's side, or one
	// of those in Archives.
	Archive string `yaml:"archive"`
	// ArchiveServer is the host:port of claviger-archive; given with "remote" and only then. Inside EGo it is numeric.
	ArchiveServer string `yaml:"archive_server"`
	// Fsync is "always" (the default), or "relaxed": what is acknowledged is in the memory of a majority and not yet on
	// their disks. If a majority is lost at once, power or kill -9, recovery may then miss what clients were told.
	Fsync string `yaml:"fsync"`
	// Archives are the kinds that the binary offers besides "file". The binary sets it before Resolve; no file can.
	Archives map[string]Archive `yaml:"-"`
	// Cluster is the cluster file: --genesis writes it, every other start reads it and joins that cluster.
	Cluster string `yaml:"cluster"`
	// Join lists peer addresses to ask for admission, 1 to 64. Not used by --genesis and --recover.
	Join []string `yaml:"join"`
	// MinEpoch is the lowest epoch of the cluster to join, or of survivors to recover from: after a recovery, the new one.
	MinEpoch uint64 `yaml:"min_epoch"`
	// MinNodePolicy is the lowest version of the node policy that members must know of: the one that 'claviger cluster policy'
	// shows. It keeps a joining node from members of code that the operators have given up since.
	MinNodePolicy uint64 `yaml:"min_node_policy"`
	// Collateral says where collateral comes from. Not used by simulated nodes.
	Collateral daemon.Collateral `yaml:"collateral"`
	// Genesis describes a cluster to found. It is read only with --genesis.
	Genesis *Genesis `yaml:"genesis"`
	// Recovery says what to recover a cluster from. It is read only with --recover.
	Recovery *Recovery `yaml:"recovery"`
	// Log says how to log.
	Log daemon.Log `yaml:"log"`
}

// Genesis is what the operators decide once: everything here goes into the manifest, whose hash is in the cluster id.
type Genesis struct {
	// Name is a label for people, 1 to 64 visible ASCII characters.
	Name string `yaml:"name"`
	// NodePolicy lists the constraints of which a node must satisfy one.
	NodePolicy []string `yaml:"node_policy"`
	// Operators are the people whose threshold counts.
	Operators struct {
		Threshold uint64   `yaml:"threshold"`
		Keys      []string `yaml:"keys"` // ed25519 public keys, 64 hex digits each
	} `yaml:"operators"`
	// OpenSlots is how many slots any platform that satisfies the node policy may take without a ticket signed by the
	// operators, 0 to 9. The default 0 asks them about every machine but the founder's.
	OpenSlots uint64 `yaml:"open_slots"`
	// Endpoints lists the API addresses to put into the cluster file besides this node's own, for clients to start from.
	Endpoints []string `yaml:"endpoints"`
}

// Resolve checks c and makes its paths absolute, relative ones starting from dir.
func (c *Config) Resolve(dir string) error {
	if !api.ValidSlot(c.Slot) {
		return fmt.Errorf("%w: slot %q: use 1 to %d of a-z, 0-9 and '-'", daemon.ErrConfig, c.Slot, api.MaxSlot)
	}
	for _, a := range []struct{ key, value string }{
		{"listen.peer", c.Listen.Peer}, {"listen.api", c.Listen.API}, {"listen.admin", c.Listen.Admin},
	} {
		if err := daemon.Address(a.key, a.value); err != nil {
			return err
		}
	}
	if c.Advertise.Peer == "" {
		c.Advertise.Peer = c.Listen.Peer
	}
	if c.Advertise.API == "" {
		c.Advertise.API = c.Listen.API
	}
	if len(c.Join) > api.MaxMembers {
		return fmt.Errorf("%w: join has %d addresses, at most %d", daemon.ErrConfig, len(c.Join), api.MaxMembers)
	}
	for _, a := range append([]string{c.Advertise.Peer, c.Advertise.API}, c.Join...) {
		if err := daemon.Address("advertise or join", a); err != nil {
			return err
		}
	}
	if err := c.checkArchive(); err != nil {
		return err
	}
	for _, p := range []struct {
		key  string
		path *string
	}{{"data", &c.Data}, {"cluster", &c.Cluster}} {
		var err error
		if *p.path, err = daemon.Path(p.key, *p.path, dir); err != nil {
			return err
		}
	}
	if c.Recovery != nil {
		c.Recovery.resolve(dir)
	}
	return c.Collateral.Resolve(dir)
}

// checkArchive refuses a kind that this binary does not offer. Inside a TEE that is bolt above all: it maps its file and
// follows pointers in it, which belong to the host.
func (c *Config) checkArchive() error {
	switch c.Fsync {
	case "":
		c.Fsync = fsyncAlways
	case fsyncAlways, fsyncRelaxed:
	default:
		return fmt.Errorf("%w: fsync %q: write %s or %s", daemon.ErrConfig, c.Fsync, fsyncAlways, fsyncRelaxed)
	}
	if c.Archive == "" {
		c.Archive = archiveFile
	}
	if (c.Archive == archiveRemote) != (c.ArchiveServer != "") {
		return fmt.Errorf("%w: archive: remote and archive_server: host:port belong together", daemon.ErrConfig)
	}
	if c.Archive == archiveRemote {
		return daemon.Address("archive_server", c.ArchiveServer)
	}
	if c.Archive == archiveFile || c.Archives[c.Archive] != nil {
		return nil
	}
	why := "there is no such kind"
	if c.Archive == "bolt" {
		why = "a database that maps its file has no place in an enclave, so only simulated nodes have it; write remote and run claviger-archive beside the node"
	}
	return fmt.Errorf("%w: archive %q: %s; write %s", daemon.ErrConfig, c.Archive, why,
		strings.Join(append([]string{archiveFile, archiveRemote}, slices.Sorted(maps.Keys(c.Archives))...), " or "))
}

// makeArchive is the constructor of the kind that the configuration names; nil means file.
func (c *Config) makeArchive() Archive {
	if c.Archive != archiveRemote {
		return c.Archives[c.Archive]
	}
	attempt := uint16(0) // a boot whose store failed to open takes another archive; calls come one after the other
	return func(_ string, id raftstore.ServerID) (raftstore.Archive, error) {
		attempt++
		a, err := remote.Create(context.Background(), c.ArchiveServer, remote.Name{Attempt: attempt, Server: id}, remote.Options{})
		if err != nil {
			return nil, err // not a nil *remote.Archive in an interface
		}
		return a, nil
	}
}

// operators decodes the operators' keys. Whether threshold and constraints make sense is checked by the node.
func (g *Genesis) operators() (api.Operators, error) {
	o := api.Operators{Threshold: g.Operators.Threshold}
	for _, text := range g.Operators.Keys {
		key, err := hex.DecodeString(text)
		if err != nil || len(key) != ed25519.PublicKeySize {
			return api.Operators{}, fmt.Errorf("%w: genesis.operators.keys: %q is not 64 hex digits", daemon.ErrConfig, text)
		}
		o.Keys = append(o.Keys, key)
	}
	return o, nil
}
