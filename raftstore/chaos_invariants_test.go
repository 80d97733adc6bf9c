package raftstore

import (
	"crypto/sha256"
	"encoding/binary"
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

// acknowledged is told of every entry whose client was told that it is committed.
func (w *world) acknowledged(index uint64, entry []byte) {
	sum := sha256.Sum256(entry)
	w.stats.acked.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.applied[index] != sum {
		w.violateLocked("%.40q was acknowledged at index %d, where nobody has applied it", entry, index)
	}
	w.acks = append(w.acks, ack{index, sum, string(entry[:min(len(entry), 40)])})
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
			w.checkMachine(b)
			w.checkMembers(b)
		}
		w.checkArchive(b)
	}
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
	case RecordTerm:
		if r.Term < b.highest {
			w.violate("boot %d: its term fell from %d to %d", b.number, b.highest, r.Term)
		}
		b.highest = r.Term
	case RecordVote:
		if old, ok := b.votes[r.Term]; ok && old != string(r.Data) {
			w.violate("boot %d voted twice in term %d", b.number, r.Term)
		}
		b.votes[r.Term] = string(r.Data)
	case RecordSnapshot:
		if c, err := decodeConfiguration(r.Data); err != nil {
			w.violate("boot %d stored a snapshot whose configuration does not decode: %v", b.number, err)
		} else if n := len(b.configs); n == 0 || b.configs[n-1].index < r.Index {
			b.configs = nil // what it received stands in for a log it has not seen
			w.checkStep(b, r.Index, c)
		}
	case RecordLog:
		if r.Term > b.highest {
			w.violate("boot %d has an entry of term %d in term %d", b.number, r.Term, b.highest)
		}
		// It replaces what was there and all behind it, configurations that another leader overruled among them.
		b.configs = slices.DeleteFunc(b.configs, func(c storedConfig) bool { return c.index >= r.Index })
		w.checkEntry(b, r)
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

// checkMembers: all servers have the same configuration at the same index.
func (w *world) checkMembers(b *boot) {
	list, at := b.Members()
	if at == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.members[at]; ok && !slices.Equal(old, list) {
		w.violateLocked("boot %d differs from another in the configuration of index %d", b.number, at)
	}
	w.members[at] = list
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
	need := (w.voters-1)/2 + 1 // while a slot changes hands there is one voter less
	for _, a := range w.acks {
		if most := w.mostHolders(a.index); most > 0 && most < need {
			w.violateLocked("the acknowledged entry %q of index %d is on %d disks only", a.text, a.index, most)
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
	var voters []raft.ServerID
	for _, s := range c.Servers {
		if s.Suffrage == raft.Voter {
			voters = append(voters, s.ID)
		}
	}
	b.configs = slices.DeleteFunc(b.configs, func(c storedConfig) bool { return c.index >= index })
	if n := len(b.configs); n > 0 {
		before, moved := b.configs[n-1], 0
		for _, v := range before.voters {
			if !slices.Contains(voters, v) {
				moved++
			}
		}
		for _, v := range voters {
			if !slices.Contains(before.voters, v) {
				moved++
			}
		}
		if moved > 1 {
			w.violate("boot %d: the configurations of indexes %d and %d differ by %d voters", b.number, before.index, index, moved)
		}
	}
	b.configs = append(b.configs, storedConfig{index, voters})
}
