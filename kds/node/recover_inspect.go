package node

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"slices"

	"github.com/claviger/claviger/enclave/secret"
	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/history"
)

const (
	// MaxArchives bounds the archives of one recovery.
	MaxArchives = 64
	// maxEpochs bounds the search for the epoch of an archive, which no directory
	// names: a record opens under the right one only.
	maxEpochs = api.MaxEpoch
)

// Records reads the archive in one directory; see raftstore/archive/file.Records.
type Records = func(dir string) iter.Seq2[[]byte, error]

// inspected is one archive that opened.
type inspected struct {
	report  ArchiveReport
	epoch   uint64           // under which a record opened; 0 if none did
	server  api.ID           // whose it is, if one did
	history *history.History // nil once it has been compared
	machine *state.Heads     // as the archive leaves it, with the heads of the log that it came by
	members []state.Member
	chains  []chainPoint       // running hashes that the log in the archive leads through, by index
	servers []raftstore.Member // of the last configuration in it
	unread  logEnd             // of a log that opened and does not replay here; else zero

	standing relationTo // the newest
	forked   api.ID     // another archive's server, if what both hold as committed differs; else zero
}

type chainPoint struct {
	index uint64
	hash  [32]byte
}

// logEnd is what an election compares.
type logEnd struct{ index, term uint64 }

// behind reports whether a log ends before e.
func (r *ArchiveReport) behind(e logEnd) bool {
	return r.Term < e.term || r.Term == e.term && r.Index < e.index
}

// chainAt is the running hash when index had been applied; known is false for
// what lies before the snapshot.
func (a *inspected) chainAt(index uint64) (hash [32]byte, known bool) {
	i, exact := slices.BinarySearchFunc(a.chains, index, func(p chainPoint, i uint64) int { return cmp.Compare(p.index, i) })
	if !exact {
		i--
	}
	if i < 0 {
		return [32]byte{}, false
	}
	return a.chains[i].hash, true
}

// inspector reads archives with the roots that were given back.
type inspector struct {
	clusterID api.ID
	self      raftstore.ServerID
	held      []*kds.Secrets
	records   Records
}

// inspect reads one archive: everything in it is attacker input until it opened
// under this cluster's key at its own place. What cannot be used is reported and
// is no error: one broken disk must not stop the others from being looked at.
func (i *inspector) inspect(ctx context.Context, dir string) *inspected {
	a := &inspected{report: ArchiveReport{Path: printable(dir), Kind: KindArchive}}
	if err := i.read(ctx, dir, a); err != nil {
		a.unusable(err)
	}
	return a
}

// unusable leaves of an archive what it proves all the same: that its epoch was,
// its server, and how far its log goes.
func (a *inspected) unusable(why error) {
	*a = inspected{epoch: a.epoch, server: a.server, unread: a.unread, report: ArchiveReport{Path: a.report.Path, Kind: a.report.Kind, Problem: printable(why.Error()), Epoch: a.epoch}}
}

func (i *inspector) read(ctx context.Context, dir string, a *inspected) error {
	id, err := raftstore.ParseServerID(filepath.Base(dir))
	if err != nil {
		return errors.New("the directory must be named after its server id, as the node made it: 64 hex digits")
	}
	if id == i.self {
		return errors.New("this is the recovering boot's own")
	}
	key, epoch, err := i.keyOf(ctx, dir, id)
	if err != nil {
		return err
	}
	defer key.Destroy()
	a.epoch, a.server = epoch, api.ID(id)
	chain := raftstore.Chain{ClusterID: i.clusterID, Epoch: epoch, Server: id}
	if a.history, err = history.Inspect(stopping(ctx, i.records(dir)), key, chain); err != nil {
		return err
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return i.replay(a)
}

// stopping ends a sequence with the context.
func stopping(ctx context.Context, records iter.Seq2[[]byte, error]) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for r, err := range records {
			if ctx.Err() != nil {
				yield(nil, ctx.Err())
				return
			}
			if !yield(r, err) {
				return
			}
		}
	}
}

