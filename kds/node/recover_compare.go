package node

import (
	"fmt"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore/history"
)

// relationTo is how an archive stands to the newest.
type relationTo struct {
	relation history.Relation
	part     uint64 // index at which they part
}

// compare finds the newest archive and says of every other how it stands to it.
// Archives do not change, so it is done once, unless there are survivors, which do.
func (r *recovery) compare() {
	opened := r.opened()
	list := make([]*history.History, len(opened))
	for i, a := range opened {
		if list[i] = a.history; list[i] == nil {
			return // they have been compared
		}
	}
	for _, a := range opened {
		if a.forked, a.standing, a.report.Verdict = (api.ID{}), (relationTo{}), ""; len(r.Survivors) == 0 {
			a.history = nil // the logs are not needed while people read
		}
	}
	c := history.Compare(list)
	r.newest = nil
	if c.Newest < 0 {
		return
	}
	r.newest = opened[c.Newest]
	r.newest.report.Verdict = "newest"
	for _, p := range c.Pairs {
		older, newer := opened[p.Older], opened[p.Newer]
		if p.Relation == history.Forked {
			older.forked, newer.forked = newer.report.ServerID, older.report.ServerID
		}
		for _, a := range []*inspected{older, newer} {
			if a != r.newest && (older == r.newest || newer == r.newest) {
				a.standing = relationTo{p.Relation, p.Part}
				a.report.Verdict = a.verdict(r.newest)
			}
		}
	}
}

// verdict puts a standing into words.
func (a *inspected) verdict(newest *inspected) string {
	s, last := a.standing, a.report.Index
	switch s.relation {
	case history.Equal:
		return "equal to the newest"
	case history.Behind:
		return fmt.Sprintf("behind by %d entries: an old copy, or it lagged", newest.report.Index-last)
	case history.Diverged:
		return fmt.Sprintf("diverged after %d: entries %d to %d are of a leader that lost", s.part-1, s.part, last)
	case history.Forked:
		return fmt.Sprintf("FORKED at %d: it holds as committed what the newest has not", s.part)
	case history.Unknown:
		return "cannot be compared: what both held is in snapshots"
	case history.Unrelated:
		return fmt.Sprintf("of epoch %d, which is over", a.report.Epoch)
	}
	return string(s.relation)
}

// leaves says what is lost if the epoch goes on from a, as far as this enclave
// was shown it; empty if nothing is. A history that cannot be used and is of the
// source's epoch says no more than a disk that is not there, unless its log goes
// on behind the source's: it may need another build, or have lost its beginning.
func (r *recovery) leaves(a *inspected) string {
	if a != r.newest && a.standing.relation != history.Equal {
		return fmt.Sprintf("the history of server %.16s is not the newest (%s): that of server %.16s is", a.report.ServerID, a.report.Verdict, r.newest.report.ServerID)
	}
	// A history holds one of two worlds at most, and may have compacted away where it
	// parted from the other: any fork of its epoch counts.
	for _, b := range r.archives {
		if b.report.Epoch == a.report.Epoch && !b.forked.IsZero() {
			return fmt.Sprintf("the histories of servers %.16s and %.16s hold different entries as committed: one was rolled back under the others, or is of another world",
				b.report.ServerID, b.forked)
		}
	}
	for _, b := range r.archives {
		if b.epoch == a.report.Epoch && a.report.behind(b.unread) {
			return fmt.Sprintf("the log of server %.16s goes on to entry %d of term %d, and cannot be used: %s: %s", b.server, b.unread.index, b.unread.term, b.report.Path, b.report.Problem)
		}
		if b.report.Problem != "" && b.epoch > a.report.Epoch {
			return fmt.Sprintf("epoch %d has been opened after that of server %.16s, and nothing of it can be used: %s: %s", b.epoch, a.report.ServerID, b.report.Path, b.report.Problem)
		}
	}
	return ""
}

// checkLoss keeps operators from losing what was shown beside the source, unless
// they say in words that they accept it.
func (r *recovery) checkLoss(s *api.RecoveryStatement, a *inspected) error {
	if why := r.leaves(a); why != "" && !s.AcceptsEntries() {
		return fmt.Errorf("%w: %s; recover from another, or accept in words that its entries are lost", ErrRecovery, why)
	}
	return nil
}
