package node

import (
	"errors"
	"testing"

	"github.com/claviger/claviger/kds/state"
)

// The leader that raised the level died before it committed to the roots, and a boot asks the next one to join before that has
// looked: it is told to ask again. A refusal for good would end it, for what passes in a second.
func TestJoinerWaitsForTheRoots(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	a := s.start("a")[0]
	m := state.New()
	for i, e := range []state.Entry{
		&state.Genesis{Level: state.LevelRoots, Manifest: s.pins.Manifest, IdentityKey: s.pins.IdentityKey, Epoch: 1, Generation: 1},
		&state.Admit{Epoch: 1, NodePolicy: 1, CollateralKey: state.CollateralKey{TEE: "sgx", CA: "platform"}, CollateralVersion: 1, Slot: "b", Incarnation: 1, ServerID: a.boot.id,
			PlatformID: [32]byte{1}, RaftAddr: "b:1", APIAddr: "b:2", Level: state.Level, TEE: "sgx", Measurement: make([]byte, 32), TCBStatus: "UpToDate"},
	} {
		raw, err := state.Encode(e)
		if err != nil {
			t.Fatal(err)
		}
		err, _ = m.Apply(uint64(i+1), raw).(error)
		if (i == 0) != (err == nil) {
			t.Fatalf("%T: %v", e, err)
		}
		if i == 1 && (!errors.Is(err, state.ErrUncommitted) || !refusalOf(err).Retry) {
			t.Errorf("an admission before the roots are committed to: %v, told to ask again: %t", err, refusalOf(err).Retry)
		}
	}
}
