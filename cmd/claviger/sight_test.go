package main

import (
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/cmd/internal/clusterfile"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// A member of epoch 2 has answered, and names the leader. Whoever answers at that address is of epoch 2 at least: a leader of
// the epoch before, kept alive behind a partition, would say which archives are superfluous.
func TestTheLeaderIsOfTheEpochThatWasSeen(t *testing.T) {
	t.Parallel()
	t0 := &target{file: &clusterfile.File{ClusterID: api.ID{1}}, root: attest.IntelRoot()}
	member, err := client.New(client.Config{ClusterID: t0.file.ClusterID, Endpoints: []string{"127.0.0.1:1"}, Root: t0.root, MinEpoch: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	leader, err := (&sight{target: t0, client: member}).ask(0, "127.0.0.1:2")
	if err != nil {
		t.Fatal(err)
	}
	defer leader.Close()
	if got := leader.Epoch(); got != 2 {
		t.Errorf("a leader of epoch %d would be believed", got)
	}
}
