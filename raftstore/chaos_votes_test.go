package raftstore

import (
	"context"
	"slices"
	"time"

	"github.com/hashicorp/raft"
)

// holdVotes is an attack that random faults do not find. A candidate asks for
// pre-votes; the one that it needs is given, and held back. Meanwhile its leader,
// whom it does not hear, makes of three voters five, and its snapshot brings the
// candidate the new configuration. When the pre-vote arrives at last, what counts
// must not be what was a majority of three.
//
// The host needs a leader that believes for long that it is followed, a candidate
// that waits for long, and that the leader's requests are told apart by their
// channels. Where the cluster does not grow, or not any more, the rest is done all
// the same: a candidate gets a snapshot, and then the votes it had asked for before.
func (w *world) holdVotes() func() {
	leader, victim, voter := w.castOfVotes()
	if leader == nil {
		return nil
	}
	var ends []func()
	begin := func(h *hazard) (end func()) {
		h.block = holds
		end = w.net.begin(h)
		ends = append(ends, end)
		return end
	}
	undo := func() {
		for _, end := range ends {
			end()
		}
	}
	between := func(x, y *boot) func(from, to *boot, _ bool) bool {
		return func(from, to *boot, _ bool) bool { return from == x && to == y }
	}
	alone := func(from, to *boot, _ bool) bool {
		return from == voter && to != victim || to == voter && from != victim
	}
	// Neither hears the leader: the victim campaigns, and cannot ask before the voter
	// has no leader any more. That has the same log then, and gives its pre-vote.
	begin(&hazard{only: frameAppend, match: between(leader, victim)})
	heal := begin(&hazard{match: alone})
	answers := begin(&hazard{only: frameReply, match: func(_, to *boot, _ bool) bool { return to == victim }})
	ask := begin(&hazard{only: framePreVote, match: between(victim, voter)})
	begin(&hazard{only: framePreVote, match: between(voter, victim)})
	if !w.until(2*time.Second, func() bool { return victim.campaigns() && voter.campaigns() }) {
		return undo
	}
	w.note("boot %d gives boot %d its pre-vote, which is held", voter.number, victim.number)
	ask()
	time.Sleep(5 * time.Millisecond)
	heal()
	grown := w.grow(leader)
	// The voter has no leader again, and the victim gets what the leader has by now.
	begin(&hazard{match: alone})
	w.until(time.Second, voter.campaigns)
	leader.keepNothing()
	ctx, cancel := context.WithTimeout(w.ctx, time.Second)
	defer cancel()
	leader.Compact(ctx)
	at := leader.snaps.newest()
	if w.until(2*time.Second, func() bool { return victim.snaps.newest() >= at }) && grown {
		w.stats.count("snapshot of more voters for a candidate")
	}
	w.note("boot %d, %v, has the snapshot of %d; boot %d, %v, votes; more voters: %v", victim.number, victim.raft.State(), victim.snaps.newest(), voter.number, voter.raft.State(), grown)
	time.Sleep(w.ms(50, 300)) // the others go on
	answers()
	return undo
}

// castOfVotes is a leader and two of its voters. In a cluster that is to grow they
// are those whose clocks are made for it; the host waits for them to have their parts.
func (w *world) castOfVotes() (leader, victim, voter *boot) {
	grows := w.grows && w.slots() == w.founded
	if grows {
		w.until(3*time.Second, func() bool {
			leader = w.leader()
			if leader == nil || leader.slot == 0 {
				return leader != nil
			}
			ctx, cancel := context.WithTimeout(w.ctx, time.Second)
			defer cancel()
			leader.TransferLeadership(ctx)
			return false
		})
	}
	if leader = w.leader(); leader == nil {
		return nil, nil, nil
	}
	others := w.followers(leader)
	if len(others) < 2 {
		return nil, nil, nil
	}
	slices.SortFunc(others, func(a, b *boot) int { return a.slot - b.slot })
	if at := w.dice.n(len(others)); !grows {
		others = slices.Concat(others[at:], others[:at])
	}
	return leader, others[0], others[1]
}

// followers are the voters of a leader that are alive, without itself.
func (w *world) followers(leader *boot) (others []*boot) {
	list, _ := leader.Members()
	for _, m := range list {
		if b := w.byID(m.ID); m.Voter && b != leader && !b.dead.Load() {
			others = append(others, b)
		}
	}
	return others
}

// voteFirst lets a vote overtake a heartbeat. The leader's successor hands over
// again, to the first; one server has heard of neither, has a slow disk, and is asked
// for its vote in the newest term. While it stores that, the heartbeats of the term
// in between arrive, which it would have followed before.
func (w *world) voteFirst() func() {
	first := w.leader()
	if first == nil {
		return nil
	}
	others := w.followers(first)
	if len(others) < 2 {
		return nil
	}
	at := w.dice.n(len(others))
	second, voter := others[at], others[(at+1)%len(others)]
	hand := func(from, to *boot) bool {
		term := from.Term()
		ctx, cancel := context.WithTimeout(w.ctx, time.Second)
		defer cancel()
		from.TransferLeadershipTo(ctx, to.id)
		return w.until(time.Second, func() bool { return to.IsLeader() && to.Term() > term })
	}
	late := w.net.begin(&hazard{only: frameAppend, block: holds, match: func(_, to *boot, _ bool) bool { return to == voter }})
	votes := w.net.begin(&hazard{only: frameVote, block: loses, match: func(_, to *boot, _ bool) bool { return to == voter }})
	moved := hand(first, second)
	slow := w.ms(300, 1000)
	voter.disk.set(func() { voter.disk.slow = slow })
	time.Sleep(w.ms(30, 100)) // its heartbeats are on their way
	votes()
	if moved && hand(second, first) {
		w.stats.count("heartbeat overtaken by a vote")
	}
	late()
	return func() { voter.disk.set(func() { voter.disk.slow = 0 }) }
}

// grow opens two slots more, if this cluster grows and has not yet, and waits
// until the leader has voters in them.
func (w *world) grow(leader *boot) bool {
	if !w.grows || w.slots() > w.founded {
		return false
	}
	for range 2 {
		b := w.boot(w.slots(), "wiped")
		w.work.Go(func() { w.claim(b) })
	}
	return w.until(3*time.Second, func() bool {
		list, _ := leader.Members()
		voters := 0
		for _, m := range list {
			if m.Voter {
				voters++
			}
		}
		return voters == w.slots()
	})
}

// until is wait in the middle of a fault: looked at often, and nothing is broken if it is not reached.
func (w *world) until(limit time.Duration, f func() bool) bool {
	for end := time.Now().Add(limit); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) || w.broken() {
			return false
		}
	}
	return true
}

func (b *boot) campaigns() bool { return b.raft.State() == raft.Candidate }
