package raftstore

import "sync"

// diskLock is a mutex for what is held while the archive is written. Waiting for
// a mutex that is held across I/O is waiting for the disk, which the host may
// stop for as long as it likes; those who wait for this one wait on a channel,
// as they would for the disk itself, so that tests in which a disk is slow by
// the clock of a synctest bubble see them blocked and the clock move on. Its
// zero value is unlocked.
type diskLock struct {
	once  sync.Once
	token chan struct{} // full while locked
}

// Lock waits until nobody else holds the lock.
func (l *diskLock) Lock() {
	l.once.Do(func() { l.token = make(chan struct{}, 1) })
	l.token <- struct{}{}
}

// Unlock lets the next one in; only who holds the lock may call it.
func (l *diskLock) Unlock() { <-l.token }
