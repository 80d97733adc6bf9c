package raftstore

import (
	"testing"
	"testing/synctest"

	"github.com/prometheus/client_golang/prometheus"
)

// The numbers of a store that has failed stay, and another store in its process takes nobody's away.
func TestStoresOfOneRegistryKeepTheirNumbers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		r, net := prometheus.NewRegistry(), newTestNet()
		first := net.start(t, "first")
		second := net.start(t, "second")
		for _, n := range []*testNode{first, second} {
			n.metrics.registerer = r
			n.metrics.register()
		}
		shown := func() int {
			list, err := r.Gather()
			if err != nil {
				t.Error(err)
			}
			return len(list)
		}
		all := shown()
		second.Shutdown()
		if got := shown(); got != all || all == 0 {
			t.Errorf("%d numbers are left of %d", got, all)
		}
		first.Shutdown()
		if got := shown(); got != 0 {
			t.Errorf("%d numbers are left of none", got)
		}
	})
}
