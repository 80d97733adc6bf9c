package raftstore

import (
	"bytes"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"github.com/prometheus/client_golang/prometheus"
)

// numbers are a server's metrics by name, those with labels by name and label; a
// histogram is its count and its sum.
func numbers(t *testing.T, n *testNode) map[string]float64 {
	t.Helper()
	r := prometheus.NewPedanticRegistry()
	r.MustRegister(n.metrics.collectors...)
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			name := strings.TrimPrefix(f.GetName(), "claviger_raft_")
			for _, l := range m.GetLabel() {
				name += "/" + l.GetValue()
			}
			switch {
			case m.GetHistogram() != nil:
				out[name+"/count"], out[name+"/sum"] = float64(m.GetHistogram().GetSampleCount()), m.GetHistogram().GetSampleSum()
			case m.GetGauge() != nil:
				out[name] = m.GetGauge().GetValue()
			default:
				out[name] = m.GetCounter().GetValue()
			}
		}
	}
	return out
}

func TestMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newTestNet()
		nodes := net.cluster(t, "a", "b", "c")
		a, b, c := nodes[0], nodes[1], nodes[2]
		follows(t, b, a)
		for _, e := range entries("x", 10) {
			if _, _, err := b.Submit(t.Context(), []byte(e)); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Read(t.Context()); err != nil {
			t.Fatal(err)
		}
		a.raft.ReloadConfig(reloadTrailing(a, 1))
		net.cut(c.id)
		for _, e := range entries("lag", 20) {
			propose(t, a, e)
		}
		leader, follower := numbers(t, a), numbers(t, b)
		for what, ok := range map[string]bool{
			"forwarded":         follower["forwarded_total"] == 10 && leader["forwarded_taken_total"] == 10,
			"submit latency":    follower["submit_seconds/count"] == 10,
			"commit latency":    leader["commit_seconds/count"] >= 30,
			"batches":           leader["append_entries/count"] > 0 && leader["append_entries/sum"] >= 40,
			"archive":           leader["archive_write_seconds/count"] >= 30,
			"leader":            leader["leader"] == 1 && follower["leader"] == 0,
			"leader changes":    follower["leader_changes_total"] == 1,
			"rounds, questions": leader["read_rounds_total"] > 0 && follower["read_questions_total"] == 1,
			"lag of c":          leader["peer_lag/"+c.id.short()] >= 20,
			"lag of b":          has(leader, "peer_lag/"+b.id.short()) && leader["peer_lag/"+b.id.short()] <= 1,
			"no lag elsewhere":  !has(follower, "peer_lag/"+c.id.short()),
			"nothing waits":     follower["forward_queue"] == 0 && follower["forward_frames"] == 0 && leader["proposals"] == 0,
		} {
			if !ok {
				t.Errorf("%s: leader %v, follower %v", what, leader, follower)
			}
		}
		if err := a.Compact(t.Context()); err != nil {
			t.Fatal(err)
		}
		net.heal(c.id)
		eventually(t, "a snapshot", func() bool { return numbers(t, c)["snapshots_received_total"] == 1 })
		eventually(t, "it is counted", func() bool { return numbers(t, a)["snapshots_sent_total"] == 1 })
		a.Shutdown()
		leaderOf(t, b, c)
		eventually(t, "another leader is counted", func() bool { return numbers(t, b)["leader_changes_total"] >= 2 })
	})
}

// lines collects what is logged.
type lines struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *lines) with(parts ...string) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for line := range strings.Lines(l.buf.String()) {
		all := true
		for _, p := range parts {
			all = all && strings.Contains(line, p)
		}
		if all {
			n++
		}
	}
	return n
}

func TestLogs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &lines{}
		s := playLogged(t, slog.New(slog.NewTextHandler(log, nil)))
		if log.with("level=INFO", "another leader", "leader="+s.boss.short(), "term=5") != 1 {
			t.Errorf("the leader is not in the log:\n%s", log.buf.String())
		}
		if log.with("level=INFO", "the configuration has changed", "index=1", "v:"+s.boss.short(), "v:"+s.id.short()) != 1 {
			t.Errorf("the configuration is not in the log:\n%s", log.buf.String())
		}
		only := raft.EncodeConfiguration(raft.Configuration{Servers: []raft.Server{
			{ID: s.boss.raftID(), Address: raftAddress(s.boss, "boss:1")}, {ID: s.id.raftID(), Address: raftAddress(s.id, s.addr), Suffrage: raft.Nonvoter}}})
		s.append(5, 4, wireEntry{Type: uint8(raft.LogConfiguration), Data: only})
		eventually(t, "the change is in the log", func() bool { return log.with("index=4", "n:"+s.id.short()) == 1 })
		for range 50 {
			c := dialAs(s.testNode, ServerID{})
			c.SetDeadline(time.Now().Add(time.Second))
			c.Read(make([]byte, 1))
			c.Close()
		}
		if n := log.with("level=WARN", "refused a raft peer"); n != 1 {
			t.Errorf("50 refusals of one peer made %d lines", n)
		}
		if got := s.trans.refused.Load(); got != 50 {
			t.Errorf("%d refusals were counted", got)
		}
	})
}

func has(m map[string]float64, name string) bool {
	_, ok := m[name]
	return ok
}
