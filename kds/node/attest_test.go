package node

import (
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"

	"github.com/claviger/claviger/attest/ear"
	"github.com/claviger/claviger/attest/ratls"
	"github.com/claviger/claviger/enclave/sim"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/client"
)

// An attestation result is issued over HTTP by a real node. Then the cluster is gone, and our client and a generic JWT library
// check the result with what they kept.
func TestAttestationResultOutlivesTheCluster(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	n := s.start("a")[0]
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	c := s.client(n.APIAddr())

	nonce, bound := api.Nonce("a relying party's nonce"), api.ReportData{4, 2}
	app := s.launch("machine-app", appImage)
	req := api.AttestRequest{Nonce: nonce, Constraint: appImage.Constraint(), ReportData: &bound}
	req.Quote, req.Collateral = s.evidence(app, bound)
	verdict, err := c.Attest(ctx, req)
	if err != nil || !verdict.OK {
		t.Fatalf("%+v %v", verdict, err)
	}
	debugImage := appImage
	debugImage.Debug = true
	req.Quote, req.Collateral = s.evidence(s.launch("machine-app", debugImage), bound)
	debugged, err := c.Attest(ctx, req)
	if err != nil || debugged.OK || debugged.Code != api.CodePolicyDenied {
		t.Fatalf("a debug enclave: %+v %v", debugged, err)
	}
	verifier, err := c.TokenVerifier(ctx)
	if err != nil {
		t.Fatal(err)
	}
	published := s.keySet(ctx, n)

	n.Close()
	<-n.done
	now := time.Now()
	want := client.Expect{Nonce: nonce, Constraint: appImage.Constraint(), ReportData: &bound, MinEpoch: verdict.Epoch}
	r, err := verifier.Verify(verdict.Token, now, want)
	if err != nil || r.Appraisal.Status != ear.Affirming || r.Evidence.SGX.MREnclave != appImage.MREnclave() || !r.Evidence.Simulated {
		t.Errorf("our client: %+v %v", r, err)
	}
	if r, err := verifier.Verify(debugged.Token, now, want); err != nil || r.Appraisal.Status != ear.Contraindicated || !r.Evidence.Debug {
		t.Errorf("our client, a debug enclave: %+v %v", r, err)
	}

	pinned, err := json.Marshal(verifier.KeySet())
	if err != nil || string(pinned) != string(published) {
		t.Errorf("published %s, pinned %s", published, pinned)
	}
	var set jose.JSONWebKeySet
	if err := json.Unmarshal(published, &set); err != nil {
		t.Fatal(err)
	}
	token, err := jwt.ParseSigned(verdict.Token, []jose.SignatureAlgorithm{jose.EdDSA})
	if err != nil {
		t.Fatal(err)
	}
	var standard jwt.Claims
	var claims struct {
		Nonce  string `json:"eat_nonce"`
		Status string `json:"ear_status"`
	}
	if err := token.Claims(&set, &standard, &claims); err != nil {
		t.Fatalf("a generic library: %v", err)
	}
	text, _ := nonce.MarshalText()
	if err := standard.Validate(jwt.Expected{Issuer: api.ClusterURN(s.pins.ClusterID), Time: now}); err != nil || claims.Status != "affirming" || claims.Nonce != string(text) {
		t.Errorf("a generic library: %+v %v", claims, err)
	}
}

// evidence is a quote of a simulated enclave and the collateral for it.
func (s *site) evidence(e *sim.Enclave, reportData [64]byte) (quote, bundle []byte) {
	s.t.Helper()
	quote, err := e.Quote(s.t.Context(), reportData)
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := s.world.Collateral(s.t.Context(), quote)
	if err != nil {
		s.t.Fatal(err)
	}
	if bundle, err = c.Marshal(); err != nil {
		s.t.Fatal(err)
	}
	return quote, bundle
}

// keySet gets the JWKS with plain HTTP over a channel of which only the node's key is checked.
func (s *site) keySet(ctx context.Context, n *running) []byte {
	s.t.Helper()
	transport := &http.Transport{DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		raw, err := new(net.Dialer).DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		return ratls.Client(ctx, raw, &ratls.Config{Protocols: []string{client.Protocol}, ClusterID: s.pins.ClusterID, Epoch: 1,
			PeerKey: (*[32]byte)(new(n.ServerID()))})
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+n.APIAddr()+"/.well-known/jwks.json", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s %v", res.Status, body, err)
	}
	return body
}
