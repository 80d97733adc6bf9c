package raftstore

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// Dialer opens an authenticated channel to exactly the server id, which was
// last known at addr; a channel to anybody else is an error. The channel is
// closed by the store.
type Dialer interface {
	Dial(ctx context.Context, id ServerID, addr string) (net.Conn, error)
}

// transport is the raft.Transport of the store. Every message is bound to the
// identity of the channel it came through; see DESIGN.md for the rules.
type transport struct {
	self     ServerID
	addr     raft.ServerAddress
	dialer   Dialer
	timeouts Timeouts
	fence    *fence
	log      *slog.Logger
	consumer chan raft.RPC
	members  *members
	acks     *acks
	matched  matched
	pipes    pipes
	batches  func(n int) // is told how many entries each request carries; may be nil
	warned   onceIn

	snapshotsOut, snapshotsIn atomic.Uint64
	leader                    atomic.Pointer[func() raft.ServerID]
	host                      host // what peers ask of this server beside raft; set before anybody is served
	refused                   atomic.Uint64
	uses                      atomic.Uint64 // see inboundConn
	growing                   diskLock      // held while raft takes entries or a snapshot
	settling                  *diskLock     // held while a snapshot is installed: see fsmSnapshot.Persist; set before anybody is served
	reception                 reception

	ctx    context.Context // ends when the transport closes
	cancel context.CancelFunc

	mu      sync.Mutex
	closed  bool
	idle    map[ServerID][]*peerConn
	open    map[ServerID]map[*peerConn]bool // all outbound connections, in use or idle
	inbound map[ServerID]map[*inboundConn]bool
	streams map[ServerID]net.Conn // of inbound, the one that carries proposals
	serving sync.WaitGroup
}

var (
	_ raft.Transport   = (*transport)(nil)
	_ raft.WithPreVote = (*transport)(nil)
	_ raft.WithClose   = (*transport)(nil)
)

// host is the store as its peers see it beside raft.
type host interface {
	compacted(index uint64) (applied uint64, gone bool)
	electing() (last raft.ServerAddress, ok bool)
	proposeFor(peer ServerID, entries [][]byte, fr *forwarded) error
	readIndexFor(peer ServerID) (wireIndex, error)
	configuration() raft.Configuration // the latest appended one
	holds(index, term uint64) bool
	storingFor() time.Duration
}

type peerConn struct {
	net.Conn
	peer  ServerID
	begun time.Time // when it was dialled
	r     *bufio.Reader
	w     *bufio.Writer
}

func newTransport(self ServerID, addr string, d Dialer, t Timeouts, f *fence, log *slog.Logger) *transport {
	ctx, cancel := context.WithCancel(context.Background())
	tr := &transport{self: self, addr: raftAddress(self, addr), dialer: d, timeouts: t, fence: f, log: log,
		consumer: make(chan raft.RPC), acks: newAcks(), ctx: ctx, cancel: cancel,
		idle: map[ServerID][]*peerConn{}, open: map[ServerID]map[*peerConn]bool{}, inbound: map[ServerID]map[*inboundConn]bool{},
		streams: map[ServerID]net.Conn{}, warned: onceIn{last: map[string]time.Time{}}}
	tr.members = newMembers(tr.drop)
	tr.members.log = log
	return tr
}

// Consumer gives raft its inbound requests, heartbeats included.
func (t *transport) Consumer() <-chan raft.RPC { return t.consumer }

// LocalAddr is this server's address with its identity in it.
func (t *transport) LocalAddr() raft.ServerAddress { return t.addr }

// EncodePeer and DecodePeer pass addresses through: ours carry the identity already.
func (t *transport) EncodePeer(_ raft.ServerID, a raft.ServerAddress) []byte { return []byte(a) }

// DecodePeer is the inverse of EncodePeer.
func (t *transport) DecodePeer(b []byte) raft.ServerAddress { return raft.ServerAddress(b) }

// SetHeartbeatHandler ignores the handler: it would run beside raft's main
// loop, where a heartbeat can race a vote and cast two votes in one term.
func (t *transport) SetHeartbeatHandler(func(raft.RPC)) {}

// AppendEntries sends entries or a heartbeat.
func (t *transport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := t.mayLead(); err != nil {
		return err
	}
	payload, err := encodeAppend(args)
	if err != nil {
		return err
	}
	stamp := t.acks.sent()
	rep, err := t.call(id, target, frameAppend, payload)
	if err != nil {
		return err
	}
	t.sentEntries(len(args.Entries))
	t.told(id, args, rep, stamp)
	*resp = raft.AppendEntriesResponse{Term: rep.Term, LastLog: rep.LastLog, Success: rep.OK, NoRetryBackoff: rep.NoRetryBackoff}
	return nil
}

// RequestVote asks for a vote.
func (t *transport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	rep, err := t.callVote(id, target, frameVote, wireVote{Header: toWireHeader(args.RPCHeader), Term: args.Term,
		LastIndex: args.LastLogIndex, LastTerm: args.LastLogTerm, Transfer: args.LeadershipTransfer})
	if err != nil {
		return err
	}
	*resp = raft.RequestVoteResponse{Term: rep.Term, Granted: rep.OK}
	return nil
}

