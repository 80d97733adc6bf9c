package client

import (
	"errors"
	"testing"
	"time"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/kds/api"
)

var ours = api.Nonce("a nonce of ours")

// A token is fetched once over an attested channel and checked later by somebody who has only the pinned cluster.
func TestTokenTravels(t *testing.T) {
	inSite(t, func(s *site) {
		n := s.node("a:1")
		c := s.client([]string{"a:1"}, func(cfg *Config) { cfg.Attest = nil })
		bound := api.ReportData{7}
		req := api.AttestRequest{Quote: []byte{1}, Nonce: ours, Constraint: keyRequest.Constraint, ReportData: &bound}
		verdict, err := c.Attest(s.Context(), req)
		if err != nil {
			s.Fatal(err)
		}
		v, err := c.TokenVerifier(s.Context())
		if err != nil {
			s.Fatal(err)
		}
		n.stop()
		c.Close()
		r, err := v.Verify(verdict.Token, instant, Expect{Nonce: ours, Constraint: " SEC:STALE " + keyRequest.Constraint[:len(keyRequest.Constraint)-len(" SEC:STALE")], ReportData: &bound, MinEpoch: 5})
		if err != nil || r.Appraisal.Status != ear.Affirming || r.Evidence.ReportData != bound {
			s.Errorf("%+v %v", r, err)
		}
		if _, err := c.TokenVerifier(s.Context()); !errors.Is(err, ErrClosed) {
			s.Errorf("closed: %v", err)
		}
	})
}

// Answers to other questions, by a cluster that lies or is another one.
func TestWrongTokens(t *testing.T) {
	bound := api.ReportData{7}
	request := api.AttestRequest{Quote: []byte{1}, Nonce: ours, Constraint: keyRequest.Constraint, ReportData: &bound}
	asked := func(change func(*api.AttestRequest)) func(*service) (string, error) {
		return func(s *service) (string, error) {
			req := request
			change(&req)
			return s.cluster.token(req, s.epoch)
		}
	}
	for name, forged := range map[string]func(*service) (string, error){
		"another nonce":       asked(func(r *api.AttestRequest) { r.Nonce = api.Nonce("a nonce of others") }),
		"no nonce":            asked(func(r *api.AttestRequest) { r.Nonce = nil }),
		"another constraint":  asked(func(r *api.AttestRequest) { r.Constraint = otherImage.Constraint() }),
		"no constraint":       asked(func(r *api.AttestRequest) { r.Constraint = "" }),
		"another report data": asked(func(r *api.AttestRequest) { r.ReportData = &api.ReportData{8} }),
		"old epoch":           func(s *service) (string, error) { return s.cluster.token(request, 4) },
		"another cluster": func(s *service) (string, error) {
			other := s.cluster
			other.identity = newSigner(66)
			return other.token(request, s.epoch)
		},
		"another issuer": func(s *service) (string, error) {
			return s.cluster.token(request, s.epoch, func(_ *attest.Claims, st *ear.Statement) { st.Issuer = "urn:claviger:cluster:00" })
		},
		"another root of trust": func(s *service) (string, error) {
			return s.cluster.token(request, s.epoch, func(c *attest.Claims, _ *ear.Statement) { c.Root = attest.IntelRoot() })
		},
		"another instant": func(s *service) (string, error) {
			return s.cluster.token(request, s.epoch, func(_ *attest.Claims, st *ear.Statement) {
				st.IssuedAt, st.Expires = st.IssuedAt.Add(time.Hour), st.Expires.Add(time.Hour)
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, func(s *site) {
				n := s.node("a:1")
				token, err := forged(n.service)
				if err != nil {
					s.Fatal(err)
				}
				n.service.verdict = func(v *api.Verdict) { v.Token = token }
				if v, err := s.client([]string{"a:1"}).Attest(s.Context(), request); !errors.Is(err, ErrReply) || v.OK || v.Token != "" {
					s.Errorf("online: %v", err)
				}
				v, err := NewTokenVerifier(s.id, s.manifest, s.identity.Public())
				if err != nil {
					s.Fatal(err)
				}
				r, err := v.Verify(token, instant, Expect{Nonce: ours, Constraint: request.Constraint, ReportData: &bound, MinEpoch: 5})
				if err == nil || r != nil {
					s.Error("offline: accepted")
				}
			})
		})
	}
}

