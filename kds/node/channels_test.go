package node

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/raftstore"
)

// A channel lives no longer than its age, and at least two thirds of it; one
// that is closed before is forgotten.
func TestChannelsEndAtTheirAge(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cs := newChannels()
		here, there := net.Pipe()
		cs.track(raftstore.ServerID{1}, here, 15*time.Minute)
		closed, _ := net.Pipe()
		cs.track(raftstore.ServerID{2}, closed, 15*time.Minute).Close()
		if n := peersOf(cs); n != 1 {
			t.Errorf("%d peers with channels", n)
		}
		ended := make(chan error, 1)
		go func() {
			_, err := there.Read(make([]byte, 1))
			ended <- err
		}()
		start := time.Now()
		err := <-ended
		if age := time.Since(start); err == nil || age < 10*time.Minute-time.Second || age > 15*time.Minute {
			t.Errorf("closed after %v: %v", age, err)
		}
		synctest.Wait()
		if n := peersOf(cs); n != 0 {
			t.Errorf("%d peers with channels", n)
		}
	})
}

func peersOf(cs *channels) int {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	return len(cs.open)
}

// quoting counts the quotes of an enclave.
type quoting struct {
	enclave.TEE
	quotes atomic.Int64
}

func (q *quoting) Quote(ctx context.Context, reportData [64]byte) ([]byte, error) {
	q.quotes.Add(1)
	return q.TEE.Quote(ctx, reportData)
}

// A cluster whose channels end all the time goes on, and its members attest
// again and again.
func TestMembersAreAttestedAgain(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	s.tune = func(n *Node) { n.tune.channelAge = 150 * time.Millisecond }
	s.start("a")
	b := &quoting{TEE: s.launch("machine-b", nodeImage)}
	s.awaitReady(s.run(s.config("b", b)))
	before := b.quotes.Load()
	poll(t, "it has attested six times more", func() bool { return b.quotes.Load() >= before+6 })
	if k := s.key(s.client(s.endpoints()...)); len(k) != 32 {
		t.Error("no key")
	}
}

// hanging is a source that answers when it is let.
type hanging struct {
	s     *site
	mu    sync.Mutex
	asked int
	gate  chan struct{} // nil: answer at once
	err   error
}

func (h *hanging) get(ctx context.Context, quote []byte) (*attest.Collateral, error) {
	h.mu.Lock()
	h.asked++
	gate, err := h.gate, h.err
	h.mu.Unlock()
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if err != nil {
		return nil, err
	}
	return h.s.world.Collateral(ctx, quote)
}

// The source of our own collateral hangs or fails: who has a bundle in force
// goes on with it, who has none gives up when its context says so, and nobody
// waits behind another.
func TestProverOutlivesItsSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t)
		h := &hanging{s: s, gate: make(chan struct{})}
		cfg := s.config("a", s.launch("machine-a", nodeImage))
		cfg.ClusterID, cfg.Join, cfg.Collateral = api.ID{1}, []string{"127.0.0.1:1"}, h.get
		verifier, err := attest.NewVerifier(attest.Config{Root: s.world.Root()})
		if err != nil {
			t.Fatal(err)
		}
		p := newProver(&cfg, verifier, slog.New(slog.DiscardHandler)) // a whole node listens, which stops the bubble's clock
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.prove(ctx, [64]byte{1}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("without a bundle, and no patience: %v", err)
		}
		results := make(chan error, 5)
		for range cap(results) {
			go func() {
				_, err := p.prove(t.Context(), [64]byte{1})
				results <- err
			}()
		}
		synctest.Wait()
		if h.asked != 1 || len(results) != 0 {
			t.Errorf("asked %d times, %d answered", h.asked, len(results))
		}
		close(h.gate)
		for range cap(results) {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
		h.gate = make(chan struct{})
		time.Sleep(2 * bundleAge)
		begun := time.Now()
		ev, err := p.prove(t.Context(), [64]byte{1})
		if err != nil || len(ev.Collateral) == 0 || time.Since(begun) > sourcePatience {
			t.Errorf("a hanging source and a bundle in hand: %d bytes after %v, %v", len(ev.Collateral), time.Since(begun), err)
		}
		close(h.gate)
		synctest.Wait()
		h.mu.Lock()
		h.gate, h.err = nil, errors.New("unreachable")
		h.mu.Unlock()
		time.Sleep(2 * bundleAge)
		if ev, err = p.prove(t.Context(), [64]byte{1}); err != nil || len(ev.Collateral) == 0 {
			t.Errorf("a failing source and a bundle in hand: %v", err)
		}
		time.Sleep(40 * 24 * time.Hour)
		if _, err = p.prove(t.Context(), [64]byte{1}); err == nil || !strings.Contains(err.Error(), "unreachable") {
			t.Errorf("a bundle that has expired: %v", err)
		}
	})
}

