package main

import (
	"context"
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/cmd/internal/simworld"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
	"github.com/claviger/claviger/kds/node/nodetest"
)

// unusedPorts are ports that nobody else uses until the test ends, also while nothing listens on them: a killed node's port
// must be there when it starts again.
func unusedPorts(t testing.TB, n int) (ports []int) {
	t.Helper()
	for range n {
		port, mark, err := nodetest.Port()
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { mark.Close() })
		ports = append(ports, port)
	}
	return ports
}

// forkLeader cuts the leader off while clients write to it, kills it, and returns its slot once the others serve again.
func (s *recoverySite) forkLeader() string {
	s.t.Helper()
	leader := ""
	s.until("a leader", func() bool {
		for _, m := range s.members() {
			if m.Leader {
				leader = m.Slot
			}
		}
		return leader != "" && leader != "d" // whose disk is rolled back already
	})
	ctx, cancel := context.WithCancel(s.t.Context())
	var writers sync.WaitGroup
	wrote := make(chan struct{}, 64)
	for range 4 {
		writers.Go(func() { s.write(ctx, leader, wrote) })
	}
	for range 16 {
		<-wrote
	}
	for _, r := range s.relay {
		r.hold()
	}
	time.Sleep(120 * time.Millisecond) // less than the leader's lease, more than a write takes
	cmd := s.procs[leader]
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	delete(s.procs, leader)
	cancel()
	writers.Wait()
	for _, r := range s.relay {
		r.resume()
	}
	return leader
}

// write asks one node for keys until ctx ends: each release is an entry.
func (s *recoverySite) write(ctx context.Context, slot string, wrote chan<- struct{}) {
	c, err := s.client(slot)
	if err != nil {
		s.t.Error(err)
		return
	}
	defer c.Close()
	for ctx.Err() == nil {
		limited, cancel := context.WithTimeout(ctx, 2*time.Second)
		k, _, err := c.Key(limited, api.KeyRequest{Constraint: ordersImage.Constraint(), Name: "db", Purpose: "aes-256"})
		cancel()
		if err != nil {
			continue
		}
		k.Destroy()
		select {
		case wrote <- struct{}{}:
		default:
		}
	}
}

var ordersImage = sim.Image{Kind: enclave.SGX, Name: "orders", Version: "1"}

func (s *recoverySite) client(slot string) (*client.Client, error) {
	world, err := sim.OpenWorld(s.path("world.json"))
	if err != nil {
		return nil, err
	}
	place, err := simworld.At(world, "app", false)
	if err != nil {
		return nil, err
	}
	tee, err := place.Machine.Launch(ordersImage)
	if err != nil {
		return nil, err
	}
	id, err := api.ParseID(s.clusterID())
	if err != nil {
		return nil, err
	}
	var prove func(context.Context, [64]byte) (ratls.Evidence, error) = simworld.Attest(world, tee)
	return client.New(client.Config{ClusterID: id, Endpoints: []string{fmt.Sprintf("127.0.0.1:%d", s.ports[slot][1])}, Root: world.Root(), Attest: prove})
}

// relay stands before a node's peer port, so that the network can be cut.
type relay struct {
	addr string
	to   string

	mu    sync.Mutex
	held  bool
	conns []net.Conn
}

func newRelay(t *testing.T, port int) *relay {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	r := &relay{addr: l.Addr().String(), to: fmt.Sprintf("127.0.0.1:%d", port)}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go r.serve(c)
		}
	}()
	return r
}

func (r *relay) serve(in net.Conn) {
	defer in.Close()
	out, err := net.Dial("tcp", r.to)
	if err != nil || !r.add(in, out) {
		return
	}
	defer out.Close()
	go func() {
		r.copy(in, out)
		in.Close()
	}()
	r.copy(out, in)
}

func (r *relay) add(conns ...net.Conn) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.held {
		for _, c := range conns {
			c.Close()
		}
		return false
	}
	r.conns = append(r.conns, conns...)
	return true
}

// copy forwards until an end closes; what comes while the relay holds goes nowhere.
func (r *relay) copy(to, from net.Conn) {
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		r.mu.Lock()
		held := r.held
		r.mu.Unlock()
		if err != nil {
			return
		}
		if held {
			continue
		}
		if _, err := to.Write(buf[:n]); err != nil {
			return
		}
	}
}

func (r *relay) hold() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.held = true
}

// resume lets new connections through; the old ones have lost bytes and are closed.
func (r *relay) resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, c := range r.conns {
		c.Close()
	}
	r.conns, r.held = nil, false
}
