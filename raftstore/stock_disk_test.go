package raftstore

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"hash/crc64"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
)

// backOn sets the scene of the attacks on one follower's disk: a write is acknowledged by a and b while c is away;
// then b comes back on another disk, and a is away. It returns who leads b and c after that, and all three.
func backOn(t *testing.T, disk func(n *stockNet, b *stockNode) string) (lead *stockNode, all []*stockNode) {
	n, a, b, c := threeStock(t)
	synctest.Wait()
	before := disk(n, b)
	n.rooms([]*stockNode{a, b}, []*stockNode{c})
	n.write(a, "acknowledged")
	b.stop()
	b = n.start(b.addr, before, stockOptions{})
	n.rooms([]*stockNode{a}, []*stockNode{b, c})
	lead = n.leader(b, c)
	n.write(lead, "another")
	n.rooms([]*stockNode{a, b, c})
	n.everywhere("another", b, c)
	eventually(t, "the old leader follows", func() bool { return slices.Contains(a.logged(), "another") })
	return lead, []*stockNode{a, b, c}
}

// lost fails the test unless an acknowledged entry is in no log any more.
func lost(t *testing.T, entry string, nodes ...*stockNode) {
	t.Helper()
	for _, s := range nodes {
		if slices.Contains(s.logged(), entry) {
			t.Fatalf("the attack does not work any more: %s still holds %q", s.addr, entry)
		}
	}
}

func TestStockOldDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := backOn(t, (*stockNet).copyDisk)
		lost(t, "acknowledged", all...)
		outcome(t, "an acknowledged write is in no log any more")
	})
}

func TestStockWipedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		_, all := backOn(t, func(n *stockNet, _ *stockNode) string { return n.t.TempDir() })
		lost(t, "acknowledged", all...)
		outcome(t, "the empty server votes for whoever asks; an acknowledged write is in no log any more")
	})
}

// reboot starts the machine of a server again, with an archive that holds whatever the host likes. It is a boot, so it
// has a key of its own; the host and port are the same.
func (n *testNet) reboot(t *testing.T, of *testNode, disk [][]byte) *testNode {
	t.Helper()
	id := ServerID(sha256.Sum256(append([]byte("the next boot of "), of.id[:]...)))
	archive := &memArchive{records: disk}
	node := n.open(t, id, of.addr, of.key, func(c *Config) { c.Archive = archive })
	node.archive = archive
	return node
}

// nobodyLeads fails the test if anybody can commit within a minute.
func nobodyLeads(t *testing.T, nodes ...*testNode) {
	t.Helper()
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		for _, s := range nodes {
			if s.IsLeader() || s.SafeRead(t.Context()) == nil {
				t.Fatalf("%s leads", s.addr)
			}
			if _, _, err := s.Propose(t.Context(), []byte("another")); err == nil {
				t.Fatalf("%s acknowledged a write", s.addr)
			}
		}
	}
}

// rebooted is backOn for this package: b comes back as another server on whatever disk the host has for it.
func rebooted(t *testing.T, disk func(b *testNode) [][]byte) {
	t.Helper()
	net := newTestNet()
	nodes := net.cluster(t, "a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	propose(t, a, "old")
	eventually(t, "all have it", func() bool { return len(b.machine.list()) == 1 && len(c.machine.list()) == 1 })
	before := disk(b)
	net.cut(c.id)
	propose(t, a, "acknowledged")
	b.Shutdown()
	next := net.reboot(t, b, before)
	net.cut(a.id)
	net.heal(c.id)
	nobodyLeads(t, next, c)
	if next.Term() != 0 || next.CommitIndex() != 0 || len(next.machine.list()) != 0 {
		t.Fatalf("the next boot remembers: term %d, commit index %d, %q", next.Term(), next.CommitIndex(), next.machine.list())
	}
	net.heal(a.id)
	propose(t, leaderOf(t, a, c), "another")
	for _, s := range []*testNode{a, c} {
		eventually(t, "everything is everywhere", func() bool {
			return slices.Equal(s.machine.list(), []string{"old", "acknowledged", "another"})
		})
	}
}

func TestOursOldDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rebooted(t, func(b *testNode) [][]byte { return b.archive.copy() })
		outcome(t, "the next boot is another server without a past or a vote; the write is there when a majority is")
	})
}

func TestOursWipedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rebooted(t, func(*testNode) [][]byte { return nil })
		outcome(t, "the empty server is nobody's voter: who leads asks for votes by key, not by address")
	})
}

// The attack: a copy of a follower's disk is started beside it, in another part of the network.
func TestStockClone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, a, b, c := threeStock(t)
		synctest.Wait()
		dir := n.copyDisk(b)
		n.rooms([]*stockNode{a, b}, []*stockNode{c})
		clone := n.start(b.addr, dir, stockOptions{})
		n.rooms([]*stockNode{a, b}, []*stockNode{c, clone})
		second := n.leader(c, clone)
		n.write(second, "right")
		n.write(a, "left")
		n.write(second, "right again")
		if a.State() != raft.Leader || second.State() != raft.Leader || slices.Contains(a.machine.list(), "right") || slices.Contains(second.machine.list(), "left") {
			t.Fatal("the attack does not work any more: the cluster did not fork")
		}
		outcome(t, "two leaders at once, each with a majority, acknowledge different writes")
	})
}

func TestOursClone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		propose(t, a, "old")
		eventually(t, "all have it", func() bool { return len(b.machine.list()) == 1 && len(c.machine.list()) == 1 })
		clone := net.reboot(t, b, b.archive.copy())
		net.split(a.id, b.id)
		propose(t, a, "left")
		nobodyLeads(t, clone, c)
		propose(t, a, "left again")
		net.dropping(nil)
		eventually(t, "one history", func() bool { return slices.Equal(c.machine.list(), a.machine.list()) })
		if want := []string{"old", "left", "left again"}; !slices.Equal(a.machine.list(), want) || len(clone.machine.list()) != 0 {
			t.Fatalf("%q, the clone has %q", a.machine.list(), clone.machine.list())
		}
		outcome(t, "a copy of the disk is a server without a vote; one history")
	})
}

// restarted runs one server on a disk that the host has worked on while it was off, and returns what it then takes
// for the acknowledged writes "one", "two" and "three".
func restarted(t *testing.T, opt stockOptions, work func(dir string, n *stockNet)) []string {
	t.Helper()
	n := newStockNet(t)
	s := n.cluster(map[raft.ServerAddress]stockOptions{"a:1": opt}, "a:1")[0]
	for _, e := range []string{"one", "two", "three"} {
		n.write(s, e)
	}
	dir := s.dir
	if opt.trailing != 0 {
		if err := s.Raft.Snapshot().Error(); err != nil {
			t.Fatal(err)
		}
	}
	s.stop()
	work(dir, n)
	again := n.start("a:1", dir, stockOptions{trailing: opt.trailing})
	n.leader(again)
	n.write(again, "served")
	list := again.machine.list()
	return list[:len(list)-1]
}

// edited performs an attack on the log of a stopped server: what it then takes for acknowledged is want.
func edited(t *testing.T, want []string, words string, work func(t *testing.T, n *stockNet, log *raftboltdb.BoltStore)) {
	synctest.Test(t, func(t *testing.T) {
		got := restarted(t, stockOptions{}, func(dir string, n *stockNet) {
			store, err := raftboltdb.NewBoltStore(filepath.Join(dir, "raft.db"))
			if err != nil {
				t.Fatal(err)
			}
			defer store.Close()
			work(t, n, store)
		})
		if !slices.Equal(got, want) {
			t.Fatalf("the attack does not work any more: %q", got)
		}
		outcome(t, words)
	})
}

