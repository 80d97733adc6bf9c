package main

import (
	"context"
	"fmt"
	"iter"
	"os"

	"github.com/claviger/claviger/cmd/internal/daemon"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/bolt"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/archive/remote"
)

const (
	kindBolt = "bolt"
	kindFile = "file"
)

// Config is the YAML file of the server. Every key is listed here; others are refused.
type Config struct {
	// Listen is where nodes connect, host:port. The protocol is plain TCP: loopback, or a network of the hosts' own.
	Listen string `yaml:"listen"`
	// Data is the directory below which each boot gets its own; it is made when missing. It is for one cluster. The server never
	// removes anything in it: 'claviger cluster prune' does.
	Data string `yaml:"data"`
	// Archive is how archives are stored: "bolt" (the default) or "file".
	Archive string `yaml:"archive"`
	// Log says how to log.
	Log daemon.Log `yaml:"log"`
}

// Resolve checks c and makes its paths absolute, relative ones starting from dir.
func (c *Config) Resolve(dir string) error {
	if err := daemon.Address("listen", c.Listen); err != nil {
		return err
	}
	switch c.Archive {
	case "":
		c.Archive = kindBolt
	case kindBolt, kindFile:
	default:
		return fmt.Errorf("%w: archive %q: write %s or %s", daemon.ErrConfig, c.Archive, kindBolt, kindFile)
	}
	var err error
	c.Data, err = daemon.Path("data", c.Data, dir)
	return err
}

func (c *Config) backend() remote.Directory {
	if c.Archive == kindFile {
		return remote.Directory{
			Root: c.Data,
			Make: func(root string, id raftstore.ServerID) (raftstore.Archive, error) {
				return archive(file.Create(root, id))
			},
			Read: func(_ context.Context, dir string) iter.Seq2[[]byte, error] { return file.Records(dir) },
		}
	}
	return remote.Directory{
		Root: c.Data,
		Make: func(root string, id raftstore.ServerID) (raftstore.Archive, error) {
			return archive(bolt.Create(root, id))
		},
		Read: func(ctx context.Context, dir string) iter.Seq2[[]byte, error] {
			self, err := os.Executable()
			if err != nil {
				return func(yield func([]byte, error) bool) { yield(nil, err) }
			}
			return isolated(ctx, maxReaderIdle, self, "read-bolt", dir)
		},
	}
}

// archive keeps a nil pointer out of the interface.
func archive[A raftstore.Archive](a A, err error) (raftstore.Archive, error) {
	if err != nil {
		return nil, err
	}
	return a, nil
}
