package kds

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

var askersNonce = api.Nonce("chosen by the asker")

// keys are what a relying party pins of this cluster.
func (w *world) keys() ear.Keys {
	w.t.Helper()
	return must[ear.Keys](w.t)(ear.NewKeys(w.secrets.Identity().Public()))
}

// result asks for a verdict and checks its token as a relying party would.
func (w *world) result(req api.AttestRequest) (api.Verdict, *ear.Result) {
	w.t.Helper()
	v := must[api.Verdict](w.t)(w.service.Attest(w.t.Context(), req))
	return v, must[*ear.Result](w.t)(ear.Verify(v.Token, w.keys(), w.clock, req.Nonce))
}

func oeReport(quote []byte) []byte {
	header := binary.LittleEndian.AppendUint32(nil, 1)
	header = binary.LittleEndian.AppendUint32(header, 2)
	header = binary.LittleEndian.AppendUint64(header, uint64(len(quote)))
	return append(header, quote...)
}

// Every kind of verdict has a token that says the same.
func TestTokens(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good, old := w.platform("one", ""), w.platform("old", attest.StatusOutOfDate)
	ask := func(p *simpki.Platform, constraint string, change ...func(*sgx.Report)) api.AttestRequest {
		ev := w.evidence(p, app(change...))
		return api.AttestRequest{Quote: ev.Quote, Collateral: ev.Collateral, Constraint: constraint, Nonce: askersNonce}
	}
	with := func(req api.AttestRequest, change func(*api.AttestRequest)) api.AttestRequest {
		change(&req)
		return req
	}
	same, other := api.ReportData(binding), api.ReportData{9}
	const signer = "S:4949494949494949494949494949494949494949494949494949494949494949 PROD:7 "
	for name, c := range map[string]struct {
		req         api.AttestRequest
		ok          bool
		status      ear.Status
		executables ear.Value
		label       string
	}{
		"accepted":             {ask(good, constraint), true, ear.Affirming, ear.UnderSimulatedRoot, "sgx"},
		"no constraint":        {ask(good, ""), true, ear.None, 0, "sgx"},
		"other code":           {ask(good, nodePolicy), false, ear.Contraindicated, 33, "sgx"},
		"revoked version":      {ask(good, signer+"REVOKE:3"), false, ear.Contraindicated, 96, "sgx"},
		"version in force":     {ask(good, signer+"REVOKE:2"), true, ear.Affirming, ear.UnderSimulatedRoot, "sgx"},
		"other product":        {ask(good, strings.Replace(signer, "PROD:7", "PROD:8", 1)), false, ear.Contraindicated, 33, "sgx"},
		"old, tolerated":       {ask(old, constraint), true, ear.Warning, ear.UnderSimulatedRoot, "sgx"},
		"old, refused":         {ask(old, code+" SEC:SECURE"), false, ear.Contraindicated, ear.UnderSimulatedRoot, "sgx"},
		"old, no constraint":   {ask(old, ""), true, ear.Warning, 0, "sgx"},
		"revoked platform":     {ask(w.platform("gone", attest.StatusRevoked), constraint), false, ear.Contraindicated, ear.UnderSimulatedRoot, "sgx"},
		"debug":                {ask(good, constraint, debug), false, ear.Contraindicated, ear.UnderSimulatedRoot, "sgx"},
		"debug, no constraint": {ask(good, "", debug), true, ear.Contraindicated, 0, "sgx"},
		"debug, tolerated":     {ask(good, code+" SEC:INSECURE", debug), true, ear.Contraindicated, ear.UnderSimulatedRoot, "sgx"},
		"this channel":         {with(ask(good, constraint), func(r *api.AttestRequest) { r.ReportData = &same }), true, ear.Affirming, ear.UnderSimulatedRoot, "sgx"},
		"another channel":      {with(ask(good, constraint), func(r *api.AttestRequest) { r.ReportData = &other }), false, ear.Contraindicated, 0, "sgx"},
		"OE report":            {with(ask(good, constraint), func(r *api.AttestRequest) { r.Quote = oeReport(r.Quote) }), true, ear.Affirming, ear.UnderSimulatedRoot, "sgx"},
		"no nonce":             {with(ask(good, constraint), func(r *api.AttestRequest) { r.Nonce = nil }), true, ear.Affirming, ear.UnderSimulatedRoot, "sgx"},
		"cut":                  {with(ask(good, constraint), func(r *api.AttestRequest) { r.Quote = r.Quote[:400] }), false, ear.None, 1, "evidence"},
		"no collateral":        {with(ask(good, constraint), func(r *api.AttestRequest) { r.Collateral = nil }), false, ear.None, 0, "evidence"},
		"forged": {with(ask(good, constraint), func(r *api.AttestRequest) { r.Quote = slices.Clone(r.Quote); r.Quote[sgx.HeaderSize+64] ^= 1 }),
			false, ear.Contraindicated, 99, "evidence"},
	} {
		v, r := w.result(c.req)
		a := r.Appraisal
		if v.OK != c.ok || a.Verdict.OK != c.ok || a.Status != c.status || a.Vector.Executables != c.executables || a.Label != c.label {
			t.Errorf("%s: ok %t, %s %+v %s", name, v.OK, a.Status, a.Vector, a.Label)
		}
		if a.Verdict.Code != string(v.Code) || a.Verdict.Stage != v.Stage || a.Verdict.Error != v.Error || a.Verdict.Constraint != v.Constraint || a.Verdict.Epoch != v.Epoch {
			t.Errorf("%s: token says %+v, verdict %+v", name, a.Verdict, v)
		}
		if v.Code == api.CodePolicyDenied && (len(v.Failures) == 0 || len(a.Verdict.Failures) != len(v.Failures) || a.Verdict.Failures[0].Clause != v.Failures[0].Clause) {
			t.Errorf("%s: failures %+v and %+v", name, a.Verdict.Failures, v.Failures)
		}
		if (r.Evidence != nil) != (c.label == "sgx") || r.Issuer != "urn:claviger:cluster:"+w.id.String() || r.Verifier.Developer != developer || !r.IssuedAt.Equal(start) {
			t.Errorf("%s: %+v", name, r)
		}
		if demanded := c.req.ReportData != nil && v.Stage != "binding"; demanded != (a.EvidenceNonce != nil) {
			t.Errorf("%s: nonce of the evidence %x", name, a.EvidenceNonce)
		}
		policies := map[bool]int{true: 1}[c.req.Constraint != "" && c.label == "sgx" && v.Stage == ""]
		if len(a.PolicyIDs) != policies {
			t.Errorf("%s: policies %v", name, a.PolicyIDs)
		}
	}
	if len(w.replica.kinds) != 0 {
		t.Errorf("tokens wrote %v", w.replica.kinds)
	}
}

