package raftstore

import (
	"crypto/sha256"
	"encoding/binary"
	"maps"
	"math"
	"slices"

	"github.com/hashicorp/raft"
)

// The invariants of the chaos. Some are seen as they happen (leads, applies,
// acknowledged), the rest after every round.

type place struct{ index, term uint64 }

// storedConfig is a configuration in the log of one boot.
type storedConfig struct {
	index  uint64
	voters []raft.ServerID
}

// leads is told of every server that becomes leader, by raft itself.
func (w *world) leads(b *boot, term uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stats.count("leader elected")
	w.noteLocked("boot %d of slot %d leads term %d", b.number, b.slot, term)
	if other, ok := w.leaders[term]; ok && other != b.number {
		w.violateLocked("term %d has two leaders: boots %d and %d", term, other, b.number)
	}
	w.leaders[term] = b.number
	if !b.roots.Load() {
		w.violateLocked("boot %d campaigns without having been admitted", b.number)
	}
	for _, a := range w.acks {
		if a.term < term && !b.holds(a.index, a.term) {
			w.violateLocked("boot %d leads term %d without %q of index %d and term %d, which was acknowledged", b.number, term, a.text, a.index, a.term)
			return
		}
	}
}

// applies is told of every entry that a machine applies.
func (w *world) applies(number int, index uint64, entry []byte) {
	sum := sha256.Sum256(entry)
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.applied[index]; ok && old != sum {
		w.violateLocked("index %d has two contents: boot %d applies %.40q, another boot applied something else", index, number, entry)
	}
	w.applied[index] = sum
}

// acknowledged is told of every entry whose client was told, by b, that it is committed.
func (w *world) acknowledged(b *boot, index uint64, entry []byte) {
	sum := sha256.Sum256(entry)
	w.stats.acked.Add(1)
	l := raft.Log{Term: math.MaxUint64} // of one that is compacted already
	b.logs.GetLog(index, &l)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.applied[index] != sum {
		w.violateLocked("%.40q was acknowledged at index %d, where nobody has applied it", entry, index)
	}
	w.acks = append(w.acks, ack{index, l.Term, sum, string(entry[:min(len(entry), 40)])})
}

// check looks at everything after a round.
func (w *world) check() {
	w.mu.Lock()
	boots := slices.Clone(w.boots)
	w.mu.Unlock()
	for _, b := range boots {
		if err := b.Err(); err != nil && reached(err) {
			w.violate("boot %d broke a rule of the stable store: %v", b.number, err)
		}
		if b.Halted() {
			w.violate("boot %d has halted", b.number)
		}
		if !b.dead.Load() {
			w.checkProgress(b)
			w.checkMachine(b)
			w.checkMembers(b)
		}
		w.checkArchive(b)
	}
	w.checkAcks()
}

// checkProgress: what is committed or applied stays so.
func (w *world) checkProgress(b *boot) {
	chain, _ := b.Chain()
	now := [...]uint64{b.CommitIndex(), b.AppliedIndex(), chain}
	for i, what := range []string{"commit index", "applied index", "running hash"} {
		if now[i] < b.reached[i] {
			w.violate("boot %d: its %s went back from %d to %d", b.number, what, b.reached[i], now[i])
		}
	}
	b.reached = now
}

// checkAcks: what was acknowledged since the last look is on enough disks.
func (w *world) checkAcks() {
	w.mu.Lock()
	defer w.mu.Unlock()
	need := (w.founded-1)/2 + 1 // while a slot changes hands there is one voter less
	for _, a := range w.acks[w.looked:] {
		if most := w.mostHolders(a.index); most < need {
			w.violateLocked("the acknowledged entry %q of index %d is on %d disks only", a.text, a.index, most)
		}
	}
	w.looked = len(w.acks)
}

// checkMachine: equal indexes have equal hashes, of what led there and of what came of it.
func (w *world) checkMachine(b *boot) {
	same := func(what string, known map[uint64][32]byte, index uint64, hash [32]byte) {
		w.mu.Lock()
		defer w.mu.Unlock()
		if old, ok := known[index]; ok && old != hash {
			w.violateLocked("boot %d differs from another at index %d in its %s", b.number, index, what)
		}
		known[index] = hash
	}
	index, hash := b.Chain()
	same("running hash", w.chains, index, hash)
	index, hash = b.machine.state()
	same("machine", w.states, index, hash)
}

