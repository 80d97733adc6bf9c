package raftstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// submitted is the result of a Submit.
type submitted struct {
	index  uint64
	result any
	err    error
}

// submitting starts a Submit and returns its result to come.
func submitting(ctx context.Context, n *testNode, entry string) <-chan submitted {
	done := make(chan submitted, 1)
	go func() {
		index, result, err := n.Submit(ctx, []byte(entry))
		done <- submitted{index, result, err}
	}()
	return done
}

func unanswered(t *testing.T, done <-chan submitted, why string) {
	t.Helper()
	synctest.Wait()
	select {
	case got := <-done:
		t.Fatalf("%s, and the submitter was answered: %+v", why, got)
	default:
	}
}

func count(list []string, entry string) (n int) {
	for _, e := range list {
		if e == entry {
			n++
		}
	}
	return n
}

func follows(t *testing.T, n, leader *testNode) {
	t.Helper()
	eventually(t, n.addr+" follows", func() bool { id, _, ok := n.Leader(); return ok && id == leader.id })
}

func TestSubmitAndReadOnAnyServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		var last uint64
		for i, e := range entries("any", 30) {
			n := nodes[i%3]
			follows(t, n, nodes[0])
			start := time.Now()
			index, result, err := n.Submit(t.Context(), []byte(e))
			if err != nil || result != i+1 || index <= last {
				t.Fatalf("entry %d: index %d after %d, result %v, error %v", i, index, last, result, err)
			}
			if d := time.Since(start); d >= 20*time.Millisecond {
				t.Errorf("entry %d took %v in a network without latency: the answer's commit index was not used", i, d)
			}
			last = index
			reader := nodes[(i+1)%3]
			if err := reader.Read(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := reader.machine.list(); len(got) != i+1 || got[i] != e {
				t.Fatalf("a read after the write saw %d entries of %d", len(got), i+1)
			}
		}
		for name, c := range map[string]struct {
			entry []byte
			want  error
		}{"nil": {nil, ErrEmptyEntry}, "empty": {[]byte{}, ErrEmptyEntry}, "oversized": {make([]byte, MaxEntry+1), ErrEntryTooLarge}} {
			if _, _, err := nodes[1].Submit(t.Context(), c.entry); !errors.Is(err, c.want) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, _, err := nodes[1].Submit(t.Context(), make([]byte, MaxEntry)); err != nil {
			t.Errorf("the largest entry: %v", err)
		}
	})
}

// Many submitters at once: frames are shared, and each gets its own result.
func TestSubmitsShareFrames(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		follows(t, nodes[1], nodes[0])
		var frames, tooMany, inflight atomic.Int64
		net.dropping(func(from, _ ServerID, b []byte) bool {
			if len(b) > 4 && frameType(b[4]) == frameForward && from == nodes[1].id {
				frames.Add(1)
			}
			if _, n, _ := nodes[1].forwards.counts(); n > maxForwardsInFlight {
				tooMany.Add(1)
			} else {
				inflight.Store(max(inflight.Load(), int64(n)))
			}
			return false
		})
		release := net.hold(nodes[1].id)
		var clients sync.WaitGroup
		var places sync.Map
		for i := range 1000 {
			clients.Go(func() {
				_, at, err := nodes[1].Submit(t.Context(), fmt.Appendf(nil, "client-%d", i))
				if err != nil {
					t.Error(err)
					return
				}
				if _, twice := places.LoadOrStore(at, i); twice {
					t.Errorf("two submitters got the result %v", at)
				}
				if list := nodes[1].machine.list(); list[at.(int)-1] != fmt.Sprintf("client-%d", i) {
					t.Errorf("submitter %d got the result of another", i)
				}
			})
		}
		synctest.Wait()
		release()
		clients.Wait()
		if f := frames.Load(); f == 0 || f > 60 {
			t.Errorf("1000 entries took %d frames", f)
		}
		if tooMany.Load() != 0 || inflight.Load() < 2 {
			t.Errorf("at most %d frames were in flight; %d times too many", inflight.Load(), tooMany.Load())
		}
	})
}