// A TD whose constraint pins its firmware only runs code that nobody recognises.
func TestTokenOfFirmwareOnly(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	body := tdx.Body{MRTD: [48]byte{0x7d}, RTMR: [4][48]byte{1: {0x71}, 2: {0x72}}}
	body.TDAttributes[3] = 0x10 // SEPT_VE_DISABLE
	quote := must[[]byte](t)(w.platform("one", "").QuoteTDX(body))
	c := must[*attest.Collateral](t)(w.pki.Collateral(attest.TDX, simpki.DefaultFMSPC, w.clock))
	mrtd, zeros := "TD:7d"+strings.Repeat("00", 47), strings.Repeat("00", 47)
	for text, want := range map[string]ear.Status{
		mrtd + " FIRMWARE_ONLY_UNSAFE":                   ear.Warning,
		mrtd + " RTMR1:71" + zeros + " RTMR2:72" + zeros: ear.Affirming,
		mrtd + " RTMR1:71" + zeros + " RTMR2:73" + zeros: ear.Contraindicated,
	} {
		_, r := w.result(api.AttestRequest{Quote: quote, Collateral: must[[]byte](t)(c.Marshal()), Constraint: text})
		if r.Appraisal.Status != want || (r.Appraisal.Vector.Executables == ear.Unrecognized) != (want != ear.Affirming) {
			t.Errorf("%.30s…: %+v", text, r.Appraisal)
		}
	}
}