// RequestPreVote asks whether a vote would be given.
func (t *transport) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	rep, err := t.callVote(id, target, framePreVote, wireVote{Header: toWireHeader(args.RPCHeader), Term: args.Term,
		LastIndex: args.LastLogIndex, LastTerm: args.LastLogTerm})
	if err != nil {
		return err
	}
	*resp = raft.RequestPreVoteResponse{Term: rep.Term, Granted: rep.OK}
	return nil
}

// TimeoutNow tells the target to campaign: leadership transfer.
func (t *transport) TimeoutNow(id raft.ServerID, target raft.ServerAddress, args *raft.TimeoutNowRequest, _ *raft.TimeoutNowResponse) error {
	_, err := t.callVote(id, target, frameTimeoutNow, wireVote{Header: toWireHeader(args.RPCHeader)})
	return err
}

func (t *transport) callVote(id raft.ServerID, target raft.ServerAddress, ft frameType, w wireVote) (wireReply, error) {
	payload, err := encMode.Marshal(&w)
	if err != nil {
		return wireReply{}, err
	}
	return t.call(id, target, ft, payload)
}

// InstallSnapshot streams a snapshot over a connection of its own.
func (t *transport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	payload, err := encMode.Marshal(&wireSnapshot{Header: toWireHeader(args.RPCHeader), Term: args.Term, LastIndex: args.LastLogIndex,
		LastTerm: args.LastLogTerm, Config: args.Configuration, ConfigIndex: args.ConfigurationIndex, Size: args.Size})
	if err != nil {
		return err
	}
	peer, addr, err := t.target(id, target)
	if err != nil {
		return err
	}
	c, err := t.dial(peer, addr)
	if err != nil {
		return err
	}
	defer t.release(c)
	c.SetDeadline(t.deadline(int(args.Size)))
	if err := writeFrame(c.w, frameSnapshot, payload); err != nil {
		return err
	}
	if err := sendChunks(c.w, data, args.Size); err != nil {
		return err
	}
	rep, err := t.reply(c)
	if err != nil {
		return err
	}
	if rep.OK && rep.Term == args.Term {
		t.snapshotsOut.Add(1)
		t.matched.note(peer, args.Term, args.LastLogIndex)
	}
	*resp = raft.InstallSnapshotResponse{Term: rep.Term, Success: rep.OK}
	return nil
}

func sendChunks(w *bufio.Writer, data io.Reader, size int64) error {
	buf := make([]byte, chunkSize)
	for left := size; left > 0; {
		n := min(left, chunkSize)
		if _, err := io.ReadFull(data, buf[:n]); err != nil {
			return fmt.Errorf("raftstore: reading the snapshot to send: %w", err)
		}
		if err := writeFrame(w, frameChunk, buf[:n]); err != nil {
			return err
		}
		left -= n
	}
	return nil
}

// call sends one request and waits for its reply. A pooled connection that the
// peer has closed meanwhile is replaced once; raft's requests may arrive twice.
func (t *transport) call(id raft.ServerID, target raft.ServerAddress, ft frameType, payload []byte) (wireReply, error) {
	peer, addr, err := t.target(id, target)
	if err != nil {
		return wireReply{}, err
	}
	if c := t.pooled(peer); c != nil {
		rep, err := t.exchange(c, ft, payload)
		if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || isRefusal(err) {
			return rep, err
		}
	}
	c, err := t.dial(peer, addr)
	if err != nil {
		return wireReply{}, err
	}
	return t.exchange(c, ft, payload)
}

func isRefusal(err error) bool {
	return errors.Is(err, ErrRefusedByPeer) || errors.Is(err, errPeerFailed)
}

// header is how this server names itself.
func (t *transport) header() wireHeader {
	return wireHeader{Version: uint8(raft.ProtocolVersionMax), ID: []byte(t.self.String()), Addr: []byte(t.addr)}
}

// target checks that the address raft uses belongs to the id it names.
func (t *transport) target(id raft.ServerID, target raft.ServerAddress) (ServerID, string, error) {
	peer, addr, err := parseRaftAddress(target)
	if err != nil {
		return ServerID{}, "", err
	}
	if peer.raftID() != id {
		return ServerID{}, "", fmt.Errorf("%w: the address is another server's", ErrPeer)
	}
	if err := t.mayTalkTo(peer); err != nil {
		return ServerID{}, "", err
	}
	return peer, addr, nil
}

// mayTalkTo is what must hold before anything is sent.
func (t *transport) mayTalkTo(peer ServerID) error {
	if err := t.fence.check(); err != nil {
		return err
	}
	if t.members.removed(peer) {
		return fmt.Errorf("%w: server %s was removed", ErrPeer, peer.short())
	}
	return nil
}

