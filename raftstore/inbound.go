package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// serve answers the requests of one inbound channel until it ends. Requests of
// one connection are handled one at a time, which is the back-pressure on a peer.
func (t *transport) serve(raw net.Conn, peer ServerID) {
	conn := &inboundConn{Conn: raw, clock: &t.uses}
	defer conn.Close()
	idle, err := t.admit(conn, peer)
	if err != nil {
		t.refuse(peer, err)
		return
	}
	if idle != nil {
		idle.Close()
	}
	defer t.serving.Done()
	defer t.forget(conn, peer)
	r, w := bufio.NewReaderSize(conn, 16<<10), bufio.NewWriterSize(conn, 16<<10)
	for {
		conn.SetDeadline(time.Time{}) // between requests a peer may be silent for as long as it likes
		ft, payload, err := readFrame(r, func(n int) { conn.SetDeadline(t.deadline(n)) })
		if err != nil {
			if errors.Is(err, ErrPeer) {
				t.refuse(peer, err)
			}
			return
		}
		if !t.occupy(conn, peer) {
			return
		}
		switch ft {
		case frameForward:
			t.serveForwards(conn, r, w, peer, payload)
			return
		case frameAsk:
			if !t.answerAsk(conn, w, peer, payload) {
				return
			}
		default:
			if !t.answer(conn, r, w, peer, ft, payload) {
				return
			}
		}
		t.vacate(conn)
	}
}

// inboundConn remembers when it last brought something.
type inboundConn struct {
	net.Conn
	clock *atomic.Uint64 // counts what all of them bring
	used  atomic.Uint64
	busy  bool // a request of it is being handled; guarded by the transport's mu
}

// Read reads from the connection.
func (c *inboundConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	c.used.Store(c.clock.Add(1))
	return n, err
}

// admit registers a connection. A peer has maxInboundPerPeer of them at most;
// one more takes the place of the one that has been silent for longest, which
// the caller closes: the network may keep the end of a connection from us for
// as long as it likes, and a peer whose connections have all been lost that way
// must be heard again. One whose request is being handled keeps its place: what
// waits for raft goes on waiting without its connection, and while the host lets
// raft wait for the disk a peer that gives up and dials again would fill the
// memory.
func (t *transport) admit(conn *inboundConn, peer ServerID) (idle *inboundConn, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, ErrStopped
	case peer.IsZero() || peer == t.self:
		return nil, fmt.Errorf("%w: the channel is nobody's or our own", ErrPeer)
	case t.members.removed(peer):
		return nil, fmt.Errorf("%w: server %s was removed", ErrPeer, peer.short())
	}
	conn.used.Store(t.uses.Add(1))
	if len(t.inbound[peer]) >= maxInboundPerPeer {
		for c := range t.inbound[peer] {
			if !c.busy && (idle == nil || c.used.Load() < idle.used.Load()) {
				idle = c
			}
		}
		if idle == nil {
			return nil, errors.New("raftstore: requests of the peer wait on all the connections that it may have")
		}
		delete(t.inbound[peer], idle)
	}
	if t.inbound[peer] == nil {
		t.inbound[peer] = map[*inboundConn]bool{}
	}
	t.inbound[peer][conn] = true
	t.serving.Add(1) // under mu, so that Close cannot begin to wait in between
	return idle, nil
}

// occupy says that a request of conn is being handled, unless it has lost its place.
func (t *transport) occupy(conn *inboundConn, peer ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	conn.busy = t.inbound[peer][conn]
	return conn.busy
}

// vacate says that conn waits for its next request.
func (t *transport) vacate(conn *inboundConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	conn.busy = false
}

func (t *transport) forget(conn *inboundConn, peer ServerID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.inbound[peer], conn)
	if t.streams[peer] == conn {
		delete(t.streams, peer)
	}
	if len(t.inbound[peer]) == 0 {
		delete(t.inbound, peer)
	}
}

func (t *transport) refuse(peer ServerID, err error) {
	t.refused.Add(1)
	level := slog.LevelWarn
	if t.warned.again(peer.short(), time.Now()) { // it may try again as often as it likes
		level = slog.LevelDebug
	}
	t.log.Log(context.Background(), level, "refused a raft peer", "peer", peer.short(), "reason", err)
}

// answer handles one request and reports whether the connection may go on.
func (t *transport) answer(conn net.Conn, r *bufio.Reader, w *bufio.Writer, peer ServerID, ft frameType, payload []byte) bool {
	rep, err := t.handle(conn, r, peer, ft, payload)
	// The fence is looked at after raft has answered: a write that failed while
	// it did must not be acknowledged.
	if t.fence.check() != nil || t.ctx.Err() != nil {
		return false
	}
	conn.SetDeadline(t.deadline(0))
	if err != nil {
		code := refusedFailed
		if errors.Is(err, ErrPeer) {
			code = refusedPeer
			t.refuse(peer, err)
		}
		if writeFrame(w, frameRefusal, []byte{code}) == nil {
			w.Flush()
		}
		return code != refusedPeer && ft != frameSnapshot // what follows of a snapshot is no request
	}
	out, err := encMode.Marshal(&rep)
	if err != nil || writeFrame(w, frameReply, out) != nil {
		return false
	}
	return w.Flush() == nil
}

