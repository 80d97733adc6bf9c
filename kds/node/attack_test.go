package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/pck"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

// Roots go to attested nodes of this cluster only. Each joiner here is refused
// and holds nothing afterwards; the site's refused checks that.
func TestRootsAreForAdmittedNodesOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	first := s.start("a")[0]
	otherCode, debug := nodeImage, nodeImage
	otherCode.Version = "1-patched"
	debug.Debug = true
	revoked := s.launch("machine-revoked", nodeImage)
	revoked.Machine().Revoke()
	for name, c := range map[string]struct {
		slot   string
		tee    *sim.Enclave
		change func(*Config)
		want   string
	}{
		"another measurement":   {"b", s.launch("machine-b", otherCode), nil, "node policy"},
		"a debug enclave":       {"b", s.launch("machine-b", debug), nil, "debug"},
		"a revoked TCB":         {"b", s.launch("machine-tcb", nodeImage, sim.WithTCB(attest.StatusRevoked)), nil, "node policy"},
		"a revoked platform":    {"b", revoked, nil, "revoked"},
		"an app enclave":        {"b", s.launch("machine-b", appImage), nil, "node policy"},
		"the wrong cluster id":  {"b", s.launch("machine-b", nodeImage), func(c *Config) { c.ClusterID = api.ID{7} }, "another cluster"},
		"an epoch that is over": {"b", s.launch("machine-b", nodeImage), func(c *Config) { c.MinEpoch = 2 }, "epoch"},
	} {
		cfg := s.config(c.slot, c.tee)
		if c.change != nil {
			c.change(&cfg)
		}
		err := s.refused(cfg)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: refused with %v, want %q in it", name, err, c.want)
		}
	}
	// A member's slot is for a machine that the operators vouch for: it waits, and gets nothing meanwhile.
	stranger, err := New(s.config("a", s.launch("machine-b", nodeImage)))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	if _, err := stranger.joinAt(t.Context(), first.PeerAddr()); err == nil || !strings.Contains(err.Error(), "needs a ticket") {
		t.Errorf("a member's slot: %v", err)
	}
	if stranger.secrets != nil || stranger.store.Load() != nil {
		t.Error("the stranger holds something")
	}
	if members, _ := first.store.Load().Members(); len(members) != 1 {
		t.Errorf("the configuration has %d members", len(members))
	}
	if slots := first.machine.View().Members; len(slots) != 1 {
		t.Errorf("the state has %d slots", len(slots))
	}
}

// The joiner refuses members too: a cluster of another operator under the same
// node code, and a member whose evidence fails the pinned policy.
func TestJoinerRefusesForeignMembers(t *testing.T) {
	t.Parallel()
	ours, theirs := newSite(t), newSite(t)
	ours.start("a")
	evil := theirs.start("a")[0]
	cfg := ours.config("b", ours.launch("machine-b", nodeImage))
	cfg.Join = []string{evil.PeerAddr()}
	if err := ours.refused(cfg); !errors.Is(err, ratls.ErrClusterID) {
		t.Errorf("a foreign cluster: %v", err)
	}
	// With a good address behind the bad one the node still gets in.
	cfg = ours.config("b", ours.launch("machine-b", nodeImage))
	cfg.Join = append([]string{evil.PeerAddr()}, cfg.Join...)
	ours.awaitReady(ours.run(cfg))
}

// dialRaft opens raft/1 to a node with the evidence given.
func dialRaft(ctx context.Context, s *site, to *running, attest func(context.Context, [64]byte) (ratls.Evidence, error), b *boot) error {
	c, err := (&ratls.Dialer{Config: &ratls.Config{Protocols: []string{protocolRaft}, ClusterID: s.pins.ClusterID, Epoch: 1, Key: b.key,
		PeerKey: (*[32]byte)(&to.boot.id), Attest: attest}}).DialContext(ctx, "tcp", to.PeerAddr())
	if err == nil {
		c.Close()
	}
	return err
}

