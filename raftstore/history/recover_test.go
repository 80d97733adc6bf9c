package history_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
	"github.com/claviger/claviger/raftstore/archive/file"
	"github.com/claviger/claviger/raftstore/history"
)

// stateStore is a store of one server over a real machine.
func (w *world) stateStore(name byte, epoch uint64, m *state.Machine) *node {
	w.t.Helper()
	n := &node{id: raftstore.ServerID{name}}
	archive, err := file.Create(w.root, n.id)
	if err != nil {
		w.t.Fatal(err)
	}
	n.dir = filepath.Join(w.root, n.id.String())
	n.store, err = raftstore.Open(raftstore.Config{ID: n.id, Address: "host:1", ClusterID: clusterID, Epoch: epoch, Machine: m,
		Dialer: dialer{w, n.id}, Archive: archive, ArchiveKey: w.key,
		Timeouts:   raftstore.Timeouts{Heartbeat: 100 * time.Millisecond, Election: 100 * time.Millisecond, Lease: 100 * time.Millisecond},
		Compaction: raftstore.Compaction{Threshold: 1 << 40, Trailing: 2, Interval: time.Hour}})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { n.store.Shutdown() })
	if err := n.store.Genesis(); err != nil {
		w.t.Fatal(err)
	}
	w.retry(func() error {
		if !n.store.IsLeader() {
			return errors.New("nobody leads")
		}
		return nil
	})
	return n
}

func (n *node) commit(t *testing.T, e state.Entry) any {
	t.Helper()
	raw, err := state.Encode(e)
	if err != nil {
		t.Fatal(err)
	}
	_, result, err := n.store.Propose(t.Context(), raw)
	if err != nil {
		t.Fatal(err)
	}
	if err, bad := result.(error); bad {
		t.Fatal(err)
	}
	return result
}

