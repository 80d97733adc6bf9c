package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/kds"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
	"github.com/claviger/claviger/raftstore"
)

// The life of a cluster: genesis, two joins, a key, the leader's crash, the
// same key, the crashed node's return as a new server, a graceful stop.
func TestClusterLife(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "b", "c")
	c := s.client(s.endpoints()...)
	first := s.key(c)
	if len(first) != 32 {
		t.Fatalf("a key of %d bytes", len(first))
	}
	checkMembers(t, s, 3)

	crashed := s.leader()
	crashed.Close()
	if err := <-crashed.done; !errors.Is(err, ErrClosed) {
		t.Fatalf("Run after Close: %v", err)
	}
	start := time.Now()
	if again := s.key(c); !bytes.Equal(first, again) {
		t.Fatal("another key after the leader's crash")
	}
	t.Logf("the same key %v after the leader's crash", time.Since(start).Round(time.Millisecond))

	// The same machine boots again: another server, the next incarnation.
	back := s.run(s.config(crashed.slot, s.launch("machine-"+crashed.slot, nodeImage)))
	s.awaitReady(back)
	s.nodes = slices.DeleteFunc(s.nodes, func(n *running) bool { return n == crashed })
	checkMembers(t, s, 3)
	members, _ := s.leader().store.Load().Members()
	if !contains(members, back.ServerID()) || contains(members, crashed.ServerID()) || len(members) != 3 {
		t.Fatalf("the configuration after the rejoin: %v", members)
	}
	for _, m := range s.leader().machine.View().Members {
		if m.Slot == crashed.slot && m.Incarnation != 2 {
			t.Fatalf("slot %s is at incarnation %d", m.Slot, m.Incarnation)
		}
	}

	// A graceful stop of the leader hands over; then the key is still the same.
	leader := s.leader()
	leader.stop()
	if err := <-leader.done; err != nil {
		t.Fatalf("a graceful stop: %v", err)
	}
	if again := s.key(c); !bytes.Equal(first, again) {
		t.Fatal("another key after the leader's stop")
	}
}

// checkMembers asks every node for its view until all show n voters.
func checkMembers(t *testing.T, s *site, n int) {
	t.Helper()
	for _, node := range s.nodes {
		if node.ctx.Err() != nil {
			continue
		}
		c := s.client(node.APIAddr())
		poll(t, "all voters known", func() bool {
			cluster, err := c.Cluster(t.Context())
			voters, leaders := 0, 0
			for _, m := range cluster.Members {
				if m.Voter {
					voters++
				}
				if m.Leader {
					leaders++
				}
			}
			return err == nil && voters == n && leaders == 1
		})
	}
}

// A client that knows one follower only gets its key from that follower: the
// record is committed by the leader, and nobody is sent on.
func TestFollowersAnswer(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "b", "c")
	leader := s.leader()
	want := s.key(s.client(leader.APIAddr()))
	for _, n := range s.nodes {
		if n == leader {
			continue
		}
		if err := (replica{n.store.Load()}).SafeRead(t.Context()); err == nil {
			t.Fatal("a follower admits")
		}
		forwarded, records := counterValue(t, n, "claviger_raft_forwarded_total"), counterValue(t, leader, "claviger_raft_forwarded_taken_total")
		if k := s.key(s.client(n.APIAddr())); !slices.Equal(k, want) {
			t.Fatal("another key through a follower")
		}
		if counterValue(t, n, "claviger_raft_forwarded_total") <= forwarded || counterValue(t, leader, "claviger_raft_forwarded_taken_total") <= records {
			t.Error("the follower has not answered by itself")
		}
	}
}

// What the store says is told to clients as what it is: one that is full is asked again, and one that has no majority as well,
// but people look for different things then.
func TestStoreErrorsKeepTheirMeaning(t *testing.T) {
	t.Parallel()
	kinds := []error{kds.ErrBusy, kds.ErrNoQuorum, state.ErrHalted}
	for from, want := range map[error]error{
		raftstore.ErrBusy: kds.ErrBusy, raftstore.ErrNoQuorum: kds.ErrNoQuorum, raftstore.ErrOutcomeUnknown: kds.ErrNoQuorum,
		raftstore.ErrStopped: kds.ErrNoQuorum, raftstore.ErrHalted: state.ErrHalted, raftstore.ErrEntryTooLarge: nil,
	} {
		got := translate(fmt.Errorf("proposing: %w", from))
		for _, kind := range kinds {
			if errors.Is(got, kind) != (kind == want) {
				t.Errorf("%v became %v", from, got)
			}
		}
		if !errors.Is(got, from) {
			t.Errorf("%v is lost in %v", from, got)
		}
	}
}

