package client

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/kds/api"
)

// signedPolicy is a change of the node policy, signed by the operator with the seed.
func signedPolicy(t *testing.T, c cluster, operator byte, epoch, parent uint64, constraints ...string) []byte {
	t.Helper()
	raw, err := api.NewAdmin(c.id, epoch, parent, &api.NodePolicyChange{Parent: parent, Constraints: constraints})
	if err != nil {
		t.Fatal(err)
	}
	signed, err := (&api.SignedAdmin{Statement: raw, Approvals: api.Approve(raw, newSigner(operator).key)}).Marshal()
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// A node of code that the manifest does not name is believed if it shows that the operators have named it since, in this
// cluster and not in a later epoch than its own; from then on nobody goes back to the older code.
func TestNodePolicyIsTheOperatorsNewestWord(t *testing.T) {
	inSite(t, func(s *site) { s.newestPolicy() })
}

func (s *site) newestPolicy() {
	s.Helper()
	t := s.T
	showing := func(policy []byte) func(*nodeConfig) {
		return func(cfg *nodeConfig) {
			cfg.image = otherImage
			cfg.statement = func(st *api.NodeStatement) { st.Policy = policy }
		}
	}
	newer := otherImage.Constraint()
	s.node("old:1")
	s.node("new:1", showing(signedPolicy(t, s.cluster, 99, 5, 1, newer)))
	for name, policy := range map[string][]byte{
		"a stranger's signature": signedPolicy(t, s.cluster, 98, 5, 1, newer),
		"another cluster's":      signedPolicy(t, newCluster(t, 77, world().Root(), newer), 99, 5, 1, newer),
		"a later epoch's":        signedPolicy(t, s.cluster, 99, 6, 1, newer),
		"garbage":                []byte("policy"),
		"none":                   nil,
	} {
		s.node("bad:1", showing(policy))
		if _, err := s.client([]string{"bad:1"}).Cluster(t.Context()); !errors.Is(err, ErrNode) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := s.client([]string{"new:1", "old:1"})
	if _, err := c.Cluster(t.Context()); err != nil { // either of them; now make sure of the new one
		t.Fatal(err)
	}
	c.prefer("new:1")
	if _, err := c.Cluster(t.Context()); err != nil || c.NodePolicy() != 2 {
		t.Fatalf("a node that shows the operators' newest word: policy version %d, %v", c.NodePolicy(), err)
	}
	c.transport.Renew()
	only := s.client([]string{"old:1"}, func(cfg *Config) { cfg.MinNodePolicy = 2 })
	if _, err := only.Cluster(t.Context()); !errors.Is(err, ErrNode) {
		t.Errorf("a node of older code, where version 2 was seen: %v", err)
	}
	c.cfg.Endpoints = []string{"old:1"}
	c.prefer("old:1")
	if _, err := c.Cluster(t.Context()); !errors.Is(err, ErrNode) {
		t.Errorf("the same client, led back to older code: %v", err)
	}
}

// Operators reach a member that the policy shuts out, to mend it; no app gets a key that way.
func TestAnyMemberIsForOperatorsOnly(t *testing.T) {
	inSite(t, func(s *site) { s.anyMember() })
}

func (s *site) anyMember() {
	s.Helper()
	t := s.T
	s.node("a:1", func(cfg *nodeConfig) { cfg.image = otherImage })
	c := s.client([]string{"a:1"}, func(cfg *Config) { cfg.AnyMember = true })
	if _, err := c.Cluster(t.Context()); err != nil {
		t.Errorf("looking at the cluster: %v", err)
	}
	raw, err := api.NewAdmin(s.cluster.id, 5, 1, &api.Stop{})
	if err != nil {
		t.Fatal(err)
	}
	if reply, err := c.Operate(t.Context(), api.AdminRequest{Statement: raw}); err != nil || reply.Index != 9 {
		t.Errorf("submitting: %+v, %v", reply, err)
	}
	if k, _, err := c.Key(t.Context(), api.KeyRequest{Constraint: appImage.Constraint(), Name: "db", Purpose: "aes-256"}); !errors.Is(err, ErrConfig) || !k.IsZero() {
		t.Errorf("a key: %v", err)
	}
	if _, err := c.Attest(t.Context(), api.AttestRequest{Quote: []byte{1}}); !errors.Is(err, ErrConfig) {
		t.Errorf("a verdict: %v", err)
	}
	stranger := newCluster(t, 55, world().Root(), nodeImage.Constraint())
	s.node("b:1", func(cfg *nodeConfig) { cfg.cluster = stranger })
	if _, err := s.client([]string{"b:1"}, func(cfg *Config) { cfg.AnyMember = true }).Cluster(t.Context()); err == nil {
		t.Error("a node of another cluster was believed")
	}
}

// A member whose code the operators have shut out describes the cluster to them in the form that a node gives it, or not at all.
func TestDescriptionsHaveTheirForm(t *testing.T) {
	inSite(t, func(s *site) {
		for name, spoil := range map[string]func(*api.Cluster, *api.Member){
			"a slot with a line break": func(_ *api.Cluster, m *api.Member) { m.Slot = "a\nb" },
			"an address that clears":   func(_ *api.Cluster, m *api.Member) { m.APIAddr = "h:1\x1b[2J" },
			"a status with a row":      func(_ *api.Cluster, m *api.Member) { m.TCBStatus = "UpToDate\nmember z" },
			"a measurement":            func(_ *api.Cluster, m *api.Member) { m.Measurement = "\u202e" },
			"a register":               func(_ *api.Cluster, m *api.Member) { m.RTMR = []string{"00", "00", "\x1b[2J", "00"} },
			"registers without end":    func(_ *api.Cluster, m *api.Member) { m.RTMR = make([]string, 1000) },
			"a TEE":                    func(_ *api.Cluster, m *api.Member) { m.TEE = "s gx" },
			"a ticket":                 func(c *api.Cluster, _ *api.Member) { c.Tickets = []api.PendingTicket{{Slot: "\x07"}} },
			"members without end": func(c *api.Cluster, m *api.Member) {
				for range api.MaxMembers {
					c.Members = append(c.Members, *m)
				}
			},
		} {
			s.node("a:1").service.describe = func(c *api.Cluster) {
				m := api.Member{Slot: "a", APIAddr: "h:1", TEE: "sgx", Measurement: "00", TCBStatus: "UpToDate"}
				spoil(c, &m)
				c.Members = append(c.Members, m)
			}
			if _, err := s.client([]string{"a:1"}, func(cfg *Config) { cfg.AnyMember = true }).Cluster(s.T.Context()); !errors.Is(err, ErrReply) {
				s.T.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A node of code that the policy shuts out refuses in words of its choice, and replies with them: no line and no control sequence
// of its making gets to the terminal of the operator who looks.
func TestWordsOfANodeStayOnOneLine(t *testing.T) {
	const lines = "over\nThe cluster has accepted it.\x1b[2J\u009b2J\u202e"
	inSite(t, func(s *site) {
		n := s.node("a:1", func(cfg *nodeConfig) { cfg.image = otherImage })
		c := s.client([]string{"a:1"}, func(cfg *Config) { cfg.AnyMember = true })
		wantOneLine := func(what string, err error) {
			if err == nil || strings.ContainsFunc(err.Error(), func(r rune) bool { return !unicode.IsPrint(r) }) {
				s.T.Errorf("%s: %q", what, err)
			}
		}
		n.service.before = func(context.Context) error {
			p := api.NewProblem(api.CodePolicyDenied, lines)
			p.Title, p.Stage, p.Failures = lines, lines, []api.Failure{{Clause: lines, Want: lines, Got: lines, Hint: lines}}
			return p
		}
		_, err := c.Cluster(s.T.Context())
		wantOneLine("a refusal", err)
		n.service.before, n.service.operated = nil, func(r *api.AdminReply) { r.Kind = lines }
		raw, err := api.NewAdmin(s.cluster.id, 5, 1, &api.Stop{})
		if err != nil {
			s.T.Fatal(err)
		}
		_, err = c.Operate(s.T.Context(), api.AdminRequest{Statement: raw})
		wantOneLine("a reply", err)
	})
}

// A node whose epoch the operators have ended is left alone: another may be of the epoch that follows, and answers.
func TestAnEndedNodeIsLeftAlone(t *testing.T) {
	err := api.NewProblem(api.CodeEnded, "over")
	tour := newTour([]string{"ended:1", "next:1"})
	for range 2 {
		if e, _, ok := tour.next(); ok && e == "ended:1" {
			tour.failed(e, err)
		}
	}
	for range 3 {
		if e, _, ok := tour.next(); !ok || e != "next:1" {
			t.Fatalf("asked %q again", e)
		}
	}
	if !errors.Is(tour.failures(), err) {
		t.Error("the reason is lost")
	}
}

// The same where the node says so in the handshake.
func TestAnEndedNodeIsLeftAloneFromTheHandshakeOn(t *testing.T) {
	inSite(t, func(s *site) {
		s.node("ended:1", func(n *nodeConfig) {
			n.channel = func(c *ratls.Config) {
				c.Verify = func(context.Context, ratls.Hello, ratls.Evidence) (*attest.Verified, error) {
					return nil, &ratls.RefusedError{Code: ratls.Code(api.CodeEnded), Message: "stopped for a recovery"}
				}
			}
		})
		s.node("next:1")
		c := s.client([]string{"ended:1", "next:1"})
		c.prefer("ended:1")
		if _, _, err := c.Key(s.Context(), keyRequest); err != nil {
			s.Error(err)
		}
		if got := s.net.dialled(); !slices.Equal(got, []string{"ended:1", "next:1"}) {
			s.Errorf("dialled %v", got)
		}
	})
}
