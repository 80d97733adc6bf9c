package raftstore

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
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
	only  frameType // messages of this kind, and what follows them on their channels; 0: all, and what is dialled
	block blocking
	lose  float64       // chance that a message, and all that comes after it on its channel, never arrives
	reset float64       // chance that the channel ends instead
	again float64       // chance that a request is delivered a second time,
	later time.Duration // by then at the latest
	slow  float64       // chance of a delay
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
	conns   map[*chaosConn]bool     // the diallers' ends
	instant time.Time               // of the last message
	busy    int                     // messages at that instant
	spins   func()                  // told once of too many
	holding map[*stream][]frameType // what is held, and what kinds of messages
}

func newChaosNet(seed uint64, stats *counters) *chaosNet {
	return &chaosNet{stats: stats, dice: rand.New(rand.NewPCG(seed, 11)), boots: map[ServerID]*boot{},
		conns: map[*chaosConn]bool{}, holding: map[*stream][]frameType{}}
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
	for s, kinds := range n.holding {
		if !slices.ContainsFunc(kinds, func(k frameType) bool { return n.blocked(s.from, s.to, s.request, k) == holds }) {
			free = append(free, s)
			delete(n.holding, s)
		}
	}
	n.mu.Unlock()
	for _, s := range free {
		s.release()
	}
}

// concerns says whether the hazard is one for messages of a kind, 0 being what is dialled.
func (h *hazard) concerns(from, to *boot, request bool, kind frameType) bool {
	return (h.only == 0 || h.only == kind) && h.match(from, to, request)
}

// blocked needs mu.
func (n *chaosNet) blocked(from, to *boot, request bool, kind frameType) blocking {
	worst := passes
	for _, h := range n.hazards {
		if h.block > worst && h.concerns(from, to, request, kind) {
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
		n.blocked(a, b, true, 0) == passes && n.blocked(b, a, false, 0) == passes
}

// fate is what becomes of one message.
type fate struct {
	block blocking
	reset bool
	again time.Duration // after which it is delivered once more; 0: it is not
	delay time.Duration
}

func (n *chaosNet) fate(s *stream, kind frameType) (f fate) {
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
		if !h.concerns(s.from, s.to, s.request, kind) {
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
			f.again = 1 + time.Duration(n.dice.Int64N(int64(h.later)))
		}
		if h.slow > 0 && n.dice.Float64() < h.slow {
			f.delay += time.Duration(n.dice.Int64N(int64(h.delay)))
			n.stats.count("message delayed")
		}
	}
	if f.block == holds {
		if !slices.Contains(n.holding[s], kind) {
			n.holding[s] = append(n.holding[s], kind)
		}
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
	if n.blocked(d.self, b, true, 0) != passes || n.blocked(b, d.self, false, 0) != passes {
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
