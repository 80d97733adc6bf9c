package state

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/claviger/claviger/kds/api"
)

// The state keeps what proves its node policy, and a snapshot whose policy is
// not what the operators signed is refused.
func TestNodePolicyKeepsItsProof(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t), put(1), admit())
	if v := m.View(); len(v.NodePolicySigned) != 0 || v.LastStatement != [32]byte{} {
		t.Fatalf("before any statement: %x, %x", v.NodePolicySigned, v.LastStatement)
	}
	change := &api.NodePolicyChange{Parent: 1, Constraints: []string{"C:aa", "C:bb"}}
	raw := statement(t, m, change)
	operate(t, m, change)
	v := m.View()
	if v.LastStatement != sha256.Sum256(raw) {
		t.Error("the last statement is another one")
	}
	manifest, err := api.ParseManifest(v.Manifest)
	if err != nil {
		t.Fatal(err)
	}
	p, err := api.ParseNodePolicy(manifest, v.ClusterID, v.NodePolicySigned)
	if err != nil || p.Version != 2 || p.Epoch != v.Epoch || len(p.Constraints) != 2 {
		t.Fatalf("the proof says %+v, %v", p, err)
	}
	good := snap(t, m)
	restored := New()
	if err := restored.Restore(bytes.NewReader(good)); err != nil {
		t.Fatal(err)
	}
	if got := restored.View(); !bytes.Equal(got.NodePolicySigned, v.NodePolicySigned) || got.LastStatement != v.LastStatement {
		t.Error("the proof is lost in a snapshot")
	}
	for name, forge := range map[string]func(*data){
		"another list":         func(d *data) { d.policy = []string{"C:aa"} },
		"no proof":             func(d *data) { d.policySigned = nil },
		"another version":      func(d *data) { d.nodePolicy, d.sequence = 3, 3 },
		"an older epoch":       func(d *data) { d.epoch-- },
		"no last statement":    func(d *data) { d.lastStatement = [32]byte{} },
		"statement of nothing": func(d *data) { d.sequence, d.nodePolicy, d.policySigned, d.policy = 0, 1, nil, manifest.NodePolicy },
	} {
		forged := m.d
		forge(&forged)
		var b bytes.Buffer
		if _, err := (&frozen{forged}).WriteTo(&b); err != nil {
			t.Fatal(err)
		}
		if err := New().Restore(&b); !errors.Is(err, ErrSnapshot) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Entitled says what Apply says.
func TestEntitledIsWhatApplySays(t *testing.T) {
	t.Parallel()
	m := run(t, genesis(t), put(1), admit())
	first := admit()
	other := [32]byte{77}
	for name, c := range map[string]struct {
		slot             string
		server, platform [32]byte
		want             error
	}{
		"the slot's own platform": {first.Slot, [32]byte{50}, first.PlatformID, nil},
		"another platform":        {first.Slot, [32]byte{50}, other, ErrTicket},
		"a second slot":           {"zz", [32]byte{50}, first.PlatformID, ErrOneSlot},
	} {
		if err := m.Entitled(c.slot, c.server, c.platform); !errors.Is(err, c.want) {
			t.Errorf("%s: %v", name, err)
		}
		e := admit()
		e.Slot, e.ServerID, e.PlatformID, e.Incarnation = c.slot, c.server, c.platform, 1
		if c.slot == first.Slot {
			e.Incarnation = 2
		}
		copied := &Machine{level: m.level, d: m.d}
		err, _ := copied.Apply(copied.d.applied+1, encode(t, e)).(error)
		if !errors.Is(err, c.want) {
			t.Errorf("%s: Apply says %v", name, err)
		}
	}
	operate(t, m, &api.Ticket{Slot: first.Slot, ServerID: api.ID{50}, PlatformID: api.ID(other)})
	if err := m.Entitled(first.Slot, [32]byte{50}, other); err != nil {
		t.Errorf("with a ticket: %v", err)
	}
	if err := m.Entitled(first.Slot, [32]byte{51}, other); !errors.Is(err, ErrTicket) {
		t.Errorf("another boot with the same ticket: %v", err)
	}
}
