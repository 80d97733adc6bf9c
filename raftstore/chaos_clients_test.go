package raftstore

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/anishathalye/porcupine"
)

// client writes to and reads from every server there is, the superseded and the
// cloned too, as somebody would who is given addresses by the host.
func (w *world) client(ctx context.Context, number int) {
	d := newDice(w.seed, uint64(100+number))
	for i := 0; ctx.Err() == nil; i++ {
		live := w.live()
		b := live[d.n(len(live))]
		if d.n(3) > 0 { // mostly the leader, if this server knows one
			if id, _, ok := b.Leader(); ok {
				if l := w.byID(id); l != nil && !l.dead.Load() {
					b = l
				}
			}
		}
		key := w.key(d.n(3))
		value := fmt.Sprintf("%d.%d,", number, i)
		limit := 200*time.Millisecond + d.upTo(800*time.Millisecond)
		switch k := d.n(10); {
		case k < 2:
			w.write(ctx, number, b, call{opSet, key, value}, limit, d.n(2) == 0)
		case k < 6:
			w.write(ctx, number, b, call{opAppend, key, value}, limit, d.n(2) == 0)
		default:
			w.read(ctx, number, b, key, limit, d.n(2) == 0)
		}
		time.Sleep(2*time.Millisecond + d.upTo(w.pace()))
	}
}

// pace is the longest pause of a client: most rounds are calm, some are busy.
func (w *world) pace() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.round%8 == 7 {
		return 10 * time.Millisecond
	}
	return 250 * time.Millisecond
}

// key names the registers in use: three for every few rounds, so that histories
// of one key stay short enough to be checked.
func (w *world) key(n int) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("%d/%d", w.round/6, n)
}

// undecided says whether a write that failed with err may have happened all the
// same. Everything else is documented to mean that it did not, and is held to that.
func undecided(err error) bool {
	_, elsewhere := errors.AsType[*NotLeaderError](err)
	return !elsewhere && !errors.Is(err, ErrBusy) && (!errors.Is(err, ErrNoQuorum) || errors.Is(err, ErrOutcomeUnknown))
}

func (w *world) write(ctx context.Context, number int, b *boot, c call, limit time.Duration, anywhere bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	entry := kvEntry(c.op, c.key, c.value)
	do, how := b.Propose, "propose"
	if anywhere {
		do, how = b.Submit, "submit"
	}
	o := porcupine.Operation{ClientId: number, Input: c, Call: w.history.tick(), Metadata: fmt.Sprintf("%s to boot %d", how, b.number)}
	index, result, err := do(ctx, entry)
	if err == nil {
		w.acknowledged(b, index, entry)
		o.Return, o.Output = w.history.tick(), answer{result.(string), true}
		w.stats.count("client: " + how)
		w.history.add(o)
		return
	}
	if undecided(err) {
		w.stats.count("client: outcome unknown")
		o.Return, o.Output = math.MaxInt64, answer{}
		w.history.add(o)
	}
}

func (w *world) read(ctx context.Context, number int, b *boot, key string, limit time.Duration, anywhere bool) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	do, how := w.mutation.safeRead(b), "safe read"
	if anywhere && w.mutation != readsByVerifyLeader {
		do, how = b.Read, "read"
	}
	o := porcupine.Operation{ClientId: number, Input: call{0, key, ""}, Call: w.history.tick(), Metadata: fmt.Sprintf("%s of boot %d", how, b.number)}
	if err := do(ctx); err != nil {
		if !refused(err) && !errors.Is(err, ErrBusy) && !errors.Is(err, ErrStopped) && ctx.Err() == nil && b.Err() == nil {
			w.violate("a read of boot %d failed with %v", b.number, err)
		}
		return
	}
	o.Output = answer{b.machine.get(key), true}
	o.Return = w.history.tick()
	w.stats.count("client: " + how)
	w.history.add(o)
}
