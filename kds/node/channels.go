package node

import (
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/claviger/claviger/raftstore"
)

// channels are the raft/1 channels of this node, in both directions. A channel
// is judged when it is made, so it must not live for ever: at its age it is
// closed, and the store makes another, for which both ends attest anew.
type channels struct {
	mu   sync.Mutex
	open map[raftstore.ServerID]map[*channel]bool // guarded by mu
}

// channel is one of them.
type channel struct {
	net.Conn
	peer  raftstore.ServerID
	owner *channels
	age   *time.Timer
}

func newChannels() *channels {
	return &channels{open: map[raftstore.ServerID]map[*channel]bool{}}
}

// track closes conn at a random point of the last third of age, so that not all
// channels of a cluster end at once.
func (cs *channels) track(peer raftstore.ServerID, conn net.Conn, age time.Duration) net.Conn {
	c := &channel{Conn: conn, peer: peer, owner: cs}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.open[peer] == nil {
		cs.open[peer] = map[*channel]bool{}
	}
	cs.open[peer][c] = true
	c.age = time.AfterFunc(age-rand.N(age/3+1), func() { c.Close() })
	return c
}

// Close closes the channel.
func (c *channel) Close() error {
	c.owner.mu.Lock()
	delete(c.owner.open[c.peer], c)
	if len(c.owner.open[c.peer]) == 0 {
		delete(c.owner.open, c.peer)
	}
	c.owner.mu.Unlock()
	c.age.Stop()
	return c.Conn.Close()
}

// drop closes all channels with a peer and returns how many.
func (cs *channels) drop(peer raftstore.ServerID) int {
	cs.mu.Lock()
	var list []*channel
	for c := range cs.open[peer] {
		list = append(list, c)
	}
	cs.mu.Unlock()
	for _, c := range list {
		c.Close()
	}
	return len(list)
}
