package raftstore

import (
	"bufio"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

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
