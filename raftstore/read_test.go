package raftstore

import (
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// refused says whether err is what a client may be told when nothing can be proved.
func refused(err error) bool {
	_, elsewhere := errors.AsType[*NotLeaderError](err)
	return elsewhere || errors.Is(err, ErrNoQuorum)
}

// reading starts a SafeRead and returns its result to come.
func reading(t *testing.T, n *testNode) <-chan error {
	done := make(chan error, 1)
	go func() { done <- n.SafeRead(t.Context()) }()
	return done
}

func TestReadsWriteNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		propose(t, nodes[0], "x")
		eventually(t, "all have it", func() bool {
			return nodes[1].AppliedIndex() == nodes[0].AppliedIndex() && nodes[2].AppliedIndex() == nodes[0].AppliedIndex()
		})
		var before [3]int
		for i, n := range nodes {
			before[i] = len(n.archive.copy())
		}
		for range 500 {
			if err := nodes[0].SafeRead(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		for i, n := range nodes {
			if got := len(n.archive.copy()); got != before[i] {
				t.Errorf("server %d wrote %d records for 500 reads", i, got-before[i])
			}
		}
	})
}

func TestReadsShareARound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		a := net.cluster(t, "a", "b", "c")[0]
		before := a.reads.count()
		release := net.hold(a.id)
		var readers sync.WaitGroup
		for range 200 {
			readers.Go(func() {
				if err := a.SafeRead(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		if got := a.reads.count() - before; got != 1 {
			t.Fatalf("%d rounds run at once", got)
		}
		release()
		readers.Wait()
		if got := a.reads.count() - before; got > 2 {
			t.Fatalf("200 reads took %d rounds: those of the first and those that came during it make 2", got)
		}
	})
}

// The attack: a leader alone with a nonvoter. The library counts the nonvoter's
// answer towards the majority of voters.
func TestNonvoterAcksDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, d := nodes[0], net.start(t, "d")
		_, prev := a.Members()
		index, err := a.AddNonvoter(t.Context(), d.id, d.addr, prev)
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the nonvoter follows", func() bool { return d.AppliedIndex() >= index })
		net.cut(nodes[1].id)
		net.cut(nodes[2].id)
		synctest.Wait()
		if err := a.raft.VerifyLeader().Error(); err != nil {
			t.Fatalf("the attack does not work on the library any more: %v", err)
		}
		if !a.IsLeader() {
			t.Fatal("the lease has ended before the read")
		}
		if err := a.SafeRead(t.Context()); !refused(err) {
			t.Fatalf("a leader with a nonvoter only: %v", err)
		}
	})
}

// The attack: the answers to heartbeats are held back until the others, whose
// clocks run faster, have elected another leader and acknowledged a write. Then
// the old leader is asked, and the old answers are let through.
func TestAcksOfOlderRequestsDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		fast := Timeouts{Heartbeat: 100 * time.Millisecond, Election: 100 * time.Millisecond, Lease: 100 * time.Millisecond}
		net.timeouts["a"] = Timeouts{Heartbeat: 3 * time.Second, Election: 3 * time.Second, Lease: 3 * time.Second, RPC: time.Minute}
		net.timeouts["b"], net.timeouts["c"] = fast, fast
		nodes := net.cluster(t, "a", "b", "c")
		a, rest := nodes[0], nodes[1:]
		propose(t, a, "old")
		eventually(t, "old is everywhere", func() bool {
			return len(rest[0].machine.list()) == 1 && len(rest[1].machine.list()) == 1
		})
		release := net.hold(a.id)
		a.raft.VerifyLeader() // sends heartbeats, which are answered
		synctest.Wait()
		net.split(a.id)
		propose(t, leaderOf(t, rest...), "new")
		if !a.IsLeader() || slices.Contains(a.machine.list(), "new") {
			t.Fatal("the old leader knows: the attack has not been set up")
		}
		stock, ours := a.raft.VerifyLeader(), reading(t, a)
		pending(t, ours, "no answer has arrived")
		release()
		if err := stock.Error(); err != nil {
			t.Fatalf("the attack does not work on the library any more: %v", err)
		}
		if a.IsLeader() && slices.Contains(a.machine.list(), "new") {
			t.Fatal("the old leader has caught up: nothing was shown")
		}
		pending(t, ours, "only old answers have arrived")
		if err := <-ours; !refused(err) {
			t.Fatalf("a deposed leader answered a read: %v", err)
		}
	})
}

