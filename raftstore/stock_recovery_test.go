package raftstore

import (
	"errors"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// The attack: the host hides a live majority behind a partition until the operators believe that it is lost and recover
// from what is left.
func TestStockOldMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, c := threeStock(t)
		n.rooms([]*stockNode{a, b}, []*stockNode{c})
		c.stop()
		recoverCluster(t, n, c)
		c = n.start(c.addr, c.dir, stockOptions{})
		n.rooms([]*stockNode{a, b}, []*stockNode{c})
		n.leader(c)
		n.write(c, "after the recovery")
		n.write(a, "behind the partition")
		n.write(c, "more")
		if a.State() != raft.Leader || slices.Contains(c.machine.list(), "behind the partition") || slices.Contains(a.machine.list(), "more") {
			t.Fatal("the attack does not work any more: the cluster did not fork")
		}
		n.rooms([]*stockNode{a, b, c})
		outcome(t, "RecoverCluster: both go on as one cluster, two leaders acknowledge different writes, and no client can tell")
	})
}

// recoverCluster is the documented procedure on the disk of a stopped server.
func recoverCluster(t *testing.T, n *stockNet, s *stockNode) {
	t.Helper()
	store, err := raftboltdb.NewBoltStore(filepath.Join(s.dir, "raft.db"))
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	snaps, err := raft.NewFileSnapshotStoreWithLogger(s.dir, 2, hclog.NewNullLogger())
	if err != nil {
		t.Fatal(err)
	}
	conf := raft.DefaultConfig()
	conf.LocalID, conf.Logger = s.id, hclog.NewNullLogger()
	dead := n.listen("recovery:1", "")
	defer dead.stop()
	if err := raft.RecoverCluster(conf, &stockMachine{}, store, store, snaps, dead.trans,
		raft.Configuration{Servers: []raft.Server{{ID: s.id, Address: s.addr}}}); err != nil {
		t.Fatal(err)
	}
}

// A recovered cluster is another epoch. Here that means: nothing that was sealed in one opens in the other, in either
// direction, and there is no call that changes a configuration without its majority. That channels between epochs are
// refused, and clients too, is tested where those are made.
func TestOursOldMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _, records := archived(t)
		if list, _, err := opened(t, n, 1, records); err != nil || len(list) != 3 {
			t.Fatalf("its own epoch: %q, %v", list, err)
		}
		if list, head, err := opened(t, n, 2, records); !errors.Is(err, ErrRecord) || head != 0 || len(list) != 0 {
			t.Fatalf("another epoch opened it up to %d: %q, %v", head, list, err)
		}
		if err := n.Genesis(); !errors.Is(err, ErrNotFresh) {
			t.Fatalf("a live server began another history: %v", err)
		}
		outcome(t, "a recovery opens another epoch: its channels, seals and clients refuse the old one's")
	})
}
