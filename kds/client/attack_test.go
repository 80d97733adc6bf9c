package client

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/policy"
)

// Each test is an attack by the host on a client that pins its cluster id. All end alike: no key, ErrNode or the channel's
// error with the cause in it, and no request sent to the impostor.

// refused asks for a key at one endpoint and checks the refusal's cause.
func (s *site) refused(n *member, cause error, changes ...func(*Config)) error {
	s.Helper()
	ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
	defer cancel()
	c := s.client([]string{n.addr}, changes...)
	start := time.Now()
	key, _, err := c.Key(ctx, keyRequest)
	if !errors.Is(err, cause) {
		s.Errorf("got %v, want %v", err, cause)
	}
	if !key.IsZero() {
		s.Error("a key came with the error")
	}
	if n.service.count() != 0 {
		s.Error("a request was sent to the impostor")
	}
	if len(s.net.dialled()) != 1 || time.Since(start) != 0 {
		s.Errorf("an impostor was asked again: dialled %v in %v", s.net.dialled(), time.Since(start))
	}
	return err
}

// The host runs a whole cluster of its own, genuine code and all.
func TestOtherCluster(t *testing.T) {
	inSite(t, func(s *site) {
		other := newCluster(s.T, 2, world().Root(), nodeImage.Constraint())
		s.refused(s.node("a:1", func(n *nodeConfig) { n.cluster = other }), ratls.ErrClusterID)
	})
}

// The same, but it claims the pinned id on the channel: the id is a hash and does not follow.
func TestOtherClusterUnderPinnedID(t *testing.T) {
	inSite(t, func(s *site) {
		other := newCluster(s.T, 2, world().Root(), nodeImage.Constraint())
		err := s.refused(s.node("a:1", func(n *nodeConfig) {
			n.cluster = other
			n.channel = func(c *ratls.Config) { c.ClusterID = s.id }
		}), ErrNode)
		if !errors.Is(err, api.ErrMembership) {
			s.Errorf("cause: %v", err)
		}
	})
}

// The genuine manifest with the host's identity key, which would then sign the host's memberships.
func TestSwappedIdentityKey(t *testing.T) {
	inSite(t, func(s *site) {
		s.refused(s.node("a:1", func(n *nodeConfig) {
			n.statement = func(st *api.NodeStatement) {
				own := newSigner(66)
				st.IdentityKey = own.Public()
				st.Signature, _ = api.SignMembership(own, st.Membership)
			}
		}), api.ErrMembership)
	})
}

// The manifest widened by a measurement of the host's: another manifest is another cluster.
func TestWidenedNodePolicy(t *testing.T) {
	inSite(t, func(s *site) {
		wide := newCluster(s.T, 1, world().Root(), nodeImage.Constraint(), otherImage.Constraint())
		s.refused(s.node("a:1", func(n *nodeConfig) {
			n.image = otherImage
			n.statement = func(st *api.NodeStatement) { st.Manifest = wide.manifest }
		}), api.ErrMembership)
	})
}

// Genuine evidence of code that the manifest does not allow, with a stolen statement.
func TestMeasurementNotAllowed(t *testing.T) {
	inSite(t, func(s *site) {
		err := s.refused(s.node("a:1", func(n *nodeConfig) { n.image = otherImage }), ErrNode)
		d, ok := errors.AsType[*policy.Denied](err)
		if !ok || len(d.Failures) == 0 {
			s.Errorf("no clause is named: %v", err)
		}
	})
}

// The allowed code in debug mode: the host reads its memory.
func TestDebugNode(t *testing.T) {
	inSite(t, func(s *site) {
		debug := nodeImage
		debug.Debug = true
		err := s.refused(s.node("a:1", func(n *nodeConfig) { n.image = debug }), ErrNode)
		if _, ok := errors.AsType[*policy.Denied](err); !ok {
			s.Errorf("cause: %v", err)
		}
	})
}

