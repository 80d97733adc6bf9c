package client

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
)

var keyRequest = api.KeyRequest{Constraint: appImage.Constraint(), Name: "db/main", Purpose: "aes-256"}

func TestKey(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		c := s.client([]string{"a:1"})
		for range 3 {
			key, reply, err := c.Key(s.Context(), keyRequest)
			if err != nil {
				s.Fatal(err)
			}
			if !bytes.Equal(key.Reveal(), keyBytes) {
				s.Error("another key arrived")
			}
			if reply.Key != nil {
				s.Error("the key is in the metadata too")
			}
			if reply.Version != firstVersion || reply.Epoch != 5 || reply.Constraint != keyRequest.Constraint {
				s.Errorf("metadata: %+v", reply)
			}
			key.Destroy()
		}
		if d := s.net.dialled(); len(d) != 1 {
			s.Errorf("%d connections for three calls: the attested one must be kept", len(d))
		}
		if len(n.service.seen.Quote) == 0 || n.service.seen.Binding == [64]byte{} {
			s.Error("the service saw no evidence")
		}
		if c.Epoch() != 5 {
			s.Errorf("epoch %d", c.Epoch())
		}
	})
}

func TestPublicCalls(t *testing.T) {
	inSite(t, func(s *site) {
		s.node("a:1")
		c := s.client([]string{"a:1"}, func(cfg *Config) { cfg.Attest = nil })
		public, err := c.PublicKey(s.Context(), api.PublicKeyRequest{Constraint: keyRequest.Constraint, Name: "mail", Purpose: "x25519"})
		if err != nil || !bytes.Equal(public.PublicKey, keyBytes) {
			s.Errorf("public key: %v", err)
		}
		if v, err := c.Attest(s.Context(), api.AttestRequest{Quote: []byte{1}}); err != nil || !v.OK {
			s.Errorf("attest: %+v %v", v, err)
		}
		if cl, err := c.Cluster(s.Context()); err != nil || cl.ClusterID != s.id {
			s.Errorf("cluster: %v", err)
		}
		if _, _, err := c.Key(s.Context(), keyRequest); !errors.Is(err, ErrNoEvidence) {
			s.Errorf("a key without evidence: %v", err)
		}
	})
}

