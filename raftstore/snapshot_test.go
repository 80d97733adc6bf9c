package raftstore

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// puppet is a leader played by hand: server "boss" speaks to n, which is in a
// configuration with it and with "other".
type puppet struct {
	t    *testing.T
	n    *testNode
	boss ServerID
	conf []byte
}

func newPuppet(t *testing.T) *puppet {
	p := &puppet{t: t, n: newTestNet().start(t, "victim"), boss: ServerID{7}}
	servers := []raft.Server{{ID: p.n.id.raftID(), Address: raftAddress(p.n.id, p.n.addr)}}
	for _, id := range []ServerID{p.boss, {8}} {
		servers = append(servers, raft.Server{ID: id.raftID(), Address: raftAddress(id, "boss:1")})
	}
	p.conf = raft.EncodeConfiguration(raft.Configuration{Servers: servers})
	return p
}

// ask sends a request as id through a channel of its own.
func (p *puppet) ask(id ServerID, ft frameType, v any, chunks ...[]byte) wireReply {
	p.t.Helper()
	c := dialAs(p.n, id)
	defer c.Close()
	return ask(p.t, c, ft, v, chunks...)
}

func (p *puppet) append(w wireAppend) wireReply {
	p.t.Helper()
	w.Header = header(p.boss, "boss:1")
	return p.ask(p.boss, frameAppend, &w)
}

// snapshot sends one up to index and term that holds the entries.
func (p *puppet) snapshot(leaderTerm, index, term uint64, entries ...string) wireReply {
	p.t.Helper()
	b := bytes.NewBuffer(snapshotHeader(index, [32]byte{byte(index)}))
	if _, err := listSnapshot(entries).WriteTo(b); err != nil {
		p.t.Fatal(err)
	}
	return p.ask(p.boss, frameSnapshot, &wireSnapshot{Header: header(p.boss, "boss:1"), Term: leaderTerm, LastIndex: index,
		LastTerm: term, Config: p.conf, ConfigIndex: 1, Size: int64(b.Len())}, b.Bytes())
}

func commands(from, term uint64, data ...string) []wireEntry {
	var out []wireEntry
	for i, d := range data {
		out = append(out, wireEntry{Index: from + uint64(i), Term: term, Data: []byte(d)})
	}
	return out
}

// The attack: a leader's snapshot is held back and, its sender having given up
// and sent it again, let through after entries behind it were acknowledged. The
// library would install it in the same term: machine and log would fall back
// behind what this server has promised to hold.
func TestLateSnapshotUndoesNothing(t *testing.T) {
	for _, committed := range []uint64{0, 8} {
		t.Run(fmt.Sprint("committed ", committed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPuppet(t)
				if rep := p.snapshot(3, 5, 2, "a", "b"); !rep.OK {
					t.Fatal("the first snapshot was refused")
				}
				if rep := p.append(wireAppend{Term: 3, PrevIndex: 5, PrevTerm: 2, Commit: committed, Entries: commands(6, 3, "c", "d", "e")}); !rep.OK {
					t.Fatal("the entries were refused")
				}
				synctest.Wait()
				for _, index := range []uint64{5, 4, 6} {
					if rep := p.snapshot(3, index, 2+index/6, "a", "b"); !rep.OK || rep.Term != 3 {
						t.Fatalf("the snapshot of %d: %+v; what it holds is here", index, rep)
					}
				}
				for i := uint64(6); i <= 8; i++ {
					if !p.n.logs.has(i, 3) {
						t.Fatalf("the acknowledged entry %d is gone", i)
					}
				}
				if rep := p.append(wireAppend{Term: 3, PrevIndex: 8, PrevTerm: 3, Commit: 9, Entries: commands(9, 3, "f")}); !rep.OK {
					t.Fatal("the log does not go on")
				}
				synctest.Wait()
				if got := p.n.machine.list(); !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f"}) {
					t.Fatalf("the machine has %q", got)
				}
				if rep := p.snapshot(2, 20, 2, "z"); rep.OK || rep.Term != 3 {
					t.Fatalf("a snapshot of an older term: %+v", rep)
				}
			})
		})
	}
}

