package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// piped is a pipeline to a peer that the test plays.
type piped struct {
	t    *testing.T
	tr   *transport
	peer ServerID
	p    raft.AppendPipeline
	conn *wireClient // the peer's end
}

func openPiped(t *testing.T) *piped {
	t.Helper()
	conns := make(chan net.Conn, 8)
	tr := newTransport(ServerID{1}, "a:1", scriptedDialer(conns), Timeouts{}.withDefaults(), newFence(), slog.New(slog.DiscardHandler))
	tr.host = &Store{logs: &logStore{}} // of which a pipeline wants to know that no disk hangs
	t.Cleanup(func() { tr.Close() })
	x := &piped{t: t, tr: tr, peer: ServerID{2}}
	var err error
	if x.p, err = tr.AppendEntriesPipeline(x.peer.raftID(), raftAddress(x.peer, "b:1")); err != nil {
		t.Fatal(err)
	}
	conn := <-conns
	x.conn = &wireClient{conn, bufio.NewReader(conn), bufio.NewWriter(conn)}
	t.Cleanup(func() { conn.Close() })
	return x
}

// send sends a request behind index prev and sees it arrive.
func (x *piped) send(prev uint64, n int) (raft.AppendFuture, error) {
	args := &raft.AppendEntriesRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: 3, ID: []byte(x.tr.self.String()), Addr: []byte(x.tr.addr)},
		Term: 5, PrevLogEntry: prev, PrevLogTerm: 5}
	for i := range n {
		args.Entries = append(args.Entries, &raft.Log{Index: prev + 1 + uint64(i), Term: 5, Data: []byte("x")})
	}
	arrived := make(chan error, 1)
	go func() {
		ft, _, err := readFrame(x.conn.r, nil)
		if err == nil && ft != frameAppend {
			err = fmt.Errorf("frame %d", ft)
		}
		arrived <- err
	}()
	f, err := x.p.AppendEntries(args, new(raft.AppendEntriesResponse))
	if err == nil {
		if err := <-arrived; err != nil {
			x.t.Fatal(err)
		}
	}
	return f, err
}

func (x *piped) answer(ft frameType, v any) {
	x.t.Helper()
	go func() {
		writeFrame(x.conn.w, ft, mustMarshal(x.t, v))
		x.conn.w.Flush()
	}()
	synctest.Wait()
}

// delivered is the next answer that raft sees, nil if there is none.
func (x *piped) delivered() raft.AppendFuture {
	synctest.Wait()
	select {
	case f := <-x.p.Consumer():
		return f
	default:
		return nil
	}
}

// The attack: answers to requests that were sent before a read began arrive
// after it began. They are answers to raft, and count for no round.
func TestPipelinedAnswersOfOlderRequestsDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := openPiped(t)
		conf := raft.Configuration{Servers: []raft.Server{{ID: x.tr.self.raftID()}, {ID: x.peer.raftID()}, {ID: "third"}}}
		var round *ackRound
		counted := func() bool { return round.majority(conf, x.tr.self.raftID()) }
		x.send(3, 1)
		x.send(4, 1)
		round = x.tr.acks.begin(5)
		for i := range 2 {
			x.answer(frameReply, &wireReply{Term: 5, LastLog: 5, OK: true})
			if f := x.delivered(); f == nil || !f.Response().Success || f.Request().PrevLogEntry != uint64(3+i) {
				t.Fatalf("answer %d was not delivered: %+v", i, f)
			}
			if counted() {
				t.Fatal("an answer to a request sent before the round counts")
			}
		}
		x.send(5, 0)
		x.answer(frameReply, &wireReply{Term: 5, LastLog: 5, OK: false})
		x.delivered()
		x.send(5, 0)
		x.answer(frameReply, &wireReply{Term: 6, LastLog: 5, OK: true})
		if f := x.delivered(); f == nil || f.Response().Term != 6 || counted() {
			t.Fatalf("a refusal, or an answer of a later term, counts: %+v", f)
		}
		x.send(5, 0)
		x.answer(frameReply, &wireReply{Term: 5, LastLog: 5, OK: true})
		if x.delivered(); !counted() {
			t.Fatal("an answer to a request of the round does not count")
		}
		if got := x.tr.matched.in(5)[x.peer]; got != 5 {
			t.Errorf("the peer is known to have %d", got)
		}
	})
}

