package history

import (
	"cmp"
	"crypto/sha256"
	"slices"

	"github.com/claviger/claviger/raftstore"
)

// Relation is how the older of two histories stands to the newer.
type Relation string

// The relations.
const (
	// Equal: both end at the same entry, and agree wherever both can be looked at.
	Equal Relation = "equal"
	// Behind: the older is the beginning of the newer. It lagged, or its disk was rolled back.
	Behind Relation = "behind"
	// Diverged: the older ends in entries of another leader that the newer does not
	// have. In an election the newer wins, so they were never acknowledged, if the
	// newer is what it was when its server stopped.
	Diverged Relation = "diverged"
	// Forked: what one of them holds as committed is not in the other, or one index
	// and term have two contents. No tolerated failure does that: an archive was
	// rolled back that others had built on, or two epochs were run at once. Choosing
	// either loses what somebody may have seen acknowledged.
	Forked Relation = "forked"
	// Unknown: what would tell has been compacted away in one of them. Part is set
	// where they are seen to differ, be it as Diverged or as Forked.
	Unknown Relation = "unknown"
	// Unrelated: they are of different clusters or epochs.
	Unrelated Relation = "unrelated"
)

// Pair says how two histories, by their places in the list, are related.
type Pair struct {
	Older, Newer int
	Relation     Relation
	Agree        uint64 // the last index at which both are seen to be the same; 0 if none
	Part         uint64 // the first index at which they are seen to differ; 0 if none
}

// Comparison is what a list of histories says together.
type Comparison struct {
	// Newest is the place in the list of the history to recover from: of those that
	// are complete the one with the highest epoch, term and index of its last entry,
	// in this order, the first of equals; -1 if none is complete.
	Newest int
	Pairs  []Pair // for every two, in the order of the list
}

// Compare relates every two histories and finds the newest.
func Compare(list []*History) Comparison {
	c := Comparison{Newest: -1}
	for i, h := range list {
		if h.Complete() == nil && (c.Newest < 0 || order(h, list[c.Newest]) > 0) {
			c.Newest = i
		}
	}
	maps := make([]*points, len(list))
	for i, h := range list {
		maps[i] = newPoints(h)
	}
	for i := range list {
		for j := i + 1; j < len(list); j++ {
			older, newer := i, j
			if order(list[i], list[j]) > 0 {
				older, newer = j, i
			}
			p := relate(maps[older], maps[newer])
			p.Older, p.Newer = older, newer
			c.Pairs = append(c.Pairs, p)
		}
	}
	return c
}

// order is raft's: who would win an election, after the epoch.
func order(a, b *History) int {
	ai, at := a.Last()
	bi, bt := b.Last()
	return cmp.Or(cmp.Compare(a.Chain.Epoch, b.Chain.Epoch), cmp.Compare(at, bt), cmp.Compare(ai, bi))
}

// point is what a history knows at one index.
type point struct {
	term    uint64
	content [32]byte // type and data of the entry, where it has the entry
	entry   bool
	chain   [32]byte // running hash of the commands, where it can be computed
	chained bool
}

// points are the indexes that can be compared: the log, which is dense, and the
// snapshot.
type points struct {
	h     *History
	sums  [][32]byte          // of type and data, by place in the log
	chain map[uint64][32]byte // by index
}

func newPoints(h *History) *points {
	p := &points{h: h, chain: map[uint64][32]byte{}}
	for i := range h.Entries {
		e := &h.Entries[i]
		p.sums = append(p.sums, sha256.Sum256(append([]byte{e.Type}, e.Data...)))
	}
	if h.Complete() != nil {
		return p
	}
	after, hash := uint64(0), [32]byte{}
	if s := h.Snapshot; s != nil {
		after, hash = s.Index, s.chain
		p.chain[after] = hash
	}
	for i := range h.Entries {
		e := &h.Entries[i]
		if e.Index <= after {
			continue
		}
		if e.Type == Command {
			hash = raftstore.ExtendChain(hash, e.Index, e.Term, e.Data)
		}
		p.chain[e.Index] = hash
	}
	return p
}

func (p *points) at(index uint64) (point, bool) {
	var out point
	s, list := p.h.Snapshot, p.h.Entries
	known := false
	if s != nil && s.Index == index {
		known, out.term = true, s.Term
	}
	if len(list) > 0 && index >= list[0].Index && index-list[0].Index < uint64(len(list)) {
		i := index - list[0].Index
		known, out.term, out.entry, out.content = true, list[i].Term, true, p.sums[i]
	}
	out.chain, out.chained = p.chain[index]
	return out, known
}

// indexes are those that p knows, ascending.
func (p *points) indexes() []uint64 {
	var out []uint64
	if s := p.h.Snapshot; s != nil {
		out = append(out, s.Index)
	}
	for i := range p.h.Entries {
		out = append(out, p.h.Entries[i].Index)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func (a point) same(b point) bool {
	return a.term == b.term && (!a.entry || !b.entry || a.content == b.content) && (!a.chained || !b.chained || a.chain == b.chain)
}

// relate walks over the indexes that both know. By raft's log matching, two
// logs that have one term at one index are the same up to it; that they are is
// checked where it can be.
func relate(older, newer *points) Pair {
	a, b := older.h, newer.h
	if a.Chain.ClusterID != b.Chain.ClusterID || a.Chain.Epoch != b.Chain.Epoch {
		return Pair{Relation: Unrelated}
	}
	var p Pair
	forked, compared := false, false
	for _, i := range older.indexes() {
		x, _ := older.at(i)
		y, both := newer.at(i)
		if !both {
			continue
		}
		compared = true
		switch {
		case x.same(y) && p.Part == 0:
			p.Agree = i
		case x.same(y):
			forked = true // they part, and meet again
		default:
			if p.Part == 0 {
				p.Part = i
			}
			forked = forked || x.term == y.term
		}
	}
	last, _ := a.Last()
	end, _ := b.Last()
	switch {
	case forked || committedApart(a, b, p.Part):
		p.Relation = Forked
	case p.Part > 0 && (a.Snapshot == nil || p.Agree >= a.Snapshot.Index):
		p.Relation = Diverged
	case p.Part > 0: // they may have parted within what the older holds as committed
		p.Relation = Unknown
	case !compared:
		p.Relation = Unknown
	case p.Agree == last && last == end:
		p.Relation = Equal
	case p.Agree == last:
		p.Relation = Behind
	case end < last && p.Agree == end: // the newer ends before, in a later term: the older's rest is nobody's
		p.Relation, p.Part = Diverged, end+1
	default:
		p.Relation = Unknown
	}
	return p
}

// committedApart reports whether a history's snapshot, which holds committed
// entries only, is not in the other's log. The newer's may replace what the
// older had in its log; the older's must be in the newer.
func committedApart(older, newer *History, part uint64) bool {
	s := older.Snapshot
	if s == nil {
		return false
	}
	end, _ := newer.Last()
	return part > 0 && part <= s.Index || end < s.Index
}
