package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"errors"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/cmd/internal/cli"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
)

// governed is a running cluster of three operators, two of whom must sign, without open slots.
type governed struct {
	*ceremony
	world *sim.World
	pins  node.Pins
}

func newGoverned(t *testing.T) *governed {
	t.Helper()
	g := &governed{ceremony: newCeremony(t)}
	var err error
	if g.world, err = sim.CreateWorld(g.path("world.json")); err != nil {
		t.Fatal(err)
	}
	var private []ed25519.PrivateKey
	operators := api.Operators{Threshold: 2}
	for i, text := range g.keys {
		public, err := hex.DecodeString(text)
		if err != nil {
			t.Fatal(err)
		}
		operators.Keys = append(operators.Keys, public)
		key, err := readOperator(&cli.Streams{}, g.key(i))
		if err != nil {
			t.Fatal(err)
		}
		private = append(private, key)
	}
	slices.SortFunc(operators.Keys, bytes.Compare)
	g.start("a", nil, &node.Genesis{Name: "governed", NodePolicy: []string{simworld.NodeImage.Constraint()}, Operators: operators,
		Approve: node.ApproveWith(g.world.Root(), g.world.Now, private...),
		Founded: func(p node.Pins) error {
			g.pins = p
			f := &clusterfile.File{ClusterID: p.ClusterID, Manifest: p.Manifest, IdentityKey: p.IdentityKey, Endpoints: []string{p.APIAddr}}
			return f.Create(g.path("cluster.json"))
		}}, true)
	return g
}

func (g *governed) key(i int) string { return g.path("op" + string(rune('0'+i)) + ".key") }

// booted is a node of the test.
type booted struct {
	*node.Node
	done chan error
}

func (g *governed) start(slot string, log *slog.Logger, founds *node.Genesis, wait bool) *booted {
	g.t.Helper()
	place, err := simworld.At(g.world, "machine-"+slot, false)
	if err != nil {
		g.t.Fatal(err)
	}
	tee, err := place.Machine.Launch(simworld.NodeImage)
	if err != nil {
		g.t.Fatal(err)
	}
	cfg := node.Config{TEE: tee, Root: g.world.Root(), Collateral: g.world.Collateral, Slot: slot, Genesis: founds, Logger: log,
		PeerListen: "127.0.0.1:0", APIListen: "127.0.0.1:0", DataDir: g.t.TempDir(), Clock: g.world.Now}
	if founds == nil {
		cfg.ClusterID, cfg.Join = g.pins.ClusterID, []string{g.pins.PeerAddr}
	}
	n, err := node.New(cfg)
	if err != nil {
		g.t.Fatal(err)
	}
	b := &booted{n, make(chan error, 1)}
	ctx, cancel := context.WithCancel(context.Background())
	go func() { b.done <- n.Run(ctx) }()
	g.t.Cleanup(func() { n.Close(); cancel() })
	if wait {
		g.ready(b)
	}
	return b
}

func (g *governed) ready(b *booted) {
	g.t.Helper()
	select {
	case <-b.Ready():
	case err := <-b.done:
		g.t.Fatalf("the node ended before it was ready: %v", err)
	case <-time.After(time.Minute):
		g.t.Fatal("the node is not ready after a minute")
	}
}

// cluster runs 'claviger cluster …' on the test's cluster.
func (g *governed) cluster(code int, args ...string) (stdout, stderr string) {
	g.t.Helper()
	return g.claviger(code, append(append([]string{"cluster"}, args...), "--sim", g.path("world.json"))...)
}

// says wants each of the words in a text.
func (g *governed) says(text string, words ...string) {
	g.t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			g.t.Errorf("want %q in:\n%s", w, text)
		}
	}
}

// heard is what a waiting node logs.
type heard struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (h *heard) Write(p []byte) (int, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.b.Write(p)
}

func (h *heard) command(t *testing.T) []string {
	t.Helper()
	pattern := regexp.MustCompile(`claviger cluster (join --slot \S+ --server [0-9a-f]{64} --platform [0-9a-f]{64})`)
	for limit := time.Now().Add(time.Minute); time.Now().Before(limit); time.Sleep(20 * time.Millisecond) {
		h.mu.Lock()
		found := pattern.FindStringSubmatch(h.b.String())
		h.mu.Unlock()
		if found != nil {
			return strings.Fields(found[1])
		}
	}
	t.Fatal("the waiting node does not say how it is let in")
	return nil
}

