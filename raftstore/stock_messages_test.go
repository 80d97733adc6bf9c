package raftstore

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

var stranger = raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, ID: []byte("stranger"), Addr: []byte("evil:1")}

// The attack: TimeoutNow from anybody makes a server campaign, past pre-vote and past a healthy leader.
func TestStockTimeoutNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "b:1", "c:1")
		a := n.leader(nodes...)
		b, evil := others(nodes, a)[0], n.listen("evil:1", "")
		n.write(a, "old")
		n.everywhere("old", nodes...)
		term := a.CurrentTerm()
		if err := evil.trans.TimeoutNow(b.id, b.addr, &raft.TimeoutNowRequest{RPCHeader: stranger}, &raft.TimeoutNowResponse{}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the attack deposes the leader", func() bool { return b.State() == raft.Leader && b.CurrentTerm() > term })
		outcome(t, "one message of a stranger deposes a healthy leader")
	})
}

// The attack: an error that contains a certain text counts as a granted pre-vote. Whoever answers in a peer's place
// makes a server that is cut off raise its term, and depose the leader when it returns.
func TestStockPreVoteText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "b:1", "c:1")
		a := n.leader(nodes...)
		c := others(nodes, a)[0]
		before := c.CurrentTerm()
		liar := n.listen(a.addr, "")
		go func() {
			for {
				select {
				case rpc := <-liar.trans.Consumer():
					rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: stranger}, errors.New("unexpected command"))
				case <-liar.gone:
					return
				}
			}
		}()
		n.rooms(others(nodes, c), []*stockNode{c, liar})
		eventually(t, "the attack raises the term", func() bool { return c.CurrentTerm() > before+1 })
		liar.stop()
		n.rooms(nodes)
		eventually(t, "the leader is deposed", func() bool { return n.leader(nodes...).CurrentTerm() > before+1 })
		outcome(t, "an error text is a granted pre-vote: the term rises while cut off, and deposes the leader later")
	})
}

func TestOursPreVoteText(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		text := []byte("unexpected command")
		liar := answering(func(ft frameType) (frameType, []byte) { return frameRefusal, text })
		coded := answering(func(ft frameType) (frameType, []byte) { return frameRefusal, []byte{refusedFailed} })
		asReply := answering(func(ft frameType) (frameType, []byte) { return frameReply, text })
		for name, d := range map[string]*liarDialer{"the text for a code": liar, "a refusal": coded, "the text for a reply": asReply} {
			n := newTestNet().open(t, ServerID{1}, "v:1", testKey(t), func(c *Config) { c.Dialer = d })
			commanded(t, n, ServerID{7}, ServerID{8})
			time.Sleep(time.Minute)
			if n.Term() != 1 || d.count() == 0 {
				t.Errorf("%s: term %d after %d requests", name, n.Term(), d.count())
			}
			n.Shutdown()
		}
		outcome(t, "errors cross the wire as codes: no text is a vote")
	})
}

// liarDialer is a network in which whoever is dialled answers every request in its own way.
type liarDialer struct {
	reply func(frameType) (frameType, []byte)
	mu    sync.Mutex
	asked int
}

func answering(reply func(frameType) (frameType, []byte)) *liarDialer {
	return &liarDialer{reply: reply}
}

func (d *liarDialer) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

func (d *liarDialer) Dial(context.Context, ServerID, string) (net.Conn, error) {
	near, far := net.Pipe()
	c := &wireClient{far, bufio.NewReader(far), bufio.NewWriter(far)}
	go func() {
		defer far.Close()
		for {
			ft, _, err := readFrame(c.r, nil)
			if err != nil {
				return
			}
			d.mu.Lock()
			d.asked++
			d.mu.Unlock()
			rt, payload := d.reply(ft)
			if writeFrame(c.w, rt, payload) != nil || c.w.Flush() != nil {
				return
			}
		}
	}()
	return near, nil
}

