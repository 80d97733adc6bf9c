package raftstore

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// The network of the deterministic chaos. It carries whole requests and whole
// replies, in order on each channel, as an authenticated channel does; what the
// host can do to them is delay, withhold, or end the channel. It does more than
// a host can: it delivers requests a second time, later and through a channel
// of their own. For raft's requests that is what the store itself does when it
// sends again what it believes lost while the host lets the first one through
// late; proposals that a follower forwards are never sent again, so they are not.

// hazard is one thing that is wrong with the network while it is in force.
type hazard struct {
	match func(from, to *boot, request bool) bool
	block blocking
	lose  float64 // chance that a message, and all that comes after it on its channel, never arrives
	reset float64 // chance that the channel ends instead
	again float64 // chance that a request is delivered a second time
	slow  float64 // chance of a delay
	delay time.Duration
}

type blocking int

const (
	passes blocking = iota
	loses           // what is sent never arrives
	holds           // what is sent arrives when the hazard is over, also on channels that their dialler has given up
)

// maxBusy is how many messages may be sent at one instant. Servers that ask each
// other again and again without a pause would keep the clock from moving.
const maxBusy = 20000

type chaosNet struct {
	stats *counters

	mu      sync.Mutex
	dice    *rand.Rand
	boots   map[ServerID]*boot
	hazards []*hazard
	conns   map[*chaosConn]bool // the diallers' ends
	instant time.Time           // of the last message
	busy    int                 // messages at that instant
	spins   func()              // told once of too many
	holding map[*stream]bool
}

func newChaosNet(seed uint64, stats *counters) *chaosNet {
	return &chaosNet{stats: stats, dice: rand.New(rand.NewPCG(seed, 11)), boots: map[ServerID]*boot{},
		conns: map[*chaosConn]bool{}, holding: map[*stream]bool{}}
}

// begin puts a hazard in force until the result is called.
func (n *chaosNet) begin(h *hazard) (end func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hazards = append(n.hazards, h)
	return func() { n.end(h) }
}

func (n *chaosNet) end(h *hazard) {
	n.mu.Lock()
	for i, have := range n.hazards {
		if have == h {
			n.hazards = append(n.hazards[:i:i], n.hazards[i+1:]...)
			break
		}
	}
	var free []*stream
	for s := range n.holding {
		if n.blocked(s.from, s.to, s.request) != holds {
			free = append(free, s)
			delete(n.holding, s)
		}
	}
	n.mu.Unlock()
	for _, s := range free {
		s.release()
	}
}

// blocked needs mu.
func (n *chaosNet) blocked(from, to *boot, request bool) blocking {
	worst := passes
	for _, h := range n.hazards {
		if h.block > worst && h.match(from, to, request) {
			worst = h.block
		}
	}
	return worst
}

// reachable says whether a call of a to b, outside raft, would be answered now.
func (n *chaosNet) reachable(a, b *boot) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return !a.dead.Load() && !b.dead.Load() &&
		n.blocked(a, b, true) == passes && n.blocked(b, a, false) == passes
}

// fate is what becomes of one message.
type fate struct {
	block blocking
	reset bool
	again time.Duration // after which it is delivered once more; 0: it is not
	delay time.Duration
}

func (n *chaosNet) fate(s *stream) (f fate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.messages.Add(1)
	if now := time.Now(); !now.Equal(n.instant) {
		n.instant, n.busy = now, 0
	}
	if n.busy++; n.busy > maxBusy {
		f.delay = time.Millisecond
		if n.spins != nil {
			go n.spins()
			n.spins = nil
		}
	}
	for _, h := range n.hazards {
		if !h.match(s.from, s.to, s.request) {
			continue
		}
		f.block = max(f.block, h.block)
		if h.lose > 0 && n.dice.Float64() < h.lose {
			f.block = max(f.block, loses)
			n.stats.count("message lost")
		}
		if h.reset > 0 && n.dice.Float64() < h.reset {
			f.reset = true
			n.stats.count("channel reset")
		}
		if s.request && h.again > 0 && n.dice.Float64() < h.again {
			f.again = 1 + time.Duration(n.dice.Int64N(int64(2*time.Second)))
		}
		if h.slow > 0 && n.dice.Float64() < h.slow {
			f.delay += time.Duration(n.dice.Int64N(int64(h.delay)))
			n.stats.count("message delayed")
		}
	}
	if f.block == holds {
		n.holding[s] = true
		n.stats.count("message held")
	}
	return f
}

type chaosDialer struct {
	net  *chaosNet
	self *boot
}

var errRefusedDial = errors.New("connection refused")