// A fault of any kind ends the pipeline and reaches raft as the failure of its
// next request, never as an answer: raft counts one as a contact.
func TestPipelineFaultsAreNeverAnswers(t *testing.T) {
	for name, fault := range map[string]func(x *piped){
		"closed":                func(x *piped) { x.conn.Close() },
		"refused":               func(x *piped) { x.answer(frameRefusal, refusedPeer) },
		"another kind of frame": func(x *piped) { x.answer(frameIndex, &wireIndex{Code: outcomeDone, LeaderTerm: 5, Index: 5}) },
		"not a reply":           func(x *piped) { x.answer(frameReply, "x") },
		"an answer to nothing": func(x *piped) {
			x.answer(frameReply, &wireReply{Term: 5, OK: true})
			x.delivered()
			x.answer(frameReply, &wireReply{Term: 5, OK: true})
		},
		"silence":   func(x *piped) { time.Sleep(x.tr.timeouts.RPC + time.Millisecond) },
		"the fence": func(x *piped) { x.tr.fence.trip(errDisk); x.answer(frameReply, &wireReply{Term: 5, OK: true}) },
		"removed from the members": func(x *piped) {
			both := raft.Configuration{Servers: []raft.Server{{ID: x.tr.self.raftID(), Address: x.tr.addr}, {ID: x.peer.raftID(), Address: raftAddress(x.peer, "b:1")}}}
			x.tr.members.update(1, both)
			x.tr.members.update(2, raft.Configuration{Servers: both.Servers[:1]})
		},
		"the end of the transport": func(x *piped) { x.tr.Close() },
		"raft's close":             func(x *piped) { x.p.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				x := openPiped(t)
				if _, err := x.send(3, 1); err != nil {
					t.Fatal(err)
				}
				fault(x)
				if f := x.delivered(); f != nil {
					t.Fatalf("raft was given %+v", f.Response())
				}
				if _, err := x.send(4, 1); err == nil {
					t.Error("another request was sent")
				}
				if f := x.delivered(); f != nil {
					t.Fatalf("raft was given %+v", f.Response())
				}
				x.tr.mu.Lock()
				defer x.tr.mu.Unlock()
				if n := len(x.tr.open[x.peer]); n != 0 {
					t.Errorf("%d connections are left open", n)
				}
			})
		})
	}
}

func TestPipelineIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := openPiped(t)
		for i := range maxPipelined {
			if _, err := x.send(uint64(3+i), 1); err != nil {
				t.Fatal(err)
			}
		}
		sent := make(chan error, 1)
		go func() {
			_, err := x.send(20, 1)
			sent <- err
		}()
		synctest.Wait()
		select {
		case err := <-sent:
			t.Fatalf("request %d was sent: %v", maxPipelined+1, err)
		default:
		}
		x.answer(frameReply, &wireReply{Term: 5, OK: true})
		if x.delivered() == nil {
			t.Fatal("the first answer was not delivered")
		}
		if err := <-sent; err != nil {
			t.Fatal(err)
		}
	})
}

// A peer that breaks every pipeline at once is not dialled for each.
func TestBrokenPipelinesAreNotReopenedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tr := newTransport(ServerID{1}, "a:1", failingDialer{}, Timeouts{}.withDefaults(), newFence(), slog.New(slog.DiscardHandler))
		defer tr.Close()
		peer, dials := ServerID{2}, 0
		for range 600 { // for a minute, as often as raft may ask
			_, err := tr.AppendEntriesPipeline(peer.raftID(), raftAddress(peer, "b:1"))
			if err == nil {
				t.Fatal("a pipeline to nobody")
			}
			if !errors.Is(err, raft.ErrPipelineReplicationNotSupported) {
				dials++
			}
			time.Sleep(100 * time.Millisecond)
		}
		if dials < 10 || dials > 20 {
			t.Errorf("%d dials in a minute", dials)
		}
	})
}

// Entries follow each other without waiting for answers, and are committed by
// the answers alone.
func TestEntriesArePipelined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a := nodes[0]
		propose(t, a, "warm")
		time.Sleep(time.Second)
		var mu sync.Mutex
		flying := map[ServerID]int{}
		net.dropping(func(from, to ServerID, b []byte) bool {
			if from == a.id && len(b) > 5 && frameType(b[4]) == frameAppend {
				if req, err := decodeAppend(b[5:], a.id); err == nil && len(req.Entries) > 0 {
					mu.Lock()
					flying[to]++
					mu.Unlock()
				}
			}
			return false
		})
		release := net.hold(a.id)
		var writers sync.WaitGroup
		for _, e := range entries("flying", 5) {
			writers.Go(func() { propose(t, a, e) })
			synctest.Wait()
		}
		mu.Lock()
		for _, n := range nodes[1:] {
			if flying[n.id] < 3 {
				t.Errorf("%d requests with entries were in flight to %s", flying[n.id], n.addr)
			}
		}
		mu.Unlock()
		if got := a.machine.list(); !slices.Equal(got, []string{"warm"}) {
			t.Errorf("without an answer the leader has applied %q", got)
		}
		release()
		writers.Wait()
		for _, n := range nodes {
			eventually(t, "everywhere", func() bool { return slices.Equal(n.machine.list(), append([]string{"warm"}, entries("flying", 5)...)) })
		}
	})
}