// The attack: a leader that is taking itself out counts itself, and with one of
// the two that remain it has a majority by the library's count.
func TestLeaderBeingRemovedDoesNotCountItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a := nodes[0]
		net.cut(nodes[2].id)
		synctest.Wait()
		_, prev := a.Members()
		f := a.raft.RemoveServer(a.id.raftID(), prev, 0)
		eventually(t, "the change is appended", func() bool { return len(a.configuration().Servers) == 2 })
		if err := a.raft.VerifyLeader().Error(); err != nil {
			t.Fatalf("the attack does not work on the library any more: %v", err)
		}
		if err := a.SafeRead(t.Context()); !refused(err) {
			t.Fatalf("with one of two voters: %v", err)
		}
		if err := f.Error(); err == nil {
			t.Fatal("the removal was committed without a majority of the rest")
		}
	})
}

func TestRemovedLeaderRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		a := nodes[0]
		_, prev := a.Members()
		if _, err := a.Remove(t.Context(), a.id, prev); err != nil {
			t.Fatal(err)
		}
		if err := a.SafeRead(t.Context()); !refused(err) {
			t.Fatalf("a removed leader answered a read: %v", err)
		}
		propose(t, leaderOf(t, nodes[1:]...), "without it")
		if err := a.SafeRead(t.Context()); !refused(err) {
			t.Fatalf("a removed leader answered a read: %v", err)
		}
	})
}

// A new leader hears from a majority, and still must not answer before an entry
// of its own term is committed: only then does it know what the last leader had
// acknowledged.
func TestNewLeaderCommitsBeforeItReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		eventually(t, "both follow", func() bool { return b.AppliedIndex() == a.AppliedIndex() && c.AppliedIndex() == a.AppliedIndex() })
		// b stores the entry and hears nothing after it; c hears nothing at all.
		var got atomic.Bool
		net.dropping(func(from, to ServerID, request []byte) bool {
			var w wireAppend
			entries := len(request) > 5 && request[4] == byte(frameAppend) && unmarshal(request[5:], &w) == nil && len(w.Entries) > 0
			first := entries && to == b.id && got.CompareAndSwap(false, true)
			return from == a.id && !first
		})
		propose(t, a, "acknowledged")
		a.Shutdown()
		// Now only requests without entries pass: votes and heartbeats.
		net.dropping(func(from, to ServerID, request []byte) bool {
			var w wireAppend
			return len(request) > 5 && request[4] == byte(frameAppend) && (unmarshal(request[5:], &w) != nil || len(w.Entries) > 0)
		})
		eventually(t, "b leads", b.IsLeader)
		read := reading(t, b)
		time.Sleep(100 * time.Millisecond)
		if err := b.raft.VerifyLeader().Error(); err != nil || slices.Contains(b.machine.list(), "acknowledged") {
			t.Fatalf("nothing was shown: %v, %q", err, b.machine.list())
		}
		pending(t, read, "nothing of the new term is committed")
		net.dropping(nil)
		if err := <-read; err != nil || !slices.Contains(b.machine.list(), "acknowledged") {
			t.Fatalf("after the first commit of the term: %v, %q", err, b.machine.list())
		}
	})
}

// slowMachine applies when told to.
type slowMachine struct {
	listMachine
	gate chan struct{}
}

func (m *slowMachine) Apply(index uint64, entry []byte) any {
	<-m.gate
	return m.listMachine.Apply(index, entry)
}

func TestReadWaitsForApply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, m := newTestNet(), &slowMachine{gate: make(chan struct{})}
		net.machines["a"] = m
		a := net.cluster(t, "a")[0]
		go a.Propose(t.Context(), []byte("x"))
		synctest.Wait()
		read := reading(t, a)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := a.SafeRead(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("a read with a deadline while an entry is not applied: %v", err)
		}
		pending(t, read, "a committed entry is not applied")
		close(m.gate)
		if err := <-read; err != nil || !slices.Contains(m.list(), "x") {
			t.Fatalf("%v, %q", err, m.list())
		}
	})
}

