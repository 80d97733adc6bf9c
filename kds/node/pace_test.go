package node

import (
	"fmt"
	"testing"
	"time"

	"github.com/claviger/claviger/kds/api"
)

// A burst passes, then one for each refill; rest fills the bucket again, and
// slots do not share it.
func TestPaceSlowsAndNeverLocksOut(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Unix(1000, 0)
	for i := range 3 {
		if wait := p.take("a", now, 3, time.Second); wait != 0 {
			t.Fatalf("boot %d of a burst of 3 has to wait %v", i+1, wait)
		}
	}
	if wait := p.take("a", now, 3, time.Second); wait != time.Second {
		t.Fatalf("the fourth boot has to wait %v, want 1 s", wait)
	}
	if wait := p.take("b", now, 3, time.Second); wait != 0 {
		t.Fatalf("another slot has to wait %v", wait)
	}
	admitted := 0
	for i := range 100 { // a boot every 100 ms for 10 s
		if p.take("a", now.Add(time.Duration(i)*100*time.Millisecond), 3, time.Second) == 0 {
			admitted++
		}
	}
	if admitted != 9 {
		t.Errorf("%d of 100 boots in 10 s were admitted, want 9: one per second", admitted)
	}
	now = now.Add(time.Minute)
	for i := range 3 {
		if wait := p.take("a", now, 3, time.Second); wait != 0 {
			t.Errorf("boot %d after a rest has to wait %v", i+1, wait)
		}
	}
}

func TestPaceIsBounded(t *testing.T) {
	t.Parallel()
	var p pace
	now := time.Unix(1000, 0)
	for i := range 10 * api.MaxMembers {
		p.take(fmt.Sprint("slot-", i), now, 3, time.Second)
	}
	if len(p.slots) > api.MaxMembers {
		t.Errorf("%d slots remembered, at most %d", len(p.slots), api.MaxMembers)
	}
	p.take("last", now.Add(time.Hour), 3, time.Second)
	if len(p.slots) != 1 {
		t.Errorf("%d slots remembered after an hour of rest", len(p.slots))
	}
}
