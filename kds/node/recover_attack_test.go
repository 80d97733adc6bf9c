package node

import (
	"context"
	"crypto/ed25519"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// lostCluster is three dead nodes, an old copy of one archive, and the receipt
// of the last release.
type lostCluster struct {
	*lostSite
	dead    []*running
	old     string // directory of the old copy, named as the archive is
	receipt api.Receipt
}

// copiedCluster is three nodes that live, with an old copy and the receipt of a
// release after it.
func copiedCluster(t *testing.T) *lostCluster {
	c := &lostCluster{lostSite: newLostSite(t)}
	c.found("a", "b", "c")
	cl := c.client(c.endpoints()...)
	c.keyOf(cl, 0)
	c.settled()
	rolled := c.follower()
	c.old = filepath.Join(t.TempDir(), rolled.ServerID().String())
	copyDir(t, archiveDir(rolled), c.old)
	_, reply := c.keyOf(cl, 0)
	c.receipt = reply.Receipt
	return c
}

func loseCluster(t *testing.T) *lostCluster {
	c := copiedCluster(t)
	c.settled()
	c.dead = c.crash()
	return c
}

// withOld is a recovery of what is dead, with the old copy in the place of its archive.
func (c *lostCluster) withOld() *Recovery {
	r := c.recovery(c.dead)
	for i, dir := range r.Archives {
		if filepath.Base(dir) == filepath.Base(c.old) {
			r.Archives[i] = c.old
		}
	}
	return r
}

// final is a checkpoint as the first dead node would have signed it.
func (c *lostCluster) final(change func(*api.FinalCheckpoint)) string {
	c.t.Helper()
	return c.finalOf(c.dead[0], change)
}

// finalOf is the checkpoint that a node signs, after change has had its way.
func (c *lostSite) finalOf(n *running, change func(*api.FinalCheckpoint)) string {
	c.t.Helper()
	v := n.machine.View()
	_, chain := n.store.Load().Chain()
	f := api.FinalCheckpoint{ClusterID: c.pins.ClusterID, Epoch: 1, ServerID: api.ID(n.ServerID()), Applied: v.Applied, Chain: chain,
		StateSHA256: api.ID{1}, LogSize: v.Log.Size, LogRoot: v.Log.Root}
	change(&f)
	signed, err := api.SignFinal(n.secrets.Identity(), f)
	if err != nil {
		c.t.Fatal(err)
	}
	return c.write("final.json", signed)
}

// Each of these is a recovery that a host, or a mistake, would have us open.
func TestRecoveryRefuses(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	type attack struct {
		change func(*Recovery)
		want   error
		say    string
	}
	oldOnly := func(r *Recovery) { r.Archives = []string{c.old} }
	late := filepath.Join(t.TempDir(), "late.json")
	stranger := ed25519.NewKeyFromSeed(make([]byte, 32))
	for name, a := range map[string]attack{
		"an archive below a receipt": {func(r *Recovery) {
			oldOnly(r)
			r.Receipts = []string{c.write("receipt.json", c.receipt)}
		}, ErrBelow, "leaves"},
		"a receipt that comes between report and opening": {func(r *Recovery) {
			oldOnly(r)
			r.Receipts = []string{late}
			approve := r.Approve
			r.Approve = func(ctx context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
				if refused == nil && (len(report.Receipts) != 1 || report.Receipts[0].Problem == "" || report.Archives[0].Refused != "") {
					t.Errorf("the report knows the receipt already: %+v", report.Receipts)
				}
				if err := os.Rename(c.write("receipt.json", c.receipt), late); refused == nil && err != nil {
					t.Error(err)
				}
				return approve(ctx, report, refused)
			}
		}, ErrBelow, "leaves"},
		"a receipt in a directory": {func(r *Recovery) {
			oldOnly(r)
			r.Receipts = []string{filepath.Dir(c.write("receipt.json", c.receipt))}
		}, ErrBelow, "leaves"},
		"a final checkpoint in a directory": {func(r *Recovery) {
			name := c.final(func(f *api.FinalCheckpoint) { f.Epoch = 7 })
			if err := os.Rename(name, filepath.Join(filepath.Dir(name), "final-x.json")); err != nil {
				t.Error(err)
			}
			r.Finals = []string{filepath.Dir(name)}
		}, ErrBelow, "epoch 7"},
		"a receipt that is taken away after the report": {func(r *Recovery) {
			oldOnly(r)
			r.Receipts = []string{c.write("receipt.json", c.receipt)}
			approve := r.Approve
			r.Approve = func(ctx context.Context, report *RecoveryReport, refused error) (*RecoveryApprovals, error) {
				if err := os.Remove(r.Receipts[0]); refused == nil && err != nil {
					t.Error(err)
				}
				return approve(ctx, report, refused)
			}
		}, ErrBelow, "leaves"},
		"an archive below a final checkpoint": {func(r *Recovery) {
			r.Finals = []string{c.final(func(f *api.FinalCheckpoint) { f.Applied++ })}
		}, ErrBelow, "the end of epoch 1"},
		"another history than a final checkpoint's": {func(r *Recovery) {
			r.Finals = []string{c.final(func(f *api.FinalCheckpoint) { f.Chain[0] ^= 1 })}
		}, ErrBelow, "the end of epoch 1"},
		"a final checkpoint of a later epoch": {func(r *Recovery) {
			r.Finals = []string{c.final(func(f *api.FinalCheckpoint) { f.Epoch = 7 })}
		}, ErrBelow, "epoch 7"},
		"a node policy below the last one seen": {func(r *Recovery) { r.MinNodePolicy = 2 }, ErrRecovery, "the operators have seen version 2"},
		"an epoch that is not above": {func(r *Recovery) {
			r.Approve = c.approveRaw(func(s *api.RecoveryStatement) { s.Epoch = 1 })
		}, api.ErrRecovery, "does not follow"},
		"a generation out of order": {func(r *Recovery) {
			r.Approve = c.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Generation = 3 })
		}, ErrRecovery, "generation 2 is next"},
		"one operator of two":    {func(r *Recovery) { r.Approve = c.approveBy(c.keys[0]) }, api.ErrApprovals, "1 operators have signed"},
		"a stranger's signature": {func(r *Recovery) { r.Approve = c.approveBy(c.keys[0], stranger) }, api.ErrApprovals, "is not an operator's"},
		"a statement for another cluster": {func(r *Recovery) {
			r.Approve = c.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.ClusterID[0] ^= 1 })
		}, api.ErrRecovery, "cluster"},
		"a source that was not shown": {func(r *Recovery) {
			r.Approve = c.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Source.ServerID = api.ID{9} })
		}, ErrRecovery, "no history of server"},
		"a source with another state": {func(r *Recovery) {
			r.Approve = c.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Source.StateSHA256[0] ^= 1 })
		}, ErrRecovery, "not the one that the operators have signed"},
		"a server that nobody speaks of": {func(r *Recovery) {
			r.Approve = c.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Old = s.Old[1:] })
		}, ErrRecovery, "do not say what became"},
		"stopped without proof": {func(r *Recovery) {
			r.Approve = c.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) { s.Old[0].Fate = api.FateStopped })
		}, ErrRecovery, "final checkpoint has not been shown"},
		"a lost server, and no word of a fork": {func(r *Recovery) {
			r.Approve = c.approveRaw(func(s *api.RecoveryStatement) { s.Old[0].Fate = api.FateLost })
		}, api.ErrRecovery, "accept in words"},
		"an old copy beside newer archives": {func(r *Recovery) {
			newer := slices.DeleteFunc(r.Archives, func(dir string) bool { return filepath.Base(dir) == filepath.Base(c.old) })
			r.Archives = append(newer, c.old)
			id, err := api.ParseID(filepath.Base(c.old))
			if err != nil {
				t.Error(err)
			}
			r.Approve = c.approve(func(report *RecoveryReport, s *api.RecoveryStatement) { s.Source = report.Archive(id).Source() })
		}, ErrRecovery, "is not the newest"},
		"shares below the threshold": {func(r *Recovery) { r.Shares = c.returnShares(c.shares[0]) }, ErrShares, ""},
		"one share twice":            {func(r *Recovery) { r.Shares = c.returnShares(c.shares[0], c.shares[0]) }, ErrShares, ""},
		"shares for another enclave": {func(r *Recovery) {
			r.Shares = func(_ context.Context, request *RecoveryRequest, refused error) ([]SealedShare, error) {
				if refused != nil {
					return nil, errOperator
				}
				other := *request
				other.Enclave[0] ^= 1
				return sealShares(&other, c.shares[:2]...)
			}
		}, ErrShares, "was not sealed to this enclave"},
		"wrapped roots that were tampered with": {func(r *Recovery) {
			raw, err := os.ReadFile(r.Wrapped[0])
			if err != nil {
				t.Error(err)
				return
			}
			raw[len(raw)/2] ^= 1
			name := filepath.Join(t.TempDir(), "roots.wrapped")
			if err := os.WriteFile(name, raw, 0o600); err != nil {
				t.Error(err)
			}
			r.Wrapped = []string{name}
		}, ErrShares, ""},
	} {
		r := c.recovery(c.dead)
		a.change(r)
		err := c.refusedRecovery("a", r)
		if !errors.Is(err, a.want) || !strings.Contains(err.Error(), a.say) {
			t.Errorf("%s: refused with %v, want %v with %q in it", name, err, a.want, a.say)
		}
	}
}

