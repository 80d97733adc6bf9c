package kdsd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"slices"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

// Recovery says what a recovering node reads. It is used only with --recover. Whatever a host writes here decides what the
// enclave sees, and what the operators are shown; it does not decide what they sign.
type Recovery struct {
	// Survivors lists peer addresses, host:port, of old nodes whose processes still live, at most 16. They come first: one that
	// the operators name as the source stops for good and hands over the roots, so no shares are asked for, unless Wrapped names
	// files. Name the archives of the others too: they are opened with those roots, and a newer one is not passed over.
	Survivors []string `yaml:"survivors"`
	// Archives lists directories of old nodes: of one archive each, named after its server id, or data directories, of
	// which all archives are read. Name all there are; without Survivors at least one. A node's own running archive is never among them.
	Archives []string `yaml:"archives"`
	// Wrapped lists files with the wrapped roots. Those beside the archives are found without it, where directories can be listed.
	Wrapped []string `yaml:"wrapped"`
	// Receipts lists files with receipts of key releases that clients have kept, or directories of *.json. The new epoch
	// begins below none.
	Receipts []string `yaml:"receipts"`
	// Finals lists files with final checkpoints of a planned stop, or directories of final-*.json. Those beside the archives
	// are found without it.
	Finals []string `yaml:"finals"`
	// MinNodePolicy is the lowest version of the node policy to accept.
	MinNodePolicy uint64 `yaml:"min_node_policy"`
}

// resolve makes all paths absolute.
func (r *Recovery) resolve(dir string) {
	for _, list := range []*[]string{&r.Archives, &r.Wrapped, &r.Receipts, &r.Finals} {
		for i := range *list {
			(*list)[i] = cli.Below(dir, (*list)[i])
		}
	}
}

// archiveDirs finds the directories of archives in those that the file names.
func (r *Recovery) archiveDirs() ([]string, error) {
	var all []string
	for _, dir := range r.Archives {
		if _, _, ok := remote.Split(dir); ok {
			all = append(all, dir)
			continue
		}
		data := remote.Directory{Root: dir}
		below, err := data.List()
		if err != nil {
			return nil, fmt.Errorf("%w: recovery.archives: %w; where directories cannot be listed, name each archive by itself", daemon.ErrConfig, err)
		}
		if len(below) == 0 {
			return nil, fmt.Errorf("%w: recovery.archives: there is no archive in %s, which is not named after a server id itself", daemon.ErrConfig, dir)
		}
		for _, name := range below {
			all = append(all, data.Dir(name))
		}
	}
	if len(all) == 0 && len(r.Survivors) == 0 {
		return nil, fmt.Errorf("%w: recovery.archives is empty; list the data directories of all old nodes, or live ones in recovery.survivors", daemon.ErrConfig)
	}
	if len(all) > node.MaxArchives {
		return nil, fmt.Errorf("%w: recovery.archives: %d archives, and a recovery takes %d; name the newest of each slot by itself, data/<server id>, and leave those of earlier boots away",
			daemon.ErrConfig, len(all), node.MaxArchives)
	}
	return all, nil
}

// beside finds wrapped roots and final checkpoints in the data directories of archives.
func beside(dirs []string) (wrapped, finals []string) {
	for _, dir := range dirs {
		data, archive, ok := remote.Split(dir)
		if !ok {
			continue
		}
		entries, _ := os.ReadDir(data) // a directory that cannot be listed, or is elsewhere, has none: see Recovery.Wrapped
		for _, e := range entries {
			name := filepath.Join(data, e.Name())
			if ok, _ := filepath.Match(node.WrappedPattern, e.Name()); ok && !slices.Contains(wrapped, name) {
				wrapped = append(wrapped, name)
			}
		}
		if name := filepath.Join(data, node.FinalFile(api.ID(archive.Server))); exists(name) {
			finals = append(finals, name)
		}
	}
	return wrapped, finals
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// recover describes the recovery of the cluster in the cluster file.
func (c *Config) recover(p Platform, log *slog.Logger) (*node.Recovery, api.ID, error) {
	if c.Recovery == nil {
		return nil, api.ID{}, cli.Usagef("--recover needs a recovery section in the configuration")
	}
	cluster, err := clusterfile.ReadPinned(c.Cluster, p.Pinned)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, api.ID{}, cli.Usagef("%s does not exist; copy the cluster file of the cluster to recover here", c.Cluster)
	}
	if err != nil {
		return nil, api.ID{}, err
	}
	dirs, err := c.Recovery.archiveDirs()
	if err != nil {
		return nil, api.ID{}, &cli.UsageError{Err: err}
	}
	for _, addr := range c.Recovery.Survivors {
		if err := daemon.Address("recovery.survivors", addr); err != nil {
			return nil, api.ID{}, &cli.UsageError{Err: err}
		}
	}
	r := &node.Recovery{Manifest: cluster.Manifest, IdentityKey: cluster.IdentityKey, Survivors: c.Recovery.Survivors, Archives: dirs, Receipts: c.Recovery.Receipts, MinNodePolicy: c.Recovery.MinNodePolicy}
	wrapped, finals := beside(dirs)
	r.Finals = unique(append(finals, c.Recovery.Finals...))
	shares := c.Recovery.needsShares()
	if shares {
		r.Wrapped = append(wrapped, c.Recovery.Wrapped...)
	}
	if shares && len(r.Wrapped) == 0 {
		return nil, api.ID{}, cli.Usagef("there are no wrapped roots beside the archives (%s): name files in recovery.wrapped. A cluster that was founded without shares of a recovery key has none: only a node that still lives brings it back, in recovery.survivors",
			node.WrappedPattern)
	}
	if r.Records = c.records(p); r.Records == nil {
		return nil, api.ID{}, cli.Usagef("archives of the kind %q cannot be read by this binary", c.Archive)
	}
	files, err := node.RecoverByFile(filepath.Join(c.Data, "recovery"), tell(log))
	if err != nil {
		return nil, api.ID{}, err
	}
	if r.Approve = files.Approve; shares {
		r.Shares = files.Shares
	}
	return r, cluster.ClusterID, nil
}

// needsShares: a survivor has the roots, so shares are for those who want to see into archives before it stops.
func (r *Recovery) needsShares() bool { return len(r.Survivors) == 0 || len(r.Wrapped) > 0 }

// records reads archives of the configured kind. Those of claviger-archive are read from the server in archive_server, under
// the server id and attempt that their directory would have: recovery.archives then lists names that need not exist here.
func (c *Config) records(p Platform) node.Records {
	switch c.Archive {
	case archiveFile:
		return file.Records
	case archiveRemote:
		return func(dir string) iter.Seq2[[]byte, error] {
			_, name, _ := remote.Split(dir) // the zero name of anything else is refused
			return remote.Records(context.Background(), c.ArchiveServer, name, remote.Options{})
		}
	}
	return p.Records[c.Archive]
}

func unique(list []string) []string {
	slices.Sort(list)
	return slices.Compact(list)
}

// tell logs what the recovery waits for, and what was wrong with the last answer.
func tell(log *slog.Logger) func(path, next string, refused error) {
	return func(path, next string, refused error) {
		if refused != nil {
			log.Error("what the operators brought does not suffice", "reason", refused)
		}
		command := "claviger cluster recover return"
		if next == node.RecoveryApprovalsFile {
			command = "claviger cluster recover inspect, then approve"
		}
		log.Info("the recovery waits for the operators: "+command, "read", path, "await", filepath.Join(filepath.Dir(path), next))
	}
}