func entryAt(t *testing.T, store *raftboltdb.BoltStore, data string) raft.Log {
	t.Helper()
	last, _ := store.LastIndex()
	for i := uint64(1); i <= last; i++ {
		var l raft.Log
		if err := store.GetLog(i, &l); err == nil && string(l.Data) == data {
			return l
		}
	}
	t.Fatalf("no entry %q", data)
	return raft.Log{}
}

func TestStockTruncatedDisk(t *testing.T) {
	edited(t, []string{"one", "two"}, "accepted: served on without the last write", func(t *testing.T, _ *stockNet, log *raftboltdb.BoltStore) {
		l := entryAt(t, log, "three")
		if err := log.DeleteRange(l.Index, l.Index); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStockReorderedDisk(t *testing.T) {
	edited(t, []string{"two", "one", "three"}, "accepted: applied in the order of the host", func(t *testing.T, _ *stockNet, log *raftboltdb.BoltStore) {
		one, two := entryAt(t, log, "one"), entryAt(t, log, "two")
		one.Data, two.Data = two.Data, one.Data
		if err := log.StoreLogs([]*raft.Log{&one, &two}); err != nil {
			t.Fatal(err)
		}
	})
}

func TestStockMixedDisk(t *testing.T) {
	want := []string{"one", "of another cluster", "three"}
	edited(t, want, "accepted: an entry of another cluster is applied", func(t *testing.T, n *stockNet, log *raftboltdb.BoltStore) {
		other := n.cluster(nil, "x:1")[0]
		n.write(other, "of another cluster")
		foreign, two := other.indexOf("of another cluster"), entryAt(t, log, "two")
		if two.Term != foreign.Term {
			t.Fatalf("terms %d and %d", two.Term, foreign.Term)
		}
		foreign.Index = two.Index
		if err := log.StoreLog(&foreign); err != nil {
			t.Fatal(err)
		}
	})
}

// The attack: one server's file in the place of another's. Three voters so that both are of one cluster; b was never
// asked for a vote in the last term, and has now given one.
func TestStockSwappedDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "b:1", "c:1")
		a := n.leader(nodes...)
		rest := others(nodes, a)
		b, c := rest[0], rest[1]
		n.rooms([]*stockNode{a, c}, []*stockNode{b})
		n.write(a, "only on a and c")
		synctest.Wait()
		dir := n.copyDisk(a)
		b.stop()
		b = n.start(b.addr, dir, stockOptions{})
		vote, err := b.store.Get([]byte("LastVoteCand"))
		if err != nil || string(vote) != string(a.addr) || !slices.Contains(b.logged(), "only on a and c") {
			t.Fatalf("the attack does not work any more: vote %q, %v, log %q", vote, err, b.logged())
		}
		n.rooms([]*stockNode{a}, []*stockNode{b, c})
		n.write(n.leader(b, c), "served")
		outcome(t, "accepted: a server takes another's log and vote for its own")
	})
}

func TestStockEditedSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		got := restarted(t, stockOptions{trailing: 1}, func(dir string, _ *stockNet) {
			states, err := filepath.Glob(filepath.Join(dir, "snapshots", "*", "state.bin"))
			if err != nil || len(states) != 1 {
				t.Fatalf("%q, %v", states, err)
			}
			state, err := os.ReadFile(states[0])
			if err != nil {
				t.Fatal(err)
			}
			forged := slices.Clone(state)
			copy(forged[4:], "won")
			crc := crc64.New(crc64.MakeTable(crc64.ECMA))
			crc.Write(forged)
			path := filepath.Join(filepath.Dir(states[0]), "meta.json")
			var meta map[string]any
			if raw, err := os.ReadFile(path); err != nil || json.Unmarshal(raw, &meta) != nil {
				t.Fatal(err)
			}
			meta["CRC"] = crc.Sum(nil)
			raw, err := json.Marshal(meta)
			if err := errors.Join(err, os.WriteFile(path, raw, 0o600), os.WriteFile(states[0], forged, 0o600)); err != nil {
				t.Fatal(err)
			}
		})
		if !slices.Equal(got, []string{"won", "two", "three"}) {
			t.Fatalf("the attack does not work any more: %q", got)
		}
		outcome(t, "accepted: the checksum is recomputed with the edit")
	})
}