func (t *transport) exchange(c *peerConn, ft frameType, payload []byte) (wireReply, error) {
	c.SetDeadline(t.deadline(len(payload)))
	if err := writeFrame(c.w, ft, payload); err != nil {
		t.release(c)
		return wireReply{}, err
	}
	rep, err := t.reply(c)
	if err != nil {
		t.release(c)
		return wireReply{}, err
	}
	t.put(c)
	return rep, nil
}

func (t *transport) reply(c *peerConn) (wireReply, error) {
	if err := c.w.Flush(); err != nil {
		return wireReply{}, err
	}
	return t.readReply(c)
}

func (t *transport) readReply(c *peerConn) (wireReply, error) {
	var rep wireReply
	ft, payload, err := readFrame(c.r, nil)
	switch {
	case err != nil:
		return rep, err
	case ft == frameRefusal && len(payload) == 1 && payload[0] == refusedPeer:
		return rep, ErrRefusedByPeer
	case ft == frameRefusal:
		return rep, errPeerFailed
	case ft != frameReply:
		return rep, fmt.Errorf("%w: a frame of type %d for a reply", ErrPeer, ft)
	}
	if err := unmarshal(payload, &rep); err != nil {
		return wireReply{}, fmt.Errorf("%w: reply: %w", ErrPeer, err)
	}
	return rep, nil
}

func (t *transport) deadline(n int) time.Time {
	return time.Now().Add(t.timeouts.RPC + time.Duration(n>>20)*time.Second)
}

func (t *transport) pooled(peer ServerID) *peerConn {
	t.mu.Lock()
	defer t.mu.Unlock()
	list := t.idle[peer]
	if len(list) == 0 {
		return nil
	}
	c := list[len(list)-1]
	t.idle[peer] = list[:len(list)-1]
	return c
}

func (t *transport) dial(peer ServerID, addr string) (*peerConn, error) {
	return t.dialFor(t.ctx, peer, addr)
}

func (t *transport) dialFor(ctx context.Context, peer ServerID, addr string) (*peerConn, error) {
	ctx, cancel := context.WithTimeout(ctx, t.timeouts.Dial)
	defer cancel()
	conn, err := t.dialer.Dial(ctx, peer, addr)
	if err != nil {
		return nil, err
	}
	c := &peerConn{Conn: conn, peer: peer, begun: time.Now(), r: bufio.NewReaderSize(conn, 16<<10), w: bufio.NewWriterSize(conn, 16<<10)}
	if !t.opened(c) {
		conn.Close()
		return nil, ErrStopped
	}
	return c, nil
}

func (t *transport) opened(c *peerConn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.members.removed(c.peer) {
		return false
	}
	if t.open[c.peer] == nil {
		t.open[c.peer] = map[*peerConn]bool{}
	}
	t.open[c.peer][c] = true
	return true
}

func (t *transport) release(c *peerConn) {
	c.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open[c.peer], c)
	if len(t.open[c.peer]) == 0 {
		delete(t.open, c.peer)
	}
}

func (t *transport) put(c *peerConn) {
	t.mu.Lock()
	keep := !t.closed && t.open[c.peer][c] && len(t.idle[c.peer]) < maxIdlePerPeer
	if keep {
		t.idle[c.peer] = append(t.idle[c.peer], c)
	}
	t.mu.Unlock()
	if !keep {
		t.release(c)
	}
}

func (t *transport) sentEntries(n int) {
	if t.batches != nil && n > 0 {
		t.batches(n)
	}
}

// drop closes every connection with a server that left the configuration.
func (t *transport) drop(peer ServerID) {
	t.matched.forget(peer)
	t.pipes.forget(peer)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return // Close does it
	}
	list := conns(nil, t.open[peer], t.inbound[peer])
	delete(t.open, peer)
	delete(t.idle, peer)
	delete(t.inbound, peer)
	delete(t.streams, peer)
	t.serving.Go(func() { closeAll(list) })
}

func conns(list []net.Conn, out map[*peerConn]bool, in map[*inboundConn]bool) []net.Conn {
	for c := range out {
		list = append(list, c)
	}
	for c := range in {
		list = append(list, c)
	}
	return list
}

// closeAll closes them all at once. The end of a channel is a message of TLS,
// which a host that takes nothing more keeps waiting for seconds: no lock may be
// held meanwhile, and the machine, whose goroutine says who has left, must not wait.
func closeAll(list []net.Conn) {
	var closing sync.WaitGroup
	for _, c := range list {
		closing.Go(func() { c.Close() })
	}
	closing.Wait()
}

// Close ends all connections and waits until nobody is served any more.
func (t *transport) Close() error {
	t.cancel()
	t.mu.Lock()
	t.closed = true
	var list []net.Conn
	for _, set := range t.open {
		list = conns(list, set, nil)
	}
	for _, set := range t.inbound {
		list = conns(list, nil, set)
	}
	t.idle = map[ServerID][]*peerConn{}
	t.mu.Unlock()
	closeAll(list)
	t.serving.Wait()
	return nil
}