func TestConfigDenies(t *testing.T) {
	t.Parallel()
	good := Config{ClusterID: api.ID{1}, Endpoints: []string{"a:1"}, Root: attest.IntelRoot()}
	for name, change := range map[string]func(*Config){
		"zero":            func(c *Config) { *c = Config{} },
		"no cluster id":   func(c *Config) { c.ClusterID = api.ID{} },
		"no root":         func(c *Config) { c.Root = attest.Root{} },
		"no endpoint":     func(c *Config) { c.Endpoints = nil },
		"many endpoints":  func(c *Config) { c.Endpoints = make([]string, MaxEndpoints+1) },
		"no port":         func(c *Config) { c.Endpoints = []string{"a"} },
		"URL as endpoint": func(c *Config) { c.Endpoints = []string{"https://a:1/"} },
	} {
		cfg := good
		change(&cfg)
		if _, err := New(cfg); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	if _, err := c.Cluster(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

func TestBadRequestsStayHere(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		c := s.client([]string{"a:1"})
		for name, req := range map[string]api.KeyRequest{
			"empty":         {},
			"bad name":      {Constraint: keyRequest.Constraint, Name: "a b", Purpose: "aes-256"},
			"unknown token": {Constraint: "WHO:ever", Name: "n", Purpose: "aes-256"},
			"too long":      {Constraint: strings.Repeat("x", api.MaxConstraint+1), Name: "n", Purpose: "aes-256"},
		} {
			if key, _, err := c.Key(s.Context(), req); err == nil || !key.IsZero() {
				s.Errorf("%s: %v", name, err)
			}
		}
		if len(s.net.dialled()) != 0 || n.service.count() != 0 {
			s.Error("a request that cannot succeed was sent")
		}
	})
}

// A fault of one node is not the cluster's word: another one answers. Where all have it, each is asked once.
func TestAFaultOfOneNodeIsNotFinal(t *testing.T) {
	inSite(t, func(s *site) {
		broken, sound := s.node("a:1"), s.node("b:1")
		broken.service.before = func(context.Context) error { return errors.New("a fault of this node") }
		c := s.client([]string{"a:1", "b:1"})
		c.prefer("a:1")
		for range 2 {
			if _, _, err := c.Key(s.Context(), keyRequest); err != nil {
				s.Error(err)
			}
		}
		sound.service.before = broken.service.before
		if _, _, err := c.Key(s.Context(), keyRequest); !errors.Is(err, &api.Problem{Code: api.CodeInternal}) {
			s.Errorf("got %v", err)
		}
		if a, b := broken.service.count(), sound.service.count(); a != 2 || b != 3 {
			s.Errorf("asked %d and %d times", a, b)
		}
	})
}

// A refusal is final and arrives whole, whatever other endpoints there are.
func TestRefusalIsNotRetried(t *testing.T) {
	inSite(t, func(s *site) {
		denied := api.NewProblem(api.CodePolicyDenied, "deploy the current version")
		denied.Failures = []api.Failure{{Clause: "TD", Want: "00", Got: "ff", Hint: "ask with your own constraint"}}
		var nodes []*member
		for _, addr := range []string{"a:1", "b:1", "c:1"} {
			n := s.node(addr)
			n.service.before = func(context.Context) error { return denied }
			nodes = append(nodes, n)
		}
		c := s.client([]string{"a:1", "b:1", "c:1"})
		key, _, err := c.Key(s.Context(), keyRequest)
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Code != api.CodePolicyDenied || len(p.Failures) != 1 || p.Failures[0].Hint == "" || !key.IsZero() {
			s.Errorf("got %v", err)
		}
		if n := nodes[0].service.count() + nodes[1].service.count() + nodes[2].service.count(); n != 1 {
			s.Errorf("a refusal was asked for %d times", n)
		}
	})
}

// The node refuses the client's evidence in the handshake, after it has proved itself.
func TestHandshakeRefusalIsFinal(t *testing.T) {
	inSite(t, func(s *site) {
		refuse := func(n *nodeConfig) {
			n.channel = func(c *ratls.Config) {
				c.Verify = func(context.Context, ratls.Hello, ratls.Evidence) (*attest.Verified, error) {
					return nil, &ratls.RefusedError{Code: "revoked", Message: "the platform is revoked"}
				}
			}
		}
		s.node("a:1", refuse)
		s.node("b:1", refuse)
		_, _, err := s.client([]string{"a:1", "b:1"}).Key(s.Context(), keyRequest)
		r, ok := errors.AsType[*ratls.RefusedError](err)
		if !ok || r.Code != "revoked" || r.Message != "the platform is revoked" {
			s.Errorf("got %v", err)
		}
		if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != "revoked" || p.Detail != r.Message {
			s.Errorf("no problem in %v", err)
		}
		if len(s.net.dialled()) != 1 {
			s.Errorf("dialled %v", s.net.dialled())
		}
	})
}

// A node that cannot judge evidence at the moment says so in the handshake; that is no refusal.
func TestHandshakeTroubleIsRetried(t *testing.T) {
	inSite(t, func(s *site) {
		tries := 0
		s.node("a:1", func(n *nodeConfig) {
			n.channel = func(c *ratls.Config) {
				c.Verify = func(ctx context.Context, h ratls.Hello, ev ratls.Evidence) (*attest.Verified, error) {
					if tries++; tries < 4 {
						return nil, &ratls.RefusedError{Code: ratls.Code(api.CodeNoQuorum), Message: "not joined yet"}
					}
					return verifyClient(ctx, h, ev)
				}
			}
		})
		if _, _, err := s.client([]string{"a:1"}).Key(s.Context(), keyRequest); err != nil || tries != 4 {
			s.Errorf("after %d tries: %v", tries, err)
		}
	})
}

// The channel's own codes read as the service's.
func TestHandshakeCodes(t *testing.T) {
	t.Parallel()
	for from, want := range map[ratls.Code]api.Problem{
		ratls.CodeNoEvidence: {Code: api.CodeEvidenceMissing, Status: 401},
		ratls.CodeUnbound:    {Code: api.CodeEvidenceRefused, Status: 403, Stage: "binding"},
		ratls.CodeEvidence:   {Code: api.CodeEvidenceRefused, Status: 403},
		ratls.CodeInternal:   {Code: api.CodeInternal, Status: 500},
	} {
		r := &ratls.RefusedError{Code: from, Message: "why"}
		err := refusedBy(r, r)
		p, ok := errors.AsType[*api.Problem](err)
		if !ok || p.Code != want.Code || p.Status != want.Status || p.Stage != want.Stage || p.Detail != "why" {
			t.Errorf("%s: %+v", from, p)
		}
	}
}

// A follower names the leader, which is not among the configured endpoints; the client goes there, attests anew, and
// prefers it from then on.
func TestFollowsLeader(t *testing.T) {
	inSite(t, func(s *site) {
		follower, leader := s.node("a:1"), s.node("leader:1")
		follower.service.before = func(context.Context) error {
			p := api.NewProblem(api.CodeNotLeader, "ask the leader")
			p.Leader = &api.Leader{ServerID: api.ID{1}, APIAddr: "leader:1"}
			return p
		}
		c := s.client([]string{"a:1"})
		start := time.Now()
		for range 2 {
			if _, _, err := c.Key(s.Context(), keyRequest); err != nil {
				s.Fatal(err)
			}
		}
		if time.Since(start) != 0 {
			s.Errorf("following a hint took %v", time.Since(start))
		}
		if follower.service.count() != 1 || leader.service.count() != 2 {
			s.Errorf("follower asked %d times, leader %d", follower.service.count(), leader.service.count())
		}
	})
}

// Two nodes that name each other as the leader must not spin the client: it pauses between rounds until its context ends.
func TestHintLoop(t *testing.T) {
	inSite(t, func(s *site) {
		a, b := s.node("a:1"), s.node("b:1")
		for n, other := range map[*member]string{a: "b:1", b: "a:1"} {
			n.service.before = func(context.Context) error {
				p := api.NewProblem(api.CodeNotLeader, "not me")
				p.Leader = &api.Leader{APIAddr: other}
				return p
			}
		}
		ctx, cancel := context.WithTimeout(s.Context(), 10*time.Second)
		defer cancel()
		_, _, err := s.client([]string{"a:1", "b:1"}).Key(ctx, keyRequest)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, &api.Problem{Code: api.CodeNotLeader}) {
			s.Errorf("got %v", err)
		}
		if n := a.service.count() + b.service.count(); n < 8 || n > 100 {
			s.Errorf("%d requests in ten seconds", n)
		}
	})
}

