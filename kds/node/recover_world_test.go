package node

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/raftstore"
)

// lostSite is a cluster with three operators, of whom two must sign and two
// shares give back the roots.
type lostSite struct {
	*site
	keys   []ed25519.PrivateKey
	shares []kds.Share
	net    *fabric
	// archive makes the nodes' archives; nil means files
	archive func(string, raftstore.ServerID) (raftstore.Archive, error)
}

func newLostSite(t *testing.T) *lostSite {
	l := &lostSite{site: newSite(t), net: &fabric{cut: map[raftstore.ServerID]bool{}}}
	for i := range 3 {
		seed := make([]byte, ed25519.SeedSize)
		seed[0] = byte(i + 1)
		l.keys = append(l.keys, ed25519.NewKeyFromSeed(seed))
	}
	l.tune = l.net.attach
	return l
}

// found starts the first node; further ones join it.
func (l *lostSite) found(slots ...string) []*running {
	l.t.Helper()
	for i, slot := range slots {
		cfg := l.config(slot, l.launch("machine-"+slot, nodeImage))
		cfg.Archive = l.archive
		if i == 0 {
			l.genesis(&cfg)
			g := cfg.Genesis
			g.Operators = api.Operators{Threshold: 2}
			for _, k := range l.keys {
				g.Operators.Keys = append(g.Operators.Keys, k.Public().(ed25519.PublicKey))
			}
			g.Approve = ApproveWith(l.world.Root(), l.now, l.keys[0], l.keys[1])
			g.Shares = func(shares []kds.Share) error { l.shares = shares; return nil }
		}
		l.awaitReady(l.run(cfg))
	}
	return l.nodes
}

// crash closes every node, as a loss of power would, and forgets them.
func (l *lostSite) crash() []*running {
	dead := l.nodes
	for _, n := range dead {
		n.Close()
	}
	l.nodes = nil
	return dead
}

func archiveDir(n *running) string { return filepath.Join(n.cfg.DataDir, n.ServerID().String()) }

// recovery is a Recovery from these dead nodes, by the first two operators, who
// say that all servers are destroyed.
func (l *lostSite) recovery(dead []*running) *Recovery {
	r := &Recovery{Manifest: l.pins.Manifest, IdentityKey: l.pins.IdentityKey}
	for _, n := range dead {
		r.Archives = append(r.Archives, archiveDir(n))
		r.Wrapped = append(r.Wrapped, wrappedOf(n))
	}
	r.Shares = l.returnShares(l.shares[:2]...)
	r.Approve = l.approve(nil)
	return r
}

// wrappedOf is the file that a node has written with the roots that it holds.
func wrappedOf(n *running) string {
	ids := n.secrets.GenerationIDs()
	return filepath.Join(n.cfg.DataDir, WrappedFile(uint64(len(ids)), ids[len(ids)-1]))
}

// returnShares seals shares to whoever asks, and gives up when refused.
func (l *lostSite) returnShares(shares ...kds.Share) func(context.Context, *RecoveryRequest, error) ([]SealedShare, error) {
	return func(_ context.Context, r *RecoveryRequest, refused error) ([]SealedShare, error) {
		if refused != nil {
			return nil, errOperator
		}
		v, err := attest.NewVerifier(attest.Config{Root: l.world.Root()})
		if err != nil {
			return nil, err
		}
		if _, err := r.Verify(Judge{Verifier: v, Now: l.now()}); err != nil {
			return nil, err
		}
		return sealShares(r, shares...)
	}
}

func sealShares(r *RecoveryRequest, shares ...kds.Share) (out []SealedShare, err error) {
	info, err := r.ShareInfo()
	if err != nil {
		return nil, err
	}
	for _, s := range shares {
		sealed, err := s.Seal(r.HPKEKey, info)
		if err != nil {
			return nil, err
		}
		out = append(out, SealedShare{sealed})
	}
	return out, nil
}

// approve signs the newest archive as operators would, after change has had its
// way with the statement, and gives up when refused.
func (l *lostSite) approve(change func(*RecoveryReport, *api.RecoveryStatement)) func(context.Context, *RecoveryReport, error) (*RecoveryApprovals, error) {
	return func(_ context.Context, r *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if refused != nil {
			return nil, errOperator
		}
		s := l.statement(r)
		if change != nil {
			change(r, s)
		}
		return l.sign(s, l.keys[:2]...)
	}
}

// statement continues the newest archive and calls every server destroyed.
func (l *lostSite) statement(r *RecoveryReport) *api.RecoveryStatement {
	s := &api.RecoveryStatement{Label: api.RecoveryLabel, ClusterID: l.pins.ClusterID, Epoch: 2, Enclave: r.Enclave}
	if a := r.Archive(r.Newest); a != nil {
		s.Epoch, s.Generation, s.Source = a.Epoch+1, a.Generation+1, a.Source()
	}
	for _, o := range r.Servers {
		s.Old = append(s.Old, api.OldServer{Slot: o.Slot, ServerID: o.ServerID, Fate: api.FateDestroyed})
	}
	slices.SortFunc(s.Old, func(a, b api.OldServer) int { return slices.Compare(a.ServerID[:], b.ServerID[:]) })
	return s
}