func TestReadsOfAFollowerShareAQuestion(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		asked, rounds := b.asks.count(), a.reads.count()
		release := net.hold(b.id)
		var readers sync.WaitGroup
		for range 200 {
			readers.Go(func() {
				if err := b.Read(t.Context()); err != nil {
					t.Error(err)
				}
			})
		}
		synctest.Wait()
		release()
		readers.Wait()
		if q, r := b.asks.count()-asked, a.reads.count()-rounds; q > 2 || r > 2 {
			t.Fatalf("200 reads took %d questions and %d rounds", q, r)
		}
	})
}

// The attack: somebody with a channel, and with no place in the leader's
// configuration, proposes and asks: a server never seen, and one removed.
func TestOnlyMembersForwardAndAsk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c", "d")
		a, d := nodes[0], nodes[3]
		_, prev := a.Members()
		if _, err := a.Remove(t.Context(), d.id, prev); err != nil {
			t.Fatal(err)
		}
		strange := ServerID{77}
		for name, who := range map[string]ServerID{"never seen": strange, "removed": d.id} {
			for ft, payload := range map[frameType][]byte{
				frameForward: mustMarshal(t, &wireForward{Header: header(who, "x:1"), Seq: 1, Entries: [][]byte{[]byte("intruder")}}),
				frameAsk:     mustMarshal(t, &wireAsk{Header: header(who, "x:1")}),
			} {
				conn, peer := net.Pipe()
				go a.Serve(peer, who)
				c := &wireClient{conn, bufio.NewReader(conn), bufio.NewWriter(conn)}
				c.SetDeadline(time.Now().Add(5 * time.Second))
				writeFrame(c.w, ft, payload)
				c.w.Flush() // a removed server's channel is closed at once
				if rt, reply, err := readFrame(c.r, nil); err == nil && (rt != frameRefusal || reply[0] != refusedPeer) {
					t.Errorf("%s, frame %d: answered with frame %d %x", name, ft, rt, reply)
				}
				if _, err := c.r.ReadByte(); err == nil || errTimeout(err) == err {
					t.Errorf("%s, frame %d: the connection stayed open: %v", name, ft, err)
				}
				c.Close()
			}
		}
		// A member that speaks in another's name.
		for name, payload := range map[string][]byte{
			"another's header": mustMarshal(t, &wireForward{Header: header(nodes[2].id, nodes[2].addr), Seq: 1, Entries: [][]byte{[]byte("intruder")}}),
			"no entries":       mustMarshal(t, &wireForward{Header: header(nodes[1].id, nodes[1].addr), Seq: 1}),
			"an empty entry":   mustMarshal(t, &wireForward{Header: header(nodes[1].id, nodes[1].addr), Seq: 1, Entries: [][]byte{{}}}),
			"an oversized one": mustMarshal(t, &wireForward{Header: header(nodes[1].id, nodes[1].addr), Seq: 1, Entries: [][]byte{make([]byte, MaxEntry+1)}}),
			"too many":         mustMarshal(t, &wireForward{Header: header(nodes[1].id, nodes[1].addr), Seq: 1, Entries: slices.Repeat([][]byte{[]byte("intruder")}, maxForwardEntries+1)}),
			"out of order":     mustMarshal(t, &wireForward{Header: header(nodes[1].id, nodes[1].addr), Seq: 2, Entries: [][]byte{[]byte("intruder")}}),
			"not a frame":      {1, 2, 3},
		} {
			c := dialAs(a, nodes[1].id)
			rt, reply, err := c.send(t, frameForward, payload)
			if err != nil || rt != frameRefusal || reply[0] != refusedPeer {
				t.Errorf("%s: frame %d %x, error %v", name, rt, reply, err)
			}
			c.Close()
		}
		// The removed server itself is told nothing and answers nobody.
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, _, err := d.Submit(ctx, []byte("intruder")); err == nil {
			t.Error("a removed server submitted")
		}
		if err := d.Read(ctx); err == nil {
			t.Error("a removed server read")
		}
		propose(t, a, "end")
		if slices.Contains(a.machine.list(), "intruder") {
			t.Error("an intruder's entry was committed")
		}
	})
}