// Dial plays the authenticated channel: whoever dials is who Serve is told.
func (d chaosDialer) Dial(ctx context.Context, id ServerID, addr string) (net.Conn, error) {
	n := d.net
	n.mu.Lock()
	b := n.boots[id]
	if b == nil || b.addr != addr || b.dead.Load() || d.self.dead.Load() {
		n.mu.Unlock()
		return nil, errRefusedDial
	}
	if n.blocked(d.self, b, true) != passes || n.blocked(b, d.self, false) != passes {
		n.mu.Unlock()
		<-ctx.Done()
		return nil, ctx.Err()
	}
	there, back := newStream(n, d.self, b, true), newStream(n, b, d.self, false)
	near, far := &chaosConn{in: back, out: there}, &chaosConn{in: there, out: back}
	n.conns[near] = true
	n.mu.Unlock()
	go b.Serve(far, d.self.id)
	return near, nil
}

// sever ends the channels for which f says so; quiet leaves those at the other
// end without news of it.
func (n *chaosNet) sever(quiet bool, f func(a, b *boot) bool) {
	n.mu.Lock()
	var hit []*chaosConn
	for c := range n.conns {
		if f(c.out.from, c.out.to) {
			hit = append(hit, c)
			delete(n.conns, c)
		}
	}
	n.mu.Unlock()
	for _, c := range hit {
		for _, s := range []*stream{c.in, c.out} {
			if quiet {
				s.cutOff()
			} else {
				s.reset()
			}
		}
	}
}

// replay delivers a request once more, on a channel of its own.
func (n *chaosNet) replay(from, to *boot, message []byte, after time.Duration) {
	time.AfterFunc(after, func() {
		if to.dead.Load() {
			return
		}
		to.Serve(&replayConn{left: message, closed: make(chan struct{})}, from.id)
	})
}

// stream is one direction of a channel.
type stream struct {
	net      *chaosNet
	from, to *boot
	request  bool

	mu       sync.Mutex
	part     []byte // of a message that is not complete
	due      []parcel
	last     time.Time // when the last parcel is due: order is kept
	pump     *time.Timer
	held     bool
	cut      bool // nothing written from here on arrives
	ready    []byte
	err      error // after ready
	closed   bool  // by the reader
	deadline time.Time
	waiting  bool
	news     chan struct{}
	timer    *time.Timer
}

type parcel struct {
	at   time.Time
	data []byte
	err  error
}

func newStream(n *chaosNet, from, to *boot, request bool) *stream {
	return &stream{net: n, from: from, to: to, request: request, news: make(chan struct{}, 1)}
}

// poke needs mu.
func (s *stream) poke() {
	if s.waiting {
		s.waiting = false
		select {
		case s.news <- struct{}{}:
		default:
		}
	}
}

func (s *stream) read(p []byte) (int, error) {
	for {
		s.mu.Lock()
		switch {
		case s.closed:
			s.mu.Unlock()
			return 0, net.ErrClosed
		case len(s.ready) > 0:
			n := copy(p, s.ready)
			if s.ready = s.ready[n:]; len(s.ready) == 0 {
				s.ready = nil
			}
			s.mu.Unlock()
			return n, nil
		case s.err != nil:
			err := s.err
			s.mu.Unlock()
			return 0, err
		}
		left := time.Duration(0)
		if !s.deadline.IsZero() {
			if left = time.Until(s.deadline); left <= 0 {
				s.mu.Unlock()
				return 0, os.ErrDeadlineExceeded
			}
		}
		s.waiting = true
		s.mu.Unlock()
		if left == 0 {
			<-s.news
			continue
		}
		if s.timer == nil {
			s.timer = time.NewTimer(left)
		} else {
			s.timer.Reset(left)
		}
		select {
		case <-s.news:
		case <-s.timer.C:
		}
		s.timer.Stop()
	}
}

