package raftstore

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// maxPipelined bounds the AppendEntries requests to one peer that await their answer.
const maxPipelined = 8

var errPipelineClosed = errors.New("raftstore: the pipeline is closed")

// AppendEntriesPipeline opens a connection of its own on which requests follow
// each other without waiting for answers. Raft asks for one after a success, and
// goes back to single requests when it breaks; where one broke a moment ago it
// is told to go on with those.
func (t *transport) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	peer, addr, err := t.target(id, target)
	if err != nil {
		return nil, err
	}
	if !t.pipes.may(peer, time.Now()) {
		return nil, raft.ErrPipelineReplicationNotSupported
	}
	c, err := t.dial(peer, addr)
	if err != nil {
		t.pipes.ended(peer, time.Now(), time.Now())
		return nil, err
	}
	p := &pipeline{t: t, id: id, conn: c, begun: time.Now(), slots: make(chan struct{}, maxPipelined),
		answered: make(chan raft.AppendFuture), over: make(chan struct{})}
	go p.receive()
	return p, nil
}

// pipeline is one such connection. Answers come in the order of the requests,
// because the peer handles one after the other. Raft's replication to one peer
// is one goroutine, which alone calls AppendEntries and Close.
//
// Raft looks at an answer's term and success and never at an error of its
// future; it even counts a failed one as a contact with the peer. So no failed
// future is ever given to it: the next request fails, raft goes back to single
// requests, from the last index that was answered, and what was in flight is
// sent again. To store entries twice changes nothing; what was not answered is
// not counted.
type pipeline struct {
	t        *transport
	id       raft.ServerID
	conn     *peerConn
	begun    time.Time
	slots    chan struct{} // one token for each request in flight
	answered chan raft.AppendFuture
	over     chan struct{} // closed at the end

	mu       sync.Mutex
	inflight []*pipelined
	err      error // why it is over; set once
}

// pipelined is a request in flight, and raft's view of its answer.
type pipelined struct {
	start, until time.Time
	stamp        uint64 // of the round of reads when it was sent
	args         *raft.AppendEntriesRequest
	resp         *raft.AppendEntriesResponse
}

// Error is nil: only answers become futures that raft sees.
func (f *pipelined) Error() error { return nil }

// Start is when the request was sent.
func (f *pipelined) Start() time.Time { return f.start }

// Request is what was sent.
func (f *pipelined) Request() *raft.AppendEntriesRequest { return f.args }

// Response is the answer.
func (f *pipelined) Response() *raft.AppendEntriesResponse { return f.resp }

// AppendEntries sends a request; it waits while as many as may be are in flight.
func (p *pipeline) AppendEntries(args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	if err := errors.Join(p.t.mayLead(), p.t.mayTalkTo(p.conn.peer)); err != nil {
		p.end(err)
		return nil, err
	}
	payload, err := encodeAppend(args)
	if err != nil {
		return nil, err
	}
	select {
	case p.slots <- struct{}{}:
	case <-p.over:
		return nil, p.reason()
	}
	f := &pipelined{start: time.Now(), until: p.t.deadline(len(payload)), stamp: p.t.acks.sent(), args: args, resp: resp}
	if err := p.begin(f); err != nil {
		return nil, err
	}
	p.conn.SetWriteDeadline(f.until)
	err = writeFrame(p.conn.w, frameAppend, payload)
	if err == nil {
		err = p.conn.w.Flush()
	}
	if err != nil {
		p.end(err)
		return nil, err
	}
	p.t.sentEntries(len(args.Entries))
	return f, nil
}

// Consumer gives the answers, in order.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.answered }

// Close ends it; nothing that is in flight counts any more.
func (p *pipeline) Close() error {
	p.end(errPipelineClosed)
	return nil
}

func (p *pipeline) begin(f *pipelined) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return p.err
	}
	if n := len(p.inflight); n > 0 { // the peer has those before it to do first
		if wait := time.Until(p.inflight[n-1].until); wait > 0 {
			f.until = f.until.Add(wait)
		}
	}
	p.inflight = append(p.inflight, f)
	p.conn.SetReadDeadline(p.inflight[0].until)
	return nil
}

func (p *pipeline) end(err error) {
	p.mu.Lock()
	first := p.err == nil
	if first {
		p.err = err
		close(p.over)
	}
	p.mu.Unlock()
	if first {
		p.t.release(p.conn)
		if !errors.Is(err, errPipelineClosed) {
			p.t.pipes.ended(p.conn.peer, p.begun, time.Now())
		}
	}
}

func (p *pipeline) reason() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

func (p *pipeline) receive() {
	for {
		f, err := p.next()
		if err != nil {
			p.end(err)
			return
		}
		if !p.offer(f) {
			return
		}
		<-p.slots
	}
}

// offer gives raft an answer. Raft stops looking at the first one that ends the
// pipeline, and sees that it has only between two requests: one that waits for a
// place would wait for ever, and with it replication to this peer and Shutdown.
func (p *pipeline) offer(f *pipelined) bool {
	limit := time.NewTimer(p.t.timeouts.RPC)
	defer limit.Stop()
	select {
	case p.answered <- f:
		return true
	case <-p.over:
	case <-limit.C:
		p.end(errPipelineClosed)
	case <-p.t.ctx.Done():
		p.end(ErrStopped)
	}
	return false
}

// next reads one answer and checks it as AppendEntries does.
func (p *pipeline) next() (*pipelined, error) {
	rep, err := p.t.readReply(p.conn)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	if len(p.inflight) == 0 {
		p.mu.Unlock()
		return nil, fmt.Errorf("%w: an answer to nothing", ErrPeer)
	}
	f := p.inflight[0]
	p.inflight = p.inflight[1:]
	until := time.Time{}
	if len(p.inflight) > 0 {
		until = p.inflight[0].until
	}
	p.conn.SetReadDeadline(until)
	p.mu.Unlock()
	if err := p.t.fence.check(); err != nil {
		return nil, err
	}
	p.t.told(p.id, f.args, rep, f.stamp)
	*f.resp = raft.AppendEntriesResponse{Term: rep.Term, LastLog: rep.LastLog, Success: rep.OK, NoRetryBackoff: rep.NoRetryBackoff}
	return f, nil
}

// pipes remembers the pipelines that broke, so that one that breaks as soon as
// it is open does not cost a handshake for every success between.
type pipes struct {
	mu     sync.Mutex
	broken map[ServerID]brokenPipe
}

type brokenPipe struct {
	pause time.Duration
	until time.Time
}

const (
	minPipePause = 100 * time.Millisecond
	maxPipePause = 5 * time.Second
)

func (b *pipes) may(peer ServerID, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return !now.Before(b.broken[peer].until)
}

// ended doubles the pause before the next pipeline to peer, unless this one has
// lived longer than the longest.
func (b *pipes) ended(peer ServerID, begun, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	pause := minPipePause
	if old, ok := b.broken[peer]; ok && now.Sub(begun) < maxPipePause {
		pause = min(2*old.pause, maxPipePause)
	}
	if b.broken == nil {
		b.broken = map[ServerID]brokenPipe{}
	}
	b.broken[peer] = brokenPipe{pause: pause, until: now.Add(pause)}
}

// forget drops what is known of a peer that left.
func (b *pipes) forget(peer ServerID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.broken, peer)
}