// scripted is a follower whose leader is played by the test.
type scripted struct {
	*testNode
	t     *testing.T
	boss  ServerID
	conns chan net.Conn // the leader's ends of what the follower dials
	raft  *wireClient   // the leader's own channel to the follower
	last  uint64
}

type scriptedDialer chan net.Conn

func (d scriptedDialer) Dial(ctx context.Context, _ ServerID, _ string) (net.Conn, error) {
	a, b := net.Pipe()
	select {
	case d <- b:
		return a, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// play starts a follower of a scripted leader of term 5, with the entries
// "one" at index 2 and "two" at index 3 applied.
func play(t *testing.T) *scripted { return playLogged(t, testLogger()) }

func playLogged(t *testing.T, log *slog.Logger) *scripted {
	s := &scripted{t: t, boss: ServerID{7}, conns: make(chan net.Conn, 16),
		testNode: &testNode{id: ServerID{8}, addr: "victim:1", machine: &listMachine{}, archive: &memArchive{}, key: testKey(t)}}
	patient := Timeouts{Heartbeat: time.Hour, Election: time.Hour, Lease: time.Hour}
	var err error
	s.Store, err = Open(Config{ID: s.id, Address: s.addr, ClusterID: [32]byte{1}, Epoch: 1, Machine: s.machine, Timeouts: patient,
		Dialer: scriptedDialer(s.conns), Archive: s.archive, ArchiveKey: s.key, Logger: log})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Shutdown() })
	s.raft = dialAs(s.testNode, s.boss)
	t.Cleanup(func() { s.raft.Close() })
	conf := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
		{ID: s.boss.raftID(), Address: raftAddress(s.boss, "boss:1")}, {ID: s.id.raftID(), Address: raftAddress(s.id, s.addr)}}})
	s.append(5, 3, wireEntry{Type: uint8(raft.LogConfiguration), Data: conf}, wireEntry{Data: []byte("one")}, wireEntry{Data: []byte("two")})
	eventually(t, "applied", func() bool { return s.AppliedIndex() == 3 })
	return s
}

// append sends entries of term, and what is committed.
func (s *scripted) append(term, commit uint64, list ...wireEntry) {
	s.t.Helper()
	w := wireAppend{Header: header(s.boss, "boss:1"), Term: term, PrevIndex: s.last, Commit: commit, Entries: list}
	if s.last > 0 {
		w.PrevTerm = 5
	}
	for i := range list {
		s.last++
		list[i].Index, list[i].Term = s.last, term
	}
	rt, payload, err := s.raft.send(s.t, frameAppend, mustMarshal(s.t, &w))
	var rep wireReply
	if err != nil || rt != frameReply || unmarshal(payload, &rep) != nil || !rep.OK {
		s.t.Fatalf("append: frame %d %x, %v", rt, payload, err)
	}
}

// answer takes the next frame of any of the follower's connections, of which
// some may be there in advance, and answers it.
func (s *scripted) answer(want frameType, ft frameType, v any) {
	s.t.Helper()
	frames := make(chan net.Conn)
	stop := make(chan struct{})
	defer close(stop)
	go func() {
		for {
			select {
			case conn := <-s.conns:
				s.t.Cleanup(func() { conn.Close() })
				go func() {
					if got, _, err := readFrame(bufio.NewReader(conn), nil); err == nil && got == want {
						frames <- conn
					}
				}()
			case <-stop:
				return
			}
		}
	}()
	w := bufio.NewWriter(<-frames)
	if err := writeFrame(w, ft, mustMarshal(s.t, v)); err != nil {
		s.t.Fatal(err)
	}
	w.Flush()
}

func done1(index, term uint64) *wireOutcomes {
	return &wireOutcomes{Seq: 1, Outcomes: []wireOutcome{{Code: outcomeDone, Index: index, Term: term}}}
}

