package main

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/node"
)

// ceremony is a simulated world with three operators, who must be two to sign, and their files.
type ceremony struct {
	t     *testing.T
	dir   string
	world *sim.World
	keys  []string // public halves, hex; the secret ones lie in op0.key to op2.key
}

func newCeremony(t *testing.T) *ceremony {
	t.Helper()
	seed := [32]byte{'g'}
	copy(seed[1:], t.Name())
	c := &ceremony{t: t, dir: t.TempDir(), world: sim.NewWorld(seed, nil)}
	if err := writeRoot(c.path("root.pem"), c.world.Root()); err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		var made struct {
			PublicKey string `json:"public_key"`
		}
		out, _ := c.claviger(0, "cluster", "operator-key", "--json", "--out", c.path("op"+string(rune('0'+i))+".key"))
		if err := json.Unmarshal([]byte(out), &made); err != nil {
			t.Fatal(err)
		}
		c.keys = append(c.keys, made.PublicKey)
	}
	return c
}

func (c *ceremony) path(name string) string { return filepath.Join(c.dir, name) }

// claviger runs the command line, wants the exit code, and returns what was printed.
func (c *ceremony) claviger(code int, args ...string) (stdout, stderr string) {
	c.t.Helper()
	var out, errs bytes.Buffer
	if got := run(c.t.Context(), args, nil, nil, &out, &errs); got != code {
		c.t.Fatalf("%v: exit code %d, want %d\n%s%s", args, got, code, &out, &errs)
	}
	return out.String(), errs.String()
}

// approve runs cluster approve on the statement in the ceremony's directory.
func (c *ceremony) approve(code int, args ...string) (stdout, stderr string) {
	c.t.Helper()
	args = append([]string{"cluster", "approve", "--statement", c.path(node.StatementFile), "--root", c.path("root.pem")}, args...)
	if slices.Contains(args, "--key") && !slices.Contains(args, "--cluster-id") {
		args = append(args, "--cluster-id", c.clusterID())
	}
	return c.claviger(code, args...)
}

// clusterID is what an operator reads in the statement; of one that says nothing, nothing.
func (c *ceremony) clusterID() string {
	raw, err := os.ReadFile(c.path(node.StatementFile))
	if err != nil {
		return "none"
	}
	var st node.Statement
	if json.Unmarshal(raw, &st) != nil {
		return "none"
	}
	id, err := st.ClusterID()
	if err != nil {
		return "none"
	}
	return id.String()
}

func (c *ceremony) operators() api.Operators {
	o := api.Operators{Threshold: 2}
	for _, text := range c.keys {
		key, err := hex.DecodeString(text)
		if err != nil {
			c.t.Fatal(err)
		}
		o.Keys = append(o.Keys, key)
	}
	return o
}

func (c *ceremony) enclave(image sim.Image) *sim.Enclave {
	c.t.Helper()
	m, err := c.world.Machine("kds-a")
	if err != nil {
		c.t.Fatal(err)
	}
	tee, err := m.Launch(image)
	if err != nil {
		c.t.Fatal(err)
	}
	return tee
}

func (c *ceremony) wants(text string, parts ...string) {
	c.t.Helper()
	for _, part := range parts {
		if !strings.Contains(text, part) {
			c.t.Errorf("lacks %q:\n%s", part, text)
		}
	}
}

// found starts a node that waits for the operators' files, and returns its statement's arrival and its outcome.
func (c *ceremony) found() (n *node.Node, stated <-chan string, pins <-chan node.Pins) {
	c.t.Helper()
	told, founded := make(chan string, 1), make(chan node.Pins, 1)
	n, err := node.New(node.Config{
		TEE: c.enclave(simworld.NodeImage), Root: c.world.Root(), Collateral: c.world.Collateral, Slot: "a",
		PeerListen: "127.0.0.1:0", APIListen: "127.0.0.1:0", DataDir: c.t.TempDir(),
		Genesis: &node.Genesis{
			Name: "ceremony", NodePolicy: []string{simworld.NodeImage.Constraint()}, Operators: c.operators(),
			Approve: node.ApproveByFile(c.dir, func(path string) { told <- path }),
			Founded: func(p node.Pins) error { founded <- p; return nil },
		},
	})
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); _ = n.Run(ctx) }()
	c.t.Cleanup(func() { n.Close(); cancel(); <-done })
	return n, told, founded
}