// keyOf finds the key and the epoch of an archive: the key follows from the first
// root, of which one should be held.
func (i *inspector) keyOf(ctx context.Context, dir string, id raftstore.ServerID) (secret.Key, uint64, error) {
	var failed error
	var tried [][32]byte
	for _, s := range i.held {
		first := s.GenerationIDs()[0]
		if slices.Contains(tried, first) {
			continue
		}
		tried = append(tried, first)
		key, err := s.ArchiveKey(id)
		if err != nil {
			return secret.Key{}, 0, err
		}
		epoch, err := i.epochOf(ctx, dir, key, id)
		if err == nil {
			return key, epoch, nil
		}
		key.Destroy()
		failed = errors.Join(failed, err)
	}
	return secret.Key{}, 0, failed
}

// epochOf finds the epoch under which the first record opens.
func (i *inspector) epochOf(ctx context.Context, dir string, key secret.Key, id raftstore.ServerID) (uint64, error) {
	for first, err := range i.records(dir) {
		if err != nil {
			return 0, err
		}
		for epoch := uint64(1); epoch <= maxEpochs; epoch++ {
			if ctx.Err() != nil { // a record of a host's making costs the whole search
				return 0, ctx.Err()
			}
			o, err := raftstore.NewOpener(key, raftstore.Chain{ClusterID: i.clusterID, Epoch: epoch, Server: id})
			if err != nil {
				return 0, err
			}
			if _, err := o.Open(first); err == nil {
				return epoch, nil
			}
		}
		return 0, errors.New("its first record does not open: it is of another cluster or server, or it has been changed")
	}
	return 0, errors.New("it is empty")
}

// replay rebuilds the state and describes what was found.
func (i *inspector) replay(a *inspected) error {
	h := a.history
	machine := state.NewHeads()
	replayed, err := h.Replay(machine)
	if err != nil {
		a.unread.index, a.unread.term = h.Last()
		return fmt.Errorf("its records do not replay: %w", err)
	}
	v := machine.View()
	if v.ClusterID.IsZero() {
		return errors.New("there is no founded cluster in it")
	}
	if v.ClusterID != i.clusterID || v.Epoch != h.Chain.Epoch {
		return errors.New("the state in it is of another cluster or epoch than its records")
	}
	raw, err := snapshotBytes(machine.Machine)
	if err != nil {
		return err
	}
	a.machine, a.members = machine, v.Members
	a.chains = chainsOf(h)
	if a.servers, _, err = h.Servers(); err != nil {
		return err
	}
	index, term := h.Last()
	a.report = ArchiveReport{
		Path: a.report.Path, Kind: a.report.Kind, Epoch: h.Chain.Epoch, ServerID: api.ID(h.Chain.Server), Begin: h.Begin, Sequence: h.Sequence, Head: h.Head,
		Index: index, Term: term, Applied: v.Applied, AppliedTerm: replayed.Term, Chain: replayed.Chain, State: sha256.Sum256(raw),
		LogSize: v.Log.Size, LogRoot: v.Log.Root, NodePolicy: v.NodePolicy, Constraints: v.NodePolicyText, Ended: v.Ended,
	}
	for _, id := range v.GenerationIDs {
		a.report.IDs = append(a.report.IDs, id)
	}
	if h.Torn != nil {
		a.report.Torn = printable(h.Torn.Error())
	}
	a.report.Slot, a.report.Incarnation = slotOf(v.Members, a.report.ServerID)
	return nil
}

func slotOf(members []state.Member, id api.ID) (slot string, incarnation uint64) {
	for _, m := range members {
		if m.ServerID == [32]byte(id) {
			return m.Slot, m.Incarnation
		}
		if k := slices.Index(m.Former, [32]byte(id)); k >= 0 {
			return m.Slot, m.Incarnation - uint64(len(m.Former)-k)
		}
	}
	return "", 0
}

// chainsOf is the running hash at every command in the log, from that in the
// snapshot's header on.
func chainsOf(h *history.History) []chainPoint {
	var at chainPoint
	var points []chainPoint
	if h.Snapshot != nil {
		applied, hash, err := raftstore.ParseSnapshotHeader(h.Snapshot.Data)
		if err != nil {
			return nil // Replay has refused it
		}
		at = chainPoint{applied, hash}
	}
	points = append(points, at)
	for _, e := range h.Entries {
		if e.Type != history.Command || e.Index <= at.index {
			continue
		}
		at = chainPoint{e.Index, raftstore.ExtendChain(at.hash, e.Index, e.Term, e.Data)}
		points = append(points, at)
	}
	return points
}
