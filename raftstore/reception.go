package raftstore

import (
	"net"
	"sync"
)

// reception is the snapshot that is being received. There is one at a time: each
// is in memory whole, up to MaxSnapshot, and a leader whose connection the host
// cuts sends it again on another one while we still wait on the first.
type reception struct {
	mu    sync.Mutex
	conn  net.Conn // that brings it; nil while there is none
	whole bool     // it is with raft, or waits for it
}

// begin ends what comes on another connection. It says no while a whole
// snapshot waits for raft: the sender will try again.
func (r *reception) begin(conn net.Conn) bool {
	r.mu.Lock()
	if r.whole {
		r.mu.Unlock()
		return false
	}
	old := r.conn
	r.conn = conn
	r.mu.Unlock()
	if old != nil {
		old.Close()
	}
	return true
}

// complete says that the snapshot is here, unless another one has taken its place.
func (r *reception) complete(conn net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == conn {
		r.whole = true
	}
	return r.conn == conn
}

func (r *reception) end(conn net.Conn) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.conn == conn {
		r.conn, r.whole = nil, false
	}
}