func (l *lostSite) sign(s *api.RecoveryStatement, keys ...ed25519.PrivateKey) (*RecoveryApprovals, error) {
	raw, err := s.Marshal()
	if err != nil {
		return nil, err
	}
	return &RecoveryApprovals{Statement: raw, Approvals: api.Approve(raw, keys...)}, nil
}

// recoverOn runs a recovering boot on the machine of a slot.
func (l *lostSite) recoverOn(slot string, r *Recovery) *running {
	l.t.Helper()
	return l.run(l.recoverConfig(slot, r))
}

func (l *lostSite) recoverConfig(slot string, r *Recovery) Config {
	cfg := l.config(slot, l.launch("machine-"+slot, nodeImage))
	cfg.Join, cfg.Recovery = nil, r
	return cfg
}

// refusedRecovery runs a recovery that must open nothing, and returns why.
func (l *lostSite) refusedRecovery(slot string, r *Recovery) error {
	l.t.Helper()
	return l.refused(l.recoverConfig(slot, r))
}

// keyOf asks for the key of a generation; 0 is the current one.
func (l *lostSite) keyOf(c *client.Client, generation uint64) ([]byte, api.KeyReply) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	req := api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"}
	if generation > 0 {
		req.Version = api.Version{Generation: generation, Counter: 1}
	}
	k, reply, err := c.Key(ctx, req)
	if err != nil {
		l.t.Fatalf("key of generation %d: %v", generation, err)
	}
	return k.Reveal(), reply
}

func (l *lostSite) write(name string, v any) string {
	l.t.Helper()
	raw, err := json.Marshal(v)
	if err != nil {
		l.t.Fatal(err)
	}
	path := filepath.Join(l.t.TempDir(), name)
	if err := os.WriteFile(path, raw, 0o600); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// copyDir is what a hostile or careless host does with disks.
func copyDir(t *testing.T, from, to string) {
	t.Helper()
	if err := os.RemoveAll(to); err != nil {
		t.Fatal(err)
	}
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// settled waits until all nodes have applied what the leader has.
func (l *lostSite) settled() {
	l.t.Helper()
	leader := l.leader()
	poll(l.t, "all nodes have applied everything", func() bool {
		want := leader.store.Load().AppliedIndex()
		return !slices.ContainsFunc(l.nodes, func(n *running) bool { return n.store.Load().AppliedIndex() < want })
	})
}

// fabric cuts nodes off from each other.
type fabric struct {
	mu    sync.Mutex
	cut   map[raftstore.ServerID]bool
	conns []fabricConn
}

type fabricConn struct {
	net.Conn
	a, b raftstore.ServerID
}

func (f *fabric) attach(n *Node) {
	open := n.openStore
	n.openStore = func(cfg raftstore.Config) (*raftstore.Store, error) {
		cfg.Dialer = fabricDialer{f, cfg.ID, cfg.Dialer}
		return open(cfg)
	}
}

type fabricDialer struct {
	f    *fabric
	self raftstore.ServerID
	next raftstore.Dialer
}

var errCut = errors.New("the network is cut")

func (d fabricDialer) Dial(ctx context.Context, id raftstore.ServerID, addr string) (net.Conn, error) {
	if d.f.isCut(d.self, id) {
		return nil, errCut
	}
	c, err := d.next.Dial(ctx, id, addr)
	if err != nil {
		return nil, err
	}
	d.f.mu.Lock()
	defer d.f.mu.Unlock()
	if d.f.cut[d.self] != d.f.cut[id] {
		c.Close()
		return nil, errCut
	}
	d.f.conns = append(d.f.conns, fabricConn{c, d.self, id})
	return c, nil
}

// isCut: nodes on one side of the cut still reach each other.
func (f *fabric) isCut(a, b raftstore.ServerID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.cut[a] != f.cut[b]
}

// partition puts nodes on the other side.
func (f *fabric) partition(nodes ...*running) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range nodes {
		f.cut[n.ServerID()] = true
	}
	for _, c := range f.conns {
		if f.cut[c.a] != f.cut[c.b] {
			c.Close()
		}
	}
}

// showReport is for the log of a test: what the operators see, in short.
func showReport(t *testing.T, r *RecoveryReport) {
	t.Helper()
	list := slices.Clone(r.Archives)
	slices.SortFunc(list, func(a, b ArchiveReport) int { return cmp.Compare(a.Slot, b.Slot) })
	for _, a := range list {
		t.Logf("%-2s epoch %d index %d term %d log %d chain %.12s torn=%q problem=%q: %s", a.Slot, a.Epoch, a.Index, a.Term, a.LogSize, a.Chain, a.Torn, a.Problem, a.Verdict)
	}
}