// The attack: a leader says that an entry is committed where another one is, in
// another term, or where nothing is yet; or it answers something else entirely.
// The follower answers with nothing but its own Apply of this very entry.
func TestLyingLeaderIsNotBelieved(t *testing.T) {
	for name, answer := range map[string]any{
		"another entry's place":    done1(3, 5),
		"the configuration":        done1(1, 5),
		"this entry, another term": done1(4, 4),
		"outcomes of no frame":     &wireOutcomes{Seq: 2, Outcomes: []wireOutcome{{Code: outcomeDone, Index: 4, Term: 5}}},
		"too few outcomes":         &wireOutcomes{Seq: 1},
		"too many outcomes":        &wireOutcomes{Seq: 1, Outcomes: []wireOutcome{{Code: outcomeDone, Index: 4, Term: 5}, {Code: outcomeDone, Index: 4, Term: 5}}},
		"no code":                  &wireOutcomes{Seq: 1, Outcomes: []wireOutcome{{Index: 4, Term: 5}}},
		"an unknown code":          &wireOutcomes{Seq: 1, Outcomes: []wireOutcome{{Code: 9}}},
		"done without a place":     &wireOutcomes{Seq: 1, Outcomes: []wireOutcome{{Code: outcomeDone}}},
		"a place for nothing":      &wireOutcomes{Seq: 1, Outcomes: []wireOutcome{{Code: outcomeNotLeader, Index: 4, Term: 5}}},
		"a read index":             &wireIndex{Code: outcomeDone, LeaderTerm: 5, Index: 4, EntryTerm: 5},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := play(t)
				done := submitting(t.Context(), s.testNode, "mine")
				s.answer(frameForward, frameOutcome, answer)
				synctest.Wait()
				s.append(5, 4, wireEntry{Data: []byte("mine")})
				if got := <-done; !errors.Is(got.err, ErrOutcomeUnknown) || got.result != nil {
					t.Fatalf("%+v", got)
				}
			})
		})
	}
	t.Run("early, for an entry not committed", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := play(t)
			done := submitting(t.Context(), s.testNode, "mine")
			s.answer(frameForward, frameOutcome, done1(4, 5))
			unanswered(t, done, "the entry is not here")
			s.append(5, 4, wireEntry{Data: []byte("mine")})
			if got := <-done; got.err != nil || got.index != 4 || got.result != 3 {
				t.Fatalf("%+v", got)
			}
		})
	})
	t.Run("a term that this server is not in", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			s := play(t)
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			done := submitting(ctx, s.testNode, "mine")
			s.answer(frameForward, frameOutcome, done1(4, 9))
			s.append(5, 3, wireEntry{Data: []byte("mine")}) // here, and not committed
			unanswered(t, done, "the entry is not committed")
			if got := <-done; !errors.Is(got.err, context.DeadlineExceeded) {
				t.Fatalf("%+v", got)
			}
			if s.Term() != 5 || s.CommitIndex() != 3 {
				t.Errorf("an answer raised the term to %d or the commit index to %d", s.Term(), s.CommitIndex())
			}
		})
	})
}

// The attack: a leader that lost leadership, with a follower that has not heard
// of it. Both are cut off from a majority that has elected and written.
func TestDeposedLeaderAnswersNoFollower(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		slow := Timeouts{Heartbeat: 3 * time.Second, Election: 3 * time.Second, Lease: 3 * time.Second, RPC: time.Minute}
		net.timeouts["a"], net.timeouts["f"] = slow, slow
		nodes := net.cluster(t, "a", "f", "c", "d", "e")
		a, f, rest := nodes[0], nodes[1], nodes[2:]
		propose(t, a, "old")
		follows(t, f, a)
		net.split(a.id, f.id)
		propose(t, leaderOf(t, rest...), "new")
		if !a.IsLeader() {
			t.Fatal("the old leader knows: the attack has not been set up")
		}
		read := make(chan error, 1)
		go func() { read <- f.Read(t.Context()) }()
		write := submitting(t.Context(), f, "lost")
		unanswered(t, write, "two of five have it")
		pending(t, read, "two of five know")
		if err := <-read; !refused(err) {
			t.Errorf("a deposed leader let its follower read: %v", err)
		}
		if got := <-write; !errors.Is(got.err, ErrOutcomeUnknown) {
			t.Errorf("a deposed leader let its follower write: %+v", got)
		}
		net.dropping(nil)
		eventually(t, "healed", func() bool { return f.Read(t.Context()) == nil })
		if !slices.Equal(f.machine.list(), []string{"old", "new"}) {
			t.Errorf("after healing: %q", f.machine.list())
		}
	})
}