func TestNoQuorumIsQuickAndTyped(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "b", "c")
	leader := s.leader()
	s.key(s.client(leader.APIAddr()))
	for _, n := range s.nodes {
		if n != leader {
			n.Close()
		}
	}
	poll(t, "the leader has noticed", func() bool {
		return errors.Is(replica{leader.store.Load()}.SafeRead(t.Context()), kds.ErrNoQuorum)
	})
	ctx, cancel := context.WithTimeout(t.Context(), slow*4*time.Second)
	defer cancel()
	start := time.Now()
	k, _, err := s.client(leader.APIAddr()).Key(ctx, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"})
	if !errors.Is(err, &api.Problem{Code: api.CodeNoQuorum}) || !k.IsZero() {
		t.Fatalf("without a quorum: key %v, error %v", !k.IsZero(), err)
	}
	err = replica{leader.store.Load()}.SafeRead(t.Context())
	if err == nil {
		t.Fatal("a read without a quorum")
	}
	t.Logf("refused after %v: %v", time.Since(start).Round(time.Millisecond), err)
}

func TestAdminListener(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start("a")[0]
	get := func(path string) (int, string) {
		res, err := http.Get("http://" + n.AdminAddr() + path)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(body)
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz: %d", code)
	}
	if code, body := get("/readyz"); code != 200 {
		t.Errorf("readyz: %d %s", code, body)
	}
	code, body := get("/metrics")
	for _, want := range []string{"claviger_raft_term", "claviger_node_clone_alarms_total", fmt.Sprint("claviger_node_feature_level ", state.Level), "claviger_node_policy_version 1", "claviger_node_rejoin_seconds", "claviger_api_requests_total"} {
		if code != 200 || !strings.Contains(body, want) && want != "claviger_api_requests_total" {
			t.Errorf("metrics: %d, %s missing", code, want)
		}
	}
}

func TestNotReadyBeforePromotion(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.pins.ClusterID = api.ID{9}
	cfg := s.config("a", s.launch("machine-a", nodeImage))
	cfg.Join = []string{"127.0.0.1:1"} // nobody there
	r := s.run(cfg)
	poll(t, "the admin listener says not ready", func() bool {
		res, err := http.Get("http://" + r.AdminAddr() + "/readyz")
		if err != nil {
			return false
		}
		res.Body.Close()
		return res.StatusCode == 503
	})
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatalf("stopped while joining: %v", err)
	}
}

// A clone of a running node: the newest supersedes, the alarm is raised, and
// the older boot stops by itself.
func TestCloneAlarm(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) { n.tune.supersedeGrace = 200 * time.Millisecond }
	s.start("a", "b", "c")
	leader := s.leader()
	var old *running
	for _, n := range s.nodes {
		if n != leader {
			old = n
			break
		}
	}
	clone := s.run(s.config(old.slot, s.launch("machine-"+old.slot, nodeImage)))
	s.awaitReady(clone)
	poll(t, "one clone alarm", func() bool { return counterValue(t, leader, "claviger_node_clone_alarms_total") == 1 })
	select {
	case err := <-old.done:
		if !errors.Is(err, ErrSuperseded) {
			t.Errorf("the older boot ended with %v", err)
		}
	case <-time.After(patience):
		t.Error("the older boot goes on")
	}
	members, _ := leader.store.Load().Members()
	if contains(members, old.ServerID()) || !contains(members, clone.ServerID()) {
		t.Errorf("the configuration holds the older boot: %v", members)
	}
}

// A claim on the leader's own slot is served by the next leader.
func TestCloneOfTheLeader(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.start("a", "b", "c")
	leader := s.leader()
	clone := s.run(s.config(leader.slot, s.launch("machine-"+leader.slot, nodeImage)))
	s.awaitReady(clone)
	if got := counterValue(t, leader, "claviger_node_clone_alarms_total"); got < 1 {
		t.Errorf("%v clone alarms", got)
	}
	members, _ := s.leader().store.Load().Members()
	if contains(members, leader.ServerID()) || len(members) != 3 {
		t.Errorf("members: %v", members)
	}
}

func counterValue(t *testing.T, n *running, name string) float64 {
	t.Helper()
	families, err := n.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetCounter().GetValue()
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
