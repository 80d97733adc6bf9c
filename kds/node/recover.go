package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore/archive/file"
)

// Recovery opens a new epoch of a cluster whose majority is lost, or that was
// stopped as planned, from servers that still live and from the archives of those
// that do not. See DESIGN.md.
type Recovery struct {
	// Manifest and IdentityKey are those of the cluster to recover. They must hash
	// to Config.ClusterID.
	Manifest, IdentityKey []byte
	// Survivors are the peer addresses of old servers that may still live, at most
	// MaxSurvivors. They come first: one that the operators' statement names as the
	// source stops for good and hands over the roots, and no share is needed.
	Survivors []string
	// Archives are the directories of the old servers' archives, each named after
	// its server id, at most MaxArchives; there may be none if there are Survivors.
	// They are only read.
	Archives []string
	// Records reads the archive in one directory; nil means raftstore/archive/file.
	// Like Config.Archive it is chosen by the binary.
	Records Records
	// Wrapped are files with the wrapped roots, as every node writes them: see
	// WrappedFile. The newest that the shares open counts. Needed with Shares only.
	Wrapped []string
	// Receipts and Finals are files with receipts that clients kept and with final
	// checkpoints of servers that were stopped, or directories with such files:
	// *.json, and final-*.json. They are read when the report is made and again
	// before the epoch opens; the new epoch begins below none.
	Receipts, Finals []string
	// MinNodePolicy is the lowest version of the node policy to accept: what the
	// operators last saw. From the host's file it protects against mistakes; what
	// operators sign names the version, too.
	MinNodePolicy uint64

	// Shares is shown the request and returns shares sealed to it. It may wait for
	// people until ctx ends. When they did not suffice it is called again with the
	// reason, and gives up by returning an error. So does Approve, which is shown
	// the report and returns the statement that the operators have signed. With
	// Survivors, Shares may be nil: then archives are opened, and held against the
	// source, once a survivor has handed over the roots.
	Shares  func(ctx context.Context, r *RecoveryRequest, refused error) ([]SealedShare, error)
	Approve func(ctx context.Context, r *RecoveryReport, refused error) (*RecoveryApprovals, error)
}

func (r *Recovery) check(clusterID api.ID) error {
	id, err := api.ClusterID(r.Manifest, r.IdentityKey)
	switch {
	case err != nil:
		return fmt.Errorf("%w: Recovery: %w", ErrConfig, err)
	case id != clusterID:
		return fmt.Errorf("%w: Recovery: manifest and identity key are those of cluster %s, not of %s", ErrConfig, id, clusterID)
	case r.Shares == nil && len(r.Survivors) == 0 || r.Approve == nil:
		return fmt.Errorf("%w: Recovery needs Approve, and Shares or Survivors", ErrConfig)
	case len(r.Archives) == 0 && len(r.Survivors) == 0 || len(r.Archives) > MaxArchives:
		return fmt.Errorf("%w: Recovery: %d archives, want 1 to %d", ErrConfig, len(r.Archives), MaxArchives)
	case r.Shares != nil && len(r.Wrapped) == 0 || len(r.Wrapped) > MaxArchives*maxWrapped:
		return fmt.Errorf("%w: Recovery: %d files with wrapped roots", ErrConfig, len(r.Wrapped))
	case len(r.Receipts) > maxWitnesses || len(r.Finals) > maxWitnesses:
		return fmt.Errorf("%w: Recovery: more than %d receipts or final checkpoints", ErrConfig, maxWitnesses)
	}
	return r.checkSurvivors()
}

// recovery is one recovery under way.
type recovery struct {
	*Recovery
	n        *Node
	manifest *api.Manifest
	key      *kds.ShareRecipient // lives in this boot's memory only
	held     []*kds.Secrets      // what shares or survivors have given back, the most generations first; see rootsOf
	alive    []*survivor
	disks    []*inspected // the archives
	looked   bool         // the archives have been opened
	archives []*inspected // both, as they count now
	newest   *inspected   // nil if nothing can be used
	seen     *witnesses

	reportData [64]byte // of the request
}