// Each node that a policy entry of the other kind of TEE allows is accepted too: the refusals above are not of everything.
func TestSecondPolicyEntry(t *testing.T) {
	inSite(t, func(s *site) {
		s.node("a:1", func(n *nodeConfig) { n.image = sim.Image{Kind: enclave.TDX, Name: "clavigerd", Version: "1"} })
		if _, _, err := s.client([]string{"a:1"}).Key(s.Context(), keyRequest); err != nil {
			s.Error(err)
		}
	})
}

// The membership statement of an admitted node, presented by an enclave of the same code that was never admitted: a clone.
func TestStatementForAnotherKey(t *testing.T) {
	inSite(t, func(s *site) {
		admitted, err := ratls.NewKey()
		if err != nil {
			s.Fatal(err)
		}
		hash, err := ratls.KeyHash(admitted.Public())
		if err != nil {
			s.Fatal(err)
		}
		s.refused(s.node("a:1", func(n *nodeConfig) {
			n.statement = func(st *api.NodeStatement) {
				st.Membership.ServerID = hash
				st.Signature, _ = api.SignMembership(s.identity, st.Membership)
			}
		}), api.ErrMembership)
	})
}

// Edits of a genuine statement: the signature covers every field.
func TestEditedStatement(t *testing.T) {
	edits := map[string]func(*api.NodeStatement){
		"slot":        func(st *api.NodeStatement) { st.Membership.Slot = "b" },
		"incarnation": func(st *api.NodeStatement) { st.Membership.Incarnation++ },
		"signature":   func(st *api.NodeStatement) { st.Signature[0] ^= 1 },
		"unsigned":    func(st *api.NodeStatement) { st.Signature = nil },
	}
	for name, edit := range edits {
		t.Run(name, func(t *testing.T) {
			inSite(t, func(s *site) {
				s.refused(s.node("a:1", func(n *nodeConfig) { n.statement = edit }), api.ErrSignature)
			})
		})
	}
}

// A node that speaks for an old epoch, or for a later one than it is a member of.
func TestEpochs(t *testing.T) {
	t.Run("below MinEpoch", func(t *testing.T) {
		inSite(t, func(s *site) {
			s.refused(s.node("a:1", func(n *nodeConfig) { n.epoch = 4 }), ratls.ErrEpoch, func(c *Config) { c.MinEpoch = 5 })
		})
	})
	t.Run("channel claims a later epoch than the statement", func(t *testing.T) {
		inSite(t, func(s *site) {
			s.refused(s.node("a:1", func(n *nodeConfig) {
				n.epoch = 4
				n.channel = func(c *ratls.Config) { c.Epoch = 5 }
			}), api.ErrMembership, func(c *Config) { c.MinEpoch = 4 })
		})
	})
}

// The cluster was recovered into epoch 6; then the host brings back disks and nodes of epoch 5. A client that has seen 6
// never goes back, neither by a new connection nor by one that it still holds.
func TestRolledBackEpoch(t *testing.T) {
	inSite(t, func(s *site) {
		old := s.node("old:1")
		recovered := s.node("new:1", func(n *nodeConfig) { n.epoch = 6 })
		c := s.client([]string{"old:1", "new:1"})
		ask := func(endpoint string) error {
			ctx, cancel := context.WithTimeout(s.Context(), time.Minute)
			defer cancel()
			c.prefer(endpoint)
			_, _, err := c.Key(ctx, keyRequest)
			return err
		}
		if err := ask("old:1"); err != nil || c.Epoch() != 5 { // its connection stays in the pool
			s.Fatalf("epoch %d, %v", c.Epoch(), err)
		}
		if err := ask("new:1"); err != nil || c.Epoch() != 6 {
			s.Fatalf("epoch %d, %v", c.Epoch(), err)
		}
		if err := ask("old:1"); err != nil { // served, but not by the old one
			s.Fatal(err)
		}
		if recovered.service.count() != 2 {
			s.Errorf("the recovered cluster answered %d times, want 2", recovered.service.count())
		}
		recovered.stop()
		before := old.service.count()
		err := ask("old:1")
		if !errors.Is(err, context.DeadlineExceeded) {
			s.Errorf("with only the old epoch left: %v", err)
		}
		if old.service.count() != before {
			s.Error("a node of the old epoch was asked for a key")
		}
	})
}

