package node

import (
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"log/slog"
	"os"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/kds/node/nodetest"
	"github.com/claviger/claviger/raftstore"
)

var (
	nodeImage = sim.Image{Kind: enclave.SGX, Name: "clavigerd", Version: "1", Signer: "claviger", ProdID: 1, SVN: 1}
	appImage  = sim.Image{Kind: enclave.SGX, Name: "app", Version: "1", Signer: "acme", ProdID: 2, SVN: 1}
)

// TestMain lets more tests run at once than there are processors: they wait for
// elections most of the time.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == strconv.Itoa(runtime.GOMAXPROCS(0)) {
		f.Value.Set("6")
	}
	os.Exit(m.Run())
}

// site is one simulated world with the operator of one cluster in it.
type site struct {
	t         testing.TB
	world     *sim.World
	operator  ed25519.PrivateKey
	policy    []string
	openSlots uint64
	clock     func() time.Time // of nodes, clients and operators; nil means time.Now
	pins      Pins
	tune      func(*Node) // what a test changes before Run

	mu    sync.Mutex
	nodes []*running
}

type running struct {
	*Node
	slot string
	done chan error
	stop context.CancelFunc
}

func newSite(t testing.TB) *site {
	sites <- struct{}{}
	t.Cleanup(func() { <-sites }) // after the nodes, whose cleanups come later
	seed := [32]byte{1}
	copy(seed[1:], t.Name())
	return &site{t: t, world: sim.NewWorld(seed, nil), operator: ed25519.NewKeyFromSeed(make([]byte, 32)), policy: []string{nodeImage.Constraint()}, openSlots: api.MaxOpenSlots}
}

// timeouts are laxer than the defaults: tests share two cores with others.
var timeouts = raftstore.Timeouts{Heartbeat: slow * 300 * time.Millisecond, Election: slow * 300 * time.Millisecond,
	Lease: slow * 250 * time.Millisecond, RPC: slow * 3 * time.Second}

// patience bounds each wait of a test for what must happen. It is no measure of speed: it only ends a test that hangs.
const patience = 2 * time.Minute

// sites bounds how many clusters run at a time: each has several nodes that elect by the clock.
var sites = make(chan struct{}, 3)

func testLog() *slog.Logger {
	if os.Getenv("CLAVIGER_TEST_LOG") == "" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func (s *site) launch(machine string, image sim.Image, options ...sim.MachineOption) *sim.Enclave {
	s.t.Helper()
	m, err := s.world.Machine(machine, options...)
	if err != nil {
		s.t.Fatal(err)
	}
	e, err := m.Launch(image)
	if err != nil {
		s.t.Fatal(err)
	}
	return e
}

func (s *site) config(slot string, tee enclave.TEE) Config {
	cfg := Config{TEE: tee, Root: s.world.Root(), Collateral: s.world.Collateral, Slot: slot, ClusterID: s.pins.ClusterID,
		PeerListen: s.address(), APIListen: s.address(), AdminListen: "127.0.0.1:0", DataDir: s.t.TempDir(),
		Timeouts: timeouts, Logger: testLog(), Clock: s.clock}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		cfg.Join = append(cfg.Join, n.PeerAddr())
	}
	return cfg
}

// address is the site's alone until the test ends, whether a node listens there or not: restart uses it again.
func (s *site) address() string {
	s.t.Helper()
	port, mark, err := nodetest.Port()
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { mark.Close() })
	return "127.0.0.1:" + strconv.Itoa(port)
}

func (s *site) genesis(cfg *Config) {
	cfg.ClusterID, cfg.Join = api.ID{}, nil
	cfg.Genesis = &Genesis{Name: "test", NodePolicy: s.policy, OpenSlots: s.openSlots,
		Operators: api.Operators{Threshold: 1, Keys: [][]byte{s.operator.Public().(ed25519.PublicKey)}},
		Approve:   ApproveWith(s.world.Root(), s.now, s.operator),
		Founded:   func(p Pins) error { s.pins = p; return nil }}
}

func (s *site) now() time.Time {
	if s.clock != nil {
		return s.clock()
	}
	return time.Now()
}