// Operators look, sign one after the other and submit: a node gets in by the command that its log shows, the node policy
// changes and changes back, the node is removed, and the epoch ends.
func TestOperatorsChangeACluster(t *testing.T) {
	t.Parallel()
	g := newGoverned(t)
	log := &heard{}
	b := g.start("b", slog.New(slog.NewTextHandler(log, nil)), nil, false)
	join := log.command(t)

	out, _ := g.cluster(0, join...)
	g.says(out, "may take slot b, once", "Nothing was signed", "2 of 3 must sign")
	_, text := g.cluster(2, append(join, "--key", g.key(0))...)
	g.says(text, "1 of 2 signatures", "--out")
	out, _ = g.cluster(0, append(join, "--key", g.key(0), "--out", g.path("join.json"))...)
	g.says(out, "1 of 2 signatures are in", "--with")
	_, text = g.cluster(1, "remove", "a", "--key", g.key(1), "--with", g.path("join.json"))
	g.says(text, "join.json", "kind ticket", "kind remove")
	other := slices.Clone(join)
	other[2] = "c"
	_, text = g.cluster(1, append(other, "--key", g.key(1), "--with", g.path("join.json"))...)
	g.says(text, "another content")
	g.claviger(0, "cluster", "operator-key", "--out", g.path("stranger.key"))
	_, text = g.cluster(1, append(join, "--key", g.path("stranger.key"), "--with", g.path("join.json"))...)
	g.says(text, "does not name this key", "nothing was signed")
	out, _ = g.cluster(0, append(join, "--key", g.key(1), "--with", g.path("join.json"))...)
	g.says(out, "accepted", "at index")
	g.ready(b)
	_, text = g.cluster(1, append(join, "--key", g.key(1), "--with", g.path("join.json"))...)
	g.says(text, "another statement has come first")

	for _, what := range []string{"status", "policy", "stop"} { // what is of an older epoch than was seen is not looked at
		_, text = g.cluster(1, what, "--min-epoch", "2")
		g.says(text, "epoch")
	}
	g.status(t, b)
	g.policy()

	out, _ = g.cluster(0, "remove", "b", "--key", g.key(0), "--key", g.key(2))
	g.says(out, "slot b is given up", "1 of 2 voters stay", "accepted")
	if err := <-b.done; !errors.Is(err, node.ErrRemoved) {
		t.Errorf("the removed node ended with %v", err)
	}
	_, text = g.cluster(1, "remove", "a", "--key", g.key(0), "--key", g.key(2))
	g.says(text, "stage content")
	_, text = g.cluster(2, "remove", "z")
	g.says(text, `no slot "z"`, "it has a")

	out, _ = g.cluster(0, "stop", "--key", g.key(1), "--key", g.key(2))
	g.says(out, "the epoch ends", "accepted")
	out, _ = g.cluster(0, "status")
	g.says(out, "ENDED", "5 statements so far")
	_, text = g.cluster(1, "stop")
	g.says(text, "ended this epoch")
}

// status is what an operator, or a program, sees of two members.
func (g *governed) status(t *testing.T, b *booted) {
	t.Helper()
	out, _ := g.cluster(0, "status")
	g.says(out, "2 of 2 slots, which survive the loss of 0", "member a", "member b", "RTMR1", "RTMR2", "TCB UpToDate", "node policy     version 1", "1 statements so far")
	out, _ = g.cluster(0, "status", "--json")
	var c api.Cluster
	if err := json.Unmarshal([]byte(out), &c); err != nil {
		t.Fatal(err)
	}
	mrtd := simworld.NodeImage.MRTD()
	registers := make([]string, 4)
	for i := range registers {
		r := simworld.NodeImage.RTMR(i)
		registers[i] = hex.EncodeToString(r[:])
	}
	g.says(out, registers[2])
	for _, m := range c.Members {
		if !slices.Equal(m.RTMR, registers) {
			t.Errorf("member %s: RTMRs %q", m.Slot, m.RTMR)
		}
		if m.TEE != "tdx" || m.Measurement != hex.EncodeToString(mrtd[:]) || m.TCBStatus != "UpToDate" || m.Level == 0 || m.Admitted == 0 || m.Lag == nil || *m.Lag > 2 {
			t.Errorf("member %s: %+v", m.Slot, m)
		}
	}
	if len(c.Members) != 2 || c.Members[1].ServerID != api.ID(b.ServerID()) || len(c.Tickets) != 0 {
		t.Errorf("members %+v, tickets %+v", c.Members, c.Tickets)
	}
}

// policy adds a constraint and takes it back.
func (g *governed) policy() {
	g.t.Helper()
	next := simworld.NodeImage
	next.Version = "2"
	out, _ := g.cluster(0, "policy")
	g.says(out, "version 1, by the manifest", simworld.NodeImage.Constraint())
	out, _ = g.cluster(0, "policy", "--add", next.Constraint(), "--key", g.key(0), "--key", g.key(1))
	g.says(out, "becomes version 2", "adds", "keeps", "accepted")
	out, _ = g.cluster(0, "policy")
	g.says(out, "version 2, by a statement of epoch 1, whose signatures are good", next.Constraint())
	_, text := g.cluster(2, "policy", "--add", next.Constraint())
	g.says(text, "has it already")
	_, text = g.cluster(2, "policy", "--add", strings.Replace(next.Constraint(), "SEC:STALE", "SEC:INSECURE", 1))
	g.says(text, "debug enclaves")
	_, text = g.cluster(2, "policy", "--remove", next.Constraint(), "--remove", simworld.NodeImage.Constraint())
	g.says(text, "nothing would be left")
	out, _ = g.cluster(0, "policy", "--remove", next.Constraint(), "--key", g.key(0), "--key", g.key(1))
	g.says(out, "becomes version 3", "removes")
}