// A snapshot takes the place of entries that were never committed. The library
// goes on believing in the last one of them and would refuse its leader for ever.
func TestSnapshotInThePlaceOfAnotherHistory(t *testing.T) {
	for _, last := range []uint64{4, 5, 6, 9} { // of the entries that were never committed; the snapshot ends at 5
		t.Run(fmt.Sprint("up to ", last), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := newPuppet(t)
				old := []wireEntry{{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: p.conf}}
				for i := uint64(2); i <= last; i++ {
					old = append(old, commands(i, 1, fmt.Sprint("lost ", i))...)
				}
				if rep := p.append(wireAppend{Term: 1, Commit: 1, Entries: old}); !rep.OK {
					t.Fatal("the old entries were refused")
				}
				if rep := p.snapshot(3, 5, 2, "a"); !rep.OK {
					t.Fatal("the snapshot was refused")
				}
				if rep := p.append(wireAppend{Term: 3, PrevIndex: 5, PrevTerm: 2, Commit: 5}); !rep.OK {
					t.Fatal("the leader is refused behind its own snapshot")
				}
				if p.append(wireAppend{Term: 3, PrevIndex: 7, PrevTerm: 2}).OK {
					t.Fatal("an entry that is not here was taken for matched")
				}
				if rep := p.append(wireAppend{Term: 3, PrevIndex: 5, PrevTerm: 2, Commit: 7, Entries: commands(6, 3, "b", "c")}); !rep.OK {
					t.Fatal("entries behind the snapshot were refused")
				}
				synctest.Wait()
				if got := p.n.machine.list(); !slices.Equal(got, []string{"a", "b", "c"}) || p.n.raft.LastIndex() != 7 {
					t.Fatalf("the machine has %q, the log ends at %d", got, p.n.raft.LastIndex())
				}
				r := recoverFrom(t, p.n, p.n.archive.kept())
				if r.snapshot != 5 || len(r.log) != 2 || r.log[6].Term != 3 || r.log[7].Term != 3 {
					t.Fatalf("a recovery finds snapshot %d and %+v", r.snapshot, r.log)
				}
			})
		})
	}
}

// A server that has compacted its log further than its leader must not refuse
// what goes on from an entry it has applied and let go.
func TestLeaderMayBeginBehindWhatIsCompacted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t)
		first := []wireEntry{{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: p.conf}}
		if rep := p.append(wireAppend{Term: 1, Commit: 6, Entries: append(first, commands(2, 1, "a", "b", "c", "d", "e")...)}); !rep.OK {
			t.Fatal("the entries were refused")
		}
		p.n.raft.ReloadConfig(reloadTrailing(p.n, 0))
		synctest.Wait()
		if err := p.n.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		if i, err := p.n.logs.FirstIndex(); i != 0 || err != nil {
			t.Fatalf("the log still begins at %d", i)
		}
		for _, w := range []wireAppend{
			{Term: 2, PrevIndex: 3, PrevTerm: 1},
			{Term: 2, PrevIndex: 3, PrevTerm: 1, Commit: 4, Entries: commands(4, 1, "c")},
			{Term: 2, PrevIndex: 4, PrevTerm: 1, Commit: 8, Entries: append(commands(5, 1, "d", "e"), commands(7, 2, "f", "g")...)},
			{Term: 2, PrevIndex: 2, PrevTerm: 1, Commit: 8, Entries: commands(3, 1, "b", "c", "d", "e")},
		} {
			if rep := p.append(w); !rep.OK {
				t.Fatalf("refused: %+v", w)
			}
		}
		synctest.Wait()
		if got := p.n.machine.list(); !slices.Equal(got, []string{"a", "b", "c", "d", "e", "f", "g"}) {
			t.Fatalf("the machine has %q", got)
		}
	})
}

// appliedPuppet is one whose server has applied the commands a to e, up to index 6.
func appliedPuppet(t *testing.T) *puppet {
	t.Helper()
	p := newPuppet(t)
	first := []wireEntry{{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: p.conf}}
	if rep := p.append(wireAppend{Term: 1, Commit: 6, Entries: append(first, commands(2, 1, "a", "b", "c", "d", "e")...)}); !rep.OK {
		t.Fatal("the entries were refused")
	}
	synctest.Wait()
	return p
}

// The attack: the host stops the thread that has just stored a snapshot of this
// server and is about to tell raft so, until a newer one of the leader has been
// installed. Raft would take the older one for its last.
func TestSnapshotOfALeaderWaitsUntilRaftKnowsOfOurs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := appliedPuppet(t)
		ours, err := p.n.fsm.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		sink, err := p.n.snaps.Create(1, 6, 1, p.n.configuration(), 1, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := ours.Persist(sink); err != nil {
			t.Fatal(err)
		}
		done := make(chan wireReply, 1)
		go func() { done <- p.snapshot(1, 20, 1, "a", "b", "c", "d", "e", "f") }()
		pending(t, done, "a snapshot of this server is being settled")
		if rep := p.append(wireAppend{Term: 1, PrevIndex: 6, PrevTerm: 1, Commit: 7, Entries: commands(7, 1, "f")}); !rep.OK {
			t.Error("entries wait with the snapshot")
		}
		ours.Release()
		if rep := <-done; !rep.OK || p.n.snaps.newest() != 20 || p.n.raft.Stats()["last_snapshot_index"] != "20" {
			t.Fatalf("%+v; the newest snapshot is of %d, and raft's of %s", rep, p.n.snaps.newest(), p.n.raft.Stats()["last_snapshot_index"])
		}
	})
}

// A follower whose log is empty behind a snapshot has nothing new to write into another one.
func TestIdleFollowerTakesNoSnapshots(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t)
		if rep := p.snapshot(1, 20, 1, "a", "b"); !rep.OK {
			t.Fatal("the snapshot was refused")
		}
		for range 600 {
			time.Sleep(100 * time.Millisecond)
			if rep := p.append(wireAppend{Term: 1}); !rep.OK {
				t.Fatal("a heartbeat was refused")
			}
		}
		count := 0
		for _, r := range openAll(t, p.n) {
			if r.Kind == RecordSnapshot {
				count++
			}
		}
		if count != 1 {
			t.Fatalf("%d snapshots were archived in a minute without an entry", count)
		}
	})
}

