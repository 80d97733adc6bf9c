package raftstore

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// The vectors were computed by another program from the formula in the docs.
func TestExtendChainVectors(t *testing.T) {
	var h [32]byte
	for _, v := range []struct {
		index, term uint64
		data, want  string
	}{
		{2, 1, "first", "536f09605bdc2589fbdab88fb47bf220ac7f42f7daafe32511d3df83eaff7c1f"},
		{5, 3, "second", "123ff128c1393d52fbae031fb5026558432ac002dec668cb93bf0e5e651f6bd9"},
	} {
		h = ExtendChain(h, v.index, v.term, []byte(v.data))
		if got := hex.EncodeToString(h[:]); got != v.want {
			t.Errorf("index %d: %s, want %s", v.index, got, v.want)
		}
	}
	same := ExtendChain([32]byte{}, 2, 1, []byte("x"))
	for name, other := range map[string][32]byte{
		"index": ExtendChain([32]byte{}, 3, 1, []byte("x")), "term": ExtendChain([32]byte{}, 2, 2, []byte("x")),
		"data": ExtendChain([32]byte{}, 2, 1, []byte("y")), "past": ExtendChain([32]byte{1}, 2, 1, []byte("x")),
	} {
		if other == same {
			t.Errorf("%s is not part of the hash", name)
		}
	}
}

func TestSnapshotHeader(t *testing.T) {
	head := snapshotHeader(77, [32]byte{1, 2, 3})
	if len(head) != SnapshotHeaderSize {
		t.Fatalf("%d bytes", len(head))
	}
	applied, chain, err := ParseSnapshotHeader(append(head, "state"...))
	if err != nil || applied != 77 || chain != [32]byte{1, 2, 3} {
		t.Fatalf("%d %x %v", applied, chain, err)
	}
	old := bytes.Clone(head)
	old[7] = '1'
	for name, b := range map[string][]byte{"nil": nil, "short": head[:len(head)-1], "an older format": old} {
		if _, _, err := ParseSnapshotHeader(b); !errors.Is(err, ErrPeer) {
			t.Errorf("%s: %v", name, err)
		}
		f := newFSM(&listMachine{}, newMembers(nil), nil)
		if err := f.Restore(io.NopCloser(bytes.NewReader(b))); err == nil {
			t.Errorf("%s: restored", name)
		}
	}
}

// chains collects what servers say at the same index.
type chains struct {
	mu   sync.Mutex
	at   map[uint64][32]byte
	seen map[uint64]map[ServerID]bool
}

func (c *chains) look(t *testing.T, n *testNode) {
	t.Helper()
	index, hash := n.Chain()
	c.mu.Lock()
	defer c.mu.Unlock()
	if old, ok := c.at[index]; ok && old != hash {
		t.Errorf("two running hashes at index %d", index)
	}
	c.at[index] = hash
	if c.seen[index] == nil {
		c.seen[index] = map[ServerID]bool{}
	}
	c.seen[index][n.id] = true
}

// shared is at how many indexes more than one server was looked at.
func (c *chains) shared() (n int) {
	for _, who := range c.seen {
		if len(who) > 1 {
			n++
		}
	}
	return n
}

// Equal (epoch, index) applied: equal hash. Servers are cut off, rebooted and
// brought back by snapshots, leaders change, and everybody is asked all the time.
func TestEqualIndexMeansEqualChain(t *testing.T) {
	t.Parallel()
	shared := 0
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chaos{t: t, net: newTestNet(), rand: rand.New(rand.NewPCG(seed, 7))}
				all, stop := &chains{at: map[uint64][32]byte{}, seen: map[uint64]map[ServerID]bool{}}, make(chan struct{})
				var watch sync.WaitGroup
				watch.Go(func() {
					for {
						for _, n := range c.net.all() {
							all.look(t, n)
						}
						select {
						case <-stop:
							return
						case <-time.After(time.Millisecond):
						}
					}
				})
				c.run(20)
				close(stop)
				watch.Wait()
				for _, n := range c.live() {
					all.look(t, n)
				}
				if got := all.shared(); got == 0 {
					t.Error("no two servers were seen at one index: the test has not tested")
				} else {
					shared += got
				}
			})
		})
	}
	t.Logf("%d indexes at which several servers were seen", shared)
}

// A member that got a snapshot instead of the entries goes on from the hash in
// its header; what it says is what the log gives.
func TestChainGoesOnBehindASnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a := nodes[0]
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		for _, e := range entries("before", 20) {
			propose(t, a, e)
		}
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		d := net.join(t, a, "d")
		if kinds := recordKinds(t, d); kinds[RecordSnapshot] == 0 {
			t.Fatalf("the new member got no snapshot: %v", kinds)
		}
		if err := a.TransferLeadership(t.Context()); err != nil { // a later term behind it
			t.Fatal(err)
		}
		all := append(nodes, d)
		propose(t, leaderOf(t, all...), "behind")
		index, want := leaderOf(t, all...).Chain()
		for _, n := range all {
			eventually(t, "all have applied it", func() bool { return n.AppliedIndex() == index })
			if _, got := n.Chain(); got != want {
				t.Errorf("%s has another hash", n.addr)
			}
		}
		log := map[uint64]Record{} // from a's archive; the test's disk keeps what was dropped
		for _, r := range openAll(t, a) {
			if r.Kind == RecordLog {
				log[r.Index] = r
			}
		}
		var got [32]byte
		commands := 0
		for i := uint64(1); i <= index; i++ {
			if r, ok := log[i]; !ok {
				t.Fatalf("index %d is not in the archive", i)
			} else if raft.LogType(r.Type) == raft.LogCommand {
				got = ExtendChain(got, r.Index, r.Term, r.Data)
				commands++
			}
		}
		if got != want || commands != 21 {
			t.Errorf("%d commands of the log give another hash", commands)
		}
	})
}

// all is every server there ever was, the crashed ones too.
func (n *testNet) all() (list []*testNode) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, node := range n.nodes {
		list = append(list, node)
	}
	return list
}

func recordKinds(t *testing.T, n *testNode) map[RecordKind]int {
	t.Helper()
	kinds := map[RecordKind]int{}
	for _, r := range openAll(t, n) {
		kinds[r.Kind]++
	}
	return kinds
}
