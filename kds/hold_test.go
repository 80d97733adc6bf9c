package kds

import (
	"crypto/ed25519"
	"errors"
	"testing"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// recorded makes a world that remembers the entries it applied, from its
// genesis on.
func recorded(t *testing.T) (*world, *[][]byte) {
	w := newWorld(t)
	view := w.machine.View()
	genesis, err := state.Encode(&state.Genesis{Level: state.Level, Manifest: view.Manifest, IdentityKey: view.IdentityKey, Epoch: 1, Generation: 1})
	if err != nil {
		t.Fatal(err)
	}
	roots, err := state.Encode(&state.CommitRoots{Epoch: 1, IDs: w.secrets.GenerationIDs()})
	if err != nil {
		t.Fatal(err)
	}
	log := [][]byte{genesis, roots}
	w.replica.before = func(e state.Entry) error {
		raw, err := state.Encode(e)
		log = append(log, raw)
		return err
	}
	return w, &log
}

func replay(t *testing.T, log [][]byte) *state.Heads {
	t.Helper()
	h := state.NewHeads()
	for i, raw := range log {
		if err, bad := h.Apply(uint64(i+1), raw).(error); bad {
			t.Fatal(err)
		}
	}
	return h
}

// A client shows its receipt to the recovering enclave: a history that does
// not contain that very release is refused, and the client's word is not taken
// for more than that.
func TestReceiptsHoldARecovery(t *testing.T) {
	t.Parallel()
	w, log := recorded(t)
	identity := w.secrets.Identity().Public()
	ev := w.evidence(w.platform("one", ""), app())
	var receipts []api.Receipt
	for range 5 {
		receipts = append(receipts, w.release(ev, request()).Receipt)
	}
	whole := replay(t, *log)
	for i := range receipts {
		if record, err := HoldReceipt(whole, &receipts[i], identity, w.id); err != nil || record.Name != request().Name {
			t.Errorf("receipt %d: %v", i, err)
		}
	}
	// A disk of before the last two releases.
	old := replay(t, (*log)[:len(*log)-2])
	for i := range receipts {
		_, err := HoldReceipt(old, &receipts[i], identity, w.id)
		if held := i < 3; (err == nil) != held || !held && !errors.Is(err, state.ErrBelow) {
			t.Errorf("old disk, receipt %d: %v", i, err)
		}
	}
	// The history of a clone that went its own way behind the third release: as long, and another.
	fork := append((*log)[:len(*log)-2:len(*log)-2], (*log)[len(*log)-1], (*log)[len(*log)-2])
	forked := replay(t, fork)
	if _, err := HoldReceipt(forked, &receipts[3], identity, w.id); !errors.Is(err, state.ErrOtherLog) {
		t.Errorf("a fork: %v", err)
	}
	if _, err := HoldReceipt(forked, &receipts[2], identity, w.id); err != nil {
		t.Errorf("a fork, before it parts: %v", err)
	}
	for name, change := range map[string]func(*api.Receipt){
		"another size":    func(r *api.Receipt) { r.TreeSize++ },
		"another root":    func(r *api.Receipt) { r.RootHash[0] ^= 1 },
		"another epoch":   func(r *api.Receipt) { r.Epoch = 2 },
		"another cluster": func(r *api.Receipt) { r.ClusterID[0] ^= 1 },
		"another record":  func(r *api.Receipt) { r.Record = append([]byte(nil), receipts[0].Record...) },
	} {
		forged := receipts[4]
		change(&forged)
		_, err := HoldReceipt(whole, &forged, identity, w.id)
		if !errors.Is(err, api.ErrReceipt) {
			t.Errorf("%s: %v", name, err)
		}
	}
	other, err := GenerateSecrets()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := HoldReceipt(whole, &receipts[4], other.Identity().Public(), w.id); !errors.Is(err, api.ErrReceipt) {
		t.Errorf("signed by another identity: %v", err)
	}
}

// After a planned stop, an archive from before the stop is refused.
func TestFinalCheckpointHoldsARecovery(t *testing.T) {
	t.Parallel()
	w, log := recorded(t)
	identity := w.secrets.Identity()
	w.release(w.evidence(w.platform("one", ""), app()), request())
	raw, err := api.NewAdmin(w.id, 1, 1, &api.Stop{})
	if err != nil {
		t.Fatal(err)
	}
	stop, err := state.Encode(&state.Operate{Statement: raw, Approvals: api.Approve(raw, ed25519.NewKeyFromSeed(make([]byte, 32)))})
	if err != nil {
		t.Fatal(err)
	}
	before, after := replay(t, *log), replay(t, append(*log, stop))
	v := after.View()
	sign := func(change func(*api.FinalCheckpoint)) *api.SignedFinal {
		c := api.FinalCheckpoint{ClusterID: w.id, Epoch: 1, ServerID: api.ID{1}, Applied: v.Applied, Chain: api.ID{2}, StateSHA256: api.ID{3},
			LogSize: v.Log.Size, LogRoot: v.Log.Root}
		change(&c)
		f, err := api.SignFinal(identity, c)
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	good := sign(func(*api.FinalCheckpoint) {})
	if err := HoldFinal(after, good, identity.Public(), w.id); err != nil {
		t.Errorf("the stopped history: %v", err)
	}
	if err := HoldFinal(before, good, identity.Public(), w.id); !errors.Is(err, state.ErrBelow) {
		t.Errorf("the history before the stop: %v", err)
	}
	for name, c := range map[string]struct {
		f    *api.SignedFinal
		want error
	}{
		"a later epoch": {sign(func(c *api.FinalCheckpoint) { c.Epoch = 2 }), state.ErrBelow},
		"a longer log":  {sign(func(c *api.FinalCheckpoint) { c.LogSize++ }), state.ErrBelow},
		"another log":   {sign(func(c *api.FinalCheckpoint) { c.LogRoot[0] ^= 1 }), state.ErrOtherLog},
	} {
		if err := HoldFinal(after, c.f, identity.Public(), w.id); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
	good.Checkpoint.Applied++
	if err := HoldFinal(after, good, identity.Public(), w.id); !errors.Is(err, api.ErrSignature) {
		t.Errorf("forged: %v", err)
	}
}