func (t *transport) handle(conn net.Conn, r *bufio.Reader, peer ServerID, ft frameType, payload []byte) (wireReply, error) {
	if t.members.removed(peer) {
		return wireReply{}, fmt.Errorf("%w: server %s was removed", ErrPeer, peer.short())
	}
	switch ft {
	case frameAppend:
		a, err := decodeAppend(payload, peer)
		if err != nil {
			return wireReply{}, err
		}
		return t.appendEntries(a)
	case frameVote, framePreVote, frameTimeoutNow:
		return t.handleVote(peer, ft, payload)
	case frameSnapshot:
		return t.handleSnapshot(conn, r, peer, payload)
	}
	return wireReply{}, fmt.Errorf("%w: frame type %d is not a request", ErrPeer, ft)
}

// asVoter is the id under which raft is asked for a pre-vote: that of some voter
// of its configuration. Raft refuses candidates that are no voters there; but a
// candidate may have been made one by an entry that the one who is asked has not
// got yet. Where a leader commits a voter with that voter's help and dies, the
// voter would have the only log that may win, and never a vote: a majority that
// is up would have no leader for ever. The Raft paper (§4.1) gives votes without
// regard to configurations; who campaigns is a voter by its own log, and those
// who were removed are refused before this. A vote has no id at all and raft
// skips the question; the candidate is the address, which is checked.
func asVoter(c raft.Configuration) []byte {
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			return []byte(s.ID)
		}
	}
	return nil
}

func (t *transport) handleVote(peer ServerID, ft frameType, payload []byte) (wireReply, error) {
	h, w, err := decodeVote(payload, peer)
	if err != nil {
		return wireReply{}, err
	}
	last, electing := t.host.electing()
	switch ft {
	case frameVote:
		h.ID = nil // raft then does not ask its own configuration: see asVoter
		return t.dispatch(&raft.RequestVoteRequest{RPCHeader: h, Term: w.Term, Candidate: h.Addr,
			LastLogIndex: w.LastIndex, LastLogTerm: w.LastTerm, LeadershipTransfer: w.Transfer || electing}, nil)
	case framePreVote:
		h.ID = asVoter(t.host.configuration())
		if electing && last != "" {
			h.Addr = []byte(last)
		}
		return t.dispatch(&raft.RequestPreVoteRequest{RPCHeader: h, Term: w.Term, LastLogIndex: w.LastIndex, LastLogTerm: w.LastTerm}, nil)
	}
	// Raft campaigns on any TimeoutNow, past pre-vote and past a healthy leader.
	if leader := t.leader.Load(); leader == nil || (*leader)() != peer.raftID() {
		return wireReply{}, fmt.Errorf("%w: TimeoutNow from a server that is not the leader", ErrPeer)
	}
	return t.dispatch(&raft.TimeoutNowRequest{RPCHeader: h}, nil)
}

// handleSnapshot takes the whole snapshot before raft sees the request: raft
// reads it on its main loop, and heartbeats would wait behind a slow stream.
func (t *transport) handleSnapshot(conn net.Conn, r *bufio.Reader, peer ServerID, payload []byte) (wireReply, error) {
	req, err := decodeSnapshot(payload, peer)
	if err != nil {
		return wireReply{}, err
	}
	if !t.reception.begin(conn) {
		return wireReply{}, errPeerFailed
	}
	defer t.reception.end(conn)
	conn.SetDeadline(t.deadline(int(req.Size)))
	var data []byte
	for int64(len(data)) < req.Size {
		ft, chunk, err := readFrame(r, nil)
		if err != nil {
			return wireReply{}, fmt.Errorf("%w: snapshot stream: %w", ErrPeer, err)
		}
		if want := min(req.Size-int64(len(data)), chunkSize); ft != frameChunk || int64(len(chunk)) != want {
			return wireReply{}, fmt.Errorf("%w: snapshot chunk of %d bytes where %d are due", ErrPeer, len(chunk), want)
		}
		data = append(data, chunk...)
	}
	if !t.reception.complete(conn) {
		return wireReply{}, errPeerFailed
	}
	return t.installSnapshot(req, data)
}

// dispatch gives the request to raft's main loop and waits for its answer.
func (t *transport) dispatch(cmd any, body io.Reader) (wireReply, error) {
	if err := t.fence.check(); err != nil {
		return wireReply{}, err
	}
	answer := make(chan raft.RPCResponse, 1)
	select {
	case t.consumer <- raft.RPC{Command: cmd, Reader: body, RespChan: answer}:
	case <-t.ctx.Done():
		return wireReply{}, ErrStopped
	}
	select {
	case res := <-answer:
		return toReply(res)
	case <-t.ctx.Done():
		return wireReply{}, ErrStopped
	}
}

func toReply(res raft.RPCResponse) (wireReply, error) {
	if res.Error != nil {
		return wireReply{}, res.Error
	}
	switch v := res.Response.(type) {
	case *raft.AppendEntriesResponse:
		return wireReply{Term: v.Term, LastLog: v.LastLog, OK: v.Success, NoRetryBackoff: v.NoRetryBackoff}, nil
	case *raft.RequestVoteResponse:
		return wireReply{Term: v.Term, OK: v.Granted}, nil
	case *raft.RequestPreVoteResponse:
		return wireReply{Term: v.Term, OK: v.Granted}, nil
	case *raft.InstallSnapshotResponse:
		return wireReply{Term: v.Term, OK: v.Success}, nil
	case *raft.TimeoutNowResponse:
		return wireReply{OK: true}, nil
	}
	return wireReply{}, errPeerFailed
}
