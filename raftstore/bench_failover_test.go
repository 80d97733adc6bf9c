package raftstore_test

import (
	"context"
	"slices"
	"testing"
	"time"
)

// BenchmarkFailover takes the power from the leader of three servers on loopback TCP with TLS, without a goodbye and
// without a FIN, and measures until the next leader has committed an entry, and until a survivor that was asked at
// once (Submit) has answered. Then a new boot takes the dead one's place, which is measured too: from its start to its
// vote, without attestation, which belongs to kds/node. Twenty rounds at least; the timeouts are the package's.
func BenchmarkFailover(b *testing.B) {
	list := oursOn(b, 3, benchConfig{})
	var commit, submit, rejoin []time.Duration
	for range rounds(b, 20) {
		dead := leading(list)
		for _, _, err := dead.Propose(b.Context(), []byte("before")); err != nil; _, _, err = dead.Propose(b.Context(), []byte("before")) {
			time.Sleep(10 * time.Millisecond)
			dead = leading(list)
		}
		rest := slices.DeleteFunc(slices.Clone(list), func(s *benchStore) bool { return s == dead })
		start := time.Now()
		dead.dead.Store(true)
		answered := make(chan time.Duration, 1)
		go func() {
			for {
				if _, _, err := rest[0].Submit(context.Background(), []byte("submitted")); err == nil {
					answered <- time.Since(start)
					return
				}
			}
		}()
		next := firstCommit(rest)
		commit = append(commit, time.Since(start))
		submit = append(submit, <-answered)
		dead.end()
		for {
			_, prev := next.Members()
			if _, err := next.Remove(b.Context(), dead.id, prev); err == nil {
				break
			}
			next = firstCommit(rest)
		}
		start = time.Now()
		list = append(rest, joinBench(b, next, benchConfig{}))
		rejoin = append(rejoin, time.Since(start))
	}
	for name, took := range map[string][]time.Duration{"first-commit": commit, "first-answer": submit, "rejoin": rejoin} {
		slices.Sort(took)
		b.Logf("%-14s %d rounds: median %7.1f ms, least %7.1f, most %7.1f", name, len(took), ms(took[len(took)/2]), ms(took[0]), ms(took[len(took)-1]))
		b.ReportMetric(ms(took[len(took)/2]), name+"-ms")
	}
	b.ReportMetric(0, "ns/op")
}

// firstCommit returns the first of the servers that commits.
func firstCommit(list []*benchStore) *benchStore {
	for {
		for _, s := range list {
			if s.IsLeader() {
				if _, _, err := s.Propose(context.Background(), []byte("after")); err == nil {
					return s
				}
			}
		}
		time.Sleep(200 * time.Microsecond)
	}
}
