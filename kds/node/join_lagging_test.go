package node

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/claviger/claviger/raftstore"
)

// The only member that a joiner knows is cut off and has not heard that the operators take the joiner's code in. A refusal for
// good would end the boot; it is told to ask again, and is admitted when the member is back.
func TestLaggingMemberDoesNotEndAJoiner(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	network := &fabric{cut: map[raftstore.ServerID]bool{}}
	s.tune = network.attach
	s.start("a", "b", "c")
	behind := s.others(s.leader())[0]
	network.partition(behind)
	var endpoints []string
	for _, n := range s.others(behind) {
		endpoints = append(endpoints, n.APIAddr())
	}
	s.operate(s.client(endpoints...), policyChange(1, nodeImage, newImage()))

	cfg := s.config("d", s.launch("machine-d", newImage()))
	cfg.Join = []string{behind.PeerAddr()}
	before := testutil.ToFloat64(behind.metrics.refused)
	joiner := s.run(cfg)
	poll(t, "the joiner is refused", func() bool { return testutil.ToFloat64(behind.metrics.refused) > before })
	network.heal()
	s.awaitReady(joiner)
}
