package kds

import (
	"encoding/json"
	"errors"
	"slices"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/kds/api"
)

func TestAttestVerdicts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	honest := w.evidence(w.platform("one", ""), app())
	base := api.AttestRequest{Quote: honest.Quote, Collateral: honest.Collateral}
	other := api.ReportData{9}
	same := api.ReportData(binding)
	cases := map[string]struct {
		change func(*api.AttestRequest)
		ok     bool
		code   api.Code
		stage  string
		claims bool
	}{
		"genuine":             {func(*api.AttestRequest) {}, true, "", "", true},
		"report data":         {func(r *api.AttestRequest) { r.ReportData = &same }, true, "", "", true},
		"other report data":   {func(r *api.AttestRequest) { r.ReportData = &other }, false, api.CodeEvidenceRefused, "binding", true},
		"constraint":          {func(r *api.AttestRequest) { r.Constraint = constraint }, true, "", "", true},
		"other constraint":    {func(r *api.AttestRequest) { r.Constraint = nodePolicy }, false, api.CodePolicyDenied, "", true},
		"truncated":           {func(r *api.AttestRequest) { r.Quote = r.Quote[:400] }, false, api.CodeEvidenceRefused, "parse", false},
		"collateral missing":  {func(r *api.AttestRequest) { r.Collateral = nil }, false, api.CodeEvidenceRefused, "collateral", false},
		"collateral, garbage": {func(r *api.AttestRequest) { r.Collateral = []byte("x") }, false, api.CodeEvidenceRefused, "parse", false},
		"signature": {func(r *api.AttestRequest) { r.Quote = slices.Clone(r.Quote); r.Quote[100] ^= 1 },
			false, api.CodeEvidenceRefused, "signature", false},
	}
	for name, c := range cases {
		req := base
		c.change(&req)
		v, err := w.service.Attest(t.Context(), req)
		if err != nil || v.OK != c.ok || v.Code != c.code || v.Stage != c.stage || (len(v.Claims) > 0) != c.claims {
			t.Errorf("%s: %+v %v", name, v, err)
		}
		if !v.OK && v.Error == "" || v.ClusterID != w.id || !v.Time.Equal(start) {
			t.Errorf("%s: %+v", name, v)
		}
		if c.code == api.CodePolicyDenied && len(v.Failures) != 1 {
			t.Errorf("%s: failures %+v", name, v.Failures)
		}
		if c.claims && v.Status != "UpToDate" {
			t.Errorf("%s: status %s", name, v.Status)
		}
		if raw, err := json.Marshal(v); err != nil || len(raw) > api.MaxReplyBody {
			t.Errorf("%s: %v", name, err)
		}
	}
	if len(w.replica.kinds) != 0 {
		t.Errorf("verdicts wrote %v", w.replica.kinds)
	}
}

// A node that has been removed, or cut off, must not answer.
func TestPublicReadsNeedTheQuorum(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.replica.readErr = ErrNoQuorum
	want := &api.Problem{Code: api.CodeNoQuorum}
	if v, err := w.service.Attest(t.Context(), api.AttestRequest{Quote: ev.Quote, Collateral: ev.Collateral}); !errors.Is(err, want) || v.OK {
		t.Errorf("attest: %+v %v", v, err)
	}
	r, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest{Constraint: constraint, Name: "n", Purpose: "age"})
	if !errors.Is(err, want) || r.PublicKey != nil {
		t.Errorf("public: %+v %v", r, err)
	}
}

func TestAttestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, c := range map[string]struct {
		req  api.AttestRequest
		code api.Code
	}{
		"empty":      {api.AttestRequest{}, api.CodeBadRequest},
		"oversized":  {api.AttestRequest{Quote: make([]byte, api.MaxQuote+1)}, api.CodeTooLarge},
		"constraint": {api.AttestRequest{Quote: []byte{1}, Constraint: "C:1"}, api.CodeBadRequest},
	} {
		if _, err := w.service.Attest(t.Context(), c.req); !errors.Is(err, &api.Problem{Code: c.code}) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// The handshake check: same judgement of evidence, no write.
func TestVerifyWritesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	v, err := w.service.Verify(t.Context(), ev)
	if err != nil || v.Claims().TCB.Status != attest.StatusUpToDate {
		t.Fatal(err)
	}
	ev.Binding[0]++
	if v, err := w.service.Verify(t.Context(), ev); !errors.Is(err, &api.Problem{Code: api.CodeEvidenceRefused}) || v != nil {
		t.Errorf("another channel: %v", err)
	}
	if len(w.replica.kinds) != 0 {
		t.Errorf("wrote %v", w.replica.kinds)
	}
}

func TestSecretsHandOver(t *testing.T) {
	t.Parallel()
	one := must[*Secrets](t)(GenerateSecrets())
	raw := must[[]byte](t)(one.Reveal())
	two := must[*Secrets](t)(ParseSecrets(raw, one.Identity().Public()))
	if !two.roots[0].Equal(one.roots[0]) || two.Generation() != 1 {
		t.Fatal("the root changed on the way")
	}
	message := []byte("m")
	a, b := must[[]byte](t)(one.Identity().Sign(message)), must[[]byte](t)(two.Identity().Sign(message))
	if !slices.Equal(a, b) {
		t.Error("the identity key changed on the way")
	}
	stranger := must[*Secrets](t)(GenerateSecrets())
	if s, err := ParseSecrets(raw, stranger.Identity().Public()); !errors.Is(err, ErrSecrets) || s != nil {
		t.Errorf("secrets of another cluster: %v", err)
	}
	for name, bad := range map[string][]byte{"empty": nil, "cut": raw[:len(raw)-1], "trailing": append(slices.Clone(raw), 0)} {
		if s, err := ParseSecrets(bad, one.Identity().Public()); !errors.Is(err, ErrSecrets) || s != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	zero := new(Secrets)
	if _, err := zero.Reveal(); !errors.Is(err, ErrSecrets) {
		t.Errorf("zero secrets reveal: %v", err)
	}
	if _, err := zero.Identity().Sign(message); !errors.Is(err, ErrSecrets) {
		t.Errorf("zero secrets sign: %v", err)
	}
	if _, err := one.root(0); !errors.Is(err, ErrSecrets) {
		t.Errorf("generation 0: %v", err)
	}
	if _, err := one.root(2); !errors.Is(err, ErrSecrets) {
		t.Errorf("generation 2: %v", err)
	}
}
