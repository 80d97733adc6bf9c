package raftstore

import (
	"context"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// leaderWatch tells whoever waits that the leader known here, or raft's state,
// may have changed, and counts and logs leaders.
type leaderWatch struct {
	seen chan raft.Observation

	mu      sync.Mutex
	changed chan struct{} // closed and replaced at every change
	last    raft.ServerID // the leader known last; never empty once there was one
	count   uint64        // how often it became another one
}

func newLeaderWatch() *leaderWatch {
	return &leaderWatch{seen: make(chan raft.Observation, 64), changed: make(chan struct{})}
}

func (w *leaderWatch) news() <-chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.changed
}

func (w *leaderWatch) changes() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.count
}

// observe takes in that id leads, empty if nobody is known to, and reports
// whether it is another leader than the last one.
func (w *leaderWatch) observe(id raft.ServerID) (another bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	close(w.changed)
	w.changed = make(chan struct{})
	if another = id != "" && id != w.last; another {
		w.last = id
		w.count++
	}
	return another
}

// watchLeader follows raft's observations until the store stops. One that is
// dropped because many come at once is followed by one that is not: what is
// looked at is the present state.
func (s *Store) watchLeader() {
	s.raft.RegisterObserver(raft.NewObserver(s.leaders.seen, false, func(o *raft.Observation) bool {
		switch o.Data.(type) {
		case raft.RaftState, raft.LeaderObservation:
			return true
		}
		return false
	}))
	go func() {
		for {
			select {
			case <-s.leaders.seen:
				addr, id := s.raft.LeaderWithID()
				if !s.leaders.observe(id) {
					continue
				}
				if leader, _, err := parseRaftAddress(addr); err == nil {
					s.log.Info("another leader", "leader", leader.short(), "term", s.raft.CurrentTerm(), "self", leader == s.cfg.ID)
				}
			case <-s.trans.ctx.Done():
				return
			}
		}
	}()
}

// search is the patience of one call with a cluster that may be electing.
type search struct {
	s     *Store
	until time.Time // zero before the first failure
}

// patience is how long an election takes at most where nothing is in its way:
// followers notice the loss of a leader after one to three heartbeat timeouts,
// for they look every one to two whether there was a contact in the last one,
// and one round of an election takes as long as its timeout, and twice that at most.
func (s *Store) patience() time.Duration {
	return 3*s.cfg.Timeouts.Heartbeat + 2*max(s.cfg.Timeouts.Election, s.cfg.Timeouts.Heartbeat)
}

// again waits until it may be worth another try, and says no when the patience
// or ctx has ended.
func (q *search) again(ctx context.Context) error {
	now := time.Now()
	if q.until.IsZero() {
		q.until = now.Add(q.s.patience())
	}
	left := q.until.Sub(now)
	if left <= 0 {
		return q.gaveUp()
	}
	news := q.s.leaders.news()
	pause := left
	if _, _, known := q.s.Leader(); known {
		pause = min(left, searchPause) // it may be about to lead, or about to be reached
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-news:
		return nil
	case <-timer.C:
		return nil
	case <-q.s.trans.ctx.Done():
		return q.s.translate(raft.ErrRaftShutdown)
	case <-ctx.Done():
		return ctx.Err()
	}
}

// searchPause is the time between two tries at a leader that is known and does not answer as one.
const searchPause = 20 * time.Millisecond

// gaveUp is the error of a search without success: another server may reach the
// leader that this one knows and cannot reach.
func (q *search) gaveUp() error {
	if id, addr, ok := q.s.Leader(); ok && id != q.s.cfg.ID {
		return &NotLeaderError{Leader: id, Address: addr}
	}
	return ErrNoQuorum
}
