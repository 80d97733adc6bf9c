package raftstore

import (
	"encoding/binary"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

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
	kind := frameType(message[4])
	f := s.net.fate(s, kind)
	if f.again > 0 && kind <= frameTimeoutNow {
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