// reopen recovers the cluster:
//
//  1. this enclave says who it is, and to which key shares may be sealed;
//  2. the operators' shares give back the roots, which open the archives; where old
//     servers live, both may wait until one of those hands over the roots;
//  3. what lies in them, and what live servers hold, is compared and shown, quoted;
//  4. a threshold, and more than half, of the operators sign which of them the new
//     epoch continues, in this enclave, and what became of every old server;
//  5. live servers that are to be stopped are shown that, and stop; the source last;
//  6. receipts and final checkpoints are read again: the epoch begins below none;
//  7. the new epoch's log begins with the statement and the old state.
//
// Nothing is served before the last step.
func (n *Node) reopen(ctx context.Context) error {
	r := &recovery{Recovery: n.cfg.Recovery, n: n}
	var err error
	if r.manifest, err = api.ParseManifest(r.Manifest); err != nil {
		return err
	}
	if err := n.checkRoot(r.manifest); err != nil {
		return err
	}
	for _, addr := range r.Survivors {
		r.alive = append(r.alive, &survivor{addr: addr})
	}
	if r.Shares != nil {
		if r.key, err = kds.NewShareRecipient(); err != nil {
			return fmt.Errorf("node: recovery key: %w", err)
		}
		if err := r.unwrap(ctx); err != nil {
			return err
		}
	}
	return r.openApproved(ctx)
}

// request says who asks for the shares.
func (r *recovery) request(ctx context.Context) (*RecoveryRequest, error) {
	q := &RecoveryRequest{Manifest: r.Manifest, IdentityKey: r.IdentityKey, Enclave: api.ID(r.n.boot.id), HPKEKey: r.key.Public()}
	want, err := q.ReportData()
	if err != nil {
		return nil, err
	}
	r.reportData = want
	q.Quoted, err = r.quote(ctx, want)
	return q, err
}

func (r *recovery) quote(ctx context.Context, reportData [64]byte) (Quoted, error) {
	ev, err := r.n.prover.prove(ctx, reportData)
	return Quoted{Quote: ev.Quote, Collateral: ev.Collateral}, err
}

// inspectAll reads every archive once.
func (r *recovery) inspectAll(ctx context.Context) {
	records := r.Records
	if records == nil {
		records = file.Records
	}
	i := &inspector{clusterID: r.n.cfg.ClusterID, self: r.n.boot.id, held: r.held, records: records}
	for _, dir := range r.Archives {
		if ctx.Err() != nil {
			return
		}
		a := i.inspect(ctx, dir)
		if old := find(r.disks, a.report.ServerID); a.report.Problem == "" && old != nil {
			// Of two copies the longer one, whichever the host has named first.
			if a.report.Epoch == old.report.Epoch && a.report.Sequence > old.report.Sequence {
				*old, *a = *a, *old
			}
			a.unusable(errShorterCopy)
		}
		r.disks = append(r.disks, a)
	}
}

var errShorterCopy = errors.New("another archive of the same server has been read, and this one does not go beyond it")

// archive is what opened for a server, or nil.
func (r *recovery) archive(id api.ID) *inspected { return find(r.archives, id) }

func find(list []*inspected, id api.ID) *inspected {
	for _, a := range list {
		if a.report.Problem == "" && a.report.ServerID == id {
			return a
		}
	}
	return nil
}

// openApproved reports, waits for a statement and opens its epoch. What refuses
// the statement is told to the operators with a report of now, and they may bring
// another; what fails after the first entry is final for this boot.
func (r *recovery) openApproved(ctx context.Context) error {
	var refused error
	for {
		report, err := r.report(ctx)
		if err != nil {
			return err
		}
		approvals, err := r.Approve(ctx, report, refused)
		if err != nil {
			return fmt.Errorf("%w: %w", ErrApproval, errors.Join(err, refused))
		}
		o, err := r.accept(ctx, approvals)
		if err == nil {
			return r.open(ctx, o)
		}
		if ctx.Err() != nil {
			return err
		}
		refused = err
	}
}