// The adversary breaks and delays connections while many requests are in
// flight, so that raft changes between pipelines and single requests all the
// time. Nothing acknowledged is lost, and nothing is there twice.
func TestBrokenPipelinesKeepTheLog(t *testing.T) {
	t.Parallel()
	breaks, acked := 0, 0
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed ", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c := &chaos{t: t, net: newTestNet(), rand: rand.New(rand.NewPCG(seed, 5))}
				c.nodes = c.net.cluster(t, "a", "b", "c")
				ctx, cancel := context.WithCancel(t.Context())
				var writers sync.WaitGroup
				for w := range 20 {
					writers.Go(func() { c.write(ctx, w) })
				}
				for range 100 {
					time.Sleep(time.Duration(c.rand.IntN(60)) * time.Millisecond)
					n := c.live()[c.rand.IntN(3)]
					switch c.rand.IntN(4) {
					case 0: // answers wait, and then the connection breaks with them
						release := c.net.hold(n.id)
						time.Sleep(time.Duration(c.rand.IntN(60)) * time.Millisecond)
						c.net.cut(n.id)
						release()
						c.net.heal(n.id)
					default:
						c.net.cut(n.id)
						c.net.heal(n.id)
					}
					breaks++
				}
				cancel()
				writers.Wait()
				acked += c.check()
				list := c.live()[0].machine.list()
				slices.Sort(list)
				for i := 1; i < len(list); i++ {
					if list[i] == list[i-1] && list[i] != "end" {
						t.Errorf("%s is in the log twice", list[i])
					}
				}
			})
		})
	}
	t.Logf("%d breaks, %d acknowledged entries checked", breaks, acked)
	if acked < 1000 {
		t.Errorf("only %d entries were acknowledged: the test has not tested", acked)
	}
}

func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		propose(t, a, "x")
		last := func() uint64 { return a.raft.LastIndex() }
		eventually(t, "both have told", func() bool { p := a.Progress(); return p[b.id] == last() && p[c.id] == last() && len(p) == 2 })
		if got := b.Progress(); len(got) != 0 {
			t.Errorf("a follower says %v", got)
		}
		net.cut(c.id)
		at := last()
		for _, e := range entries("lag", 10) {
			propose(t, a, e)
		}
		eventually(t, "b has told", func() bool { return a.Progress()[b.id] == last() })
		if got := a.Progress()[c.id]; got != at {
			t.Errorf("the server that is cut off is said to have %d of %d", got, last())
		}
		net.heal(c.id)
		eventually(t, "c has caught up", func() bool { return a.Progress()[c.id] == last() })
		_, prev := a.Members()
		if _, err := a.Remove(t.Context(), c.id, prev); err != nil {
			t.Fatal(err)
		}
		if _, ok := a.Progress()[c.id]; ok {
			t.Error("a removed server is still shown")
		}
		if err := a.TransferLeadership(t.Context()); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the next leader", func() bool { p := b.Progress(); return b.IsLeader() && p[a.id] == b.raft.LastIndex() })
		if got := a.Progress(); len(got) != 0 {
			t.Errorf("the former leader says %v", got)
		}
	})
}

// Raft stops reading answers at the first refusal, and looks up only when a
// request has been sent: one that waits for its place must be given up.
func TestPipelineThatNobodyReadsEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		x := openPiped(t)
		for i := range maxPipelined {
			if _, err := x.send(uint64(3+i), 0); err != nil {
				t.Fatal(err)
			}
		}
		waits := make(chan error, 1)
		go func() { _, err := x.send(99, 0); waits <- err }()
		x.answer(frameReply, &wireReply{Term: 5, LastLog: 3, OK: false})
		start := time.Now()
		if err := <-waits; err == nil {
			t.Fatal("a request was sent on a pipeline that nobody reads")
		}
		if d := time.Since(start); d > 2*time.Second {
			t.Errorf("it waited %v", d)
		}
	})
}

type failingDialer struct{}

func (failingDialer) Dial(context.Context, ServerID, string) (net.Conn, error) {
	return nil, errors.New("no route")
}
