package raftstore

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// The attack: the host holds back what the leader sends to one voter, while that voter is to take leadership over twice,
// and lets the others elect another leader. What was held back then arrives. A transfer in the library waits for
// replication to the voter that is to lead; replication ends when it learns of the later term, and the waiting does
// not. For ever this server says that it is handing leadership over: it is elected again, sends heartbeats, and takes
// no entry, so the cluster is up and takes none.
func TestStockHeldBackTransfer(t *testing.T) {
	refused := false
	defer func() {
		// The goroutine that waits for ever is still there when the test has ended, and the bubble says so.
		if r := recover(); r != nil && !strings.Contains(fmt.Sprint(r), "blocked goroutines remain") {
			panic(r)
		}
		if !refused {
			t.Fatal("the attack did not stop the cluster from taking entries")
		}
		outcome(t, "a leader is elected that takes no entry, for as long as it lives")
	}()
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "b:1", "c:1")
		a, b, c := nodes[0], nodes[1], nodes[2]
		n.crown(a, nodes...)
		toB := func(m stockMessage) bool { return m.from == a.addr && m.to == b.addr }
		n.filter(func(m stockMessage) bool { return !toB(m) }) // a pipeline to b ends
		n.write(a, "b does not get this")
		time.Sleep(time.Second)
		gate := make(chan struct{})
		n.filter(func(m stockMessage) bool { return !toB(m) || n.wait(gate) })
		time.Sleep(time.Second)
		for range 2 {
			if a.LeadershipTransferToServer(b.id, b.addr).Error() == nil {
				t.Fatal("leadership went to a server that hears nothing")
			}
			time.Sleep(time.Second)
		}
		n.filter(func(m stockMessage) bool {
			return m.from != a.addr && m.to != a.addr || toB(m) && n.wait(gate)
		})
		n.leader(b, c)
		n.filter(nil)
		close(gate)
		eventually(t, "a leads again", func() bool {
			for _, s := range nodes[1:] {
				if s.State() == raft.Leader {
					s.LeadershipTransferToServer(a.id, a.addr).Error()
				}
			}
			return a.State() == raft.Leader
		})
		for range 60 { // seconds
			if err := a.Apply([]byte("more"), time.Second).Error(); !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
				t.Fatalf("the leader answers %v", err)
			}
			time.Sleep(time.Second)
		}
		refused = a.State() == raft.Leader
	})
}