func TestTokenVerifierDenies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, 1, world().Root(), nodeImage.Constraint())
	other := newCluster(t, 2, world().Root(), nodeImage.Constraint())
	v, err := NewTokenVerifier(c.id, c.manifest, c.identity.Public())
	if err != nil {
		t.Fatal(err)
	}
	for name, pinned := range map[string]cluster{
		"another id": {c.identity, c.manifest, other.id}, "another key": {other.identity, c.manifest, c.id}, "another manifest": {c.identity, other.manifest, c.id},
		"no manifest": {c.identity, nil, c.id}, "zero id": {c.identity, c.manifest, api.ID{}},
	} {
		if v, err := NewTokenVerifier(pinned.id, pinned.manifest, pinned.identity.Public()); !errors.Is(err, ErrConfig) || v != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	token, err := c.token(api.AttestRequest{Nonce: ours, Constraint: keyRequest.Constraint}, 5)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		verifier *TokenVerifier
		want     Expect
		err      error
	}{
		"zero verifier":         {&TokenVerifier{}, Expect{Nonce: ours, Constraint: keyRequest.Constraint}, ear.ErrInput},
		"zero expectation":      {v, Expect{}, ErrConfig},
		"no constraint":         {v, Expect{Nonce: ours}, ErrConfig},
		"both constraints":      {v, Expect{Nonce: ours, Constraint: keyRequest.Constraint, AnyConstraintUnsafe: true}, ErrConfig},
		"both nonces":           {v, Expect{Nonce: ours, AnyNonceUnsafe: true, AnyConstraintUnsafe: true}, ErrConfig},
		"no nonce":              {v, Expect{Constraint: keyRequest.Constraint}, ear.ErrNonce},
		"short nonce":           {v, Expect{Nonce: ours[:3], Constraint: keyRequest.Constraint}, ear.ErrInput},
		"another nonce":         {v, Expect{Nonce: api.Nonce("another one"), Constraint: keyRequest.Constraint}, ear.ErrNonce},
		"another policy":        {v, Expect{Nonce: ours, Constraint: otherImage.Constraint()}, ErrToken},
		"other report data":     {v, Expect{Nonce: ours, Constraint: keyRequest.Constraint, ReportData: &api.ReportData{1}}, ErrToken},
		"a later epoch":         {v, Expect{Nonce: ours, Constraint: keyRequest.Constraint, MinEpoch: 6}, ErrToken},
		"as expected":           {v, Expect{Nonce: ours, Constraint: keyRequest.Constraint, MinEpoch: 5}, nil},
		"any nonce, constraint": {v, Expect{AnyNonceUnsafe: true, AnyConstraintUnsafe: true}, nil},
	} {
		if r, err := tc.verifier.Verify(token, instant, tc.want); !errors.Is(err, tc.err) || (r == nil) != (tc.err != nil) {
			t.Errorf("%s: %v, want %v", name, err, tc.err)
		}
	}
	if r, err := v.Verify(token, instant, Expect{Nonce: ours, Constraint: "not one"}); err == nil || r != nil {
		t.Error("a malformed constraint was accepted")
	}
	if r, err := v.Verify(token, instant.Add(ear.DefaultLifetime), Expect{Nonce: ours, Constraint: keyRequest.Constraint}); !errors.Is(err, ear.ErrExpired) || r != nil {
		t.Errorf("expired: %v", err)
	}
	if set := v.KeySet(); len(set.Keys) != 1 || len(new(TokenVerifier).KeySet().Keys) != 0 {
		t.Errorf("%+v", set)
	}
}