// The attack: a request without an id skips the look at the configuration.
func TestStockVoteWithoutID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "b:1", "c:1")
		evil := n.listen("evil:1", "")
		granted := 0
		for _, s := range nodes {
			req := &raft.RequestVoteRequest{RPCHeader: raft.RPCHeader{ProtocolVersion: raft.ProtocolVersionMax, Addr: []byte("evil:1")},
				Term: 1000, LastLogIndex: 1 << 40, LastLogTerm: 999, LeadershipTransfer: true}
			var resp raft.RequestVoteResponse
			if err := evil.trans.RequestVote(s.id, s.addr, req, &resp); err != nil {
				t.Fatal(err)
			}
			if resp.Granted {
				granted++
			}
		}
		if granted != 3 {
			t.Fatalf("the attack does not work any more: %d votes", granted)
		}
		outcome(t, "a stranger gets the votes of all three, past the leader and the configuration")
	})
}

// The attack: entries are taken from whoever names a higher term, and replace committed ones.
func TestStockForgedEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "b:1", "c:1")
		a, evil := n.leader(nodes...), n.listen("evil:1", "")
		n.write(a, "old")
		n.write(a, "acknowledged")
		n.everywhere("acknowledged", nodes...)
		synctest.Wait()
		prev, target := a.indexOf("old"), a.indexOf("acknowledged")
		req := &raft.AppendEntriesRequest{RPCHeader: stranger, Term: 1000, PrevLogEntry: prev.Index, PrevLogTerm: prev.Term,
			Entries: []*raft.Log{{Index: target.Index, Term: 1000, Data: []byte("forged")}}, LeaderCommitIndex: target.Index}
		for _, s := range nodes {
			var resp raft.AppendEntriesResponse
			if err := evil.trans.AppendEntries(s.id, s.addr, req, &resp); err != nil || !resp.Success {
				t.Fatalf("the attack does not work any more: %+v, %v", resp, err)
			}
		}
		for _, s := range nodes {
			if s.indexOf("forged").Index != target.Index {
				t.Fatalf("the attack does not work any more: %q", s.logged())
			}
		}
		lost(t, "acknowledged", nodes...)
		outcome(t, "a stranger replaces a committed entry in every log")
	})
}

// The attack: votes are remembered by address, and a vote is repeated to the same address without a look at the log.
// A candidate that has got its vote is put back to an older disk, and asks again.
func TestStockRepeatedVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "v:1", "c:1")
		a, v, c := nodes[0], nodes[1], nodes[2]
		n.crown(a, nodes...)
		n.write(a, "old")
		n.everywhere("old", nodes...)
		synctest.Wait()
		before := n.copyDisk(c)
		n.write(a, "acknowledged")
		n.everywhere("acknowledged", nodes...) // by all three
		evil := n.listen("evil:1", "")
		timeout := func() {
			eventually(t, "TimeoutNow arrives", func() bool {
				return evil.trans.TimeoutNow(c.id, c.addr, &raft.TimeoutNowRequest{RPCHeader: stranger}, &raft.TimeoutNowResponse{}) == nil
			})
		}
		n.rooms([]*stockNode{v, c, evil}, []*stockNode{a})
		release := n.hold(c) // the vote is given and does not arrive
		timeout()
		eventually(t, "v votes for c", func() bool {
			cand, _ := v.store.Get([]byte("LastVoteCand"))
			return string(cand) == string(c.addr)
		})
		release()
		c.stop()
		c = n.start(c.addr, before, stockOptions{})
		timeout()
		n.write(n.leader(c), "another")
		n.rooms([]*stockNode{a, v, c, evil})
		eventually(t, "the old leader follows", func() bool { return slices.Contains(a.logged(), "another") })
		lost(t, "acknowledged", a, v, c)
		outcome(t, "one old disk is enough to lose a write that all three had acknowledged")
	})
}

func TestOursRepeatedVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		n := net.start(t, "v")
		boss, c, next := ServerID{7}, ServerID{8}, ServerID{9}
		commanded(t, n, boss, c, next) // two boots at one host and port, even if both were voters at once
		vote := func(id ServerID, lastIndex uint64) wireReply {
			ch := dialAs(n, id)
			defer ch.Close()
			return ask(t, ch, frameVote, &wireVote{Header: header(id, "same:1"), Term: 5, LastIndex: lastIndex, LastTerm: 1, Transfer: true})
		}
		if rep := vote(c, 2); !rep.OK {
			t.Fatalf("the first vote: %+v", rep)
		}
		if rep := vote(next, 1); rep.OK {
			t.Fatal("the vote was repeated to the next boot at the same host and port")
		}
		if rep := vote(next, 2); rep.OK {
			t.Fatal("a second vote in one term")
		}
		outcome(t, "the next boot at the same host and port is another candidate, and a vote is given once")
	})
}

