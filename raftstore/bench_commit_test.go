package raftstore_test

import (
	"bytes"
	"context"
	"fmt"
	"iter"
	"testing"
	"time"
)

// turnTime is how long each contender has the machine to itself before the next one has it.
const turnTime = 250 * time.Millisecond

// rounds is b.Loop with a least number of rounds.
func rounds(b *testing.B, least int) iter.Seq[int] {
	return func(yield func(int) bool) {
		for n, more := 0, true; ; n++ {
			if more {
				more = b.Loop()
			}
			if !more && n >= least || !yield(n) {
				return
			}
		}
	}
}

// contenders runs every series in turns.
func contenders(b *testing.B, callers int, list []*series) {
	for range rounds(b, 3) {
		for _, s := range list {
			s.turn(context.Background(), callers, turnTime)
		}
	}
}

// BenchmarkCommit commits entries of 100 bytes on three servers in one process, on one disk and over loopback TCP, in
// turns. Ours seals and chains every record, syncs a file, and speaks TLS 1.3 with client certificates; the library
// keeps plain records in bolt, syncs it, and speaks plain TCP. "memory" is each without a disk: the library's own
// stores, and ours with an archive that forgets.
func BenchmarkCommit(b *testing.B) {
	entry := bytes.Repeat([]byte{1}, 100)
	ours := oursOn(b, 3, benchConfig{timeouts: stockTimeouts})
	inMemory := oursOn(b, 3, benchConfig{timeouts: stockTimeouts, memory: true})
	bolt, memory := stockOn(b, false), stockOn(b, true)
	propose := func(list []*benchStore) func(context.Context) error {
		return func(ctx context.Context) error { _, _, err := leading(list).Propose(ctx, entry); return err }
	}
	for _, writers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("writers=%d", writers), func(b *testing.B) {
			list := []*series{
				{name: "ours", call: propose(ours)},
				{name: "ours-from-a-follower", call: func(ctx context.Context) error { _, _, err := following(ours).Submit(ctx, entry); return err }},
				{name: "stock-bolt", call: func(context.Context) error { return bolt.Apply(entry, 10*time.Second).Error() }},
				{name: "ours-memory", call: propose(inMemory)},
				{name: "stock-memory", call: func(context.Context) error { return memory.Apply(entry, 10*time.Second).Error() }},
			}
			contenders(b, writers, list)
			report(b, "commits", list)
		})
	}
}

// BenchmarkLinearizableRead compares ways to be sure that a read is current: SafeRead on our leader and Read on our
// follower, which prove it and write nothing; VerifyLeader, which does not prove it (docs/attacks.md); and Barrier,
// which writes an entry.
func BenchmarkLinearizableRead(b *testing.B) {
	ours, bolt := oursOn(b, 3, benchConfig{timeouts: stockTimeouts}), stockOn(b, false)
	for _, callers := range []int{1, 16, 256} {
		b.Run(fmt.Sprintf("callers=%d", callers), func(b *testing.B) {
			list := []*series{
				{name: "SafeRead", call: func(ctx context.Context) error { return leading(ours).SafeRead(ctx) }},
				{name: "Read-on-a-follower", call: func(ctx context.Context) error { return following(ours).Read(ctx) }},
				{name: "stock-VerifyLeader", call: func(context.Context) error { return bolt.VerifyLeader().Error() }},
				{name: "stock-Barrier", call: func(context.Context) error { return bolt.Barrier(10 * time.Second).Error() }},
			}
			contenders(b, callers, list)
			report(b, "reads", list)
		})
	}
}
