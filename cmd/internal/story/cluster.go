package story

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"time"

	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/kds/node"
	"github.com/claviger/claviger/raftstore"
)

// slots are the places of the cluster; each node runs on a machine of its own, called kds-<slot>.
var slots = []string{"a", "b", "c"}

// timeouts are above the defaults: three nodes, a function host and their clients share one process here, and a busy
// laptop must not look like a dead leader.
var timeouts = raftstore.Timeouts{
	Heartbeat: 400 * time.Millisecond, Election: 400 * time.Millisecond, Lease: 300 * time.Millisecond,
}

// bootTimeout bounds the start of one node until it is a voter.
const bootTimeout = 20 * time.Second

// ErrStep says that something which must hold did not.
var ErrStep = errors.New("story")

// Cluster is three simulated key nodes in this process. It is not safe for concurrent use.
type Cluster struct {
	World *sim.World
	Pins  node.Pins

	dir   string
	log   *slog.Logger
	nodes map[string]*running
}

// running is one boot of one node. Its addresses outlive the boot, so that the next one is found.
type running struct {
	node      *node.Node
	peer, api string
	cancel    context.CancelFunc
	done      chan error
}

// StartCluster founds a cluster on simulated machines and waits until all nodes vote. Archives go below dir.
func StartCluster(ctx context.Context, world *sim.World, dir string, log *slog.Logger) (*Cluster, error) {
	c := &Cluster{World: world, dir: dir, log: log, nodes: map[string]*running{}}
	for _, slot := range slots {
		if err := c.Start(ctx, slot); err != nil {
			return nil, errors.Join(err, c.Close())
		}
	}
	return c, nil
}

// Start boots the node of a slot: the very first one founds the cluster, all others join it.
func (c *Cluster) Start(ctx context.Context, slot string) error {
	place, err := simworld.At(c.World, "kds-"+slot, false)
	if err != nil {
		return err
	}
	tee, err := place.Machine.Launch(simworld.NodeImage)
	if err != nil {
		return err
	}
	config := node.Config{
		TEE: tee, Root: c.World.Root(), Collateral: c.World.Collateral, Slot: slot,
		PeerListen: "127.0.0.1:0", APIListen: "127.0.0.1:0", AdminListen: "127.0.0.1:0",
		DataDir: filepath.Join(c.dir, "kds-"+slot), Archive: simworld.BoltArchive,
		Timeouts: timeouts, Clock: c.World.Now, Logger: c.log,
	}
	if before := c.nodes[slot]; before != nil {
		config.PeerListen, config.APIListen = before.peer, before.api
	}
	if c.Pins.ClusterID.IsZero() {
		config.Genesis, err = c.genesis()
		if err != nil {
			return err
		}
	} else {
		config.ClusterID = c.Pins.ClusterID
		for name, r := range c.nodes {
			if name != slot {
				config.Join = append(config.Join, r.peer)
			}
		}
		slices.Sort(config.Join)
	}
	return c.boot(ctx, slot, config)
}

// boot runs a node and waits until it is a voter.
func (c *Cluster) boot(ctx context.Context, slot string, config node.Config) error {
	n, err := node.New(config)
	if err != nil {
		return err
	}
	life, cancel := context.WithCancel(context.WithoutCancel(ctx))
	r := &running{node: n, peer: n.PeerAddr(), api: n.APIAddr(), cancel: cancel, done: make(chan error, 1)}
	c.nodes[slot] = r
	go func() { r.done <- n.Run(life) }()
	limit, stop := context.WithTimeout(ctx, bootTimeout)
	defer stop()
	select {
	case <-n.Ready():
		return nil
	case err := <-r.done:
		r.done <- err // for Close
		return fmt.Errorf("%w: node %s did not start: %w", ErrStep, slot, err)
	case <-limit.Done():
		return fmt.Errorf("%w: node %s is not a voter yet: %w", ErrStep, slot, limit.Err())
	}
}

// genesis describes the cluster: this very image on any machine, and one operator whose key lives as long as this call.
func (c *Cluster) genesis() (*node.Genesis, error) {
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	return &node.Genesis{
		Name: "story", NodePolicy: []string{simworld.NodeImage.Constraint()},
		Operators: api.Operators{Threshold: 1, Keys: [][]byte{public}},
		OpenSlots: api.MaxOpenSlots, // simulated machines join without people
		Approve:   node.ApproveWith(c.World.Root(), c.World.Now, private),
		Founded: func(pins node.Pins) error {
			c.Pins = pins
			return nil
		},
	}, nil
}

// Kill ends the node of a slot at once, as a crash or kill -9 would.
func (c *Cluster) Kill(slot string) error {
	r := c.nodes[slot]
	err := r.node.Close()
	if ran := <-r.done; !errors.Is(ran, node.ErrClosed) {
		err = errors.Join(err, ran)
	}
	r.cancel()
	r.done <- nil // for Close
	return err
}

// Endpoints returns the API addresses of all nodes.
func (c *Cluster) Endpoints() []string {
	var out []string
	for _, r := range c.nodes {
		out = append(out, r.api)
	}
	slices.Sort(out)
	return out
}

// Client returns a client that shows the evidence of tee, or none where tee is nil. The caller closes it.
func (c *Cluster) Client(tee enclave.TEE) (*client.Client, error) {
	config := client.Config{
		ClusterID: c.Pins.ClusterID, Endpoints: c.Endpoints(), Root: c.World.Root(), Clock: c.World.Now,
	}
	if tee != nil {
		config.Attest = simworld.Attest(c.World, tee)
	}
	return client.New(config)
}

// Members asks the cluster for its members.
func (c *Cluster) Members(ctx context.Context) ([]api.Member, error) {
	cl, err := c.Client(nil)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	reply, err := cl.Cluster(ctx)
	return reply.Members, err
}

// AwaitVoters asks until the cluster has exactly n members, all of them voters with distinct slots, and a leader. What one
// node believes may be a moment behind.
func (c *Cluster) AwaitVoters(ctx context.Context, n int) ([]api.Member, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		members, err := c.Members(ctx)
		if err == nil && settled(members, n) {
			return members, nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("%w: no cluster of %d voters and a leader, but %+v", ErrStep, n, members), err)
		}
	}
}

// pollInterval is how often AwaitVoters asks.
const pollInterval = 50 * time.Millisecond

func settled(members []api.Member, n int) bool {
	if len(members) != n {
		return false
	}
	seen, leaders := map[string]bool{}, 0
	for _, m := range members {
		if !m.Voter || seen[m.Slot] {
			return false
		}
		seen[m.Slot] = true
		if m.Leader {
			leaders++
		}
	}
	return leaders == 1
}

// File returns the cluster file that clients pin.
func (c *Cluster) File() *clusterfile.File {
	return &clusterfile.File{
		ClusterID: c.Pins.ClusterID, Manifest: c.Pins.Manifest, IdentityKey: c.Pins.IdentityKey, Endpoints: c.Endpoints(),
	}
}

// Close stops all nodes gracefully.
func (c *Cluster) Close() error {
	var errs []error
	for _, r := range c.nodes {
		r.cancel()
	}
	for _, r := range c.nodes {
		errs = append(errs, <-r.done)
	}
	return errors.Join(errs...)
}