// approveRaw signs what Marshal would refuse to encode.
func (l *lostSite) approveRaw(change func(*api.RecoveryStatement)) func(context.Context, *RecoveryReport, error) (*RecoveryApprovals, error) {
	return func(_ context.Context, r *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if refused != nil {
			return nil, errOperator
		}
		s := l.statement(r)
		change(s)
		raw, err := api.MarshalCanonical(s)
		return &RecoveryApprovals{Statement: raw, Approvals: api.Approve(raw, l.keys[:2]...)}, err
	}
}

func (l *lostSite) approveBy(keys ...ed25519.PrivateKey) func(context.Context, *RecoveryReport, error) (*RecoveryApprovals, error) {
	return func(_ context.Context, r *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if refused != nil {
			return nil, errOperator
		}
		return l.sign(l.statement(r), keys...)
	}
}

// Two enclaves, one manifest: the one that the operators named opens it, the
// other does not, and neither does the same machine after a restart.
func TestOneManifestOpensOnce(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	var signed *RecoveryApprovals
	r := c.recovery(c.dead)
	r.Approve = func(_ context.Context, report *RecoveryReport, refused error) (_ *RecoveryApprovals, err error) {
		if refused != nil {
			return nil, errOperator
		}
		signed, err = c.sign(c.statement(report), c.keys[:2]...)
		return signed, err
	}
	first := c.recoverOn("a", r)
	c.awaitReady(first)
	replay := c.recovery(c.dead)
	replay.Approve = func(_ context.Context, _ *RecoveryReport, refused error) (*RecoveryApprovals, error) {
		if refused != nil {
			return nil, errOperator
		}
		return signed, nil
	}
	for _, slot := range []string{"b", "a"} {
		if err := c.refusedRecovery(slot, replay); !errors.Is(err, ErrRecovery) || !strings.Contains(err.Error(), "the operators have signed for enclave") {
			t.Errorf("the manifest in a second enclave, on machine %s: %v", slot, err)
		}
	}
	// The archive of the new epoch says that epoch 2 has been.
	first.Close()
	again := c.recovery(c.dead)
	again.Archives = append(again.Archives, archiveDir(first))
	again.Wrapped = append(again.Wrapped, wrappedOf(first))
	again.Approve = c.approve(func(report *RecoveryReport, s *api.RecoveryStatement) {
		s.Epoch, s.Accept = 2, api.Accept(false, true)
		for _, a := range report.Archives {
			if a.Epoch == 1 {
				s.Source = a.Source()
			}
		}
	})
	if err := c.refusedRecovery("a", again); !errors.Is(err, ErrRecovery) || !strings.Contains(err.Error(), "epoch 2 has been") {
		t.Errorf("epoch 2 a second time: %v", err)
	}
}

