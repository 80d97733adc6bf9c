package raftstore

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

// How servers come into the cluster and out of it: every leader runs the steps of
// DESIGN §6, and the host hurts no more than the cluster must survive.

// tolerable says whether the cluster survives the loss of b: in every
// configuration that may be in force, the last one committed and all that were
// appended behind it anywhere, a majority of the voters is alive then.
func (w *world) tolerable(b *boot) bool {
	var committed uint64
	var now []Member
	for _, l := range w.live() {
		if list, at := l.Members(); at > committed {
			committed, now = at, list
		}
	}
	configs := [][]Member{now}
	for _, l := range w.live() {
		configs = append(configs, l.appendedAfter(committed)...)
	}
	w.mu.Lock()
	for _, l := range w.boots {
		if l.intended != nil && time.Now().Before(l.until) {
			configs = append(configs, l.intended)
		}
	}
	w.mu.Unlock()
	for _, list := range configs {
		voters, alive := 0, 0
		for _, m := range list {
			if !m.Voter {
				continue
			}
			voters++
			if v := w.byID(m.ID); v != b && !v.dead.Load() && !v.doomed.Load() {
				alive++
			}
		}
		if alive <= voters/2 {
			return false
		}
	}
	return true
}

// intends notes a configuration that b is about to bring about; its outcome says
// whether that is over. Between the leader's look at who answers and the entry in
// its log, which may take as long as the host likes, the loss of a voter is
// already the loss of one of that configuration.
func (w *world) intends(b *boot, next []Member) (outcome func(error)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	b.intended, b.until = next, time.Now().Add(time.Hour)
	return func(err error) {
		w.mu.Lock()
		defer w.mu.Unlock()
		b.until = time.Now()
		if err != nil {
			b.until = time.Now().Add(5 * time.Second)
		}
	}
}

// appendedAfter is the configurations in the log of b behind index.
func (b *boot) appendedAfter(index uint64) (list [][]Member) {
	b.logs.mu.RLock()
	defer b.logs.mu.RUnlock()
	for _, l := range b.logs.entries {
		if l.Index <= index || l.Type != raft.LogConfiguration {
			continue
		}
		m := newMembers(func(ServerID) {})
		m.update(l.Index, raft.DecodeConfiguration(l.Data))
		list = append(list, m.current)
	}
	return list
}

// claim is what a boot does to get its slot: it asks whoever it reaches until
// it is a voter or a newer boot has taken the slot.
func (w *world) claim(b *boot) {
	pause := func(d time.Duration) bool {
		select {
		case <-time.After(d):
			return w.ctx.Err() == nil && !b.dead.Load()
		case <-w.ctx.Done():
			return false
		}
	}
	d := newDice(w.seed, uint64(10000+b.number))
	for pause(time.Duration(5+d.n(30)) * time.Millisecond) {
		live := w.live()
		member := live[d.n(len(live))]
		if member == b || !member.IsLeader() || !w.net.reachable(b, member) {
			continue
		}
		switch slots := member.machine.slots(); {
		case slots[b.slot] == b.id:
			return // the rest is the leader's work
		case w.newest(b.slot) != b && d.n(4) > 0:
			continue // an older clone asks less often
		}
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		_, result, err := member.Propose(ctx, admitEntry(b.slot, b.id))
		cancel()
		if err == nil {
			if result == errSuperseded {
				w.note("boot %d has lost slot %d", b.number, b.slot)
				w.stats.count("claim of a superseded boot refused")
				return
			}
			w.note("boot %d is admitted to slot %d by boot %d", b.number, b.slot, member.number)
			return
		}
	}
}

// drive carries out admissions while this server leads. Every server runs it,
// so that after a change of leader two may be at work on one slot.
func (b *boot) drive() {
	w, d := b.w, newDice(b.w.seed, uint64(20000+b.number))
	for {
		select {
		case <-time.After(time.Duration(20+d.n(40)) * time.Millisecond):
		case <-w.ctx.Done():
			return
		case <-b.Done():
			return
		}
		if !b.IsLeader() {
			continue
		}
		if what, err := b.step(); what != "" {
			if err == nil {
				w.stats.count("admission: " + strings.Fields(what)[0])
			} else {
				w.stats.count("admission step interrupted")
			}
			w.note("boot %d leads and %s: %v", b.number, what, err)
		}
	}
}

// step makes the next change that admissions ask for, each one based on the
// configuration it was decided from.
func (b *boot) step() (string, error) {
	w := b.w
	list, at := b.Members()
	slots := b.machine.slots()
	holds := map[int]*Member{} // the admitted boot of a slot, as it is in the configuration
	var olds, strays []Member
	for _, m := range list {
		boot := w.byID(m.ID)
		switch {
		case slots[boot.slot] == m.ID:
			holds[boot.slot] = &m
		case m.Voter:
			olds = append(olds, m)
		default:
			strays = append(strays, m)
		}
	}
	for _, m := range strays {
		_, err := b.Remove(w.brief(), m.ID, at)
		return "drops the nonvoter of slot " + m.Address, err
	}
	oldOf := func(slot int) *Member {
		for _, m := range olds {
			if w.byID(m.ID).slot == slot {
				return &m
			}
		}
		return nil
	}
	voters := 0
	for _, m := range list {
		if m.Voter {
			voters++
		}
	}
	for slot := range w.slots() { // first what was begun: a slot without a voter gets its own
		id, taken := slots[slot]
		m, old := holds[slot], oldOf(slot)
		if !taken || m == nil || m.Voter {
			continue
		}
		next := w.byID(id)
		if !w.net.reachable(b, next) || next.AppliedIndex() < at {
			continue
		}
		if old == nil {
			done := w.intends(b, append(slices.Clone(list), Member{ID: id, Voter: true}))
			_, err := b.AddVoter(w.brief(), id, next.addr, at)
			done(err)
			return fmt.Sprintf("promotes boot %d", next.number), err
		}
		if whole := len(slots); voters == whole && !w.ailing(list) { // one slot at a time is short of its voter
			done := w.intends(b, slices.DeleteFunc(slices.Clone(list), func(m Member) bool { return m.ID == old.ID }))
			_, err := b.Remove(w.brief(), old.ID, at)
			done(err)
			if errors.Is(err, ErrNoQuorum) && !errors.Is(err, ErrOutcomeUnknown) {
				w.stats.count("admission: removal refused")
				continue // another slot may be the one whose voter is down
			}
			return fmt.Sprintf("removes boot %d for boot %d", w.byID(old.ID).number, next.number), err
		}
	}
	for slot := range w.slots() {
		id, taken := slots[slot]
		if !taken || holds[slot] != nil {
			continue
		}
		next := w.byID(id)
		if !w.net.reachable(b, next) || next.dead.Load() {
			continue
		}
		next.roots.Store(true)
		_, err := b.AddNonvoter(w.brief(), id, next.addr, at)
		return fmt.Sprintf("adds boot %d", next.number), err
	}
	return "", nil
}

// ailing says whether a voter's disk is full and it has not noticed: it answers,
// and will not store a change. To take a living voter out at that time is the
// loss of two, which no cluster of three survives and people must know.
func (w *world) ailing(list []Member) bool {
	return slices.ContainsFunc(list, func(m Member) bool {
		v := w.byID(m.ID)
		return m.Voter && v.doomed.Load() && !v.dead.Load()
	})
}

// brief is the time one step is given.
func (w *world) brief() context.Context {
	ctx, cancel := context.WithTimeout(w.ctx, time.Second)
	context.AfterFunc(ctx, cancel)
	return ctx
}