// lateSnapshot is a cluster in which the leader a has sent a snapshot to b, which the network has kept a copy of.
func lateSnapshot(t *testing.T) (n *stockNet, nodes []*stockNode, again func()) {
	n = newStockNet(t)
	var req *raft.InstallSnapshotRequest
	var data []byte
	opt := stockOptions{slowClock: true, trailing: 1, wire: func(w *stockWire) {
		w.sniff = func(_ raft.ServerID, r *raft.InstallSnapshotRequest, d []byte) { req, data = r, d }
	}}
	nodes = n.cluster(map[raft.ServerAddress]stockOptions{"a:1": opt}, "a:1", "b:1", "c:1")
	a, b := nodes[0], nodes[1]
	n.crown(a, nodes...)
	n.rooms(others(nodes, b), []*stockNode{b})
	for _, e := range entries("early", 5) {
		n.write(a, e)
	}
	if err := a.Snapshot().Error(); err != nil {
		t.Fatal(err)
	}
	n.rooms(nodes)
	n.everywhere("early-4", b)
	if req == nil {
		t.Fatal("no snapshot was sent")
	}
	return n, nodes, func() {
		var resp raft.InstallSnapshotResponse
		wire := n.listen("wire:1", "").trans // the same bytes again
		if err := wire.InstallSnapshot(b.id, b.addr, req, &resp, bytes.NewReader(data)); err != nil || !resp.Success {
			t.Fatalf("the attack does not work any more: %+v, %v", resp, err)
		}
	}
}

// The attack: addresses lead elsewhere. Answers carry no identity, so one server answers for all whose addresses lead
// to it.
func TestStockRedirected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newStockNet(t)
		nodes := n.cluster(nil, "a:1", "b:1", "c:1", "d:1", "e:1")
		a, c := nodes[0], nodes[2]
		n.crown(a, nodes...)
		n.write(a, "old")
		n.everywhere("old", nodes...)
		rest := others(nodes, a, c)
		n.rooms([]*stockNode{a, c}, rest)
		n.route(map[raft.ServerAddress]raft.ServerAddress{"b:1": "c:1", "d:1": "c:1", "e:1": "c:1"})
		n.write(a, "left") // on a and c, which count as five
		n.route(nil)
		second := n.leader(rest...)
		n.write(second, "right")
		for _, s := range rest {
			if slices.Contains(s.logged(), "left") {
				t.Fatalf("%s has it", s.addr)
			}
		}
		n.rooms(nodes)
		eventually(t, "the two follow", func() bool { return slices.Contains(a.logged(), "right") && slices.Contains(c.logged(), "right") })
		lost(t, "left", nodes...)
		outcome(t, "two servers count as five: an acknowledged write is in no log any more")
	})
}

// Here the channel to an address is refused where the key at its end is another's, which kds/node tests; what is left
// of the attack is servers that cannot be reached.
func TestOursRedirected(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c", "d", "e")
		a, c := nodes[0], nodes[2]
		propose(t, a, "old")
		rest := others(nodes, a, c)
		net.split(a.id, c.id)
		if _, _, err := a.Propose(t.Context(), []byte("left")); err == nil {
			t.Fatal("two of five acknowledged a write")
		}
		if _, err := a.trans.call(rest[0].id.raftID(), raftAddress(c.id, c.addr), frameVote, nil); !errors.Is(err, ErrPeer) {
			t.Fatalf("an address that names another server: %v", err)
		}
		propose(t, leaderOf(t, rest...), "right")
		outcome(t, "no channel opens to another key than the one that is asked for: two servers count as two")
	})
}

// The attack: a snapshot that was sent long ago arrives late.
func TestStockLateSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, nodes, again := lateSnapshot(t)
		b := nodes[1]
		n.write(nodes[0], "acknowledged")
		n.everywhere("acknowledged", nodes...)
		synctest.Wait()
		applied := b.AppliedIndex()
		again()
		if b.AppliedIndex() >= applied || slices.Contains(b.machine.list(), "acknowledged") {
			t.Fatalf("the attack does not work any more: applied %d, then %d", applied, b.AppliedIndex())
		}
		outcome(t, "a follower's machine goes back to the state of the snapshot")
	})
}