// checkArchive opens what has become durable since the last look.
func (w *world) checkArchive(b *boot) {
	sealed := b.disk.durable(b.opened)
	for _, raw := range sealed {
		b.opened++
		r, err := b.opener.Open(raw)
		if err != nil {
			w.violate("boot %d: record %d of its archive does not open: %v", b.number, b.opened, err)
			return
		}
		w.checkRecord(b, r)
	}
}

func (w *world) checkRecord(b *boot, r Record) {
	switch r.Kind {
	case RecordTerm, RecordVote, RecordLog, RecordSnapshot:
		if !b.roots.Load() {
			w.violate("boot %d takes part without having been admitted", b.number)
		}
	}
	switch r.Kind {
	case RecordTerm:
		if r.Term < b.highest {
			w.violate("boot %d: its term fell from %d to %d", b.number, b.highest, r.Term)
		}
		b.highest = r.Term
	case RecordVote:
		w.checkVote(b, r)
	case RecordSnapshot:
		w.checkSnapshot(b, r)
	case RecordDelete:
		for i := r.Index; i <= r.End; i++ {
			delete(b.log, i)
		}
	case RecordLog:
		if r.Term > b.highest {
			w.violate("boot %d has an entry of term %d in term %d", b.number, r.Term, b.highest)
		}
		// It replaces what was there and all behind it, configurations that another leader overruled among them.
		maps.DeleteFunc(b.log, func(i, _ uint64) bool { return i >= r.Index })
		b.log[r.Index] = r.Term
		b.configs = slices.DeleteFunc(b.configs, func(c storedConfig) bool { return c.index >= r.Index })
		w.checkEntry(b, r)
	}
}

// checkVote: one per term, and for somebody who was admitted.
func (w *world) checkVote(b *boot, r Record) {
	if old, ok := b.votes[r.Term]; ok && old != string(r.Data) {
		w.violate("boot %d voted twice in term %d", b.number, r.Term)
	}
	b.votes[r.Term] = string(r.Data)
	id, _, err := parseRaftAddress(raft.ServerAddress(r.Data))
	if c := w.byID(id); err != nil || c == nil || !c.roots.Load() {
		w.violate("boot %d voted in term %d for %q, who was never admitted", b.number, r.Term, r.Data)
	}
}

// checkSnapshot: its configuration is the last one in the log that it stands for,
// and the same wherever a snapshot of that index is stored. One that was received
// stands for a log that this boot has not seen.
func (w *world) checkSnapshot(b *boot, r Record) {
	c, err := decodeConfiguration(r.Data)
	if err != nil {
		w.violate("boot %d stored a snapshot whose configuration does not decode: %v", b.number, err)
		return
	}
	w.mu.Lock()
	if old, ok := w.covered[r.Index]; ok && old != string(r.Data) {
		w.violateLocked("boot %d: its snapshot of index %d has another configuration than another's", b.number, r.Index)
	}
	w.covered[r.Index] = string(r.Data)
	w.mu.Unlock()
	again := b.covers == r.Index // made once more, with nothing new, when the log behind it may be gone
	b.covers = r.Index
	if b.log[r.Index] != r.Term && !again { // received
		clear(b.log)
		b.configs = []storedConfig{{r.Index, votersOf(c)}}
		return
	}
	for _, last := range slices.Backward(b.configs) {
		if last.index > r.Index {
			continue
		}
		if moved := votersMoved(last.voters, votersOf(c)); moved != 0 {
			w.violate("boot %d: its snapshot of index %d differs by %d voters from the configuration of index %d", b.number, r.Index, moved, last.index)
		}
		return
	}
}