// What cannot be read is reported, and what is torn is used up to the tear.
func TestRecoveryReportsBrokenArchives(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	torn := filepath.Join(t.TempDir(), filepath.Base(c.old))
	copyDir(t, archiveDir(c.dead[slices.IndexFunc(c.dead, func(n *running) bool { return n.ServerID().String() == filepath.Base(c.old) })]), torn)
	cutTail(t, torn, 200)
	twin := filepath.Join(t.TempDir(), filepath.Base(torn))
	copyDir(t, torn, twin)
	other := loseCluster(t)
	renamed := filepath.Join(t.TempDir(), c.dead[1].ServerID().String())
	copyDir(t, archiveDir(c.dead[2]), renamed)

	var report *RecoveryReport
	r := c.recovery(c.dead)
	r.Archives = []string{torn, twin, archiveDir(other.dead[0]), renamed, t.TempDir(), filepath.Join(t.TempDir(), strings.Repeat("ab", 32))}
	r.Approve = func(_ context.Context, got *RecoveryReport, _ error) (*RecoveryApprovals, error) {
		report = got
		return nil, errOperator
	}
	if err := c.refusedRecovery("a", r); !errors.Is(err, ErrApproval) {
		t.Fatalf("an operator who says no: %v", err)
	}
	showReport(t, report)
	if a := report.Archives[0]; a.Problem != "" || a.Torn == "" || a.LogSize == 0 || a.ServerID != report.Newest {
		t.Errorf("the torn archive: %+v", a)
	}
	for i, want := range map[int]string{1: "same server", 2: "another cluster", 3: "another cluster or server", 4: "named after its server id", 5: "no such file"} {
		if a := report.Archives[i]; !strings.Contains(a.Problem, want) || a.LogSize != 0 || !a.ServerID.IsZero() {
			t.Errorf("archive %d: %+v, want %q", i, a, want)
		}
	}
	if len(report.Servers) != 3 {
		t.Errorf("%d servers to account for", len(report.Servers))
	}
	// And it is what the epoch continues, if the operators say so.
	r = c.recovery(c.dead)
	r.Archives = []string{torn}
	c.awaitReady(c.recoverOn("a", r))
}