// Intel raises the bar, and every member's platform is behind the node policy
// at once. The alarm is raised; the cluster does not take itself apart.
func TestOutdatedMembersKeepTheMajority(t *testing.T) {
	t.Parallel()
	s, clock := movedSite(t)
	s.policy = []string{strings.Replace(nodeImage.Constraint(), "SEC:STALE", "SEC:SECURE", 1)}
	if !strings.Contains(s.policy[0], "SECURE") {
		t.Fatalf("policy %q", s.policy[0])
	}
	s.start("a", "b", "c")
	l := s.leader()
	poll(t, "the leader has judged both", func() bool { return len(l.peersToSweep(l.store.Load())) == 2 })
	clock.days(1)
	if err := s.world.PKI().Recover(clock.now()); err != nil {
		t.Fatal(err)
	}
	clock.advance(time.Hour)
	l.sweep(t.Context())
	if got := counterValue(t, l, "claviger_node_unfit_member_alarms_total"); got != 2 {
		t.Errorf("%v alarms", got)
	}
	for _, n := range s.nodes {
		if n != l {
			// As soon as the other end has looked at its peers, too: until then it may think that it has a majority without us.
			poll(t, "a member that the majority needs is connected", func() bool {
				c, err := l.dialPeer(t.Context(), n.boot.id, n.peerAddr)
				if err == nil {
					c.Close()
				}
				return err == nil
			})
		}
	}
	// But nobody new gets roots below the policy.
	if err := s.refused(s.config("d", s.launch("machine-d", nodeImage, sim.OutOfDateTCB()))); !errors.Is(err, ErrNodePolicy) && !strings.Contains(err.Error(), "node policy") {
		t.Errorf("a new node: %v", err)
	}
}

// One member is behind, the rest are a majority without it: it is cut off.
func TestOutdatedMemberIsCutOffWhenItCanBe(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	nodes := s.start("a", "b", "c")
	a, b, c := nodes[0], nodes[1], nodes[2]
	poll(t, "b and c have been judged", func() bool { return len(a.peersToSweep(a.store.Load())) == 2 })
	behind := errors.Join(ErrNodePolicy, errOutdated)
	for _, n := range nodes { // nobody judges anybody any more
		n.Close()
	}
	ev := a.peersToSweep(a.store.Load())[b.boot.id].evidence
	if err := a.stand(b.boot.id, ev, behind); !errors.Is(err, errOutdated) {
		t.Errorf("one of three: %v", err)
	}
	if err := a.stand(c.boot.id, ev, behind); err != nil {
		t.Errorf("two of three: %v", err)
	}
	if err := a.stand(b.boot.id, ev, behind); err != nil {
		t.Errorf("now both are needed: %v", err)
	}
	if err := a.stand(c.boot.id, ev, ErrNodePolicy); err == nil {
		t.Error("other code is tolerated")
	}
	if err := a.stand(raftstore.ServerID{9}, ev, behind); err == nil {
		t.Error("a stranger is tolerated")
	}
	if err := a.stand(b.boot.id, ev, nil); err != nil || a.peersToSweep(a.store.Load())[b.boot.id].unfit != nil {
		t.Errorf("repaired: %v", err)
	}
}