// The attack: the host ends a server between the snapshot that overruled its log and the record that says so. What is
// behind the snapshot in that log follows something else, be its term as high as it likes.
func TestArchiveHoldsNothingOverruled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t)
		old := append([]wireEntry{{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: p.conf}}, commands(2, 5, "l", "o", "s", "t", "too", "many")...)
		if rep := p.append(wireAppend{Term: 5, Entries: old}); !rep.OK {
			t.Fatal("the entries were refused")
		}
		if rep := p.snapshot(6, 5, 4, "a", "b"); !rep.OK { // its next entry is of term 6, and not in it
			t.Fatal("the snapshot was refused")
		}
		begun := false
		for _, r := range openAll(t, p.n) {
			begun = begun || r.Kind == RecordCheckpoint
			if begun && r.Kind == RecordLog {
				t.Errorf("entry %d of term %d is said to follow the snapshot", r.Index, r.Term)
			}
		}
		if !begun {
			t.Error("there is no checkpoint")
		}
	})
}

// The attack: a snapshot of a leader that has died meanwhile reaches a server
// that is a candidate by now. The library takes the dead one for its leader,
// goes on being a candidate, and refuses every other candidate.
func TestSnapshotOfADeadLeaderKeepsNobodyFromVoting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t)
		if rep := p.append(wireAppend{Term: 3, Entries: []wireEntry{{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: p.conf}}}); !rep.OK {
			t.Fatal("the configuration was refused")
		}
		eventually(t, "a candidate", func() bool { return p.n.raft.State() == raft.Candidate })
		if rep := p.snapshot(3, 5, 3, "a"); !rep.OK {
			t.Fatal("the snapshot was refused")
		}
		time.Sleep(5 * time.Second)
		other := ServerID{8}
		rep := p.ask(other, framePreVote, &wireVote{Header: header(other, "boss:1"), Term: 4, LastIndex: 9, LastTerm: 3})
		if !rep.OK {
			t.Fatal("the only other server that is up gets no pre-vote")
		}
		rep = p.ask(other, frameVote, &wireVote{Header: header(other, "boss:1"), Term: 4, LastIndex: 9, LastTerm: 3})
		if !rep.OK || rep.Term != 4 {
			t.Fatalf("the only other server that is up gets no vote: %+v", rep)
		}
	})
}

// One of three voters is down, and the leader is asked to take the older boot of
// a slot out, its own for example: the two that are left could never commit it.
func TestVotersChangeOnlyWithAMajorityOfThoseToCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		d := net.start(t, "d")
		_, prev := a.Members()
		index, err := a.AddNonvoter(t.Context(), d.id, d.addr, prev)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "d follows", func() bool { return d.AppliedIndex() >= index })
		net.cut(c.id)
		for name, n := range map[string]*testNode{"itself": a, "the one that answers": b} {
			if _, err := a.Remove(t.Context(), n.id, index); !errors.Is(err, ErrNoQuorum) || errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("a leader that removes %s: %v", name, err)
			}
		}
		propose(t, a, "still there")
		at, err := a.Remove(t.Context(), c.id, index)
		if err != nil {
			t.Fatalf("the one that is down: %v", err)
		}
		d.Shutdown()
		if _, err = a.AddVoter(t.Context(), d.id, d.addr, at); err != nil {
			t.Fatalf("two of three are a majority: %v", err)
		}
		_, at = a.Members()
		e := net.start(t, "e")
		if _, err = a.AddVoter(t.Context(), e.id, e.addr, at); !errors.Is(err, ErrNoQuorum) {
			t.Errorf("two of four are none: %v", err)
		}
		propose(t, a, "and still")
	})
}

// The same with entries: they reach a candidate that was told to campaign by the
// last leader, in the term that it campaigns in, and whose election fails.
func TestEntriesOfADeadLeaderKeepNobodyFromVoting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPuppet(t)
		if rep := p.append(wireAppend{Term: 3, Entries: []wireEntry{{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: p.conf}}}); !rep.OK {
			t.Fatal("the configuration was refused")
		}
		if rep := p.ask(p.boss, frameTimeoutNow, &wireVote{Header: header(p.boss, "boss:1")}); !rep.OK {
			t.Fatal("the transfer was refused")
		}
		synctest.Wait()
		other := ServerID{8} // has won the term meanwhile, is heard once, and dies
		c := wireAppend{Header: header(other, "boss:1"), Term: 4}
		if rep := p.ask(other, frameAppend, &c); rep.Term != 4 {
			t.Fatalf("%+v", rep)
		}
		time.Sleep(5 * time.Second)
		if rep := p.ask(p.boss, framePreVote, &wireVote{Header: header(p.boss, "boss:1"), Term: 5, LastIndex: 9, LastTerm: 3}); !rep.OK {
			t.Fatal("the only other server that is up gets no pre-vote")
		}
	})
}
