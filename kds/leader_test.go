package kds

import (
	"slices"
	"testing"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// A leader that was cut off takes itself for one as long as its host holds its clock back. It says so to nobody: operators
// delete archives by the leader's word. Who proves that it leads answers from all that was committed before it was asked.
func TestOnlyProvedLeadersSayThatTheyLead(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.release(w.evidence(w.platform("one", ""), app()), request()) // replicates the collateral
	admit := func(slot string, id byte) {
		t.Helper()
		e := &state.Admit{Epoch: 1, NodePolicy: 1, CollateralKey: platformKey, CollateralVersion: 1, Slot: slot, Incarnation: 1, ServerID: [32]byte{id}, PlatformID: [32]byte{id},
			RaftAddr: "a:1", APIAddr: "a:2", Level: state.Level, TEE: "sgx", Measurement: make([]byte, 32), TCBStatus: "UpToDate"}
		must[state.Admitted](t)(propose[state.Admitted](t.Context(), w.replica, e))
	}
	admit("a", 1)
	leads := func() (yes bool, members int) {
		t.Helper()
		c := must[api.Cluster](t)(w.service.Cluster(t.Context()))
		return slices.ContainsFunc(c.Members, func(m api.Member) bool { return m.Leader || m.Lag != nil }), len(c.Members)
	}
	w.service.Peers = func() Peers {
		return Peers{Leader: api.ID{1}, Voters: []api.ID{{1}}, Progress: map[api.ID]uint64{}}
	}
	w.replica.onRead = func() { admit("b", 2) }
	if yes, members := leads(); !yes || members != 2 {
		t.Errorf("a leader that has proved it: leads %t, %d members", yes, members)
	}
	w.replica.onRead, w.replica.readErr = nil, ErrNoQuorum
	if yes, members := leads(); yes || members != 2 {
		t.Errorf("a leader that reaches nobody: leads %t, %d members", yes, members)
	}
	w.replica.onRead = func() { t.Error("a follower, whose word on this counts for nothing, asks for a quorum") }
	w.service.Peers = func() Peers { return Peers{Leader: api.ID{1}, Voters: []api.ID{{1}}} }
	if yes, _ := leads(); !yes {
		t.Error("a follower does not name the leader that it knows")
	}
}