// A host in the middle with keys of its own passes frames between client and node.
func TestHostInTheMiddle(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("node:1")
		l := s.net.listen("middle:1")
		defer l.Close()
		go func() {
			victim, err := l.Accept()
			if err != nil {
				return
			}
			toNode, err := s.net.dial(s.Context(), "pipe", "node:1")
			if err != nil {
				s.Error(err)
				return
			}
			in, out := tls.Server(victim, hostTLS(s)), tls.Client(toNode, hostTLS(s))
			go func() {
				io.Copy(in, out)
				victim.Close()
			}()
			io.Copy(out, in)
			toNode.Close()
		}()
		_, _, err := s.client([]string{"middle:1"}).Key(s.Context(), keyRequest)
		// The node's statement names the node's key, not the host's; behind it, the evidence is not bound to the channel.
		if !errors.Is(err, ErrNode) || !errors.Is(err, api.ErrMembership) {
			s.Errorf("got %v", err)
		}
		if n.service.count() != 0 {
			s.Error("a request got through")
		}
	})
}

// hostTLS speaks the channel's TLS with a throwaway key and believes everything.
func hostTLS(s *site) *tls.Config {
	key, err := ratls.NewKey()
	if err != nil {
		s.Fatal(err)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: []string{"claviger/1"}, InsecureSkipVerify: true, ClientAuth: tls.RequireAnyClientCert,
		Certificates: []tls.Certificate{selfSigned(s, key)}, SessionTicketsDisabled: true,
	}
}

// Evidence under another simulated Intel, whose keys the host holds: everything about it is right but the root.
func TestEvidenceUnderAnotherRoot(t *testing.T) {
	inSite(t, func(s *site) {
		forger := sim.NewWorld([32]byte{66}, func() time.Time { return instant })
		m, err := forger.Machine("a:1")
		if err != nil {
			s.Fatal(err)
		}
		tee, err := m.Launch(nodeImage)
		if err != nil {
			s.Fatal(err)
		}
		err = s.refused(s.node("a:1", func(n *nodeConfig) {
			n.channel = func(c *ratls.Config) {
				genuine := c.Attest
				c.Attest = func(ctx context.Context, rd [64]byte) (ratls.Evidence, error) {
					ev, err := genuine(ctx, rd)
					if err != nil {
						return ev, err
					}
					if ev.Quote, err = tee.Quote(ctx, rd); err != nil {
						return ev, err
					}
					bundle, err := forger.Collateral(ctx, ev.Quote)
					if err != nil {
						return ev, err
					}
					ev.Collateral, err = bundle.Marshal()
					return ev, err
				}
			}
		}), ErrNode)
		if e, ok := errors.AsType[*attest.Error](err); !ok || e.Stage != attest.StageChain {
			s.Errorf("cause: %v", err)
		}
	})
}

// A client for real hardware meets a cluster of simulated nodes, and one that trusts another simulated root likewise.
func TestRootIsTheClientsOwn(t *testing.T) {
	inSite(t, func(s *site) {
		s.refused(s.node("a:1"), ErrNode, func(c *Config) { c.Root = attest.IntelRoot() })
	})
	t.Run("name and key right, simulation denied", func(t *testing.T) {
		inSite(t, func(s *site) {
			s.refused(s.node("a:1"), ErrNode, func(c *Config) { c.Root.Simulated = false })
		})
	})
}

// A cluster whose manifest trusts another root than the client, shown by a node with evidence under the client's: the other
// nodes of that cluster would be anything.
func TestManifestOfAnotherRoot(t *testing.T) {
	inSite(t, func(s *site) {
		key, err := ratls.NewKey()
		if err != nil {
			s.Fatal(err)
		}
		other := newCluster(s.T, 1, attest.SimulatedRoot(&key.PublicKey), nodeImage.Constraint())
		s.refused(s.node("a:1", func(n *nodeConfig) { n.cluster = other }), ErrConfig, func(c *Config) { c.ClusterID = other.id })
	})
}

