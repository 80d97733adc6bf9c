package client

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/enclave"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
)

// A genuine node that is wrong, or whose software was subverted in its untrusted parts, cannot pass another answer for the
// one asked for.
func TestWrongKeyReplies(t *testing.T) {
	other := sim.Image{Kind: enclave.TDX, Name: "another app", Version: "1"}
	tests := map[string]func(*api.KeyReply){
		"name":       func(r *api.KeyReply) { r.Name = "db/other" },
		"purpose":    func(r *api.KeyReply) { r.Purpose = "raw/32" },
		"constraint": func(r *api.KeyReply) { r.Constraint = other.Constraint() },
		"realm":      func(r *api.KeyReply) { r.Realm = "sim-debug" },
		"hardware":   func(r *api.KeyReply) { r.Realm = "hw" },
		"generation": func(r *api.KeyReply) { r.Version.Generation = 2 },
		"counter":    func(r *api.KeyReply) { r.Version.Counter = 2 },
		"root":       func(r *api.KeyReply) { r.Version.GenerationID[0] ^= 1 },
		"no root":    func(r *api.KeyReply) { r.Version.GenerationID = api.ID{} },
		"epoch":      func(r *api.KeyReply) { r.Epoch = 4 },
		"no key":     func(r *api.KeyReply) { r.Key = nil },
		"long key":   func(r *api.KeyReply) { r.Key = make([]byte, 65) },
		"cluster":    func(r *api.KeyReply) { r.ClusterID[0] ^= 1 },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			inSite(t, func(s *site) {
				n := s.node("a:1")
				n.service.key = change
				req := keyRequest
				req.Version = firstVersion
				key, _, err := s.client([]string{"a:1"}).Key(s.Context(), req)
				if !errors.Is(err, ErrReply) || !key.IsZero() || n.service.count() != 1 {
					s.Errorf("got %v after %d calls", err, n.service.count())
				}
			})
		})
	}
}

// A key whose receipt is signed by a key other than the cluster's was not recorded.
func TestReceiptOfAnotherSigner(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		n.service.cluster.identity = newSigner(66)
		key, _, err := s.client([]string{"a:1"}).Key(s.Context(), keyRequest)
		if !errors.Is(err, ErrReply) || !errors.Is(err, api.ErrReceipt) || !key.IsZero() {
			s.Errorf("got %v", err)
		}
	})
}

func TestWrongPublicKeyReplies(t *testing.T) {
	tests := map[string]func(*service, *api.PublicKeyReply){
		"key swapped":     func(_ *service, r *api.PublicKeyReply) { r.PublicKey[0] ^= 1 },
		"recipient added": func(_ *service, r *api.PublicKeyReply) { r.Recipient = "age1host" },
		"unsigned":        func(_ *service, r *api.PublicKeyReply) { r.Signature = nil },
		"other name, signed": func(s *service, r *api.PublicKeyReply) {
			r.Name = "other"
			r.Sign(s.cluster.identity)
		},
		"other realm, signed": func(s *service, r *api.PublicKeyReply) {
			r.Realm = "hw"
			r.Sign(s.cluster.identity)
		},
		"old epoch, signed": func(s *service, r *api.PublicKeyReply) {
			r.Epoch = 4
			r.Sign(s.cluster.identity)
		},
		"signed by the host": func(_ *service, r *api.PublicKeyReply) { r.Sign(newSigner(66)) },
	}
	for name, change := range tests {
		t.Run(name, func(t *testing.T) {
			inSite(t, func(s *site) {
				n := s.node("a:1")
				n.service.public = func(r *api.PublicKeyReply) { change(n.service, r) }
				reply, err := s.client([]string{"a:1"}).PublicKey(s.Context(), api.PublicKeyRequest(keyRequest))
				if !errors.Is(err, ErrReply) || reply.PublicKey != nil {
					s.Errorf("got %v", err)
				}
			})
		})
	}
}

func TestWrongDescriptions(t *testing.T) {
	clusters := map[string]func(*service, *api.Cluster){
		"another cluster": func(_ *service, c *api.Cluster) { c.ClusterID[0] ^= 1 },
		"log head":        func(_ *service, c *api.Cluster) { c.LogSize++ },
		"identity key":    func(_ *service, c *api.Cluster) { c.IdentityKey = newSigner(66).Public() },
		"old epoch, signed": func(s *service, c *api.Cluster) {
			c.Epoch = 4
			c.Checkpoint, _ = api.SignCheckpoint(s.cluster.identity, c.ClusterID, c.Epoch, c.LogSize, c.LogRoot)
		},
	}
	for name, change := range clusters {
		t.Run("cluster/"+name, func(t *testing.T) {
			inSite(t, func(s *site) {
				n := s.node("a:1")
				n.service.describe = func(c *api.Cluster) { change(n.service, c) }
				if got, err := s.client([]string{"a:1"}).Cluster(s.Context()); !errors.Is(err, ErrReply) || got.Manifest != nil {
					s.Errorf("got %v", err)
				}
			})
		})
	}
	verdicts := map[string]func(*api.Verdict){
		"another cluster": func(v *api.Verdict) { v.ClusterID[0] ^= 1 },
		"old epoch":       func(v *api.Verdict) { v.Epoch = 4 },
		"no token":        func(v *api.Verdict) { v.Token = "" },
		"token changed":   func(v *api.Verdict) { v.Token = v.Token[:len(v.Token)-4] + "AAAA" },
		"other verdict":   func(v *api.Verdict) { v.OK = false },
		"other code":      func(v *api.Verdict) { v.Code = api.CodePolicyDenied },
		"other status":    func(v *api.Verdict) { v.Status = "OutOfDate" },
		"other epoch":     func(v *api.Verdict) { v.Epoch++ },
		"no time":         func(v *api.Verdict) { v.Time = time.Time{} },
		"old":             func(v *api.Verdict) { v.Time = v.Time.Add(ear.DefaultLifetime) },
	}
	for name, change := range verdicts {
		t.Run("verdict/"+name, func(t *testing.T) {
			inSite(t, func(s *site) {
				s.node("a:1").service.verdict = change
				req := api.AttestRequest{Quote: []byte{1}, Nonce: api.Nonce("a nonce of ours"), Constraint: keyRequest.Constraint}
				if v, err := s.client([]string{"a:1"}).Attest(s.Context(), req); !errors.Is(err, ErrReply) || v.OK || v.Token != "" {
					s.Errorf("got %v", err)
				}
			})
		})
	}
}

// A reply beyond the limit is not a reply.
func TestUnreadableReplies(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		n.service.key = func(r *api.KeyReply) { r.Name = strings.Repeat("n", api.MaxReplyBody) }
		if _, _, err := s.client([]string{"a:1"}).Key(s.Context(), keyRequest); !errors.Is(err, ErrReply) {
			s.Errorf("oversized reply: %v", err)
		}
	})
}
