package raftstore

import (
	"context"
	"slices"
	"time"
)

// target is a server to hurt: half of the time the leader.
func (w *world) target() *boot {
	live := w.live()
	if w.dice.n(2) == 0 {
		if b := w.leader(); b != nil {
			return b
		}
	}
	return live[w.dice.n(len(live))]
}

// leader is a server that believes that it leads, nil if none does.
func (w *world) leader() *boot {
	for _, b := range w.live() {
		if b.IsLeader() {
			return b
		}
	}
	return nil
}

func (w *world) ms(from, to int) time.Duration {
	return time.Duration(from+w.dice.n(to-from)) * time.Millisecond
}

// fault is something the host does. It returns what ends it, nil if it is over.
type fault struct {
	name   string
	weight int
	do     func(w *world) (undo func())
}

var faults = []fault{
	{"isolate", 3, func(w *world) func() { return w.isolate(loses) }},
	{"isolate and deliver later", 3, func(w *world) func() { return w.isolate(holds) }},
	{"split in two", 2, func(w *world) func() {
		side := map[int]bool{}
		for slot := range w.slots() {
			side[slot] = w.dice.n(2) == 0
		}
		return w.net.begin(&hazard{block: []blocking{loses, holds}[w.dice.n(2)],
			match: func(from, to *boot, _ bool) bool { return side[from.slot] != side[to.slot] }})
	}},
	{"hears and is not heard", 2, func(w *world) func() {
		b := w.target()
		return w.net.begin(&hazard{block: loses, match: func(from, _ *boot, _ bool) bool { return from == b }})
	}},
	{"is heard and does not hear", 2, func(w *world) func() {
		b := w.target()
		return w.net.begin(&hazard{block: loses, match: func(_, to *boot, _ bool) bool { return to == b }})
	}},
	{"hold replies", 3, func(w *world) func() {
		b := w.target()
		return w.net.begin(&hazard{block: holds, match: func(_, to *boot, request bool) bool { return to == b && !request }})
	}},
	{"hold requests", 2, func(w *world) func() {
		b := w.target()
		return w.net.begin(&hazard{block: holds, match: func(from, _ *boot, request bool) bool { return from == b && request }})
	}},
	{"held replies, then alone", 2, func(w *world) func() {
		b := w.target()
		release := w.net.begin(&hazard{block: holds, match: func(_, to *boot, request bool) bool { return to == b && !request }})
		time.Sleep(w.ms(20, 200))
		heal := w.net.begin(&hazard{block: loses, match: func(from, to *boot, _ bool) bool { return from == b || to == b }})
		time.Sleep(w.ms(50, 500))
		return func() { release(); time.Sleep(w.ms(0, 50)); heal() }
	}},
	{"lossy network", 2, func(w *world) func() {
		return w.net.begin(&hazard{lose: 0.02, reset: 0.02, match: everything})
	}},
	{"slow link", 2, func(w *world) func() {
		b := w.target()
		return w.net.begin(&hazard{slow: 1, delay: w.ms(5, 150), match: func(from, to *boot, _ bool) bool { return from == b || to == b }})
	}},
	{"reorder and delay", 2, func(w *world) func() {
		return w.net.begin(&hazard{slow: 0.5, delay: w.ms(2, 60), match: everything})
	}},
	{"duplicate requests", 3, func(w *world) func() {
		return w.net.begin(&hazard{again: 0.2, later: 2 * time.Second, slow: 0.1, delay: w.ms(1, 20), match: everything})
	}},
	{"reset all channels", 1, func(w *world) func() {
		w.net.sever(w.dice.n(2) == 0, func(*boot, *boot) bool { return true })
		return nil
	}},
	{"crash", 5, func(w *world) func() {
		if b := w.target(); w.tolerable(b) {
			w.crash(b)
			w.stats.count("crash")
		}
		return nil
	}},
	{"crash and boot at once", 5, func(w *world) func() {
		b := w.target()
		if !w.tolerable(b) {
			return nil
		}
		w.crash(b)
		w.stats.count("crash")
		time.Sleep(w.ms(0, 200))
		w.reboot(b.slot)
		return nil
	}},
	{"clone", 3, func(w *world) func() {
		w.reboot(w.target().slot) // the one that runs goes on running
		return nil
	}},
	{"the leader alone until another leads", 2, func(w *world) func() {
		old := w.leader()
		if old == nil {
			return nil
		}
		end := w.net.begin(&hazard{block: holds, match: func(from, to *boot, _ bool) bool { return from == old || to == old }})
		for range 40 {
			time.Sleep(50 * time.Millisecond)
			if slices.ContainsFunc(w.live(), func(b *boot) bool { return b != old && b.IsLeader() && b.Term() > old.Term() }) {
				time.Sleep(w.ms(0, 100))
				break
			}
		}
		return end // what both sides have said meanwhile arrives now
	}},
	{"slow disk", 3, func(w *world) func() {
		b := w.target()
		slow := w.ms(5, 6000)
		b.disk.set(func() { b.disk.slow = slow })
		return func() { b.disk.set(func() { b.disk.slow = 0 }) }
	}},
	{"full disk", 2, func(w *world) func() {
		b := w.target()
		if !w.tolerable(b) {
			return nil
		}
		b.doomed.Store(true)
		b.disk.set(func() { b.disk.full = true })
		w.stats.count("disk full")
		return func() { w.crash(b) } // most have stopped by themselves
	}},
	{"hand over leadership", 2, func(w *world) func() {
		b := w.target()
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		w.work.Go(func() { defer cancel(); b.TransferLeadership(ctx) })
		return nil
	}},
	{"slow disk while leadership moves", 2, func(w *world) func() {
		b, slow := w.target(), w.ms(300, 3000)
		for range 5 {
			if b.IsLeader() { // one that follows and is asked for votes shows more
				b = w.target()
			}
		}
		b.disk.set(func() { b.disk.slow = slow })
		for range 4 {
			for _, l := range w.live() {
				if l != b && l.IsLeader() {
					ctx, cancel := context.WithTimeout(w.ctx, time.Second)
					w.work.Go(func() { defer cancel(); l.TransferLeadership(ctx) })
				}
			}
			time.Sleep(w.ms(50, 300))
		}
		return func() { b.disk.set(func() { b.disk.slow = 0 }) }
	}},
	{"compact", 2, func(w *world) func() {
		for _, b := range w.live() {
			if w.dice.n(2) == 0 {
				w.compact(b)
			}
		}
		return nil
	}},
	{"one misses what is compacted", 3, func(w *world) func() {
		b := w.target()
		end := w.net.begin(&hazard{block: []blocking{loses, holds}[w.dice.n(2)],
			match: func(from, to *boot, _ bool) bool { return from == b || to == b }})
		time.Sleep(w.ms(300, 900))
		for _, o := range w.live() {
			if o != b {
				w.compact(o)
			}
		}
		// The snapshot that it gets may come a second time, when it has gone on.
		twice := w.net.begin(&hazard{only: frameSnapshot, again: 0.5, later: w.ms(50, 500), match: func(_, to *boot, _ bool) bool { return to == b }})
		return func() { end(); time.AfterFunc(time.Second, twice) }
	}},
	{"votes held over a snapshot", 2, (*world).holdVotes},
	{"a vote before a heartbeat", 2, (*world).voteFirst},
}