// TestClusterApprove founds a real (simulated) cluster with two of three operators, each on a machine of their own.
func TestClusterApprove(t *testing.T) {
	t.Parallel()
	c := newCeremony(t)
	n, stated, founded := c.found()
	limit := time.After(30 * time.Second)
	select {
	case <-stated:
	case <-limit:
		t.Fatal("no statement")
	}
	shown, _ := c.approve(0)
	c.wants(shown, "SIMULATED", `"ceremony"`, "2 of 3 must sign", simworld.NodeImage.Constraint(), c.keys[0], c.keys[2], "MRTD", "Nothing was signed")

	// One signature does not suffice, and must not reach the file that the node reads.
	_, errs := c.approve(2, "--key", c.path("op0.key"))
	c.wants(errs, "1 of 2 approvals", "--out")
	_, errs = c.approve(2, "--key", c.path("op0.key"), "--key", c.path("op0.key"))
	c.wants(errs, "1 of 2 approvals")
	if _, err := os.Stat(c.path(node.ApprovalsFile)); err == nil {
		t.Fatal("approvals were written")
	}
	shown, _ = c.approve(0, "--key", c.path("op0.key"), "--out", c.path("one.json"))
	c.wants(shown, "Wrote 1 of 2 approvals")
	shown, _ = c.approve(0, "--json", "--key", c.path("op2.key"), "--with", c.path("one.json"))
	var view struct {
		ClusterID string `json:"cluster_id"`
		Approved  []string
	}
	if err := json.Unmarshal([]byte(shown), &view); err != nil || len(view.Approved) != 2 {
		t.Fatalf("%v: %s", err, shown)
	}
	select {
	case pins := <-founded:
		if pins.ClusterID.String() != view.ClusterID {
			t.Errorf("founded %s, the operators signed %s", pins.ClusterID, view.ClusterID)
		}
	case <-limit:
		t.Fatal("the node did not take the approvals")
	}
	select {
	case <-n.Ready():
	case <-limit:
		t.Fatal("the cluster does not serve")
	}
}

// statement makes a statement as a node does, after change has had its way with the manifest, and writes it.
func (c *ceremony) statement(image sim.Image, change func(*api.Manifest)) *node.Statement {
	c.t.Helper()
	m := &api.Manifest{
		Version: api.ManifestVersion, Name: "ceremony", Root: api.RootOfTrust{ID: c.world.Root().ID(), Simulated: true},
		NodePolicy: []string{simworld.NodeImage.Constraint()}, Operators: c.operators(), Nonce: [32]byte{1},
	}
	slices.SortFunc(m.Operators.Keys, bytes.Compare)
	if change != nil {
		change(m)
		slices.Sort(m.NodePolicy)
	}
	raw, err := m.Marshal()
	if err != nil {
		c.t.Fatal(err)
	}
	st := &node.Statement{Manifest: raw, IdentityKey: ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)}
	data, err := st.ReportData()
	if err != nil {
		c.t.Fatal(err)
	}
	if st.Quote, err = c.enclave(image).Quote(c.t.Context(), data); err != nil {
		c.t.Fatal(err)
	}
	collateral, err := c.world.Collateral(c.t.Context(), st.Quote)
	if err != nil {
		c.t.Fatal(err)
	}
	if st.Collateral, err = collateral.Marshal(); err != nil {
		c.t.Fatal(err)
	}
	c.write(node.StatementFile, st)
	return st
}

func (c *ceremony) write(name string, v any) {
	c.t.Helper()
	raw, err := json.Marshal(v)
	if err == nil {
		err = os.WriteFile(c.path(name), raw, 0o600)
	}
	if err != nil {
		c.t.Fatal(err)
	}
}