// Two of three addresses are dead; the third answers at once.
func TestDeadEndpoints(t *testing.T) {
	inSite(t, func(s *site) {
		s.node("c:1")
		start := time.Now()
		if _, _, err := s.client([]string{"a:1", "b:1", "c:1"}).Key(s.Context(), keyRequest); err != nil {
			s.Fatal(err)
		}
		if d := time.Since(start); d != 0 {
			s.Errorf("took %v", d)
		}
	})
}

// The cluster has no quorum for a while, or more to do than it can: the client waits, with growing pauses, and gets its key
// when it is back.
func TestWaitsForTheCluster(t *testing.T) {
	for _, code := range []api.Code{api.CodeNoQuorum, api.CodeBusy} {
		t.Run(string(code), func(t *testing.T) { waitsWhile(t, code) })
	}
}

func waitsWhile(t *testing.T, code api.Code) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		start := time.Now()
		n.service.before = func(context.Context) error {
			if time.Since(start) < 20*time.Second {
				return api.NewProblem(code, "not now")
			}
			return nil
		}
		if _, _, err := s.client([]string{"a:1"}).Key(s.Context(), keyRequest); err != nil {
			s.Fatal(err)
		}
		if d := time.Since(start); d < 20*time.Second || d > 23*time.Second {
			s.Errorf("served after %v", d)
		}
		if k := n.service.count(); k < 10 || k > 60 {
			s.Errorf("%d attempts in twenty seconds", k)
		}
	})
}

