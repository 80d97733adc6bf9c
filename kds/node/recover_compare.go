package node

import (
	"fmt"

	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore/history"
)

// relationTo is how an archive stands to the newest.
type relationTo struct {
	relation    history.Relation
	agree, part uint64
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
				a.standing = relationTo{p.Relation, p.Agree, p.Part}
				a.report.Verdict = a.verdict(r.newest)
			}
		}
	}
	r.ahead(opened, c.Ahead)
}

// ahead tells of archives that end later than the newest that is whole: they
// show that something was there that cannot be had any more.
func (r *recovery) ahead(opened []*inspected, list []int) {
	for _, i := range list {
		opened[i].report.Verdict = "AHEAD of the newest that can be used, and incomplete"
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

// checkNewest keeps operators from losing what an archive beside the source
// holds, unless they say in words that they accept it.
func (r *recovery) checkNewest(s *api.RecoveryStatement, a *inspected) error {
	if s.AcceptFork != "" {
		return nil
	}
	if a != r.newest && a.standing.relation != history.Equal {
		return fmt.Errorf("%w: the archive of server %.16s is not the newest (%s): that of server %.16s is; recover from that, or accept the fork in words",
			ErrRecovery, a.report.ServerID, a.report.Verdict, r.newest.report.ServerID)
	}
	if !a.forked.IsZero() {
		return fmt.Errorf("%w: the archives of servers %.16s and %.16s hold different entries as committed: one was rolled back under the others, or is of another world; accept the fork in words, or leave one away",
			ErrRecovery, a.report.ServerID, a.forked)
	}
	return nil
}
