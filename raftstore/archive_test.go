package raftstore

import (
	"bytes"
	"errors"
	"reflect"
	"slices"
	"testing"
	"testing/synctest"

	"github.com/hashicorp/raft"

	"github.com/claviger/claviger/enclave/secret"
)

func testKey(t testing.TB) secret.Key {
	t.Helper()
	k, err := secret.Random(ArchiveKeySize)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func openAll(t *testing.T, n *testNode) []Record {
	t.Helper()
	o, err := NewOpener(n.key, Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: n.id})
	if err != nil {
		t.Fatal(err)
	}
	var out []Record
	for i, sealed := range n.archive.copy() {
		r, err := o.Open(sealed)
		if err != nil {
			t.Fatalf("record %d: %v", i, err)
		}
		out = append(out, r)
	}
	return out
}

func TestArchiveIsSealedChainedAndComplete(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		secretText := "plain-text-that-must-not-reach-the-disk"
		propose(t, nodes[0], secretText)
		for _, n := range nodes {
			eventually(t, "applied", func() bool { return slices.Contains(n.machine.list(), secretText) })
			raw := n.archive.copy()
			if all := bytes.Join(raw, nil); bytes.Contains(all, []byte(secretText)) || bytes.Contains(all, []byte(n.addr)) {
				t.Fatal("the archive holds plain text")
			}
			found := false
			for _, r := range openAll(t, n) {
				found = found || r.Kind == RecordLog && string(r.Data) == secretText
			}
			if !found {
				t.Fatal("an applied entry is not in the archive")
			}
		}
		n := nodes[0]
		raw := n.archive.copy()
		if len(raw) < 6 {
			t.Fatalf("only %d records", len(raw))
		}
		flipped := slices.Clone(raw[2])
		flipped[len(flipped)/2] ^= 1
		swapped := slices.Clone(raw)
		swapped[2], swapped[3] = swapped[3], swapped[2]
		chain := Chain{ClusterID: [32]byte{1}, Epoch: 1, Server: n.id}
		wrong := func(f func(*Chain)) Chain { c := chain; f(&c); return c }
		for name, c := range map[string]struct {
			chain   Chain
			key     secret.Key
			records [][]byte
		}{
			"flipped bit":      {chain, n.key, [][]byte{raw[0], raw[1], flipped}},
			"swapped":          {chain, n.key, swapped},
			"one missing":      {chain, n.key, slices.Delete(slices.Clone(raw), 1, 2)},
			"one twice":        {chain, n.key, [][]byte{raw[0], raw[0]}},
			"another server":   {wrong(func(c *Chain) { c.Server = nodes[1].id }), n.key, raw},
			"another cluster":  {wrong(func(c *Chain) { c.ClusterID[0]++ }), n.key, raw},
			"another epoch":    {wrong(func(c *Chain) { c.Epoch++ }), n.key, raw},
			"another key":      {chain, testKey(t), raw},
			"another's record": {chain, n.key, [][]byte{raw[0], nodes[1].archive.copy()[1]}},
			"empty record":     {chain, n.key, [][]byte{{}}},
		} {
			o, err := NewOpener(c.key, c.chain)
			if err != nil {
				t.Fatal(err)
			}
			var last error
			for _, r := range c.records {
				if _, last = o.Open(r); last != nil {
					break
				}
			}
			if !errors.Is(last, ErrRecord) {
				t.Errorf("%s: opened without an error (%v)", name, last)
			}
		}
	})
}

func TestAcknowledgedMeansSynced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().cluster(t, "a")[0]
		propose(t, n, "x")
		n.archive.mu.Lock()
		defer n.archive.mu.Unlock()
		if n.archive.synced != len(n.archive.records) {
			t.Fatalf("%d of %d records were synced when the entry was acknowledged", n.archive.synced, len(n.archive.records))
		}
	})
}