// raft/1 is for members: genuine node code alone does not open it, nor does a
// member's statement in another boot's hands, nor one that is superseded.
func TestRaftChannelsAreForMembersOnly(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nodes := s.start("a", "b", "c")
	a, b := nodes[0], nodes[1]
	stranger, err := newBoot()
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.config("x", s.launch("machine-x", nodeImage))
	genuine := &prover{cfg: &cfg}
	with := func(attachment []byte) func(context.Context, [64]byte) (ratls.Evidence, error) {
		return func(ctx context.Context, rd [64]byte) (ratls.Evidence, error) {
			ev, err := genuine.prove(ctx, rd)
			ev.Attachment = attachment
			return ev, err
		}
	}
	forger := ed25519.NewKeyFromSeed(make([]byte, 32))
	forged, err := forge(b.membership(), forger, stranger.id)
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		attach []byte
		want   string
	}{
		"no statement":                {nil, "not a member"},
		"another member's statement":  {b.membership().statement, "another server's key"},
		"a forged identity key":       {forged, "cluster"},
		"garbage instead of CBOR":     {[]byte("garbage"), "not a member"},
		"a statement with a tail":     {append([]byte(nil), append(b.membership().statement, 0)...), "not a member"},
		"an oversized statement":      {make([]byte, api.MaxStatement+1), "not a member"},
		"the manifest as a statement": {b.membership().raw, "not a member"},
	} {
		err := dialRaft(t.Context(), s, a, with(c.attach), stranger)
		if r, ok := errors.AsType[*ratls.RefusedError](err); !ok || !strings.Contains(r.Message, c.want) {
			t.Errorf("%s: %v, want %q", name, err, c.want)
		}
	}
	old := nodes[2]
	old.Close()
	s.nodes = nodes[:2]
	s.start("c")
	poll(t, "the older boot of slot c is out", func() bool {
		members, _ := a.store.Load().Members()
		return !contains(members, old.ServerID())
	})
	err = dialRaft(t.Context(), s, a, with(old.membership().statement), old.boot)
	if r, ok := errors.AsType[*ratls.RefusedError](err); !ok || r.Code != codeSuperseded {
		t.Errorf("a superseded incarnation: %v", err)
	}
	// The member itself is let in: the refusals above are not about something else.
	if err := dialRaft(t.Context(), s, a, b.prover.prove, b.boot); err != nil {
		t.Errorf("a member: %v", err)
	}
}

func forge(m *membership, key ed25519.PrivateKey, id raftstore.ServerID) ([]byte, error) {
	mm := m.Membership
	mm.ServerID = id
	sig, err := api.SignMembership(testSigner(key), mm)
	if err != nil {
		return nil, err
	}
	st := api.NodeStatement{Manifest: m.raw, IdentityKey: key.Public().(ed25519.PublicKey), Membership: mm, Signature: sig}
	return st.Marshal()
}

type testSigner ed25519.PrivateKey

func (k testSigner) Public() ed25519.PublicKey {
	return ed25519.PrivateKey(k).Public().(ed25519.PublicKey)
}
func (k testSigner) Sign(message []byte) ([]byte, error) {
	return ed25519.Sign(ed25519.PrivateKey(k), message), nil
}

