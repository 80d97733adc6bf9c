package raftstore

// Export is the log and the newest snapshot as this server holds them in its
// memory, in the records that a fresh archive would begin with: what
// raftstore/history rebuilds a History from. Like an archive it holds entries
// that may not be committed. While the store runs it is of some instant of the
// call; after Shutdown it does not change any more, and it still works then, and
// after a failure of the archive. The records share their data with the store:
// they must not be changed. They hold what the machine's state and entries hold.
func (s *Store) Export() []Record {
	// The log first: a snapshot that comes in between covers it, or replaces it,
	// and a log read after the snapshot might begin behind it.
	recs := s.logs.export()
	return append(recs, s.snaps.export()...)
}

// export is the log as the archive writes it. It waits for no disk.
func (s *logStore) export() []Record {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.stale {
		return nil
	}
	recs := make([]Record, 0, len(s.entries))
	for i := range s.entries {
		recs = append(recs, logRecord(&s.entries[i].Log))
	}
	return recs
}

// export is the newest snapshot as the archive writes it; nil without one.
func (s *snapshotStore) export() []Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meta == nil {
		return nil
	}
	return snapshotRecords(s.meta, s.data)
}
