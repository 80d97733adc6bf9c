package raftstore

import (
	"bufio"
	"encoding/binary"
	"errors"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// wireClient is an attacker, or a peer, that speaks frames by hand over a
// channel authenticated as id.
type wireClient struct {
	net.Conn
	r *bufio.Reader
	w *bufio.Writer
}

func dialAs(n *testNode, id ServerID) *wireClient {
	a, b := net.Pipe()
	go n.Serve(b, id)
	return &wireClient{a, bufio.NewReader(a), bufio.NewWriter(a)}
}

// send sends a request, with the pieces of a snapshot behind it, and returns the frame that answers it.
func (c *wireClient) send(t *testing.T, ft frameType, payload []byte, chunks ...[]byte) (frameType, []byte, error) {
	t.Helper()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if err := writeFrame(c.w, ft, payload); err != nil {
		t.Fatal(err)
	}
	for _, b := range chunks {
		if err := writeFrame(c.w, frameChunk, b); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.w.Flush(); err != nil {
		return 0, nil, err
	}
	return readFrame(c.r, nil)
}

// ask sends a request that is answered, whatever the answer.
func ask(t *testing.T, c *wireClient, ft frameType, request any, chunks ...[]byte) (rep wireReply) {
	t.Helper()
	rt, payload, err := c.send(t, ft, mustMarshal(t, request), chunks...)
	if err != nil || rt != frameReply || unmarshal(payload, &rep) != nil {
		t.Fatalf("frame %d %x, %v", rt, payload, err)
	}
	return rep
}

func header(id ServerID, addr string) wireHeader {
	return wireHeader{Version: 3, ID: []byte(id.String()), Addr: []byte(raftAddress(id, addr))}
}

func mustMarshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := encMode.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestHeaderOfAnotherServerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		victim, leader, evil := nodes[1], nodes[0], nodes[2]
		term := victim.Term()
		foreignAddr := header(evil.id, evil.addr)
		foreignAddr.Addr = []byte(raftAddress(leader.id, leader.addr))
		for name, h := range map[string]wireHeader{
			"the leader's id": header(leader.id, leader.addr), "own id with the leader's address": foreignAddr,
			"no id": {Version: 3, Addr: []byte(raftAddress(evil.id, evil.addr))}, "old protocol": {Version: 2, ID: []byte(evil.id.String()), Addr: []byte(raftAddress(evil.id, evil.addr))},
		} {
			for ft, payload := range map[frameType][]byte{
				frameAppend: mustMarshal(t, &wireAppend{Header: h, Term: term + 10}),
				frameVote:   mustMarshal(t, &wireVote{Header: h, Term: term + 10, LastIndex: 1 << 40, LastTerm: term + 9}),
			} {
				c := dialAs(victim, evil.id)
				rt, reply, err := c.send(t, ft, payload)
				if err != nil || rt != frameRefusal || reply[0] != refusedPeer {
					t.Errorf("%s, frame %d: got frame %d %x, error %v", name, ft, rt, reply, err)
				}
				c.Close()
			}
		}
		if victim.Term() != term {
			t.Errorf("a spoofed message raised the term from %d to %d", term, victim.Term())
		}
	})
}

// The attack: a follower holds entry 3 that no majority has; a message that
// matches only up to entry 2 claims that everything up to 100 is committed.
func TestCommitIndexIsClampedToWhatWasMatched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().start(t, "victim")
		boss := ServerID{7}
		conf := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
			{ID: boss.raftID(), Address: raftAddress(boss, "boss:1")}, {ID: n.id.raftID(), Address: raftAddress(n.id, n.addr)}}})
		c := dialAs(n, boss)
		defer c.Close()
		send := func(w wireAppend) wireReply {
			w.Header = header(boss, "boss:1")
			return ask(t, c, frameAppend, &w)
		}
		rep := send(wireAppend{Term: 1, Entries: []wireEntry{
			{Index: 1, Term: 1, Type: uint8(raft.LogConfiguration), Data: conf},
			{Index: 2, Term: 1, Data: []byte("matched")}, {Index: 3, Term: 1, Data: []byte("not committed")}}})
		if !rep.OK {
			t.Fatal("the entries were not stored")
		}
		if rep = send(wireAppend{Term: 1, PrevIndex: 2, PrevTerm: 1, Commit: 100}); !rep.OK {
			t.Fatal("the matching request was refused")
		}
		synctest.Wait()
		if got := n.machine.list(); len(got) != 1 || got[0] != "matched" || n.CommitIndex() != 2 {
			t.Fatalf("applied %q, commit index %d", got, n.CommitIndex())
		}
	})
}

func TestTimeoutNowOnlyFromTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		victim, evil := nodes[1], nodes[2]
		eventually(t, "the victim follows", func() bool { id, _, ok := victim.Leader(); return ok && id == nodes[0].id })
		term := victim.Term()
		c := dialAs(victim, evil.id)
		defer c.Close()
		rt, reply, err := c.send(t, frameTimeoutNow, mustMarshal(t, &wireVote{Header: header(evil.id, evil.addr)}))
		if err != nil || rt != frameRefusal || reply[0] != refusedPeer {
			t.Fatalf("frame %d %x, error %v", rt, reply, err)
		}
		time.Sleep(time.Second)
		if victim.Term() != term || !nodes[0].IsLeader() {
			t.Error("a follower's TimeoutNow deposed the leader")
		}
	})
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b", "c")
		victim, evil := nodes[1], nodes[2]
		h, last := header(evil.id, evil.addr), victim.raft.LastIndex()
		entry := func(e wireEntry) []byte {
			e.Index, e.Term = last+1, 99
			return mustMarshal(t, &wireAppend{Header: h, Term: 99, PrevIndex: last, PrevTerm: 1, Entries: []wireEntry{e}})
		}
		good := mustMarshal(t, &wireAppend{Header: h, Term: 99})
		for name, m := range map[string]struct {
			ft      frameType
			payload []byte
		}{
			"empty":                         {frameAppend, nil},
			"trailing byte":                 {frameAppend, append(good, 0)},
			"truncated":                     {frameAppend, good[:len(good)-1]},
			"gap in the entries":            {frameAppend, mustMarshal(t, &wireAppend{Header: h, Term: 99, Entries: []wireEntry{{Index: 2, Term: 99, Data: []byte("x")}}})},
			"entry of a later term":         {frameAppend, mustMarshal(t, &wireAppend{Header: h, Term: 99, Entries: []wireEntry{{Index: 1, Term: 100, Data: []byte("x")}}})},
			"index overflow":                {frameAppend, mustMarshal(t, &wireAppend{Header: h, Term: 99, PrevIndex: ^uint64(0), Entries: []wireEntry{{Index: 0, Term: 99, Data: []byte("x")}}})},
			"unknown entry type":            {frameAppend, entry(wireEntry{Type: 77, Data: []byte("x")})},
			"deprecated entry type":         {frameAppend, entry(wireEntry{Type: uint8(raft.LogAddPeerDeprecated), Data: []byte("x")})},
			"broken configuration":          {frameAppend, entry(wireEntry{Type: uint8(raft.LogConfiguration), Data: []byte("x")})},
			"oversized entry":               {frameAppend, entry(wireEntry{Data: make([]byte, MaxEntry+1)})},
			"reply as request":              {frameReply, mustMarshal(t, &wireReply{})},
			"snapshot of negative size":     {frameSnapshot, mustMarshal(t, &wireSnapshot{Header: h, Term: 99, LastIndex: 9, LastTerm: 9, Size: -1})},
			"snapshot without bound":        {frameSnapshot, mustMarshal(t, &wireSnapshot{Header: h, Term: 99, LastIndex: 9, LastTerm: 9, Size: MaxSnapshot + 1})},
			"snapshot, broken config":       {frameSnapshot, mustMarshal(t, &wireSnapshot{Header: h, Term: 99, LastIndex: 9, LastTerm: 9, Config: []byte("x"), Size: 0})},
			"snapshot from the future":      {frameSnapshot, mustMarshal(t, &wireSnapshot{Header: h, Term: 1, LastIndex: 9, LastTerm: 9})},
			"a vote where an append is due": {frameAppend, mustMarshal(t, &wireVote{Header: h, Term: 99})},
		} {
			c := dialAs(victim, evil.id)
			rt, reply, err := c.send(t, m.ft, m.payload)
			if err != nil || rt != frameRefusal || reply[0] != refusedPeer {
				t.Errorf("%s: frame %d %x, error %v", name, rt, reply, err)
			}
			c.Close()
		}
		if victim.Term() >= 99 {
			t.Error("a malformed message raised the term")
		}
		propose(t, leaderOf(t, nodes...), "still serving")
	})
}

func TestOversizedFrameEndsTheConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		nodes := newTestNet().cluster(t, "a", "b")
		for _, head := range [][]byte{
			append(binary.BigEndian.AppendUint32(nil, 0xffffffff), byte(frameAppend)),
			append(binary.BigEndian.AppendUint32(nil, maxSmallFrame+1), byte(frameVote)),
			append(binary.BigEndian.AppendUint32(nil, 1), 200),
		} {
			c := dialAs(nodes[0], nodes[1].id)
			c.SetDeadline(time.Now().Add(5 * time.Second))
			if _, err := c.Write(head); err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, errTimeout(err)) {
				t.Errorf("head %x: the connection stayed open: %v", head, err)
			}
		}
	})
}

// errTimeout returns err when it is a timeout, nil otherwise.
func errTimeout(err error) error {
	if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
		return err
	}
	return errors.New("not a timeout")
}

func TestChannelsOfNobodyAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().cluster(t, "a")[0]
		for name, id := range map[string]ServerID{"zero": {}, "ourselves": n.id} {
			c := dialAs(n, id)
			c.SetDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errTimeout(err) == err {
				t.Errorf("%s: a channel was served: %v", name, err)
			}
		}
	})
}

func TestConnectionsOfOnePeerAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newTestNet().cluster(t, "a")[0]
		peer := ServerID{9}
		ask := func(c *wireClient) error {
			_, _, err := c.send(t, framePreVote, mustMarshal(t, &wireVote{Header: header(peer, "peer:1")}))
			return err
		}
		var conns []*wireClient
		for range maxInboundPerPeer {
			conns = append(conns, dialAs(n, peer))
			defer conns[len(conns)-1].Close()
			synctest.Wait()
		}
		if err := ask(conns[0]); err != nil { // the oldest, and not the one that is silent for longest
			t.Fatal(err)
		}
		for range 5 { // whose ends the network keeps back: new ones are served all the same
			c := dialAs(n, peer)
			defer c.Close()
			if err := ask(c); err != nil {
				t.Fatalf("a connection above the limit: %v", err)
			}
		}
		n.trans.mu.Lock()
		if got := len(n.trans.inbound[peer]); got != maxInboundPerPeer {
			t.Errorf("%d connections are open", got)
		}
		n.trans.mu.Unlock()
		if err := ask(conns[0]); err != nil {
			t.Errorf("one that is in use was closed: %v", err)
		}
		for i, c := range conns[1:6] {
			c.SetDeadline(time.Now().Add(time.Second))
			if _, err := c.Read(make([]byte, 1)); err == nil || errTimeout(err) == err {
				t.Errorf("silent connection %d is still open: %v", i+1, err)
			}
		}
	})
}