// An old disk in place of the new one changes nothing: nothing is read from it.
func TestOldDiskHasNothingToActOn(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "b", "c")
	victim := s.nodes[2]
	dir := victim.cfg.DataDir
	victim.Close()
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 1 {
		t.Fatalf("%d archives, %v", len(entries), err)
	}
	// The host swaps the archive for garbage and boots the machine on it.
	files, _ := filepath.Glob(filepath.Join(dir, entries[0].Name(), "*"))
	for _, f := range files {
		if err := os.WriteFile(f, []byte("rolled back"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := s.config("c", s.launch("machine-c", nodeImage))
	cfg.DataDir = dir
	s.awaitReady(s.run(cfg))
	if entries, _ = os.ReadDir(dir); len(entries) != 2 {
		t.Errorf("%d archives after the second boot: each boot has its own", len(entries))
	}
}

func TestGenesisNeedsTheOperators(t *testing.T) {
	t.Parallel()
	stranger := ed25519.NewKeyFromSeed([]byte("a stranger's seed of 32 bytes!!!"))
	for name, c := range map[string]struct {
		change func(s *site, c *Config)
		want   error
	}{
		"they refuse": {func(_ *site, c *Config) {
			c.Genesis.Approve = func(context.Context, *Statement) ([]Approval, error) { return nil, errOperator }
		}, errOperator},
		"nobody signs": {func(_ *site, c *Config) {
			c.Genesis.Approve = func(context.Context, *Statement) ([]Approval, error) { return nil, nil }
		}, ErrApproval},
		"a stranger signs": {func(s *site, c *Config) {
			c.Genesis.Approve = ApproveWith(s.world.Root(), time.Now, stranger)
		}, ErrApproval},
		"one operator signs twice for two": {func(s *site, c *Config) {
			c.Genesis.Operators.Threshold = 2
			c.Genesis.Operators.Keys = append(c.Genesis.Operators.Keys, stranger.Public().(ed25519.PublicKey))
			c.Genesis.Approve = ApproveWith(s.world.Root(), time.Now, s.operator, s.operator)
		}, ErrApproval},
		"a signature of something else": {func(s *site, c *Config) {
			c.Genesis.Approve = func(_ context.Context, st *Statement) ([]Approval, error) {
				return []Approval{{Key: s.operator.Public().(ed25519.PublicKey), Signature: ed25519.Sign(s.operator, st.Manifest)}}, nil
			}
		}, ErrApproval},
		"a policy for debug enclaves": {func(_ *site, c *Config) { c.Genesis.NodePolicy = []string{nodeImage.Constraint() + " SEC:INSECURE"} }, ErrConfig},
		"a policy that refuses us":    {func(_ *site, c *Config) { c.Genesis.NodePolicy = []string{appImage.Constraint()} }, ErrNodePolicy},
		"no policy":                   {func(_ *site, c *Config) { c.Genesis.NodePolicy = nil }, ErrConfig},
		"no operators":                {func(_ *site, c *Config) { c.Genesis.Operators = api.Operators{} }, ErrConfig},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			cfg := s.config("a", s.launch("machine-a", nodeImage))
			s.genesis(&cfg)
			c.change(s, &cfg)
			if err := s.refused(cfg); !errors.Is(err, c.want) {
				t.Errorf("got %v", err)
			}
			if !s.pins.ClusterID.IsZero() {
				t.Error("a cluster was founded")
			}
		})
	}
}