func (s *stream) write(p []byte) (int, error) {
	if s.from.dead.Load() {
		return 0, net.ErrClosed
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.part = append(s.part, p...)
	for {
		n := messageSize(s.part)
		if n == 0 || n > len(s.part) {
			return len(p), nil
		}
		message := s.part[:n:n]
		if s.part = s.part[n:]; len(s.part) == 0 {
			s.part = nil
		}
		s.send(message)
	}
}

// messageSize is the length of the message b begins with, a snapshot with all
// its pieces being one; 0 when that cannot be said yet.
func messageSize(b []byte) int {
	n := frameSize(b)
	if n == 0 || n > len(b) || frameType(b[4]) != frameSnapshot {
		return n
	}
	var w wireSnapshot
	if unmarshal(b[5:n], &w) != nil {
		return n
	}
	for left := int(w.Size); left > 0; {
		piece := frameSize(b[n:])
		if piece == 0 {
			return 0
		}
		n, left = n+piece, left-(piece-5)
		if n > len(b) {
			return n
		}
	}
	return n
}

func frameSize(b []byte) int {
	if len(b) < 5 {
		return 0
	}
	return 5 + int(binary.BigEndian.Uint32(b))
}

// send needs mu.
func (s *stream) send(message []byte) {
	if s.cut {
		return
	}
	f := s.net.fate(s)
	if f.again > 0 && frameType(message[4]) <= frameTimeoutNow {
		s.net.stats.count("request delivered again")
		s.net.replay(s.from, s.to, message, f.again)
	}
	switch {
	case f.reset:
		go s.net.sever(false, func(a, b *boot) bool { return a == s.from && b == s.to || a == s.to && b == s.from })
	case f.block == loses:
		s.cut = true
	default:
		s.held = s.held || f.block == holds
		s.post(parcel{at: time.Now().Add(f.delay), data: message})
	}
}

// post needs mu.
func (s *stream) post(p parcel) {
	if p.at.Before(s.last) {
		p.at = s.last
	}
	s.last = p.at
	if !s.held && len(s.due) == 0 && !p.at.After(time.Now()) {
		s.deliver(p)
		return
	}
	s.due = append(s.due, p)
	if !s.held && len(s.due) == 1 {
		s.arm()
	}
}

// deliver needs mu.
func (s *stream) deliver(p parcel) {
	s.ready = append(s.ready, p.data...)
	if s.err == nil {
		s.err = p.err
	}
	s.poke()
}

// arm needs mu.
func (s *stream) arm() {
	left := time.Until(s.due[0].at)
	if s.pump == nil {
		s.pump = time.AfterFunc(left, s.work)
	} else {
		s.pump.Reset(left)
	}
}

func (s *stream) work() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.due) > 0 && !s.held {
		if s.due[0].at.After(time.Now()) {
			s.arm()
			return
		}
		s.deliver(s.due[0])
		s.due = s.due[1:]
	}
}

// release lets go what was held.
func (s *stream) release() {
	s.mu.Lock()
	s.held = false
	s.mu.Unlock()
	s.work()
}

// finish is the writer's close: the reader learns of it after what is on the way.
func (s *stream) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.cut {
		return
	}
	s.cut = true
	s.post(parcel{at: time.Now(), err: io.EOF})
}

func (s *stream) cutOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut = true
}

func (s *stream) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cut, s.due, s.ready = true, nil, nil
	s.err = syscall.ECONNRESET
	s.poke()
}

func (s *stream) stopReading() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	s.poke()
}

func (s *stream) setDeadline(t time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deadline = t
	s.poke()
}

type chaosConn struct{ in, out *stream }

func (c *chaosConn) Read(p []byte) (int, error)  { return c.in.read(p) }
func (c *chaosConn) Write(p []byte) (int, error) { return c.out.write(p) }
func (c *chaosConn) Close() error {
	c.in.stopReading()
	c.out.finish()
	n := c.in.net
	n.mu.Lock()
	delete(n.conns, c)
	n.mu.Unlock()
	return nil
}
func (c *chaosConn) SetDeadline(t time.Time) error      { c.in.setDeadline(t); return nil }
func (c *chaosConn) SetReadDeadline(t time.Time) error  { c.in.setDeadline(t); return nil }
func (c *chaosConn) SetWriteDeadline(_ time.Time) error { return nil }
func (c *chaosConn) LocalAddr() net.Addr                { return chaosAddr{} }
func (c *chaosConn) RemoteAddr() net.Addr               { return chaosAddr{} }

type chaosAddr struct{}

func (chaosAddr) Network() string { return "chaos" }
func (chaosAddr) String() string  { return "chaos" }

// replayConn is the serving end of a channel that brings one message and takes
// no interest in the answer.
type replayConn struct {
	chaosConn
	left   []byte
	once   sync.Once
	closed chan struct{}
}

func (c *replayConn) Read(p []byte) (int, error) {
	if len(c.left) > 0 {
		n := copy(p, c.left)
		c.left = c.left[n:]
		return n, nil
	}
	select {
	case <-c.closed:
	case <-time.After(time.Second):
	}
	return 0, io.EOF
}

func (c *replayConn) Write(p []byte) (int, error)      { return len(p), nil }
func (c *replayConn) Close() error                     { c.once.Do(func() { close(c.closed) }); return nil }
func (c *replayConn) SetDeadline(time.Time) error      { return nil }
func (c *replayConn) SetReadDeadline(time.Time) error  { return nil }
func (c *replayConn) SetWriteDeadline(time.Time) error { return nil }