// cutTail tears the last file of a file archive.
func cutTail(t *testing.T, dir string, bytes int64) {
	t.Helper()
	n := 0
	for _, err := range file.Records(dir) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	names, err := filepath.Glob(filepath.Join(dir, "*.records"))
	if err != nil || len(names) == 0 || n < 10 {
		t.Fatalf("%d files, %d records, %v", len(names), n, err)
	}
	last := names[len(names)-1]
	info, err := os.Stat(last)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(last, info.Size()-bytes); err != nil {
		t.Fatal(err)
	}
}

// An old majority is kept alive behind a partition while the cluster is recovered
// without it. It has no part in the new epoch, and who saw that never returns.
func TestOldEpochBehindAPartition(t *testing.T) {
	t.Parallel()
	l := newLostSite(t)
	l.found("a", "b", "c")
	c := l.client(l.endpoints()...)
	before, _ := l.keyOf(c, 0)
	l.settled()
	old := l.nodes
	disks := &Recovery{}
	*disks = *l.recovery(old)
	for i, n := range old {
		disks.Archives[i] = filepath.Join(t.TempDir(), n.ServerID().String())
		copyDir(t, archiveDir(n), disks.Archives[i])
	}
	lead := l.leader()
	dead := l.nodes[slices.IndexFunc(l.nodes, func(n *running) bool { return n != lead })]
	dead.Close()
	disks.Approve = l.approve(func(_ *RecoveryReport, s *api.RecoveryStatement) {
		for i := range s.Old {
			s.Old[i].Fate = api.FateLost
		}
		s.Accept = api.Accept(true, false)
	})
	l.nodes = nil
	first := l.recoverOn(dead.slot, disks)
	l.awaitReady(first)

	// Who saw epoch 2 never takes an answer of epoch 1 again, and hears why.
	if k, reply := l.keyOf(l.client(first.APIAddr()), 1); string(k) != string(before) || reply.Epoch != 2 {
		t.Errorf("epoch %d", reply.Epoch)
	}
	behind := l.clientAt(2, lead.APIAddr())
	ctx, cancel := context.WithTimeout(t.Context(), slow*5*time.Second)
	defer cancel()
	_, _, err := behind.Key(ctx, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"})
	if !errors.Is(err, ratls.ErrEpoch) || !strings.Contains(err.Error(), "recovered into epoch 2") {
		t.Errorf("a client of epoch 2 at the old leader: %v", err)
	}
	// Who never saw it is answered: that is the fork that was accepted in words.
	if k, reply := l.keyOf(l.client(lead.APIAddr()), 0); string(k) != string(before) || reply.Epoch != 1 {
		t.Errorf("the old majority answers from epoch %d", reply.Epoch)
	}
	// Old server to new server, and new to old.
	if _, err := lead.dialPeer(t.Context(), first.ServerID(), first.PeerAddr()); err == nil || !strings.Contains(err.Error(), "recovered into epoch 2") {
		t.Errorf("an old server at a new one: %v", err)
	}
	if _, err := first.dialPeer(t.Context(), lead.ServerID(), lead.PeerAddr()); !errors.Is(err, ratls.ErrEpoch) || !strings.Contains(err.Error(), "recovered into epoch 2") {
		t.Errorf("a new server at an old one: %v", err)
	}
	// A joiner that knows of epoch 2 does not join the old majority.
	cfg := l.config("d", l.launch("machine-d", nodeImage))
	cfg.Join, cfg.MinEpoch = []string{lead.PeerAddr()}, 2
	if err := l.refused(cfg); !errors.Is(err, ratls.ErrEpoch) || !strings.Contains(err.Error(), "recovered into epoch 2") {
		t.Errorf("a joiner of epoch 2 at the old leader: %v", err)
	}
}

// clientAt is a client that has seen an epoch.
func (l *lostSite) clientAt(epoch uint64, endpoints ...string) *client.Client {
	l.t.Helper()
	app := l.launch("machine-app", appImage)
	c, err := client.New(client.Config{ClusterID: l.pins.ClusterID, Endpoints: endpoints, Root: l.world.Root(), MinEpoch: epoch,
		Attest: func(ctx context.Context, reportData [64]byte) (ratls.Evidence, error) {
			quote, err := app.Quote(ctx, reportData)
			if err != nil {
				return ratls.Evidence{}, err
			}
			collateral, err := l.world.Collateral(ctx, quote)
			if err != nil {
				return ratls.Evidence{}, err
			}
			raw, err := collateral.Marshal()
			return ratls.Evidence{Quote: quote, Collateral: raw}, err
		}})
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// What an enclave says in files is worth its quote: a host that changes a word is
// found out by whoever verifies, and enclaves of other code are not believed.
func TestRecoveryFilesAreQuoted(t *testing.T) {
	t.Parallel()
	c := loseCluster(t)
	v, err := attest.NewVerifier(attest.Config{Root: c.world.Root()})
	if err != nil {
		t.Fatal(err)
	}
	var request *RecoveryRequest
	var report *RecoveryReport
	r := c.recovery(c.dead)
	seal := r.Shares
	r.Shares = func(ctx context.Context, q *RecoveryRequest, refused error) ([]SealedShare, error) {
		request = q
		return seal(ctx, q, refused)
	}
	r.Approve = func(_ context.Context, got *RecoveryReport, _ error) (*RecoveryApprovals, error) {
		report = got
		return nil, errOperator
	}
	if err := c.refusedRecovery("a", r); !errors.Is(err, ErrApproval) {
		t.Fatal(err)
	}
	if _, err := request.Verify(Judge{Verifier: v, Now: c.now()}); err != nil {
		t.Fatal(err)
	}
	if _, err := report.Verify(Judge{Verifier: v, Now: c.now()}); err != nil {
		t.Fatal(err)
	}
	if _, err := request.Verify(Judge{Verifier: v, Constraints: []string{appImage.Constraint()}, Now: c.now()}); !errors.Is(err, ErrNodePolicy) {
		t.Errorf("an enclave that the policy in force does not name: %v", err)
	}
	for name, change := range map[string]func(*RecoveryRequest){
		"a key of the host's": func(q *RecoveryRequest) { q.HPKEKey = append([]byte{q.HPKEKey[0] ^ 1}, q.HPKEKey[1:]...) },
		"another enclave":     func(q *RecoveryRequest) { q.Enclave[0] ^= 1 },
		"the report's quote":  func(q *RecoveryRequest) { q.Quoted = report.Quoted },
	} {
		q := *request
		change(&q)
		if _, err := q.Verify(Judge{Verifier: v, Now: c.now()}); !errors.Is(err, ErrRecovery) {
			t.Errorf("request with %s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*RecoveryReport){
		"a verdict":         func(q *RecoveryReport) { q.Archives[0].Verdict = "newest" + q.Archives[0].Verdict },
		"an archive hidden": func(q *RecoveryReport) { q.Archives = q.Archives[1:] },
		"a server hidden":   func(q *RecoveryReport) { q.Servers = q.Servers[1:] },
		"another enclave":   func(q *RecoveryReport) { q.Enclave[0] ^= 1 },
		"another size":      func(q *RecoveryReport) { q.Archives[1].LogSize++ },
	} {
		q := *report
		q.Archives, q.Servers = slices.Clone(q.Archives), slices.Clone(q.Servers)
		change(&q)
		if _, err := q.Verify(Judge{Verifier: v, Now: c.now()}); !errors.Is(err, ErrRecovery) {
			t.Errorf("report with %s: %v", name, err)
		}
	}
	// Other code never gets as far as asking.
	cfg := c.recoverConfig("a", c.recovery(c.dead))
	cfg.TEE = c.launch("machine-a", appImage)
	if err := c.refused(cfg); !errors.Is(err, ErrNodePolicy) {
		t.Errorf("an app that recovers the cluster: %v", err)
	}
}