// The attack: the late snapshot carries the configuration of its time, in which fewer voters are a majority.
func TestStockLateConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n, nodes, again := lateSnapshot(t)
		a, b, c := nodes[0], nodes[1], nodes[2]
		for _, addr := range []raft.ServerAddress{"d:1", "e:1"} {
			s := n.start(addr, t.TempDir(), stockOptions{})
			nodes = append(nodes, s)
			if err := a.AddVoter(s.id, addr, 0, 0).Error(); err != nil {
				t.Fatal(err)
			}
		}
		n.write(a, "by five")
		n.everywhere("by five", nodes...)
		synctest.Wait()
		again()
		n.rooms(others(nodes, b, c), []*stockNode{b, c})
		second := n.leader(b, c)
		n.write(second, "right")
		n.write(a, "left")
		n.write(second, "right again")
		if a.State() != raft.Leader || slices.Contains(a.machine.list(), "right") || slices.Contains(second.machine.list(), "left") {
			t.Fatal("the attack does not work any more: the cluster did not fork")
		}
		outcome(t, "a follower goes back to an older configuration: two leaders at once, each with a majority, acknowledge different writes")
	})
}

// lateHere lets the snapshot that a has made arrive at b when more has happened, on a channel of a's: a sent it, and
// the network kept it.
func lateHere(t *testing.T, a, b *testNode, meantime func()) {
	t.Helper()
	for _, e := range entries("early", 5) {
		propose(t, a, e)
	}
	if err := a.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	meta, state := newestSnapshot(t, a)
	meantime()
	c := dialAs(b, a.id)
	defer c.Close()
	rep := ask(t, c, frameSnapshot, &wireSnapshot{Header: header(a.id, a.addr), Term: a.Term(), LastIndex: meta.Index, LastTerm: meta.Term,
		Config: raft.EncodeConfiguration(meta.Configuration), ConfigIndex: 1, Size: int64(len(state))}, state)
	if !rep.OK {
		t.Fatalf("what is there already was refused: %+v", rep)
	}
}

func TestOursLateSnapshot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		a, b := nodes[0], nodes[1]
		var applied, last uint64
		lateHere(t, a, b, func() {
			propose(t, a, "acknowledged")
			eventually(t, "b has it", func() bool { return slices.Contains(b.machine.list(), "acknowledged") })
			applied, last = b.AppliedIndex(), b.raft.LastIndex()
		})
		if got, _ := b.logs.LastIndex(); got != last {
			t.Fatalf("the log went back from %d to %d", last, got)
		}
		if b.AppliedIndex() < applied || !slices.Contains(b.machine.list(), "acknowledged") {
			t.Fatalf("the machine went back from %d to %d: %s", applied, b.AppliedIndex(), strings.Join(b.machine.list(), " "))
		}
		propose(t, leaderOf(t, nodes...), "more")
		eventually(t, "b follows on", func() bool { return slices.Contains(b.machine.list(), "more") })
		outcome(t, "answered without installing it: a log that has its last entry stays as it is")
	})
}

func TestOursLateConfiguration(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		lateHere(t, a, b, func() {
			for _, name := range []string{"d", "e"} {
				nodes = append(nodes, net.join(t, a, name))
			}
			propose(t, a, "by five")
			eventually(t, "b has it", func() bool { return slices.Contains(b.machine.list(), "by five") })
		})
		if got := len(b.configuration().Servers); got != 5 {
			t.Fatalf("b goes by a configuration of %d", got)
		}
		net.split(b.id, c.id)
		propose(t, a, "left")
		nobodyLeads(t, b, c)
		outcome(t, "the configuration stays: two of five are no majority")
	})
}

// newestSnapshot is the newest in a server's archive, as its leader would send it.
func newestSnapshot(t *testing.T, n *testNode) (meta raft.SnapshotMeta, data []byte) {
	t.Helper()
	for _, r := range openAll(t, n) {
		switch r.Kind {
		case RecordSnapshot:
			meta, data = raft.SnapshotMeta{Index: r.Index, Term: r.Term, Configuration: raft.DecodeConfiguration(r.Data), ConfigurationIndex: 1}, nil
		case RecordChunk:
			data = append(data, r.Data...)
		}
	}
	if meta.Index == 0 {
		t.Fatal("no snapshot in the archive")
	}
	return meta, data
}
