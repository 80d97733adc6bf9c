// Package clusterfile is the small file that says which cluster to trust: the genesis node writes it once, and clients,
// function hosts and joining nodes pin the cluster id in it. The id is a hash of the genesis manifest and the identity
// key, so a client needs nothing else to recognise the cluster; manifest and endpoints only help to read and to reach it.
//
// Whoever can change the file can point its reader at another cluster. On the simulator that is fine. In production the
// id is pinned in measured bytes and this file, if there is one, must agree.
package clusterfile

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"

	"github.com/claviger/claviger/kds/api"
)

// Limits of the file.
const (
	MaxFile      = 256 << 10 // bytes
	MaxEndpoints = api.MaxMembers
)

var (
	// ErrInvalid says that a file is not a cluster file, or contradicts itself.
	ErrInvalid = errors.New("not a cluster file")
	// ErrPinned says that a file names another cluster than the one its reader was built for.
	ErrPinned = errors.New("the cluster file names another cluster than this binary pins")
)

// File is the content.
type File struct {
	ClusterID   api.ID   `json:"cluster_id"`
	Manifest    []byte   `json:"manifest"`     // canonical CBOR
	IdentityKey []byte   `json:"identity_key"` // ed25519, 32 bytes
	Endpoints   []string `json:"endpoints"`    // host:port of the nodes' APIs, where to start; not trusted
}

// Check reports the first contradiction: the id must be the hash of manifest and identity key.
func (f *File) Check() error {
	id, err := api.ClusterID(f.Manifest, f.IdentityKey)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if id != f.ClusterID {
		return fmt.Errorf("%w: it names cluster %s, but manifest and identity key are those of %s", ErrInvalid, f.ClusterID, id)
	}
	if len(f.Endpoints) == 0 || len(f.Endpoints) > MaxEndpoints {
		return fmt.Errorf("%w: %d endpoints, want 1 to %d", ErrInvalid, len(f.Endpoints), MaxEndpoints)
	}
	for _, e := range f.Endpoints {
		if _, _, err := net.SplitHostPort(e); err != nil {
			return fmt.Errorf("%w: endpoint %q is not host:port", ErrInvalid, e)
		}
	}
	return nil
}

// ManifestOf returns the decoded manifest of a checked file.
func (f *File) ManifestOf() (*api.Manifest, error) { return api.ParseManifest(f.Manifest) }

// Parse reads and checks the content of a file.
func Parse(raw []byte) (*File, error) {
	var f File
	if err := api.DecodeJSON(raw, MaxFile, &f); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	if err := f.Check(); err != nil {
		return nil, err
	}
	return &f, nil
}

// Read reads and checks a file.
func Read(name string) (*File, error) {
	in, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer in.Close()
	raw, err := io.ReadAll(io.LimitReader(in, MaxFile+1))
	if err != nil {
		return nil, err
	}
	f, err := Parse(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return f, nil
}

// ReadPinned is Read for a binary that may have a cluster id in its measured bytes: unless pinned is zero, the file must
// name that very cluster, else the error is ErrPinned.
func ReadPinned(name string, pinned api.ID) (*File, error) {
	f, err := Read(name)
	if err != nil {
		return nil, err
	}
	if !pinned.IsZero() && f.ClusterID != pinned {
		return nil, fmt.Errorf("%w: %s and %s", ErrPinned, f.ClusterID, pinned)
	}
	return f, nil
}

// Create writes a checked file that must not exist yet: a genesis never overwrites the pin of another cluster. Readers
// see either no file or a whole one.
func (f *File) Create(name string) error {
	if err := f.Check(); err != nil {
		return err
	}
	raw, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(name), ".cluster-*")
	if err != nil {
		return err
	}
	defer os.Remove(tmp.Name())
	if _, err := tmp.Write(append(raw, '\n')); err != nil {
		return errors.Join(err, tmp.Close())
	}
	if err := errors.Join(tmp.Sync(), tmp.Close()); err != nil {
		return err
	}
	return os.Link(tmp.Name(), name) // fails if name exists, unlike a rename
}
