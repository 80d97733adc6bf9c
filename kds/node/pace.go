package node

import (
	"sync"
	"time"

	"github.com/claviger/claviger/kds/api"
)

const (
	paceBurst  = 6               // new boots of one slot in a row
	paceRefill = 5 * time.Second // until another one may come
)

// pace slows down a slot whose boots replace each other again and again: each
// one costs the cluster three changes of its configuration and, on the leader's
// own slot, an election. Nobody is locked out, and every boot still raises the
// clone alarm where it belongs. It is the memory of one leader: the next one
// begins anew, which costs an attacker an election for a few admissions more.
// The clock is the process's own monotonic one; no safety hangs on it.
type pace struct {
	mu    sync.Mutex
	slots map[string]bucket // guarded by mu; at most api.MaxMembers
}

// bucket is full again at the instant full, and every boot moves that on.
type bucket struct{ full time.Time }

// take returns zero, or how long the next boot of the slot has to wait.
func (p *pace) take(slot string, now time.Time, burst int, refill time.Duration) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	full := p.slots[slot].full
	if full.Before(now) {
		full = now
	}
	if wait := full.Add(refill).Sub(now) - time.Duration(burst)*refill; wait > 0 {
		return wait
	}
	if p.slots == nil {
		p.slots = map[string]bucket{}
	}
	p.slots[slot] = bucket{full.Add(refill)}
	p.prune(now)
	return 0
}

// prune forgets slots that are at rest, and the one nearest to it if there are
// still too many: a slot gets here only with the platform that it belongs to.
func (p *pace) prune(now time.Time) {
	for slot, b := range p.slots {
		if !b.full.After(now) {
			delete(p.slots, slot)
		}
	}
	for len(p.slots) > api.MaxMembers {
		var least string
		for slot, b := range p.slots {
			if least == "" || b.full.Before(p.slots[least].full) {
				least = slot
			}
		}
		delete(p.slots, least)
	}
}