// The leader dies while a proposal is with it: unknown, and never sent again.
func TestLeaderChangeMidwayIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		// b is in no hurry: it has given up the old leader, at the latest, when three of its heartbeat timeouts are over,
		// and waits for four. With equal ones a divided vote may take longer than a call waits for a leader.
		net.timeouts["b"] = Timeouts{Heartbeat: time.Second, Election: time.Second}
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		net.dropping(func(from, _ ServerID, _ []byte) bool { return from == a.id }) // a is not heard, and hears
		done := submitting(t.Context(), b, "once")
		unanswered(t, done, "only the leader has it")
		read := make(chan error, 1)
		go func() { read <- b.Read(t.Context()) }()
		synctest.Wait()
		a.Shutdown()
		net.dropping(nil)
		if got := <-done; !errors.Is(got.err, ErrOutcomeUnknown) {
			t.Fatalf("%+v", got)
		}
		if err := <-read; err != nil {
			t.Errorf("a read is tried again with the next leader: %v", err)
		}
		next := leaderOf(t, nodes[1:]...)
		propose(t, next, "end")
		if got := count(next.machine.list(), "once"); got != 0 {
			t.Errorf("the entry is in the log %d times: it was sent again", got)
		}
	})
}

// cutting is a leader whose host cuts the connection once what it carried is committed.
type cutting struct {
	host
	t *transport
}

func (c cutting) proposeFor(peer ServerID, entries [][]byte, fr *forwarded) error {
	real := &forwarded{done: make(chan struct{})}
	if err := c.host.proposeFor(peer, entries, real); err != nil {
		return err
	}
	fr.outcomes = make([]wireOutcome, len(entries))
	go func() {
		<-real.done
		c.t.mu.Lock()
		defer c.t.mu.Unlock()
		c.t.streams[peer].Close()
		close(fr.done)
	}()
	return nil
}

// The attack: the host cuts the connection after the commit and before the
// answer. The entry must not be sent again, and nothing is said of it.
func TestAnswerCutOffIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		a.trans.host = cutting{host: a.Store, t: a.trans}
		for _, e := range entries("once", 5) {
			if got := <-submitting(t.Context(), b, e); !errors.Is(got.err, ErrOutcomeUnknown) {
				t.Fatalf("%+v", got)
			}
		}
		if got := a.machine.list(); !slices.Equal(got, entries("once", 5)) {
			t.Errorf("the log has %q", got)
		}
	})
}

// A graceful change of leaders: what no leader has taken is tried with the next
// one, nothing is sent twice, and clients of followers see no error.
func TestSubmitsOutliveATransfer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		ctx, cancel := context.WithCancel(t.Context())
		var clients sync.WaitGroup
		var mu sync.Mutex
		acked, unknown := map[string]bool{}, 0
		for i, n := range nodes {
			clients.Go(func() {
				for k := 0; ctx.Err() == nil; k++ {
					entry := fmt.Sprintf("%d-%d", i, k)
					_, _, err := n.Submit(t.Context(), []byte(entry))
					mu.Lock()
					switch {
					case err == nil:
						acked[entry] = true
					case errors.Is(err, ErrOutcomeUnknown):
						unknown++
					default:
						t.Errorf("%s: %v", entry, err)
					}
					mu.Unlock()
					time.Sleep(time.Millisecond)
				}
			})
		}
		for range 4 {
			time.Sleep(300 * time.Millisecond)
			leaderOf(t, nodes...).TransferLeadership(t.Context())
		}
		time.Sleep(300 * time.Millisecond)
		cancel()
		clients.Wait()
		next := leaderOf(t, nodes...)
		list := next.machine.list()
		for e := range acked {
			if count(list, e) != 1 {
				t.Errorf("%s is in the log %d times", e, count(list, e))
			}
		}
		if len(acked) < 1000 || unknown > 40 {
			t.Errorf("%d acknowledged, %d in doubt", len(acked), unknown)
		}
	})
}