// No quorum to the end: the caller's context decides, and the error says what was in the way.
func TestNoQuorumUntilDeadline(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		n.service.before = func(context.Context) error { return api.NewProblem(api.CodeNoQuorum, "two of three nodes are silent") }
		ctx, cancel := context.WithTimeout(s.Context(), 3*time.Second)
		defer cancel()
		key, _, err := s.client([]string{"a:1"}).Key(ctx, keyRequest)
		if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, &api.Problem{Code: api.CodeNoQuorum}) || !key.IsZero() {
			s.Errorf("got %v", err)
		}
	})
}

// silent is an endpoint that accepts and says nothing.
func (s *site) silent(address string) *pipes {
	l := s.net.listen(address)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go drain(c)
		}
	}()
	return l
}

// An endpoint that accepts and says nothing costs one attempt's time, no more.
func TestSilentEndpoint(t *testing.T) {
	inSite(t, func(s *site) {
		defer s.silent("a:1").Close()
		s.node("b:1")
		c := s.client([]string{"a:1", "b:1"})
		c.prefer("a:1")
		start := time.Now()
		if _, _, err := c.Key(s.Context(), keyRequest); err != nil {
			s.Fatal(err)
		}
		if d := time.Since(start); d != 5*time.Second {
			s.Errorf("took %v, want the attempt's timeout", d)
		}
	})
}

// A node that fell silent, whose host is gone, was the one that answered last. Calls that have less time than an attempt may
// take must get past it: the first one is lost, and those that follow begin with others.
func TestSilentNodeIsNotPreferredForEver(t *testing.T) {
	inSite(t, func(s *site) {
		defer s.silent("a:1").Close()
		s.node("b:1")
		s.node("c:1")
		c := s.client([]string{"a:1", "b:1", "c:1"})
		c.prefer("a:1")
		for i := range 20 {
			ctx, cancel := context.WithTimeout(s.Context(), 2*time.Second)
			_, _, err := c.Key(ctx, keyRequest)
			cancel()
			if (err == nil) != (i > 0) {
				s.Errorf("call %d: %v", i, err)
			}
		}
	})
}

// The connection breaks after the request was sent; another node answers.
func TestConnectionLostInCall(t *testing.T) {
	inSite(t, func(s *site) {
		a := s.node("a:1")
		a.service.before = func(ctx context.Context) error {
			go a.server.Close()
			<-ctx.Done()
			return ctx.Err()
		}
		s.node("b:1")
		c := s.client([]string{"a:1", "b:1"})
		c.prefer("a:1")
		if _, _, err := c.Key(s.Context(), keyRequest); err != nil {
			s.Fatal(err)
		}
	})
}

// Close ends a call in progress.
func TestCloseEndsCalls(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		n.service.before = func(ctx context.Context) error {
			<-ctx.Done()
			return ctx.Err()
		}
		c := s.client([]string{"a:1"})
		time.AfterFunc(time.Second, func() { c.Close() })
		start := time.Now()
		if _, _, err := c.Key(s.Context(), keyRequest); !errors.Is(err, ErrClosed) {
			s.Errorf("got %v", err)
		}
		if d := time.Since(start); d != time.Second {
			s.Errorf("ended after %v", d)
		}
	})
}

// Connections do not outlive their proof: after Reattest the next call opens a fresh one.
func TestReattests(t *testing.T) {
	inSite(t, func(s *site) {
		s.node("a:1")
		now := instant
		c := s.client([]string{"a:1"}, func(cfg *Config) { cfg.Clock = func() time.Time { return now } })
		for _, step := range []time.Duration{0, 10 * time.Minute, 6 * time.Minute, time.Minute, -time.Hour} {
			now = now.Add(step)
			if _, err := c.Cluster(s.Context()); err != nil {
				s.Fatal(err)
			}
		}
		if d := s.net.dialled(); len(d) != 3 {
			s.Errorf("%d connections, want 3: at first, after 16 minutes, and when the clock went back", len(d))
		}
	})
}