// run starts a node and kills it at the end of the test.
func (s *site) run(cfg Config) *running {
	s.t.Helper()
	n, err := New(cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	if s.tune != nil {
		s.tune(n)
	}
	return s.runNode(n)
}

func (s *site) runNode(n *Node) *running {
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Node: n, slot: n.cfg.Slot, done: make(chan error, 1), stop: cancel}
	go func() { r.done <- n.Run(ctx) }()
	s.t.Cleanup(func() { n.Close(); cancel() })
	return r
}

func (s *site) awaitReady(r *running) {
	s.t.Helper()
	select {
	case <-r.Ready():
	case err := <-r.done:
		s.t.Fatalf("node %s ended before it was ready: %v", r.slot, err)
	case <-time.After(patience):
		s.t.Fatalf("node %s is not ready after %v", r.slot, patience)
	}
	s.mu.Lock()
	s.nodes = append(s.nodes, r)
	s.mu.Unlock()
}

// start runs nodes a, b, c… until each is ready, the first by genesis.
func (s *site) start(slots ...string) []*running {
	s.t.Helper()
	for i, slot := range slots {
		cfg := s.config(slot, s.launch("machine-"+slot, nodeImage))
		if i == 0 && s.pins.ClusterID.IsZero() {
			s.genesis(&cfg)
		}
		s.awaitReady(s.run(cfg))
	}
	return s.nodes
}

// refused runs a node that must not get in and returns why.
func (s *site) refused(cfg Config) error {
	s.t.Helper()
	r := s.run(cfg)
	select {
	case <-r.Ready():
		s.t.Fatal("the node was let in")
	case err := <-r.done:
		if r.secrets != nil || r.membership() != nil || r.store.Load() != nil {
			s.t.Fatal("the refused node holds secrets, a statement or a store")
		}
		return err
	case <-time.After(patience):
		s.t.Fatalf("neither let in nor refused within %v", patience)
	}
	return nil
}

func (s *site) client(endpoints ...string) *client.Client {
	s.t.Helper()
	app := s.launch("machine-app", appImage)
	c, err := client.New(client.Config{ClusterID: s.pins.ClusterID, Endpoints: endpoints, Root: s.world.Root(), Clock: s.clock,
		Attest: func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
			quote, err := app.Quote(ctx, reportData)
			if err != nil {
				return ratls.Evidence{}, err
			}
			collateral, err := s.world.Collateral(ctx, quote)
			if err != nil {
				return ratls.Evidence{}, err
			}
			raw, err := collateral.Marshal()
			return ratls.Evidence{Quote: quote, Collateral: raw}, err
		}})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

func (s *site) endpoints() (list []string) {
	for _, n := range s.nodes {
		list = append(list, n.APIAddr())
	}
	return list
}

// key asks until it is served or the time is over.
func (s *site) key(c *client.Client) []byte {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	k, _, err := c.Key(ctx, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"})
	if err != nil {
		s.t.Fatalf("key: %v", err)
	}
	return k.Reveal()
}

func (s *site) leader() *running {
	s.t.Helper()
	var leader *running
	poll(s.t, "a leader", func() bool {
		for _, n := range s.nodes {
			if n.ctx.Err() == nil && n.IsLeader() && n.store.Load().SafeRead(s.t.Context()) == nil {
				leader = n
				return true
			}
		}
		return false
	})
	return leader
}

// poll is for what has no channel to wait on.
func poll(t testing.TB, what string, f func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for start := time.Now(); time.Since(start) < patience; <-tick.C {
		if f() {
			return
		}
	}
	t.Fatalf("did not happen within %v: %s", patience, what)
}

var errOperator = errors.New("the operator says no")

// signFile is what an operator's tool does with the statement's file.
func signFile(statement []byte, out string, s *site) error {
	var st Statement
	if err := json.Unmarshal(statement, &st); err != nil {
		return err
	}
	v, err := attest.NewVerifier(attest.Config{Root: s.world.Root()})
	if err != nil {
		return err
	}
	approvals, err := Sign(&st, v, time.Now(), s.operator)
	if err != nil {
		return err
	}
	raw, err := json.Marshal(approvals)
	if err != nil {
		return err
	}
	tmp := out + ".tmp"
	if err := os.WriteFile(tmp, raw, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, out)
}
