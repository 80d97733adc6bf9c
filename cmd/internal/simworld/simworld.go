// Package simworld connects the daemons and the command line to the simulator: which simulated machine a process runs
// on, which image it is, and how it produces evidence. Nothing here protects anything; production binaries do not link it.
package simworld

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/bolt"
)

// Config is the sim section of a configuration file.
type Config struct {
	// World is the file that all processes of one simulation share; 'claviger sim init' makes it.
	World string `yaml:"world"`
	// Machine names the simulated machine that this process runs on. Its sealing key and platform identity follow the name.
	Machine string `yaml:"machine"`
	// Image is the version of the daemon's image; empty means 1. Another version has another measurement, as another build would.
	Image string `yaml:"image"`
	// OutOfDateTCB gives the machine a platform that has missed updates, to see it refused.
	OutOfDateTCB bool `yaml:"out_of_date_tcb"`
	// Clock is a file with the offset of this host's clock in seconds, such as -86400, read anew whenever the time is asked for:
	// to see what a host that sets its clock can do. Empty, or a file that is missing or holds no number: the system's clock.
	Clock string `yaml:"clock"`
}

// ErrConfig says that the sim section cannot place a process; the text says which key and what to write.
var ErrConfig = errors.New("sim configuration")

// The images of the simulated daemons in version 1. Their measurements are hashes of these fields, so a constraint that names
// one holds for every process of it and for nothing else.
var (
	NodeImage    = sim.Image{Kind: enclave.TDX, Name: "clavigerd", Signer: "claviger", ProdID: 1, SVN: 1, Version: "1"}
	RuntimeImage = sim.Image{Kind: enclave.SGX, Name: "claviger-fn", Signer: "claviger", ProdID: 2, SVN: 1, Version: "1"}
)

// Launch starts a daemon's image, in the version that the configuration names, on the machine of the place.
func (c *Config) Launch(p *Place, image sim.Image) (*sim.Enclave, error) {
	if c.Image != "" {
		image.Version = c.Image
	}
	tee, err := p.Machine.Launch(image)
	if errors.Is(err, sim.ErrImage) {
		err = fmt.Errorf("%w: sim.image: %w", ErrConfig, err)
	}
	return tee, err
}

// Place is where a simulated process runs.
type Place struct {
	World   *sim.World
	Machine *sim.Machine
	// Clock is the host's clock. The simulated Intel keeps its own time, as Intel does.
	Clock func() time.Time
}

// Open opens the world file, relative to dir, and the machine.
func (c *Config) Open(dir string) (*Place, error) {
	if c.World == "" || c.Machine == "" {
		return nil, fmt.Errorf("%w: the keys sim.world and sim.machine are needed; run 'claviger sim init' for an example", ErrConfig)
	}
	path := c.World
	if !filepath.IsAbs(path) {
		path = filepath.Join(dir, path)
	}
	world, err := sim.OpenWorld(path)
	if err != nil {
		return nil, err
	}
	place, err := At(world, c.Machine, c.OutOfDateTCB)
	if err != nil {
		return nil, err
	}
	if c.Clock != "" {
		place.Clock = hostClock(cli.Below(dir, c.Clock))
	}
	return place, nil
}

// At returns a place on a machine of a world that is already open.
func At(world *sim.World, machine string, outOfDate bool) (*Place, error) {
	var options []sim.MachineOption
	if outOfDate {
		options = append(options, sim.OutOfDateTCB())
	}
	m, err := world.Machine(machine, options...)
	if err != nil {
		return nil, err
	}
	return &Place{World: world, Machine: m, Clock: time.Now}, nil
}

// Attest returns a producer of channel evidence for a simulated enclave: its quote, and the collateral for it as the
// host would fetch it from Intel.
func Attest(world *sim.World, tee enclave.TEE) func(context.Context, [64]byte) (ratls.Evidence, error) {
	return func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
		quote, err := tee.Quote(ctx, reportData)
		if err != nil {
			return ratls.Evidence{}, err
		}
		collateral, err := world.Collateral(ctx, quote)
		if err != nil {
			return ratls.Evidence{}, err
		}
		bundle, err := collateral.Marshal()
		return ratls.Evidence{Quote: quote, Collateral: bundle}, err
	}
}

// BoltArchive makes a bolt archive below dir. It is here because simulated nodes alone may have one: bbolt maps its file
// and follows pointers in it, which in a TEE would be the host's.
func BoltArchive(dir string, id raftstore.ServerID) (raftstore.Archive, error) {
	a, err := bolt.Create(dir, id)
	if err != nil {
		return nil, err // not a nil *bolt.Archive in an interface
	}
	return a, nil
}

// BoltRecords reads a bolt archive, for a recovery on the simulator.
func BoltRecords(dir string) iter.Seq2[[]byte, error] { return bolt.Records(dir) }
