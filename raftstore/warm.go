package raftstore

import (
	"math/rand/v2"
	"sync"
	"time"
)

const (
	warmEvery    = time.Second // between looks at what is missing, up to half as much again
	warmAtOnce   = 4           // dials at a time
	minWarmPause = 500 * time.Millisecond
	maxWarmPause = 30 * time.Second // to a peer that cannot be reached
	// maxIdleAge is when an idle connection is replaced: the caller's channels
	// have an age, and nobody sees that one has ended before it is used.
	maxIdleAge = 5 * time.Minute
)

// warmer keeps a connection open from each server of the configuration to each
// other one. Followers do not talk to each other until a leader is lost; an
// election would begin with handshakes, which attest and take longer than it.
type warmer struct {
	t    *transport
	cold map[ServerID]coldPeer // those that could not be reached
}

type coldPeer struct {
	pause time.Duration
	until time.Time
}

// run ends with the transport.
func (w *warmer) run() {
	w.cold = map[ServerID]coldPeer{}
	for {
		list, _, changed := w.t.members.list()
		w.t.prune(time.Now().Add(-maxIdleAge))
		w.dial(w.missing(list, time.Now()))
		timer := time.NewTimer(warmEvery + rand.N(warmEvery/2))
		select {
		case <-changed:
		case <-timer.C:
		case <-w.t.ctx.Done():
			timer.Stop()
			return
		}
		timer.Stop()
	}
}

// missing are the members without a connection, if this server is one, and
// forgets those who are none.
func (w *warmer) missing(list []Member, now time.Time) (want []Member) {
	member, known := false, map[ServerID]bool{}
	for _, m := range list {
		known[m.ID] = true
		if m.ID == w.t.self {
			member = true
			continue
		}
		if !now.Before(w.cold[m.ID].until) && !w.t.connected(m.ID) {
			want = append(want, m)
		}
	}
	for id := range w.cold {
		if !known[id] {
			delete(w.cold, id)
		}
	}
	if !member {
		return nil
	}
	return want
}

// dial opens what is missing, a few at a time, and waits for it.
func (w *warmer) dial(want []Member) {
	var mu sync.Mutex
	var dialling sync.WaitGroup
	slots := make(chan struct{}, warmAtOnce)
	for _, m := range want {
		slots <- struct{}{}
		dialling.Go(func() {
			defer func() { <-slots }()
			err := w.t.warm(m)
			mu.Lock()
			defer mu.Unlock()
			w.note(m.ID, err, time.Now())
		})
	}
	dialling.Wait()
}

// note doubles the pause after a failure, up to a bound, with a jitter that
// keeps servers that lost each other at one instant from meeting again.
func (w *warmer) note(id ServerID, err error, now time.Time) {
	if err == nil {
		delete(w.cold, id)
		return
	}
	pause := min(max(2*w.cold[id].pause, minWarmPause), maxWarmPause)
	w.cold[id] = coldPeer{pause: pause, until: now.Add(pause/2 + rand.N(pause/2))}
}

// warm opens one connection and leaves it idle.
func (t *transport) warm(m Member) error {
	if err := t.mayTalkTo(m.ID); err != nil {
		return err
	}
	c, err := t.dial(m.ID, m.Address)
	if err != nil {
		return err
	}
	t.put(c)
	return nil
}

// connected reports whether any connection to peer is open, in use or idle.
func (t *transport) connected(peer ServerID) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.open[peer]) > 0
}

// prune closes idle connections dialled before old.
func (t *transport) prune(old time.Time) {
	var aged []*peerConn
	t.mu.Lock()
	for peer, list := range t.idle {
		var keep []*peerConn
		for _, c := range list {
			if c.begun.Before(old) {
				aged = append(aged, c)
			} else {
				keep = append(keep, c)
			}
		}
		t.idle[peer] = keep
	}
	t.mu.Unlock()
	for _, c := range aged {
		t.release(c)
	}
}
