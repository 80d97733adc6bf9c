package raftstore

import "sync"

// fence is the one way a store stops because something is broken. Once tripped,
// the transport lets nothing out: no vote, no acknowledgement, no request.
// hashicorp/raft panics when a term cannot be stored, which inside an enclave
// kills the process without running a defer; behind the fence the term may be
// kept in memory instead, since nobody will ever hear of it.
type fence struct {
	once sync.Once
	done chan struct{}
	err  error // written before done is closed
}

func newFence() *fence { return &fence{done: make(chan struct{})} }

func (f *fence) trip(err error) {
	f.once.Do(func() {
		f.err = err
		close(f.done)
	})
}

// check returns the reason once the fence is up.
func (f *fence) check() error {
	select {
	case <-f.done:
		return f.err
	default:
		return nil
	}
}
