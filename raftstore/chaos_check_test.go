package raftstore

import (
	"strings"
	"testing"

	"github.com/hashicorp/raft"
)

// stored is an archive for the checks of the chaos: voters are letters, one slot each.
type stored struct {
	kind        RecordKind
	index, term uint64
	voters      string // of a configuration or a snapshot; none: a command
}

func (s stored) record() Record {
	r := Record{Kind: s.kind, Index: s.index, Term: s.term, End: s.index, Type: uint8(raft.LogCommand), Data: []byte("x")}
	if s.voters != "" {
		var c raft.Configuration
		for _, v := range s.voters {
			id := ServerID{byte(v)}
			c.Servers = append(c.Servers, raft.Server{ID: id.raftID(), Address: raftAddress(id, "h:1")})
		}
		r.Type, r.Data = uint8(raft.LogConfiguration), raft.EncodeConfiguration(c)
	}
	return r
}

// What an entry replaces must not be compared with what follows, and all else must.
func TestChaosComparesConfigurations(t *testing.T) {
	t.Parallel()
	const (
		entry    = RecordLog
		deleted  = RecordDelete
		snapshot = RecordSnapshot
		two      = "differ by 2 voters"
	)
	for name, c := range map[string]struct {
		archive []stored
		seen    string // none: nothing is wrong
	}{
		"one voter at a time": {[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, "AB"}, {entry, 3, 1, "ABD"}}, ""},
		"one for another":     {[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, ""}, {entry, 3, 1, "ABD"}}, two},
		"two more":            {[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, "ABCDE"}}, two},
		"another leader overrules one by its own": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, "ABCD"}, {entry, 2, 2, "ABCE"}}, ""},
		"by a command, and makes its own": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, ""}, {entry, 3, 1, "ABCD"}, {entry, 2, 2, ""}, {entry, 3, 2, "ABCE"}}, ""},
		"by a command, and makes one of two more": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, "ABCD"}, {entry, 2, 2, ""}, {entry, 3, 2, "ABCDE"}}, two},
		"one that nobody overruled, behind commands": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, "ABCD"}, {entry, 3, 1, ""}, {entry, 3, 2, ""}, {entry, 4, 2, "ABCEF"}}, "differ by 3 voters"},
		"a snapshot in between": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, ""}, {snapshot, 2, 1, "ABC"}, {deleted, 2, 0, ""}, {entry, 3, 1, "ABCDE"}}, two},
		"the same snapshot again, behind a compaction": {
			[]stored{{entry, 1, 1, "ABC"}, {snapshot, 1, 1, "ABC"}, {deleted, 1, 0, ""}, {entry, 2, 1, "ABCD"}, {snapshot, 1, 1, "ABC"}, {entry, 3, 1, "ABCDEF"}}, two},
		"a snapshot behind a newer configuration": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, ""}, {entry, 3, 1, "ABCD"}, {snapshot, 2, 1, "ABC"}, {entry, 4, 1, "ABCDE"}}, ""},
		"a snapshot of another configuration than its log's": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, ""}, {snapshot, 2, 1, "ABCD"}}, "differs by 1 voters"},
		"a snapshot that is received, of a log that was not": {
			[]stored{{entry, 1, 1, "ABC"}, {entry, 2, 1, "ABCD"}, {snapshot, 9, 2, "AEF"}, {entry, 10, 2, "AE"}}, ""},
		"what follows a snapshot that is received": {
			[]stored{{entry, 1, 1, "ABC"}, {snapshot, 9, 2, "AEF"}, {entry, 10, 2, "ABC"}}, "differ by 4 voters"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, sound, newCounters())
			b := &boot{w: w, votes: map[uint64]string{}, held: map[place]bool{}, log: map[uint64]uint64{}, highest: 9}
			b.roots.Store(true)
			w.leaders = map[uint64]int{1: 0, 2: 1}
			for _, s := range c.archive {
				w.checkRecord(b, s.record())
			}
			switch all := strings.Join(w.violations, "\n"); {
			case c.seen == "" && all != "":
				t.Errorf("a violation is seen where there is none: %s", all)
			case !strings.Contains(all, c.seen):
				t.Errorf("%q is not seen, but: %q", c.seen, all)
			}
		})
	}
}

// What one record alone gives away.
func TestChaosLooksAtRecords(t *testing.T) {
	t.Parallel()
	vote := func(term uint64, id byte) Record {
		return Record{Kind: RecordVote, Term: term, Data: []byte(raftAddress(ServerID{id}, "h:1"))}
	}
	entry := func(index, term uint64, data string) Record {
		return Record{Kind: RecordLog, Index: index, Term: term, Data: []byte(data)}
	}
	for name, c := range map[string]struct {
		records []Record
		seen    string // none: nothing is wrong
	}{
		"terms and votes that rise":         {[]Record{{Kind: RecordTerm, Term: 1}, vote(1, 'A'), {Kind: RecordTerm, Term: 2}, vote(2, 'B'), entry(2, 2, "x")}, ""},
		"a term that falls":                 {[]Record{{Kind: RecordTerm, Term: 2}, {Kind: RecordTerm, Term: 1}}, "term fell"},
		"two votes in one term":             {[]Record{vote(1, 'A'), vote(1, 'B')}, "voted twice"},
		"a vote for a stranger":             {[]Record{vote(1, 'X')}, "never admitted"},
		"a vote for who was not admitted":   {[]Record{vote(1, 'U')}, "never admitted"},
		"an entry of a term to come":        {[]Record{{Kind: RecordTerm, Term: 1}, entry(2, 2, "x")}, "in term 1"},
		"an entry of a term without leader": {[]Record{{Kind: RecordTerm, Term: 7}, entry(2, 5, "x")}, "nobody has led"},
		"two contents at one place":         {[]Record{{Kind: RecordTerm, Term: 2}, entry(2, 2, "x"), entry(2, 2, "y")}, "two contents"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 1, sound, newCounters())
			w.leaders = map[uint64]int{1: 0, 2: 1}
			for _, id := range []byte("ABU") {
				b := &boot{w: w}
				b.roots.Store(id != 'U')
				w.net.boots[ServerID{id}] = b
			}
			b := &boot{w: w, votes: map[uint64]string{}, held: map[place]bool{}, log: map[uint64]uint64{}}
			for _, admitted := range []bool{true, false} {
				b.roots.Store(admitted)
				w.violations = nil
				for _, r := range c.records {
					w.checkRecord(b, r)
				}
				b.votes, b.highest = map[uint64]string{}, 0
				all, want := strings.Join(w.violations, "\n"), c.seen
				if !admitted {
					want = "without having been admitted"
				}
				if want == "" && all != "" || !strings.Contains(all, want) {
					t.Errorf("admitted %v: %q is not seen, or more is: %q", admitted, want, all)
				}
			}
		})
	}
}
