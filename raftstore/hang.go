package raftstore

import (
	"errors"
	"time"
)

// errDiskHangs keeps a leader silent.
var errDiskHangs = errors.New("raftstore: entries have been on their way to the archive for too long; look at the disk")

// mayLead silences a leader whose disk hangs. Raft sends heartbeats while its main loop waits for the disk, so that
// nobody else would be elected and nothing would be committed, although the other servers could. For them it is as if
// this one was cut off; when the disk answers, it is a follower like others.
func (t *transport) mayLead() error {
	d := t.host.storingFor()
	if d < t.timeouts.Disk {
		return nil
	}
	if t.warned.again("disk", time.Now()) {
		t.log.Error("the disk hangs; this leader is silent, so that another one is elected", "seconds", d.Seconds())
	}
	return errDiskHangs
}

// storingFor is how long entries have been on their way to the archive; 0 while there are none.
func (s *Store) storingFor() time.Duration {
	if begun := s.logs.storing.Load(); begun != nil {
		return time.Since(*begun)
	}
	return 0
}