func TestArchiveFailureStopsTheNodeAndNotTheCluster(t *testing.T) {
	for name, which := range map[string]int{"leader": 0, "follower": 1} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				nodes := newTestNet().cluster(t, "a", "b", "c")
				propose(t, nodes[0], "before")
				victim := nodes[which]
				victim.archive.breakDisk()
				_, _, err := nodes[0].Propose(t.Context(), []byte("during"))
				if which == 0 && err == nil {
					t.Fatal("the leader acknowledged what it could not write")
				}
				if which != 0 && err != nil {
					t.Fatalf("the cluster stopped with one disk: %v", err)
				}
				<-victim.Done()
				ae, ok := errors.AsType[*ArchiveError](victim.Err())
				if !ok || !errors.Is(ae, errDisk) {
					t.Fatalf("the reason is %v", victim.Err())
				}
				if _, _, err := victim.Propose(t.Context(), []byte("x")); !errors.Is(err, ErrStopped) {
					t.Fatalf("the stopped store answered %v", err)
				}
				if !victim.archive.closed {
					t.Error("the archive was not closed")
				}
				rest := slices.DeleteFunc(slices.Clone(nodes), func(n *testNode) bool { return n == victim })
				next := leaderOf(t, rest...)
				propose(t, next, "after")
				if !slices.Contains(next.machine.list(), "before") {
					t.Error("an acknowledged entry is gone")
				}
			})
		})
	}
}

// A voter that cannot write its vote must not cast it.
func TestNoVoteLeavesABrokenDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		victim, cand := nodes[1], nodes[2]
		nodes[0].Shutdown()
		victim.archive.breakDisk()
		c := dialAs(victim, cand.id)
		defer c.Close()
		rt, payload, err := c.send(t, frameVote, mustMarshal(t, &wireVote{Header: header(cand.id, cand.addr),
			Term: victim.Term() + 1, LastIndex: 1 << 20, LastTerm: victim.Term(), Transfer: true}))
		if err == nil {
			t.Fatalf("a reply left the fence: frame %d %x", rt, payload)
		}
		<-victim.Done()
	})
}

// Two histories sealed under one key at the same positions do not mix.
func TestForkedChainsDoNotMix(t *testing.T) {
	key, chain := testKey(t), Chain{ClusterID: [32]byte{1}, Server: ServerID{1}}
	var forks [2][][]byte
	for i := range forks {
		s, err := newSealer(key, chain)
		if err != nil {
			t.Fatal(err)
		}
		for j := range 3 {
			forks[i] = append(forks[i], s.seal(mustMarshal(t, &Record{Kind: RecordTerm, Term: uint64(10*i + j)})))
		}
	}
	o, err := NewOpener(key, chain)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(forks[0][0]); err != nil {
		t.Fatal(err)
	}
	if _, err := o.Open(forks[1][1]); !errors.Is(err, ErrRecord) {
		t.Fatalf("a record of the other history opened: %v", err)
	}
	if r, err := o.Open(forks[0][1]); err != nil || r.Term != 1 {
		t.Fatalf("after the refusal the right one must still open: %+v, %v", r, err)
	}
}

// A snapshot finished late carries an older configuration, which must not
// expel those added meanwhile.
func TestOlderConfigurationExpelsNobody(t *testing.T) {
	var gone []ServerID
	m := newMembers(func(id ServerID) { gone = append(gone, id) })
	conf := func(ids ...byte) (c raft.Configuration) {
		for _, b := range ids {
			id := ServerID{b}
			c.Servers = append(c.Servers, raft.Server{ID: id.raftID(), Address: raftAddress(id, "a")})
		}
		return c
	}
	m.update(1, conf(1))
	m.update(5, conf(1, 2))
	m.update(3, conf(1))
	if len(gone) != 0 || m.removed(ServerID{2}) {
		t.Fatalf("an older configuration removed %v", gone)
	}
	m.update(6, conf(2))
	if !slices.Equal(gone, []ServerID{{1}}) || !m.removed(ServerID{1}) || m.removed(ServerID{3}) {
		t.Fatalf("gone: %v", gone)
	}
}

// Nothing is read from a disk between Open and Shutdown, because there is no way
// to: an Archive has no call that gives anything but an error, and a Config has
// no field that history could come in through.
func TestNothingComesFromADisk(t *testing.T) {
	archive := reflect.TypeFor[Archive]()
	for m := range archive.Methods() {
		if m.Type.NumOut() != 1 || m.Type.Out(0) != reflect.TypeFor[error]() {
			t.Errorf("Archive.%s gives %v", m.Name, m.Type)
		}
	}
	known := []string{"ID", "Address", "ClusterID", "Epoch", "Machine", "Dialer", "Archive", "ArchiveKey", "NoFsyncUnsafe",
		"Timeouts", "Compaction", "Logger", "Registerer"}
	for f := range reflect.TypeFor[Config]().Fields() {
		if !slices.Contains(known, f.Name) {
			t.Errorf("the field %s of Config is new: can history come in through it?", f.Name)
		}
	}
}