// Collateral from before the platform's revocation, replayed after it expired; and none at all.
func TestOldOrNoCollateral(t *testing.T) {
	t.Run("expired", func(t *testing.T) {
		inSite(t, func(s *site) {
			late := func(c *Config) { c.Clock = func() time.Time { return instant.Add(60 * 24 * time.Hour) } }
			err := s.refused(s.node("a:1"), ErrNode, late)
			if e, ok := errors.AsType[*attest.Error](err); !ok || e.Stage != attest.StageCollateral && e.Stage != attest.StageRevocation {
				s.Errorf("cause: %v", err)
			}
		})
	})
	t.Run("none", func(t *testing.T) {
		inSite(t, func(s *site) {
			s.refused(s.node("a:1", func(n *nodeConfig) { n.evidence = func(ev *ratls.Evidence) { ev.Collateral = nil } }), ErrNode)
		})
	})
	t.Run("no statement", func(t *testing.T) {
		inSite(t, func(s *site) {
			s.refused(s.node("a:1", func(n *nodeConfig) { n.evidence = func(ev *ratls.Evidence) { ev.Attachment = nil } }), ErrNode)
		})
	})
	t.Run("no evidence", func(t *testing.T) {
		inSite(t, func(s *site) {
			s.refused(s.node("a:1", func(n *nodeConfig) {
				n.evidence = func(ev *ratls.Evidence) { *ev = ratls.Evidence{} }
			}), ratls.ErrNoEvidence)
		})
	})
}

// The host sets the client's clock back, so that expired collateral counts again: signed times seen before are a floor.
func TestClockSetBack(t *testing.T) {
	inSite(t, func(s *site) {
		s.node("a:1")
		now := instant
		c := s.client([]string{"a:1"}, func(cfg *Config) { cfg.Clock = func() time.Time { return now } })
		if _, err := c.Cluster(s.Context()); err != nil {
			s.Fatal(err)
		}
		now = instant.Add(-365 * 24 * time.Hour)
		if got, floor := c.now(), instant.Truncate(24*time.Hour); !got.Equal(floor) {
			s.Errorf("time is %v, want the collateral's issue date %v", got, floor)
		}
		if _, err := c.Cluster(s.Context()); err != nil {
			s.Error("the client stopped working under a wrong clock:", err)
		}
	})
}

// An impostor's words are worth nothing: a "refusal" by someone who has not proved to be a node must not end the call.
func TestRefusalByImpostor(t *testing.T) {
	inSite(t, func(s *site) {
		l := s.net.listen("impostor:1")
		defer l.Close()
		go func() {
			raw, err := l.Accept()
			if err == nil { // offers no protocol of ours: a refusal frame in place of its hello
				ratls.Server(s.Context(), raw, &ratls.Config{Protocols: []string{"other/1"}})
			}
		}()
		s.node("b:1")
		c := s.client([]string{"impostor:1", "b:1"})
		c.prefer("impostor:1")
		if _, _, err := c.Key(s.Context(), keyRequest); err != nil {
			s.Errorf("an impostor ended the call: %v", err)
		}
	})
}

// A TLS server with a certificate of any authority, but without the channel.
func TestPlainTLSServer(t *testing.T) {
	inSite(t, func(s *site) {
		l := s.net.listen("a:1")
		defer l.Close()
		go func() {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			cfg := hostTLS(s)
			cfg.NextProtos = []string{"h2"}
			conn := tls.Server(raw, cfg)
			conn.Handshake()
			drain(conn)
			raw.Close()
		}()
		ctx, cancel := context.WithTimeout(s.Context(), time.Second)
		defer cancel()
		if _, _, err := s.client([]string{"a:1"}).Key(ctx, keyRequest); err == nil {
			s.Error("a plain TLS server was accepted")
		}
	})
}