// report describes archives, servers and witnesses, and quotes it.
func (r *recovery) report(ctx context.Context) (*RecoveryReport, error) {
	r.visitAll(ctx)
	r.gather(ctx)
	if err := errors.Join(ctx.Err(), r.look()); err != nil {
		return nil, err
	}
	out := &RecoveryReport{Manifest: r.Manifest, IdentityKey: r.IdentityKey, Enclave: api.ID(r.n.boot.id), Roots: len(r.held) > 0}
	for _, a := range r.archives {
		if a.report.Problem == "" {
			a.report.Final = r.seen.final(a.report.ServerID) != nil
			a.report.Generation = r.generationFor(a)
			a.report.Refused, a.report.Leaves = "", printable(r.leaves(a))
			if err := r.usable(a); err != nil {
				a.report.Refused = printable(strings.TrimPrefix(err.Error(), ErrRecovery.Error()+": "))
			}
		}
		out.Archives = append(out.Archives, a.report)
	}
	if r.newest != nil {
		out.Newest = r.newest.report.ServerID
		out.Servers = r.servers()
	}
	out.Receipts, out.Finals = r.seen.reports()
	want, err := out.ReportData()
	if err != nil {
		return nil, err
	}
	out.Quoted, err = r.quote(ctx, want)
	return out, err
}

// look reads receipts and final checkpoints, which may have come or gone.
func (r *recovery) look() error {
	now, err := readWitnesses(r.Receipts, r.Finals, r.IdentityKey, r.n.cfg.ClusterID)
	if err != nil {
		return err
	}
	if err := now.keep(r.seen); err != nil {
		return err
	}
	r.seen = now
	return nil
}

// usable says why an archive cannot be the source of a new epoch, as far as
// this enclave can see.
func (r *recovery) usable(a *inspected) error {
	if err := r.seen.check(a, r.IdentityKey, r.n.cfg.ClusterID); err != nil {
		return err
	}
	if err := r.checkRoots(a); err != nil {
		return err
	}
	if seen := max(r.MinNodePolicy, r.n.cfg.MinNodePolicy); a.report.NodePolicy < seen {
		return fmt.Errorf("%w: its node policy is version %d, and the operators have seen version %d", ErrRecovery, a.report.NodePolicy, seen)
	}
	return nil
}

// noSlot stands in a statement for the slot of a server that has none any more.
const noSlot = "none"

// servers are all that any history knows, those who could still acknowledge
// something among themselves, each with the last epoch in which it is known:
// whoever goes on from an epoch must account for its servers and for those of
// later ones.
func (r *recovery) servers() []ReportedServer {
	var list []ReportedServer
	add := func(slot string, id api.ID, epoch uint64) {
		at := slices.IndexFunc(list, func(s ReportedServer) bool { return s.ServerID == id })
		switch {
		case slot == "":
		case at < 0:
			list = append(list, r.server(slot, id, epoch))
		default:
			s := &list[at]
			if s.Epoch = max(s.Epoch, epoch); s.Slot == noSlot { // another history knows its slot
				s.Slot = slot
			}
		}
	}
	for _, a := range r.archives {
		if a.report.Problem != "" {
			if a.epoch > 0 { // nobody says what its server knew, but it has been
				add(noSlot, a.server, a.epoch)
			}
			continue
		}
		add(a.report.Slot, a.report.ServerID, a.report.Epoch)
		for _, m := range a.members {
			add(m.Slot, m.ServerID, a.report.Epoch)
		}
		for _, m := range a.servers { // also who lost its slot and was not yet taken out
			slot, _ := slotOf(a.members, api.ID(m.ID))
			add(cmp.Or(slot, noSlot), api.ID(m.ID), a.report.Epoch)
		}
	}
	slices.SortFunc(list, func(a, b ReportedServer) int { return slices.Compare(a.ServerID[:], b.ServerID[:]) })
	return list
}

// server is what is known of one server.
func (r *recovery) server(slot string, id api.ID, epoch uint64) ReportedServer {
	s := ReportedServer{Slot: slot, ServerID: id, Epoch: epoch, Archive: find(r.disks, id) != nil, Final: r.seen.final(id) != nil}
	if v := r.survivorOf(id); v != nil {
		s.Alive, s.Stopped = true, v.stopped
	}
	return s
}