// A follower that catches up past its entry by a snapshot never applied it.
func TestResultLostToASnapshotIsUnknown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		net.dropping(func(_, to ServerID, req []byte) bool { // b gets nothing, and what it asks is answered
			return to == b.id
		})
		done := submitting(t.Context(), b, "mine")
		eventually(t, "committed", func() bool { return slices.Contains(a.machine.list(), "mine") })
		for _, e := range entries("more", 50) {
			propose(t, a, e)
		}
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		net.dropping(nil)
		if got := <-done; !errors.Is(got.err, ErrOutcomeUnknown) {
			t.Fatalf("%+v", got)
		}
		if kinds := recordKinds(t, b); kinds[RecordSnapshot] == 0 {
			t.Fatalf("no snapshot was installed: %v", kinds)
		}
		eventually(t, "the entry is there", func() bool { return count(b.machine.list(), "mine") == 1 })
	})
}

func TestFollowerWithoutALeaderGivesUpSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		b := nodes[1]
		net.cut(nodes[0].id)
		net.cut(nodes[2].id)
		eventually(t, "no leader", func() bool { _, _, ok := b.Leader(); return !ok })
		for name, f := range map[string]func() error{
			"submit": func() error { _, _, err := b.Submit(t.Context(), []byte("x")); return err },
			"read":   func() error { return b.Read(t.Context()) },
		} {
			start := time.Now()
			err := f()
			if !errors.Is(err, ErrNoQuorum) || errors.Is(err, ErrOutcomeUnknown) {
				t.Errorf("%s: %v", name, err)
			}
			if d := time.Since(start); d > b.patience() {
				t.Errorf("%s took %v", name, d)
			}
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		if _, _, err := b.Submit(ctx, []byte("x")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("past its context: %v", err)
		}
		net.heal(nodes[0].id)
		net.heal(nodes[2].id)
		eventually(t, "healed", func() bool { _, _, err := b.Submit(t.Context(), []byte("healed")); return err == nil })
		if slices.Contains(b.machine.list(), "x") {
			t.Error("what was refused was committed")
		}
	})
}

// A leader that is known and cannot be reached from here is named: a client may reach it.
func TestUnreachableLeaderIsNamed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		follows(t, b, a)
		b.trans.dialer = failingDialer{}
		b.trans.mu.Lock()
		for c := range b.trans.open[a.id] {
			c.Close()
		}
		b.trans.mu.Unlock()
		_, _, err := b.Submit(t.Context(), []byte("x"))
		if nl, ok := errors.AsType[*NotLeaderError](err); !ok || nl.Leader != a.id {
			t.Errorf("submit: %v", err)
		}
		if nl, ok := errors.AsType[*NotLeaderError](b.Read(t.Context())); !ok || nl.Leader != a.id {
			t.Error("read: the leader is not named")
		}
	})
}

type failingDialer struct{}

func (failingDialer) Dial(context.Context, ServerID, string) (net.Conn, error) {
	return nil, errors.New("no route")
}

func TestSubmitQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for name, c := range map[string]struct{ size, fits int }{"entries": {1, maxPending}, "bytes": {MaxEntry, maxPendingBytes / MaxEntry}} {
			net := newTestNet()
			nodes := net.cluster(t, "a", "b", "c")
			follows(t, nodes[1], nodes[0])
			release := net.hold(nodes[1].id)
			ctx, cancel := context.WithCancel(t.Context())
			var busy, other atomic.Int64
			var clients sync.WaitGroup
			for range c.fits + 10 {
				clients.Go(func() {
					switch _, _, err := nodes[1].Submit(ctx, bytes.Repeat([]byte{1}, c.size)); {
					case errors.Is(err, ErrBusy):
						busy.Add(1)
					case err != nil && !errors.Is(err, context.Canceled):
						other.Add(1)
					}
				})
			}
			synctest.Wait()
			if busy.Load() != 10 || other.Load() != 0 {
				t.Errorf("%s: %d were told to come back, %d something else", name, busy.Load(), other.Load())
			}
			cancel()
			clients.Wait()
			release()
			eventually(t, name+": free again", func() bool {
				nodes[1].forwards.mu.Lock()
				defer nodes[1].forwards.mu.Unlock()
				return nodes[1].forwards.pending == 0 && nodes[1].forwards.bytes == 0 && len(nodes[1].forwards.queue) == 0
			})
			for _, n := range nodes {
				n.Shutdown()
			}
		}
	})
}

// The attack: clients that ask and go away, while the host holds back what was sent to the leader. What they asked for
// must not wait for the leader when nobody waits for it.
func TestSubmittersThatGoLeaveNothingBehind(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		follows(t, nodes[1], nodes[0])
		release := net.hold(nodes[1].id)
		defer release()
		for range 3 {
			ctx, cancel := context.WithCancel(t.Context())
			var clients sync.WaitGroup
			for range maxPendingBytes / MaxEntry {
				clients.Go(func() { nodes[1].Submit(ctx, bytes.Repeat([]byte{1}, MaxEntry)) })
			}
			synctest.Wait()
			cancel()
			clients.Wait()
		}
		f := nodes[1].forwards
		f.mu.Lock()
		defer f.mu.Unlock()
		size := 0
		for _, p := range f.queue {
			size += len(p.entry)
		}
		if f.pending != 0 || size > maxForwardBytes {
			t.Errorf("%d bytes wait for the leader and %d submitters", size, f.pending)
		}
	})
}

// sleepyMachine takes its time for every entry.
type sleepyMachine struct{ listMachine }

func (m *sleepyMachine) Apply(index uint64, entry []byte) any {
	time.Sleep(50 * time.Millisecond)
	return m.listMachine.Apply(index, entry)
}

// A leader stops, or its archive fails, with proposals in every queue of raft, which answers for none of them: whoever
// waits must not wait for ever, and keep the store in memory. The bubble fails if a goroutine is left.
func TestShutdownLeavesNobodyWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		net.machines["a"] = &sleepyMachine{}
		nodes := net.cluster(t, "a", "b", "c")
		follows(t, nodes[1], nodes[0])
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		var clients sync.WaitGroup
		var unknown atomic.Int64
		for i := range 200 {
			for _, n := range nodes[:2] {
				clients.Go(func() {
					if _, _, err := n.Submit(ctx, []byte(fmt.Sprint(n.addr, i))); errors.Is(err, ErrOutcomeUnknown) {
						unknown.Add(1)
					}
				})
			}
		}
		time.Sleep(200 * time.Millisecond)
		nodes[0].Shutdown()
		clients.Wait()
		if unknown.Load() == 0 {
			t.Error("nothing was under way")
		}
		for _, n := range nodes {
			n.Shutdown()
		}
	})
}

func TestBrokenServersRefuseSubmitAndRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net, old := newTestNet(), &olderMachine{}
		net.machines["b"] = old
		nodes := net.cluster(t, "a", "b", "c")
		a, halted, fenced := nodes[0], nodes[1], nodes[2]
		follows(t, halted, a)
		if _, _, err := halted.Submit(t.Context(), []byte("new")); !errors.Is(err, ErrHalted) {
			t.Errorf("the entry that halts its own server: %v", err)
		}
		if _, _, err := halted.Submit(t.Context(), []byte("x")); !errors.Is(err, ErrHalted) {
			t.Errorf("a halted server submitted: %v", err)
		}
		if err := halted.Read(t.Context()); !errors.Is(err, ErrHalted) {
			t.Errorf("a halted server read: %v", err)
		}
		follows(t, fenced, a)
		fenced.archive.breakDisk()
		if got := <-submitting(t.Context(), fenced, "during"); got.err == nil {
			t.Error("a server with a broken disk answered")
		}
		<-fenced.Done()
		if _, _, err := fenced.Submit(t.Context(), []byte("x")); !errors.Is(err, ErrStopped) {
			t.Errorf("a failed server submitted: %v", err)
		}
		if err := fenced.Read(t.Context()); !errors.Is(err, ErrStopped) {
			t.Errorf("a failed server read: %v", err)
		}
		if got := count(a.machine.list(), "x"); got != 0 {
			t.Error("a refused entry was committed")
		}
	})
}

// Clients write to and read from every server, whoever leads, under the same
// adversary as TestEqualIndexMeansEqualChain.
func TestForwardedReadsAndWritesAreLinearizable(t *testing.T) {
	t.Parallel()
	var reads, writes, forwarded int
	for i := range churnSeeds {
		seed := uint64(i)
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				h, n := forwardRun(t, seed, churnRounds)
				forwarded += n
				if err := checkHistory(h); err != nil {
					t.Errorf("seed %d: the history is not linearizable: %v", seed, err)
				}
				for _, o := range h {
					if o.Write {
						writes++
					} else {
						reads++
					}
				}
			})
		})
	}
	t.Logf("%d seeds, %d rounds each, %d reads and %d writes checked, %d of them by servers that did not lead", churnSeeds, churnRounds, reads, writes, forwarded)
	if reads < 50*churnSeeds || writes < 50*churnSeeds || forwarded < 50*churnSeeds {
		t.Errorf("%d reads, %d writes, %d forwarded: the test has not tested", reads, writes, forwarded)
	}
}

func forwardRun(t *testing.T, seed uint64, rounds int) ([]operation, int) {
	c := &chaos{t: t, net: newTestNet(), rand: rand.New(rand.NewPCG(seed, 11))}
	names := []string{"a", "b", "c"}
	for i := range rounds {
		names = append(names, fmt.Sprint("boot-", i+1))
	}
	for _, name := range names {
		d := time.Duration(1+7*c.rand.IntN(2)) * 100 * time.Millisecond
		c.net.timeouts[name] = Timeouts{Heartbeat: d, Election: d, Lease: d, RPC: 2 * time.Second}
	}
	c.nodes = c.net.cluster(t, "a", "b", "c")
	ctx, cancel := context.WithCancel(t.Context())
	rec, forwarded := &recorder{}, atomic.Int64{}
	var clients sync.WaitGroup
	for id := range 4 {
		clients.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				n := c.live()[i%3]
				call, end := context.WithTimeout(ctx, 500*time.Millisecond)
				rec.record(id, id%2 == 0, func() (position int, ok bool) {
					led := n.IsLeader()
					var err error
					if id%2 == 0 {
						var at any
						_, at, err = n.Submit(call, fmt.Appendf(nil, "%d-%d", id, i))
						position, _ = at.(int)
					} else {
						err = n.Read(call)
						position = len(n.machine.list())
					}
					if err != nil && !refused(err) && !errors.Is(err, ErrStopped) && call.Err() == nil {
						t.Errorf("a call failed with %v", err)
					}
					if err == nil && !led {
						forwarded.Add(1)
					}
					return position, err == nil
				})
				end()
				time.Sleep(5 * time.Millisecond)
			}
		})
	}
	for range rounds {
		undo := c.fault()
		time.Sleep(time.Duration(c.rand.IntN(500)) * time.Millisecond)
		undo()
		time.Sleep(time.Duration(c.rand.IntN(200)) * time.Millisecond)
	}
	cancel()
	clients.Wait()
	c.check()
	return rec.done, int(forwarded.Load())
}