// The relying party's side: what it pinned, and what a host could hand it instead.
func TestTokenAttacks(t *testing.T) {
	t.Parallel()
	w, foreign := newWorld(t), newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	req := api.AttestRequest{Quote: ev.Quote, Collateral: ev.Collateral, Constraint: constraint, Nonce: askersNonce}
	v, _ := w.result(req)
	elsewhere, _ := foreign.result(req)
	for name, c := range map[string]struct {
		token string
		keys  ear.Keys
		at    time.Time
		nonce []byte
		want  error
	}{
		"another cluster's token": {elsewhere.Token, w.keys(), w.clock, askersNonce, ear.ErrKey},
		"another cluster's keys":  {v.Token, foreign.keys(), w.clock, askersNonce, ear.ErrKey},
		"replayed":                {v.Token, w.keys(), w.clock, []byte("chosen by another  "), ear.ErrNonce},
		"expired":                 {v.Token, w.keys(), w.clock.Add(ear.DefaultLifetime), askersNonce, ear.ErrExpired},
		"changed":                 {strings.Replace(v.Token, v.Token[200:204], "AAAA", 1), w.keys(), w.clock, askersNonce, ear.ErrSignature},
	} {
		if r, err := ear.Verify(c.token, c.keys, c.at, c.nonce); !errors.Is(err, c.want) || r != nil {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
}

// A token does not outlive the collateral that it rests on.
func TestTokenExpiry(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	req := api.AttestRequest{Quote: ev.Quote, Collateral: ev.Collateral}
	_, r := w.result(req)
	if !r.Expires.Equal(start.Add(ear.DefaultLifetime)) {
		t.Errorf("expires %s", r.Expires)
	}
	bundle := must[*attest.Collateral](t)(attest.ParseCollateral(ev.Collateral))
	claims := must[*attest.Verified](t)(w.service.Verifier.Verify(must[*attest.Quote](t)(attest.Parse(ev.Quote)), bundle, start)).Claims()
	end := claims.Collateral.EarliestExpiry
	for before, want := range map[time.Duration]time.Duration{time.Hour: ear.DefaultLifetime, time.Minute: time.Minute, 0: time.Second} {
		if got := tokenExpiry(end.Add(-before), claims).Sub(end.Add(-before)); got != want {
			t.Errorf("%s before the end: lives %s, want %s", before, got, want)
		}
	}
	w.clock = end.Add(-time.Minute)
	if _, r = w.result(req); !r.Expires.Equal(end) {
		t.Errorf("expires %s, the collateral %s", r.Expires, end)
	}
}

func TestReportHeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	good := oeReport(ev.Quote)
	if quote, err := unwrapReport(good); err != nil || !bytes.Equal(quote, ev.Quote) {
		t.Fatal(err)
	}
	for name, bad := range map[string][]byte{
		"header only": good[:oeHeaderSize], "half a header": good[:9], "truncated": good[:len(good)-1], "trailing": append(slices.Clone(good), 0),
		"local report": append([]byte{1, 0, 0, 0, 1}, good[5:]...), "size": append(append(slices.Clone(good[:15]), 1), good[16:]...),
	} {
		quote, err := unwrapReport(bad)
		if e, ok := errors.AsType[*attest.Error](err); !ok || e.Stage != attest.StageParse || !errors.Is(err, ErrReport) || quote != nil {
			t.Errorf("%s: %v", name, err)
		}
		v, r := w.result(api.AttestRequest{Quote: bad, Collateral: ev.Collateral})
		if v.OK || v.Stage != "parse" || r.Appraisal.Label != ear.LabelUnverified {
			t.Errorf("%s: %+v", name, v)
		}
	}
	// A report in a report is no quote.
	if v, _ := w.result(api.AttestRequest{Quote: oeReport(good), Collateral: ev.Collateral}); v.OK || v.Stage != "parse" {
		t.Errorf("nested: %+v", v)
	}
	for _, raw := range [][]byte{nil, {1}, {1, 0, 0}, ev.Quote} {
		if quote, err := unwrapReport(raw); err != nil || !bytes.Equal(quote, raw) {
			t.Errorf("%.4x: %v", raw, err)
		}
	}
}

// The key set is the identity key, and a generic library checks tokens with it.
func TestKeySet(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	w.replica.readErr = ErrNoQuorum // not needed: the cluster id names the key
	raw := must[[]byte](t)(json.Marshal(must[api.KeySet](t)(w.service.KeySet(t.Context()))))
	w.replica.readErr = nil
	ev := w.evidence(w.platform("one", ""), app())
	v, _ := w.result(api.AttestRequest{Quote: ev.Quote, Collateral: ev.Collateral, Constraint: constraint, Nonce: askersNonce})
	if r, err := ear.Verify(v.Token, must[ear.Keys](t)(ear.ParseKeys(raw)), w.clock, askersNonce); err != nil || !r.Affirms(must[string](t)(api.PolicyURN(constraint))) {
		t.Error(err)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(raw, &set); err != nil {
		t.Fatal(err)
	}
	var claims jwt.Claims
	parsed := must[*jwt.JSONWebToken](t)(jwt.ParseSigned(v.Token, []jose.SignatureAlgorithm{jose.EdDSA}))
	if err := parsed.Claims(&set, &claims); err != nil || claims.Issuer != api.ClusterURN(w.id) {
		t.Errorf("%+v %v", claims, err)
	}
	empty := must[*Service](t)(New(Config{Replica: w.replica, Machine: state.New(), Secrets: w.secrets, Clock: w.service.Clock, Verifier: w.service.Verifier}))
	if set, err := empty.KeySet(t.Context()); !errors.Is(err, &api.Problem{Code: api.CodeNoQuorum}) || set.Keys != nil {
		t.Errorf("a node without a cluster: %v", err)
	}
}

func TestAttestNonceBounds(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	for n, ok := range map[int]bool{0: false, 7: false, 8: true, 64: true, 65: false} {
		v, err := w.service.Attest(t.Context(), api.AttestRequest{Quote: ev.Quote, Collateral: ev.Collateral, Nonce: make(api.Nonce, n)})
		if (err == nil) != ok || (v.Token != "") != ok || !ok && !errors.Is(err, &api.Problem{Code: api.CodeBadRequest}) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
}