// A loss of leadership ends all that wait for answers, however many they are, and not at their own limit.
func TestLossOfLeadershipEndsEveryRound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		a := net.cluster(t, "a", "b", "c")[0]
		term, _ := a.leading()
		net.split(a.id)
		begun, ended := time.Now(), make(chan error)
		for range 8 {
			go func() { ended <- a.heardFrom(term, time.After(time.Hour), a.configuration) }()
		}
		for i := range 8 {
			if err := <-ended; !refused(err) || a.stillLeads(term) {
				t.Errorf("round %d: %v, leads: %v", i, err, a.stillLeads(term))
			}
		}
		if took, lease := time.Since(begun), a.cfg.Timeouts.Lease+a.cfg.Timeouts.Heartbeat; took > lease {
			t.Errorf("the last round ended %v after the loss of all peers; leadership lasts %v at most", took, lease)
		}
	})
}

func TestShutdownEndsReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		a := net.cluster(t, "a", "b", "c")[0]
		defer net.hold(a.id)()
		read := reading(t, a)
		pending(t, read, "no answer has arrived")
		go a.Shutdown()
		if err := <-read; !errors.Is(err, ErrStopped) {
			t.Fatalf("got %v", err)
		}
	})
}

func TestAcks(t *testing.T) {
	id := func(b byte) raft.ServerID { return ServerID{b}.raftID() }
	conf := func(voters, nonvoters string) (c raft.Configuration) {
		for i := range len(voters) {
			c.Servers = append(c.Servers, raft.Server{ID: id(voters[i])})
		}
		for i := range len(nonvoters) {
			c.Servers = append(c.Servers, raft.Server{ID: id(nonvoters[i]), Suffrage: raft.Nonvoter})
		}
		return c
	}
	type ack struct {
		peer byte
		term uint64
		old  bool // sent before the round
	}
	for name, c := range map[string]struct {
		conf raft.Configuration
		acks []ack
		want bool
	}{
		"alone":                       {conf("a", ""), nil, true},
		"nobody answers":              {conf("abc", ""), nil, false},
		"one of three":                {conf("abc", ""), []ack{{'b', 7, false}}, true},
		"one of four":                 {conf("abcd", ""), []ack{{'b', 7, false}}, false},
		"two of five, one twice":      {conf("abcde", ""), []ack{{'b', 7, false}, {'b', 7, false}}, false},
		"two of five":                 {conf("abcde", ""), []ack{{'b', 7, false}, {'c', 7, false}}, true},
		"a nonvoter":                  {conf("abc", "d"), []ack{{'d', 7, false}}, false},
		"a stranger":                  {conf("abc", ""), []ack{{'x', 7, false}}, false},
		"sent before":                 {conf("abc", ""), []ack{{'b', 7, true}, {'c', 7, true}}, false},
		"of an earlier term":          {conf("abc", ""), []ack{{'b', 6, false}}, false},
		"of a later term":             {conf("abc", ""), []ack{{'b', 8, false}}, false},
		"we are no voter":             {conf("bc", "a"), []ack{{'b', 7, false}}, false},
		"we are out":                  {conf("bc", ""), []ack{{'b', 7, false}}, false},
		"we are out, all others here": {conf("bc", ""), []ack{{'b', 7, false}, {'c', 7, false}}, true},
		"no voters":                   {conf("", "ab"), []ack{{'b', 7, false}}, false},
	} {
		a := newAcks()
		before := a.sent()
		r := a.begin(7)
		for _, k := range c.acks {
			stamp := a.sent()
			if k.old {
				stamp = before
			}
			a.note(id(k.peer), k.term, stamp)
		}
		if got := r.majority(c.conf, id('a')); got != c.want {
			t.Errorf("%s: majority %v", name, got)
		}
		r.end()
		if next := a.begin(7); len(next.from) != 0 || len(a.rounds) != 1 {
			t.Errorf("%s: a round begins with the answers of the last", name)
		}
	}
}