func TestTermNeverFallsAndOneVotePerTerm(t *testing.T) {
	newStable := func() *stableStore {
		n := &memArchive{}
		key := testKey(t)
		seal, err := newSealer(key, Chain{Server: ServerID{1}})
		if err != nil {
			t.Fatal(err)
		}
		f := newFence()
		return &stableStore{journal: &journal{seal: seal, archive: n, fence: f}, fence: f}
	}
	t.Run("vote", func(t *testing.T) {
		s := newStable()
		vote := func(term uint64, cand string) error {
			return errors.Join(s.SetUint64([]byte(keyLastVoteTerm), term), s.Set([]byte(keyLastVoteCand), []byte(cand)))
		}
		if err := errors.Join(s.SetUint64([]byte(keyCurrentTerm), 5), vote(5, "alice"), vote(5, "alice")); err != nil {
			t.Fatal(err)
		}
		if err := vote(5, "bob"); !errors.Is(err, ErrSecondVote) {
			t.Fatalf("a second vote in term 5: %v", err)
		}
		if got, _ := s.Get([]byte(keyLastVoteCand)); string(got) != "alice" {
			t.Fatalf("the vote now reads %q", got)
		}
		if !errors.Is(s.fence.check(), ErrSecondVote) {
			t.Fatal("the store goes on after a broken rule")
		}
	})
	t.Run("vote in an old term", func(t *testing.T) {
		s := newStable()
		s.SetUint64([]byte(keyCurrentTerm), 5)
		if err := s.SetUint64([]byte(keyLastVoteTerm), 4); !errors.Is(err, ErrTermFell) {
			t.Fatalf("got %v", err)
		}
	})
	t.Run("term", func(t *testing.T) {
		s := newStable()
		s.SetUint64([]byte(keyCurrentTerm), 5)
		s.SetUint64([]byte(keyCurrentTerm), 4)
		if got, _ := s.GetUint64([]byte(keyCurrentTerm)); got != 5 {
			t.Fatalf("the term fell to %d", got)
		}
		if !errors.Is(s.fence.check(), ErrTermFell) {
			t.Fatal("the store goes on after a falling term")
		}
	})
}

func FuzzDecode(f *testing.F) {
	peer := ServerID{1}
	h := header(peer, "a:1")
	add := func(v any) {
		b, err := encMode.Marshal(v)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(&wireAppend{Header: h, Term: 2, PrevIndex: 1, PrevTerm: 1, Commit: 9, Entries: []wireEntry{{Index: 2, Term: 2, Data: []byte("x")}}})
	add(&wireVote{Header: h, Term: 2})
	add(&wireSnapshot{Header: h, Term: 2, LastIndex: 1, LastTerm: 1, Config: raft.EncodeConfiguration(raft.Configuration{
		Servers: []raft.Server{{ID: peer.raftID(), Address: raftAddress(peer, "a:1")}}}), ConfigIndex: 1})
	add(&wireForward{Header: h, Seq: 1, Entries: [][]byte{[]byte("x"), []byte("y")}})
	add(&wireAsk{Header: h})
	add(&wireOutcomes{Seq: 1, Outcomes: []wireOutcome{{Code: outcomeDone, Index: 1, Term: 1}, {Code: outcomeBusy}}})
	add(&wireIndex{Code: outcomeDone, LeaderTerm: 2, Index: 3, EntryTerm: 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		if list, err := decodeForward(b, peer, 1); err == nil {
			size := 0
			for _, e := range list {
				if size += len(e); len(e) == 0 || len(e) > MaxEntry {
					t.Fatal("an entry without bound passed")
				}
			}
			if len(list) == 0 || len(list) > maxForwardEntries || size > maxForwardBytes {
				t.Fatal("an unbounded frame of proposals passed")
			}
		}
		if list, err := decodeOutcomes(b, 1, 2); err == nil {
			for _, o := range list {
				if (o.Code == outcomeDone) != (o.Index > 0 && o.Term > 0) {
					t.Fatal("an outcome and its place do not agree")
				}
			}
		}
		if i, err := decodeIndex(b); err == nil && (i.Code == outcomeDone) != (i.Index > 0 && i.LeaderTerm > 0) {
			t.Fatal("a read index without a leader passed")
		}
		_ = decodeAsk(b, peer)
		if a, err := decodeAppend(b, peer); err == nil {
			if a.LeaderCommitIndex > a.PrevLogEntry+uint64(len(a.Entries)) || string(a.ID) != peer.String() {
				t.Fatal("an unclamped or foreign request passed")
			}
		}
		if h, _, err := decodeVote(b, peer); err == nil && string(h.ID) != peer.String() {
			t.Fatal("a foreign vote passed")
		}
		if s, err := decodeSnapshot(b, peer); err == nil && (s.Size < 0 || s.Size > MaxSnapshot) {
			t.Fatal("an unbounded snapshot passed")
		}
	})
}
