package main

import (
	"context"
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/spf13/pflag"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// clusterFlags say which cluster to talk to, and under which root of trust.
type clusterFlags struct {
	cluster   string
	sim       string
	endpoints []string
	timeout   time.Duration
	minEpoch  uint64
}

func (f *clusterFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.cluster, "cluster", "", "cluster `file` that pins the cluster id; default cluster.json beside --sim")
	flags.StringVar(&f.sim, "sim", "", "world `file` of the simulator; without it the nodes must run on real hardware")
	flags.StringSliceVar(&f.endpoints, "endpoint", nil, "API `address` to use instead of those in the cluster file; may be repeated")
	flags.Uint64Var(&f.minEpoch, "min-epoch", 0, "lowest `epoch` of the cluster to accept: the highest that you have seen")
	flags.DurationVar(&f.timeout, "timeout", 30*time.Second, "give up after this long")
}

// target is a cluster as the command line named it.
type target struct {
	file  *clusterfile.File
	world *sim.World // nil: real hardware
	root  attest.Root
	epoch uint64 // the lowest to accept
}

func (f *clusterFlags) open() (*target, error) {
	t := &target{root: attest.IntelRoot(), epoch: f.minEpoch}
	if f.sim != "" {
		world, err := sim.OpenWorld(f.sim)
		if err != nil {
			return nil, &cli.UsageError{Err: err}
		}
		t.world, t.root = world, world.Root()
	}
	name := f.cluster
	if name == "" {
		name = filepath.Join(filepath.Dir(f.sim), "cluster.json")
	}
	var err error
	t.file, err = clusterfile.Read(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, cli.Usagef("%s does not exist; name the cluster file with --cluster, or start a node with --genesis to make one", name)
	}
	if err != nil {
		return nil, err
	}
	if len(f.endpoints) > 0 {
		t.file.Endpoints = f.endpoints
	}
	return t, t.file.Check()
}

// client returns a client that shows no evidence, or that of a simulated enclave.
func (t *target) client(tee enclave.TEE) (*client.Client, error) {
	config := client.Config{ClusterID: t.file.ClusterID, Endpoints: t.file.Endpoints, Root: t.root, MinEpoch: t.epoch}
	if tee != nil {
		config.Attest = simworld.Attest(t.world, tee)
	}
	return client.New(config)
}

// call uses a client of the target within the timeout of the flags.
func (f *clusterFlags) call(ctx context.Context, t *target, tee enclave.TEE, use func(context.Context, *client.Client) error) error {
	ctx, cancel, err := f.bounded(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	c, err := t.client(tee)
	if err != nil {
		return err
	}
	defer c.Close()
	return use(ctx, c)
}

// leaderPatience bounds the second question, to the leader.
const leaderPatience = 5 * time.Second

// sight is a cluster as an operator sees it through one of its members.
type sight struct {
	target   *target
	any      bool           // members that the node policy shuts out are believed, too
	client   *client.Client // releases nothing
	now      api.Cluster    // what the member says; proved as far as client.Cluster does it
	manifest *api.Manifest  // of now
}

// look asks a member of the target about the cluster, and uses what it says within the timeout of the flags. It reaches members
// that the node policy shuts out, too: operators must be able to mend a policy that none of them satisfies.
func (f *clusterFlags) look(ctx context.Context, use func(context.Context, *sight) error) error {
	return f.lookAt(ctx, true, use)
}

// believe is look where something is done by the word of the members: only those that the node policy accepts have one.
func (f *clusterFlags) believe(ctx context.Context, use func(context.Context, *sight) error) error {
	return f.lookAt(ctx, false, use)
}

func (f *clusterFlags) lookAt(ctx context.Context, anyMember bool, use func(context.Context, *sight) error) error {
	t, err := f.open()
	if err != nil {
		return err
	}
	ctx, cancel, err := f.bounded(ctx)
	if err != nil {
		return err
	}
	defer cancel()
	v := &sight{target: t, any: anyMember}
	if v.client, err = v.ask(0, t.file.Endpoints...); err != nil {
		return err
	}
	defer v.client.Close()
	if v.now, err = v.client.Cluster(ctx); err != nil {
		return err
	}
	if v.manifest, err = v.now.Verify(t.file.ClusterID); err != nil {
		return err
	}
	return use(ctx, v)
}

// ask returns a client of members that know the node policy up to a version at least, and of the epoch that was seen.
func (v *sight) ask(nodePolicy uint64, endpoints ...string) (*client.Client, error) {
	t, epoch := v.target, v.target.epoch
	if v.client != nil {
		epoch = max(epoch, v.client.Epoch())
	}
	return client.New(client.Config{ClusterID: t.file.ClusterID, Endpoints: endpoints, Root: t.root, MinEpoch: epoch,
		MinNodePolicy: nodePolicy, AnyMember: v.any})
}

// bounded returns a context that ends after the timeout of the flags.
func (f *clusterFlags) bounded(ctx context.Context) (context.Context, context.CancelFunc, error) {
	if f.timeout <= 0 {
		return nil, nil, cli.Usagef("--timeout %s: write a duration above zero, such as 30s", f.timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, f.timeout)
	return ctx, cancel, nil
}

// imageFlags describe the simulated enclave that a command plays.
type imageFlags struct {
	machine   string
	kind      string
	image     sim.Image
	outOfDate bool
}

func (f *imageFlags) register(flags *pflag.FlagSet) {
	flags.StringVar(&f.machine, "machine", "", "`name` of the simulated machine that the enclave runs on")
	flags.StringVar(&f.kind, "kind", "sgx", "kind of the simulated enclave: sgx or tdx")
	flags.StringVar(&f.image.Name, "image", "", "`name` of the image: its measurement is a hash of name and version")
	flags.StringVar(&f.image.Version, "image-version", "1", "`version` of the image")
	flags.StringVar(&f.image.Signer, "signer", "", "`name` of the image's signer (sgx)")
	flags.Uint16Var(&f.image.ProdID, "prod", 0, "product id of the image (sgx)")
	flags.Uint16Var(&f.image.SVN, "svn", 0, "security version of the image (sgx)")
	flags.BoolVar(&f.image.Debug, "debug-enclave", false, "launch the image in debug mode, as a host could")
	flags.BoolVar(&f.outOfDate, "out-of-date-tcb", false, "give the machine firmware that has missed an update")
}

// launch starts the simulated enclave in the target's world.
func (f *imageFlags) launch(t *target) (*sim.Enclave, error) {
	if t.world == nil {
		return nil, cli.Usagef("--sim is missing: outside an enclave this command can only play a simulated one; real enclaves link kds/client")
	}
	if f.machine == "" || f.image.Name == "" {
		return nil, cli.Usagef("--machine and --image are needed, as in --machine laptop --image orders")
	}
	kind, err := enclave.ParseKind(f.kind)
	if err != nil {
		return nil, cli.Usagef("--kind: %w", err)
	}
	f.image.Kind = kind
	place, err := simworld.At(t.world, f.machine, f.outOfDate)
	if err != nil {
		return nil, err
	}
	tee, err := place.Machine.Launch(f.image)
	if errors.Is(err, sim.ErrImage) {
		return nil, &cli.UsageError{Err: err}
	}
	return tee, err
}
