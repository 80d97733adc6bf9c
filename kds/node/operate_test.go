package node

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// sign makes the next statement of the operators, as they would: they look at
// the cluster first.
func (s *site) sign(c *client.Client, body api.AdminBody) api.AdminRequest {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	now, err := c.Cluster(ctx)
	if err != nil {
		s.t.Fatalf("looking at the cluster: %v", err)
	}
	raw, err := api.NewAdmin(now.ClusterID, now.Epoch, now.AdminSequence+1, body)
	if err != nil {
		s.t.Fatal(err)
	}
	return api.AdminRequest{Statement: raw, Approvals: api.Approve(raw, s.operator)}
}

// operate has the operators change the cluster.
func (s *site) operate(c *client.Client, body api.AdminBody) api.AdminReply {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	// What one node shows may be a moment behind what another has accepted.
	for {
		reply, err := c.Operate(ctx, s.sign(c, body))
		if err != nil && strings.Contains(err.Error(), "at stage sequence") {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		if err != nil {
			s.t.Fatalf("%s: %v", body.AdminKind(), err)
		}
		return reply
	}
}

func policyChange(parent uint64, images ...sim.Image) *api.NodePolicyChange {
	c := &api.NodePolicyChange{Parent: parent}
	for _, i := range images {
		c.Constraints = append(c.Constraints, i.Constraint())
	}
	slices.Sort(c.Constraints)
	return c
}

// restart starts another boot of a node's slot at its addresses.
func (s *site) restart(old *running, image sim.Image) *running {
	s.t.Helper()
	cfg := s.config(old.slot, s.launch("machine-"+old.slot, image))
	cfg.PeerListen, cfg.APIListen = old.PeerAddr(), old.APIAddr()
	cfg.Join = slices.DeleteFunc(cfg.Join, func(a string) bool { return a == old.PeerAddr() })
	s.mu.Lock()
	s.nodes = slices.DeleteFunc(s.nodes, func(n *running) bool { return n == old })
	s.mu.Unlock()
	r := s.run(cfg)
	s.awaitReady(r)
	return r
}

// load asks for keys without a pause until stop.
type load struct {
	stop           func()
	sent, failed   atomic.Int64
	longest        atomic.Int64 // nanoseconds from one answer to the next, over all clients
	last           atomic.Int64
	longestRequest atomic.Int64
	firstFailure   atomic.Pointer[error]
}

// newLoad has several apps ask; each request may take as long as an app would wait.
func newLoad(t *testing.T, s *site, clients int, wait time.Duration) *load {
	t.Helper()
	l := &load{}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{}, clients)
	l.last.Store(time.Now().UnixNano())
	for range clients {
		c := s.client(s.endpoints()...)
		go func() {
			defer func() { done <- struct{}{} }()
			for ctx.Err() == nil {
				l.ask(ctx, c, wait)
			}
		}()
	}
	l.stop = func() {
		cancel()
		for range clients {
			<-done
		}
	}
	return l
}

func (l *load) ask(ctx context.Context, c *client.Client, wait time.Duration) {
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	start := time.Now()
	k, _, err := c.Key(limited, api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"})
	k.Destroy()
	if ctx.Err() != nil {
		return // cut off by the end of the test, not by the cluster
	}
	l.sent.Add(1)
	if err != nil {
		l.failed.Add(1)
		l.firstFailure.CompareAndSwap(nil, &err)
		return
	}
	now := time.Now()
	raise(&l.longest, now.UnixNano()-l.last.Swap(now.UnixNano()))
	raise(&l.longestRequest, int64(now.Sub(start)))
}

func raise(v *atomic.Int64, to int64) {
	for old := v.Load(); to > old && !v.CompareAndSwap(old, to); old = v.Load() {
	}
}