// archived is what three proposals leave in an archive, and what opens it.
func archived(t *testing.T) (n *testNode, other *testNode, records [][]byte) {
	t.Helper()
	nodes := newTestNet().cluster(t, "a", "b", "c")
	for _, e := range []string{"one", "two", "three"} {
		propose(t, nodes[0], e)
	}
	eventually(t, "all have them", func() bool { return len(nodes[1].machine.list()) == 3 && len(nodes[2].machine.list()) == 3 })
	return nodes[0], nodes[1], nodes[0].archive.copy()
}

// opened returns the commands in records as a recovery reads them, and where and why it stopped.
func opened(t *testing.T, n *testNode, epoch uint64, records [][]byte) (list []string, head uint64, err error) {
	t.Helper()
	o, err := NewOpener(n.key, Chain{ClusterID: [32]byte{1}, Epoch: epoch, Server: n.id})
	if err != nil {
		t.Fatal(err)
	}
	for _, sealed := range records {
		r, err := o.Open(sealed)
		if err != nil {
			head, _ = o.Head()
			return list, head, err
		}
		if r.Kind == RecordLog && raft.LogType(r.Type) == raft.LogCommand {
			list = append(list, string(r.Data))
		}
	}
	head, _ = o.Head()
	return list, head, nil
}

func TestOursSwappedArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, other, _ := archived(t)
		if list, head, err := opened(t, n, 1, other.archive.copy()); !errors.Is(err, ErrRecord) || head != 0 || len(list) != 0 {
			t.Fatalf("another's archive opened up to %d: %q, %v", head, list, err)
		}
		outcome(t, "no running server reads one; recovery refuses the first record, whose seal names its server")
	})
}

func TestOursReorderedArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _, records := archived(t)
		k := len(records) - 3
		records[k], records[k+1] = records[k+1], records[k]
		if _, head, err := opened(t, n, 1, records); !errors.Is(err, ErrRecord) || head != uint64(k) {
			t.Fatalf("opened up to %d of %d: %v", head, len(records), err)
		}
		outcome(t, "recovery refuses the first record that is not at its place in the chain")
	})
}

func TestOursMixedArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, other, records := archived(t)
		foreign := other.archive.copy()
		k := min(len(records), len(foreign)) - 2
		records[k] = foreign[k]
		if _, head, err := opened(t, n, 1, records); !errors.Is(err, ErrRecord) || head != uint64(k) {
			t.Fatalf("opened up to %d of %d: %v", head, len(records), err)
		}
		outcome(t, "recovery refuses the foreign record")
	})
}

func TestOursTruncatedArchive(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _, records := archived(t)
		whole, full, err := opened(t, n, 1, records)
		if err != nil || len(whole) != 3 {
			t.Fatalf("%q, %v", whole, err)
		}
		list, head, err := opened(t, n, 1, records[:len(records)-1])
		if err != nil || head != full-1 {
			t.Fatalf("the shorter archive: head %d of %d, %v", head, full, err)
		}
		if slices.Equal(list, whole) {
			t.Fatal("nothing was cut off")
		}
		outcome(t, "no running server reads one; recovery shows how far it goes, and refuses what is behind a receipt or a checkpoint")
	})
}

func TestOursEditedSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, _, _ := archived(t)
		if err := n.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		k := slices.IndexFunc(openAll(t, n), func(r Record) bool { return r.Kind == RecordChunk })
		if k < 0 {
			t.Fatal("no snapshot in the archive")
		}
		records := n.archive.copy()
		records[k] = slices.Clone(records[k])
		records[k][len(records[k])/2] ^= 1
		if _, head, err := opened(t, n, 1, records); !errors.Is(err, ErrRecord) || head != uint64(k) {
			t.Fatalf("opened up to %d of %d: %v", head, len(records), err)
		}
		outcome(t, "snapshots are sealed records too: recovery refuses the changed one")
	})
}
