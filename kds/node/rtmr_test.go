package node

import (
	"encoding/hex"
	"slices"
	"testing"

	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

// A cluster of TDs goes from one build of the node to the next, and from a level at which only firmware is recorded: in the end
// the cluster says of every member which build it runs.
func TestUpdatedTDsShowTheirBuilds(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	old := nodeImage
	old.Kind, old.Signer, old.ProdID, old.SVN = enclave.TDX, "", 0, 0
	updated := old
	updated.Version = "2"
	s.policy = []string{old.Constraint(), updated.Constraint()}
	s.tune = func(n *Node) { n.level = state.LevelRTMRs - 1 }
	for i, slot := range []string{"a", "b", "c"} {
		cfg := s.config(slot, s.launch("machine-"+slot, old))
		if i == 0 {
			s.genesis(&cfg)
		}
		s.awaitReady(s.run(cfg))
	}
	members := func() []api.Member {
		c, err := s.client(s.endpoints()...).Cluster(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c.Members
	}
	for _, m := range members() {
		if mrtd := old.MRTD(); m.Measurement != hex.EncodeToString(mrtd[:]) || len(m.RTMR) != 0 {
			t.Errorf("below the level: %+v", m)
		}
	}
	s.tune = nil
	restart := func() {
		for _, n := range slices.Clone(s.nodes) {
			n.stop()
			<-n.done
			s.restart(n, updated)
		}
	}
	restart()
	poll(t, "the level has risen", func() bool { return s.leader().machine.View().Level == state.Level })
	restart()
	for _, m := range members() {
		mrtd := updated.MRTD()
		ok := m.Measurement == hex.EncodeToString(mrtd[:]) && len(m.RTMR) == 4
		for i := range m.RTMR {
			r := updated.RTMR(i)
			ok = ok && m.RTMR[i] == hex.EncodeToString(r[:])
		}
		if !ok {
			t.Errorf("of build 2: %+v", m)
		}
	}
}