// The whole way on the state of a real cluster: a server dies, its archive is
// inspected and replayed, and a new epoch opens in a new store, entry by entry,
// with the very state. A disk of yesterday is told from it by a head that a
// client holds.
func TestArchiveToNewEpoch(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	operator := ed25519.NewKeyFromSeed(make([]byte, 32))
	identity := ed25519.NewKeyFromSeed(bytes.Repeat([]byte{1}, 32)).Public().(ed25519.PublicKey)
	m := api.Manifest{Version: 1, Name: "test", Root: api.RootOfTrust{ID: [32]byte{1}, Simulated: true}, NodePolicy: []string{"C:aa"},
		Operators: api.Operators{Threshold: 1, Keys: [][]byte{operator.Public().(ed25519.PublicKey)}}, Nonce: [32]byte{1}}
	manifest, err := m.Marshal()
	if err != nil {
		t.Fatal(err)
	}
	key := state.CollateralKey{TEE: "sgx", FMSPC: [6]byte{1}, CA: "platform"}
	admit := func(epoch uint64, id byte, incarnation uint64) *state.Admit {
		return &state.Admit{Epoch: epoch, NodePolicy: 1, CollateralKey: key, CollateralVersion: 1, Slot: "a", Incarnation: incarnation,
			ServerID: [32]byte{id}, PlatformID: [32]byte{9}, RaftAddr: "h:1", APIAddr: "h:2",
			Level: state.Level, TEE: "sgx", Measurement: make([]byte, 32), TCBStatus: "UpToDate"}
	}
	release := func(epoch uint64, leaf byte) *state.Release {
		return &state.Release{Epoch: epoch, Generation: epoch, NodePolicy: 1, CollateralKey: key, CollateralVersion: 1, Leaf: [32]byte{leaf}}
	}
	machine := state.New()
	old := w.stateStore(1, 1, machine)
	old.commit(t, &state.Genesis{Level: state.Level, Manifest: manifest, IdentityKey: identity, Epoch: 1, Generation: 1})
	old.commit(t, &state.CommitRoots{Epoch: 1, IDs: [][32]byte{{21}}})
	old.commit(t, &state.PutCollateral{Epoch: 1, Key: key, Bundle: bytes.Repeat([]byte{7}, 60<<10), Meta: state.CollateralMeta{TCBEvaluation: 1, QEEvaluation: 1,
		TCBInfoIssue: 5, QEIdentityIssue: 5, PCKCRLIssue: 5, RootCRLIssue: 5, LatestIssue: 5, CollateralSHA256: [32]byte{1}}})
	old.commit(t, admit(1, 1, 1))
	old.commit(t, release(1, 1))
	yesterday := w.copyDisk(old)
	if err := old.store.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	held := old.commit(t, release(1, 2)).(state.Released) // a client's receipt
	index, chain := old.store.Chain()
	w.stop(old)

	list := []*history.History{w.inspect(yesterday, old.id), w.inspect(old.dir, old.id)}
	c := history.Compare(list)
	if c.Newest != 1 || c.Pairs[0].Relation != history.Behind {
		t.Fatalf("%+v", c)
	}
	stale := state.NewHeads()
	if _, err := list[0].Replay(stale); err != nil {
		t.Fatal(err)
	}
	if err := stale.Check(held.Size, held.Root); !errors.Is(err, state.ErrBelow) {
		t.Errorf("yesterday's disk, held to the receipt: %v", err)
	}
	found := state.NewHeads()
	at, err := list[1].Replay(found)
	if err != nil || at.Applied != index || at.Chain != chain {
		t.Fatalf("%+v, %v", at, err)
	}
	if err := found.Check(held.Size, held.Root); err != nil {
		t.Errorf("held to the receipt: %v", err)
	}
	writer, err := found.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	var snapshot bytes.Buffer
	if _, err := writer.WriteTo(&snapshot); err != nil {
		t.Fatal(err)
	}
	v := found.View()
	statement := api.RecoveryStatement{Label: api.RecoveryLabel, ClusterID: v.ClusterID, Epoch: 2, Generation: 2, Enclave: api.ID{2},
		Source: api.RecoverySource{Epoch: 1, ServerID: api.ID(old.id), Applied: at.Applied, Term: at.Term, Chain: at.Chain,
			StateSHA256: sha256.Sum256(snapshot.Bytes()), LogSize: v.Log.Size, LogRoot: v.Log.Root, NodePolicy: v.NodePolicy},
		Old: []api.OldServer{{Slot: "a", ServerID: api.ID(old.id), Fate: api.FateDestroyed}}}
	raw, err := statement.Marshal()
	if err != nil {
		t.Fatal(err)
	}

	fresh := state.New()
	next := w.stateStore(2, 2, fresh)
	next.commit(t, &state.Recover{Level: state.Level, Manifest: manifest, IdentityKey: identity, Statement: raw,
		Approvals: api.Approve(raw, operator), Size: uint64(snapshot.Len()), SHA256: statement.Source.StateSHA256})
	var last any
	for at := 0; at < snapshot.Len(); at += state.MaxPart {
		last = next.commit(t, &state.RecoverPart{Offset: uint64(at), Data: snapshot.Bytes()[at:min(at+state.MaxPart, snapshot.Len())]})
	}
	if last != (state.Recovered{ClusterID: v.ClusterID, Epoch: 2, Generation: 2}) {
		t.Fatalf("%+v", last)
	}
	next.commit(t, &state.CommitRoots{Epoch: 2, IDs: [][32]byte{{21}, {22}}})
	next.commit(t, admit(2, 2, 2))
	if got := next.commit(t, release(2, 3)).(state.Released); got.Size != held.Size+2 { // the epoch's first leaf lies between
		t.Errorf("%+v", got)
	}
	if set, ok := fresh.Collateral(key); !ok || len(set.Bundle) != 60<<10 {
		t.Error("the collateral did not come along")
	}
	w.stop(next)
	// And the new epoch can be recovered from in turn; the two are not mixed up.
	h, err := history.Inspect(file.Records(next.dir), w.key, raftstore.Chain{ClusterID: clusterID, Epoch: 2, Server: next.id})
	if err != nil {
		t.Fatal(err)
	}
	again := state.NewHeads()
	if _, err := h.Replay(again); err != nil || again.View().Epoch != 2 || again.View().Log != fresh.View().Log {
		t.Errorf("%v", err)
	}
	if got := history.Compare([]*history.History{list[1], h}); got.Newest != 1 || got.Pairs[0].Relation != history.Unrelated {
		t.Errorf("%+v", got)
	}
}