func everything(*boot, *boot, bool) bool { return true }

func (w *world) isolate(how blocking) func() {
	b := w.target()
	return w.net.begin(&hazard{block: how, match: func(from, to *boot, _ bool) bool { return from == b || to == b }})
}

func (w *world) compact(b *boot) {
	ctx, cancel := context.WithTimeout(w.ctx, 2*time.Second)
	w.work.Go(func() { defer cancel(); b.Compact(ctx) })
}

// reboot starts a machine again, with a disk of the host's choice in it.
func (w *world) reboot(slot int) {
	if w.mutation == bootsFromOldDisk {
		w.bootOld(slot)
		return
	}
	b := w.boot(slot, []string{"old", "older", "wiped", "of another server"}[w.dice.n(4)])
	w.work.Go(func() { w.claim(b) })
}

// tend starts machines that are off, sooner or later, and ends boots that the
// cluster has replaced, some time after.
func (w *world) tend(eager bool) {
	live := w.live()
	var members []ServerID
	admitted := map[int]ServerID{}
	for _, b := range live {
		list, _ := b.Members()
		for _, m := range list {
			members = append(members, m.ID)
		}
		if b.IsLeader() {
			admitted = b.machine.slots()
		}
	}
	for slot := range w.slots() {
		newest, holder := w.newest(slot), w.byID(admitted[slot])
		lost := holder != nil && holder.dead.Load() && holder.number > newest.number
		stuck := holder != nil && holder.dead.Load() && holder != newest && !newest.dead.Load() && eager
		if (newest.dead.Load() || lost || stuck) && (eager || w.dice.n(2) == 0) {
			w.reboot(slot)
		}
	}
	for _, b := range live {
		if b != w.newest(b.slot) && !slices.Contains(members, b.id) && w.dice.n(3) == 0 && w.tolerable(b) {
			w.crash(b)
		}
	}
}

// pick chooses one of the faults, by their weights.
func (w *world) pick(list []fault) fault {
	total := 0
	for _, f := range list {
		total += f.weight
	}
	at := w.dice.n(total)
	for _, f := range list {
		if at -= f.weight; at < 0 {
			return f
		}
	}
	return list[0]
}

// strike lets the host do one thing.
func (w *world) strike(f fault) (undo func()) {
	w.note("fault: %s", f.name)
	w.stats.count("fault: " + f.name)
	return f.do(w)
}