// TestClusterApproveRefuses has a host show the operators what they must not sign: each time nothing is signed.
func TestClusterApproveRefuses(t *testing.T) {
	t.Parallel()
	debug, other := simworld.NodeImage, simworld.NodeImage
	debug.Debug, other.Name = true, "lookalike"
	for name, tc := range map[string]struct {
		image  sim.Image
		change func(*api.Manifest)
		spoil  func(*node.Statement)
		want   string
	}{
		"a debug enclave":     {image: debug, want: "debug"},
		"another image":       {image: other, want: "node policy"},
		"another root":        {change: func(m *api.Manifest) { m.Root.ID[0] ^= 1 }, want: "another root of trust"},
		"a key of the host's": {spoil: func(s *node.Statement) { s.IdentityKey[0] ^= 1 }, want: "the quote is over something else"},
		"a changed quote":     {spoil: func(s *node.Statement) { s.Quote[100] ^= 1 }, want: "signature"},
		"a policy line that is no constraint": {
			change: func(m *api.Manifest) { m.NodePolicy = append(m.NodePolicy, "\x1b[2K\rTD:nothing to see") },
			want:   "not a canonical constraint",
		},
		"a policy line for debug enclaves": {
			change: func(m *api.Manifest) { m.NodePolicy = append(m.NodePolicy, debug.Constraint()) },
			want:   "not a canonical constraint",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := newCeremony(t)
			if tc.image.Name == "" {
				tc.image = simworld.NodeImage
			}
			st := c.statement(tc.image, tc.change)
			if tc.spoil != nil {
				tc.spoil(st)
				c.write(node.StatementFile, st)
			}
			shown, errs := c.approve(1, "--key", c.path("op0.key"), "--key", c.path("op1.key"))
			c.wants(shown, "REFUSED", "Nothing was signed: this statement must not be.")
			c.wants(errs, tc.want)
			if strings.ContainsAny(shown+errs, "\x1b\r") {
				t.Errorf("control characters of the host's reach the terminal: %q", shown+errs)
			}
			if _, err := os.Stat(c.path(node.ApprovalsFile)); err == nil {
				t.Error("approvals were written")
			}
		})
	}
}

// TestClusterApproveFiles is about files that are not what they should be.
func TestClusterApproveFiles(t *testing.T) {
	t.Parallel()
	c := newCeremony(t)
	st := c.statement(simworld.NodeImage, nil)

	// The host swaps the file after the operator has read it.
	_, errs := c.approve(1, "--key", c.path("op0.key"), "--cluster-id", strings.Repeat("ab", 32), "--out", c.path("x.json"))
	c.wants(errs, "not of the one you have read about")
	if _, err := os.Stat(c.path("x.json")); err == nil {
		t.Error("it was signed all the same")
	}
	_, errs = c.claviger(2, "cluster", "approve", "--statement", c.path(node.StatementFile), "--root", c.path("root.pem"), "--key", c.path("op0.key"))
	c.wants(errs, "--cluster-id")
	_, errs = c.claviger(1, "cluster", "approve", "--statement", c.path(node.StatementFile), "--key", c.path("op0.key"), "--cluster-id", c.clusterID())
	c.wants(errs, "another root of trust") // Intel's is the default
	c.claviger(0, "cluster", "operator-key", "--out", c.path("stranger.key"))
	_, errs = c.approve(1, "--key", c.path("stranger.key"), "--out", c.path("x.json"))
	c.wants(errs, "does not name this key")
	_, errs = c.claviger(2, "cluster", "operator-key", "--out", c.path("op0.key"))
	c.wants(errs, "not overwritten")
	c.claviger(2, "cluster", "operator-key")
	c.claviger(2, "cluster", "approve")
	_, errs = c.approve(2, "--key", c.path("root.pem"), "--out", c.path("x.json"))
	c.wants(errs, "not an operator's key")
	_, errs = c.approve(1, "--at", "2099-01-01T00:00:00Z", "--key", c.path("op0.key"), "--out", c.path("x.json"))
	c.wants(errs, "stage")

	// Approvals of another statement, and of somebody else.
	c.approve(0, "--key", c.path("op0.key"), "--out", c.path("old.json"))
	second := c.statement(simworld.NodeImage, func(m *api.Manifest) { m.Nonce[0]++ })
	if bytes.Equal(second.Manifest, st.Manifest) {
		t.Fatal("the statements are equal")
	}
	_, errs = c.approve(1, "--with", c.path("old.json"), "--key", c.path("op1.key"))
	c.wants(errs, "over something else")
	_, stranger, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	message, err := second.Message()
	if err != nil {
		t.Fatal(err)
	}
	c.write("foreign.json", []node.Approval{{Key: stranger.Public().(ed25519.PublicKey), Signature: ed25519.Sign(stranger, message)}})
	_, errs = c.approve(1, "--with", c.path("foreign.json"), "--key", c.path("op1.key"))
	c.wants(errs, "is not an operator")
	if err := os.WriteFile(c.path("bad.json"), []byte(`[{"key":"","signature":"","extra":1}]`), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs = c.approve(1, "--with", c.path("bad.json"))
	c.wants(errs, "not an approval")
	if err := os.WriteFile(c.path(node.StatementFile), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, errs = c.approve(1)
	c.wants(errs, "not a genesis statement")
}