// checkEntry: one index and term have one content, wherever they are stored.
func (w *world) checkEntry(b *boot, r Record) {
	sum := sha256.Sum256(append(binary.BigEndian.AppendUint64(nil, uint64(r.Type)), r.Data...))
	p := place{r.Index, r.Term}
	w.mu.Lock()
	old, ok := w.placed[p]
	if ok && old != sum {
		w.violateLocked("index %d of term %d has two contents", r.Index, r.Term)
	}
	w.placed[p] = sum
	if _, led := w.leaders[r.Term]; !led && r.Index > 1 {
		w.violateLocked("boot %d has an entry of term %d, which nobody has led", b.number, r.Term)
	}
	if !b.held[p] {
		b.held[p] = true
		w.holders[p]++
	}
	w.mu.Unlock()
	if raft.LogType(r.Type) == raft.LogConfiguration {
		w.checkConfiguration(b, r, !ok)
	}
}

// checkConfiguration looks at a configuration that was appended somewhere,
// whether or not it was committed.
func (w *world) checkConfiguration(b *boot, r Record, first bool) {
	c, err := decodeConfiguration(r.Data)
	if err != nil {
		w.violate("boot %d stored a configuration that does not decode: %v", b.number, err)
		return
	}
	w.checkStep(b, r.Index, c)
	if !first {
		return
	}
	slots := map[int]int{}
	for _, s := range c.Servers {
		id, _ := ParseServerID(string(s.ID))
		v := w.byID(id)
		if v == nil {
			continue
		}
		if !v.roots.Load() {
			w.violate("boot %d is in a configuration and was never admitted", v.number)
		}
		if s.Suffrage != raft.Voter {
			continue
		}
		if other, ok := slots[v.slot]; ok {
			w.violate("two voters of slot %d in one configuration: boots %d and %d", v.slot, other, v.number)
		}
		slots[v.slot] = v.number
	}
}

// checkMembers: all servers have the same configuration at the same index, and
// who has left one comes back in none.
func (w *world) checkMembers(b *boot) {
	list, at := b.Members()
	if at == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	old, known := w.members[at]
	if known && !slices.Equal(old, list) {
		w.violateLocked("boot %d differs from another in the configuration of index %d", b.number, at)
	}
	if w.members[at] = list; known {
		return
	}
	in, gone := map[ServerID]bool{}, map[ServerID]bool{}
	for _, i := range slices.Sorted(maps.Keys(w.members)) {
		now := map[ServerID]bool{}
		for _, m := range w.members[i] {
			if now[m.ID] = true; gone[m.ID] {
				w.violateLocked("%s left the configuration before index %d, which has it again", m.Address, i)
			}
		}
		for id := range in {
			gone[id] = gone[id] || !now[id]
		}
		in = now
	}
}

// checkEnd looks at what only the end shows, once the cluster is whole again:
// every acknowledged entry is there, and configurations, in their order, overlap.
func (w *world) checkEnd() {
	w.check()
	w.mu.Lock()
	defer w.mu.Unlock()
	var end uint64
	for i := range w.applied {
		end = max(end, i)
	}
	for _, a := range w.acks {
		if w.applied[a.index] != a.entry {
			w.violateLocked("the acknowledged entry %q of index %d is lost", a.text, a.index)
		}
	}
}

// mostHolders is how many boots have on disk the entry of the index, in the
// term in which most have it; it needs mu.
func (w *world) mostHolders(index uint64) (most int) {
	for t := range w.leaders {
		most = max(most, w.holders[place{index, t}])
	}
	return most
}

// checkStep: a configuration differs by one voter at most from the one before
// it in the same log, so that any majority of one meets any majority of the other.
func (w *world) checkStep(b *boot, index uint64, c raft.Configuration) {
	voters := votersOf(c)
	if n := len(b.configs); n > 0 {
		before := b.configs[n-1]
		if moved := votersMoved(before.voters, voters); moved > 1 {
			w.violate("boot %d: the configurations of indexes %d and %d differ by %d voters", b.number, before.index, index, moved)
		}
	}
	b.configs = append(b.configs, storedConfig{index, voters})
}

func votersOf(c raft.Configuration) (voters []raft.ServerID) {
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s.ID)
		}
	}
	return voters
}

// votersMoved is how many are in one of the two only.
func votersMoved(before, after []raft.ServerID) (moved int) {
	for _, v := range before {
		if !slices.Contains(after, v) {
			moved++
		}
	}
	for _, v := range after {
		if !slices.Contains(before, v) {
			moved++
		}
	}
	return moved
}