// An operator's eye: a statement for another enclave, key or manifest is not signed.
func TestOperatorsVerifyTheStatement(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	s.genesis(&cfg)
	var got Statement
	approve := cfg.Genesis.Approve
	cfg.Genesis.Approve = func(ctx context.Context, st *Statement) ([]Approval, error) { got = *st; return approve(ctx, st) }
	s.awaitReady(s.run(cfg))
	v, err := attest.NewVerifier(attest.Config{Root: s.world.Root()})
	if err != nil {
		t.Fatal(err)
	}
	if m, err := got.Verify(v, time.Now()); err != nil || m.Name != "test" {
		t.Fatalf("the genuine statement: %v", err)
	}
	if id, err := got.ClusterID(); err != nil || id != s.pins.ClusterID {
		t.Fatalf("cluster id %s, %v", id, err)
	}
	otherKey, otherQuote := got, got
	otherKey.IdentityKey = ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	quote, err := s.launch("machine-a", nodeImage).Quote(t.Context(), [64]byte{1})
	if err != nil {
		t.Fatal(err)
	}
	otherQuote.Quote = quote
	otherWorld, err := attest.NewVerifier(attest.Config{Root: sim.NewWorld([32]byte{99}, nil).Root()})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		st Statement
		v  *attest.Verifier
	}{"the host's identity key": {otherKey, v}, "a quote over something else": {otherQuote, v}, "another root of trust": {got, otherWorld}, "nothing": {Statement{}, v}} {
		if _, err := Sign(&c.st, c.v, time.Now(), s.operator); !errors.Is(err, ErrStatement) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestConfigDenies(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	good := s.config("a", s.launch("machine-a", nodeImage))
	good.ClusterID, good.Join = api.ID{1}, []string{"127.0.0.1:1"}
	for name, change := range map[string]func(*Config){
		"zero":                func(c *Config) { *c = Config{} },
		"no TEE":              func(c *Config) { c.TEE = nil },
		"no root":             func(c *Config) { c.Root = attest.Root{} },
		"bad slot":            func(c *Config) { c.Slot = "../x" },
		"no cluster":          func(c *Config) { c.ClusterID = api.ID{} },
		"genesis and cluster": func(c *Config) { c.Genesis = &Genesis{} },
		"nobody to join":      func(c *Config) { c.Join = nil },
		"bad address":         func(c *Config) { c.Join = []string{"nowhere"} },
		"no data":             func(c *Config) { c.DataDir = "" },
	} {
		cfg := good
		change(&cfg)
		if n, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
			if n != nil {
				n.Close()
			}
		}
	}
}

func TestApprovalsByFile(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	dir := t.TempDir()
	stale := filepath.Join(dir, ApprovalsFile)
	if err := os.WriteFile(stale, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	s.genesis(&cfg)
	written := make(chan string, 1)
	cfg.Genesis.Approve = ApproveByFile(dir, func(path string) { written <- path })
	r := s.run(cfg)
	raw, err := os.ReadFile(<-written)
	if err != nil {
		t.Fatal(err)
	}
	if err := signFile(raw, stale, s); err != nil {
		t.Fatal(err)
	}
	s.awaitReady(r)
}

// A member whose platform has been revoked brings the collateral of a better
// day; the joiner asks its own source.
func TestJoinerRefusesARevokedMember(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a")
	m, err := s.world.Machine("machine-a")
	if err != nil {
		t.Fatal(err)
	}
	m.Revoke()
	err = s.refused(s.config("b", s.launch("machine-b", nodeImage)))
	if !errors.Is(err, pck.ErrRevoked) {
		t.Errorf("a revoked member: %v", err)
	}
}

// A server with a genuine statement of the pinned cluster but other code: the
// joiner checks evidence against the pinned manifest's node policy all the same.
func TestJoinerRefusesAMemberOfOtherCode(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	evil, err := newBoot()
	if err != nil {
		t.Fatal(err)
	}
	statement, err := newMembership(a.secrets, a.membership().raw, api.Membership{ClusterID: s.pins.ClusterID, Epoch: 1, Slot: "evil", Incarnation: 1, ServerID: evil.id})
	if err != nil {
		t.Fatal(err)
	}
	cfg := s.config("evil", s.launch("machine-evil", appImage))
	p := &prover{cfg: &cfg, attachment: statement}
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan struct{}, 1)
	l := ratls.NewListener(inner, &ratls.Config{Protocols: []string{protocolJoin}, ClusterID: s.pins.ClusterID, Epoch: 1, Key: evil.key, Attest: p.prove})
	t.Cleanup(func() { l.Close() })
	go func() {
		if c, err := l.Accept(); err == nil {
			c.Close()
			served <- struct{}{}
		}
	}()
	join := s.config("b", s.launch("machine-b", nodeImage))
	join.Join = []string{inner.Addr().String()}
	if err := s.refused(join); !errors.Is(err, ErrNodePolicy) {
		t.Errorf("a member of other code: %v", err)
	}
	select {
	case <-served:
		t.Error("the joiner finished a handshake with it")
	default:
	}
}
