package kds

import (
	"context"
	"crypto/ed25519"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"testing"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

func TestReleaseToTheSameCodeAnywhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	first := w.release(w.evidence(w.platform("one", ""), app()), request())
	messy := request()
	messy.Constraint = "\n SEC:STALE   C:A1A1A1A1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
	second := w.release(w.evidence(w.platform("two", ""), app()), messy)
	if len(first.Key) != 32 || !slices.Equal(first.Key, second.Key) {
		t.Fatal("the same code on another machine got another key")
	}
	if first.Realm != "sim" || first.Constraint != constraint || first.Version != w.version(1) {
		t.Errorf("%v %+v", first, first.Version)
	}
	identity := w.secrets.Identity().Public()
	for i, reply := range []api.KeyReply{first, second} {
		record, err := reply.CheckReceipt(identity, w.id)
		if err != nil {
			t.Fatal(err)
		}
		if reply.Receipt.Index != uint64(i+1) || record.Status != "UpToDate" || hex.EncodeToString(record.Measurement) != code[2:] {
			t.Errorf("receipt %d: index %d, %+v", i, reply.Receipt.Index, record)
		}
	}
	if got := w.replica.kinds; !slices.Equal(got, []string{"put", "release", "release"}) {
		t.Errorf("proposed %v: one set of collateral serves both", got)
	}
	other := request()
	other.Name = "other"
	if third := w.release(w.evidence(w.platform("one", ""), app()), other); slices.Equal(third.Key, first.Key) {
		t.Error("another name got the same key")
	}
}

func TestEachPurpose(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	for purpose, size := range map[string]int{"raw/1": 1, "raw/64": 64, "aes-256": 32, "x25519": 32, "ed25519": 32, "age": 32} {
		req := request()
		req.Purpose = purpose
		reply := w.release(ev, req)
		if len(reply.Key) != size || reply.Purpose != purpose {
			t.Errorf("%s: %d bytes", purpose, len(reply.Key))
		}
		public, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest(req))
		if size != 32 || purpose == "aes-256" {
			if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != api.CodeBadRequest {
				t.Errorf("%s has a public half: %v", purpose, err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if err := public.Verify(w.secrets.Identity().Public(), w.id); err != nil {
			t.Errorf("%s: %v", purpose, err)
		}
		if purpose == "ed25519" && !slices.Equal(public.PublicKey, ed25519.NewKeyFromSeed(reply.Key).Public().(ed25519.PublicKey)) {
			t.Error("the halves do not belong together")
		}
		if (public.Recipient != "") != (purpose == "age") || public.Realm != reply.Realm {
			t.Errorf("%s: %+v", purpose, public)
		}
	}
}

// The attacks: each is refused with its reason, and nothing is released.
func TestRefusals(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	good := w.platform("good", "")
	honest := w.evidence(good, app())

	relayed := honest
	relayed.Binding = [64]byte{9}
	if p := w.refused("evidence of another channel", relayed, request(), api.CodeEvidenceRefused); p.Stage != "binding" {
		t.Errorf("stage %q", p.Stage)
	}
	unbound := w.evidence(good, app(func(r *sgx.Report) { r.ReportData = [64]byte{} }))
	unbound.Binding = [64]byte{}
	w.refused("no channel at all", unbound, request(), api.CodeEvidenceRefused)

	p := w.refused("wrong measurement", w.evidence(good, app(func(r *sgx.Report) { r.MREnclave[0]++ })), request(), api.CodePolicyDenied)
	if got := clauses(p); !slices.Equal(got, []string{"C"}) || p.Failures[0].Got[:4] != "a2a1" {
		t.Errorf("failures %+v", p.Failures)
	}
	p = w.refused("debug enclave", w.evidence(good, app(debug)), request(), api.CodePolicyDenied)
	if got := clauses(p); !slices.Equal(got, []string{"SEC:STALE"}) {
		t.Errorf("failures %v", got)
	}
	secure := request()
	secure.Constraint = code + " SEC:SECURE"
	p = w.refused("out of date platform", w.evidence(w.platform("old", attest.StatusOutOfDate), app()), secure, api.CodePolicyDenied)
	if len(p.Failures) != 1 || p.Failures[0].Got != "OutOfDate" || len(p.Failures[0].Advisories) == 0 || p.Failures[0].TCBDate.IsZero() {
		t.Errorf("failures %+v", p.Failures)
	}
	w.refused("revoked TCB", w.evidence(w.platform("gone", attest.StatusRevoked), app()), request(), api.CodePolicyDenied)
	insecure := request()
	insecure.Constraint = code + " SEC:INSECURE"
	w.refused("production enclave in the debug realm", honest, insecure, api.CodePolicyDenied)

	foreign := must[*simpki.PKI](t)(simpki.New(simpki.Config{Seed: [32]byte{2}, Now: start.AddDate(0, -6, 0)}))
	stranger := must[*simpki.Platform](t)(foreign.Platform(simpki.PlatformConfig{Name: "good"}))
	if p := w.refused("another root of trust", w.evidence(stranger, app()), request(), api.CodeEvidenceRefused); p.Stage != "chain" {
		t.Errorf("stage %q", p.Stage)
	}
	forged := honest
	forged.Quote = slices.Clone(honest.Quote)
	forged.Quote[sgx.HeaderSize+64] ^= 1 // MRENCLAVE, inside what is signed
	if p := w.refused("changed quote", forged, request(), api.CodeEvidenceRefused); p.Stage != "signature" {
		t.Errorf("stage %q", p.Stage)
	}
	w.refused("no quote", api.Evidence{Binding: binding}, request(), api.CodeEvidenceRefused)
	w.refused("truncated quote", api.Evidence{Quote: honest.Quote[:500], Binding: binding}, request(), api.CodeEvidenceRefused)
	w.refused("oversized quote", api.Evidence{Quote: make([]byte, api.MaxQuote+1), Binding: binding}, request(), api.CodeTooLarge)
	big := honest
	big.Collateral = make([]byte, api.MaxCollateral+1)
	w.refused("oversized collateral", big, request(), api.CodeTooLarge)
	garbage := honest
	garbage.Collateral = []byte("{}")
	w.refused("malformed collateral", garbage, request(), api.CodeEvidenceRefused)
	none := honest
	none.Collateral = nil
	if p := w.refused("no collateral anywhere", none, request(), api.CodeEvidenceRefused); p.Stage != "collateral" {
		t.Errorf("stage %q", p.Stage)
	}
	if len(w.replica.kinds) != 0 {
		t.Errorf("refused evidence wrote %v to the log", w.replica.kinds)
	}
}

func TestBadRequests(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	long := string(make([]byte, api.MaxConstraint+1))
	cases := map[string]struct {
		change func(*api.KeyRequest)
		code   api.Code
	}{
		"no constraint":        {func(r *api.KeyRequest) { r.Constraint = "" }, api.CodeBadRequest},
		"unknown token":        {func(r *api.KeyRequest) { r.Constraint += " FOO:1" }, api.CodeBadRequest},
		"duplicate token":      {func(r *api.KeyRequest) { r.Constraint += " SEC:STALE" }, api.CodeBadRequest},
		"long constraint":      {func(r *api.KeyRequest) { r.Constraint = long }, api.CodeTooLarge},
		"no name":              {func(r *api.KeyRequest) { r.Name = "" }, api.CodeBadRequest},
		"long name":            {func(r *api.KeyRequest) { r.Name = long }, api.CodeTooLarge},
		"no purpose":           {func(r *api.KeyRequest) { r.Purpose = "" }, api.CodeBadRequest},
		"unknown purpose":      {func(r *api.KeyRequest) { r.Purpose = "raw/65" }, api.CodeBadRequest},
		"future generation":    {func(r *api.KeyRequest) { r.Version.Generation = 2 }, api.CodeNotFound},
		"counter not existing": {func(r *api.KeyRequest) { r.Version.Counter = 2 }, api.CodeNotFound},
		"huge version":         {func(r *api.KeyRequest) { r.Version = api.Version{Generation: 1 << 63, Counter: 1 << 63} }, api.CodeNotFound},
	}
	for name, c := range cases {
		req := request()
		c.change(&req)
		w.refused(name, ev, req, c.code)
		_, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest(req))
		if p, ok := errors.AsType[*api.Problem](err); !ok || p.Code != c.code {
			t.Errorf("public, %s: %v, want %s", name, err, c.code)
		}
	}
}

// No record, no key: however the record fails, the reply is empty.
func TestNoRecordNoKey(t *testing.T) {
	t.Parallel()
	cases := map[string]struct {
		err  error
		code api.Code
	}{
		"no quorum":     {ErrNoQuorum, api.CodeNoQuorum},
		"busy":          {ErrBusy, api.CodeBusy},
		"not leader":    {&NotLeaderError{}, api.CodeNotLeader},
		"timeout":       {context.DeadlineExceeded, api.CodeNoQuorum},
		"given up":      {context.Canceled, api.CodeNoQuorum},
		"unknown fault": {errors.New("disk on fire"), api.CodeInternal},
	}
	for name, c := range cases {
		w := newWorld(t)
		ev := w.evidence(w.platform("one", ""), app())
		w.release(ev, request()) // the collateral is replicated, so that only the record fails
		w.replica.err = c.err
		if p := w.refused(name, ev, request(), c.code); name == "unknown fault" && p.Detail == c.err.Error() {
			t.Error("an internal error's text went outside")
		}
	}
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.replica.lose = true // committed, but the leader cannot know
	if reply, err := w.service.Release(t.Context(), ev, request()); err == nil || reply.Key != nil {
		t.Errorf("a key without a known record: %v", err)
	}
}

func TestRealms(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	production := w.release(w.evidence(p, app()), request())
	insecure := request()
	insecure.Constraint = code + " SEC:INSECURE"
	debugged := w.release(w.evidence(p, app(debug)), insecure)
	if production.Realm != "sim" || debugged.Realm != "sim-debug" || slices.Equal(production.Key, debugged.Key) {
		t.Errorf("%v and %v", production, debugged)
	}
	req := api.PublicKeyRequest(insecure)
	req.Purpose = "x25519"
	public, err := w.service.PublicKey(t.Context(), req)
	if err != nil || public.Realm != "sim-debug" {
		t.Errorf("public half: %+v %v", public, err)
	}
}

// After an entry that this node does not know it answers nothing.
func TestHaltedServesNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.release(ev, request())
	w.machine.Apply(100, []byte("an entry of the future"))
	w.refused("halted", ev, request(), api.CodeHalted)
	want := &api.Problem{Code: api.CodeHalted}
	if _, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest{Constraint: constraint, Name: "n", Purpose: "age"}); !errors.Is(err, want) {
		t.Errorf("public: %v", err)
	}
	if _, err := w.service.Attest(t.Context(), api.AttestRequest{Quote: ev.Quote}); !errors.Is(err, want) {
		t.Errorf("attest: %v", err)
	}
	if _, err := w.service.Cluster(t.Context()); !errors.Is(err, want) {
		t.Errorf("cluster: %v", err)
	}
	if _, err := w.service.Verify(t.Context(), ev); !errors.Is(err, want) {
		t.Errorf("verify: %v", err)
	}
}

func TestNotLeaderNamesTheLeader(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	leader := api.ID{7}
	w.release(w.evidence(w.platform("one", ""), app()), request()) // replicates the collateral
	admitted := &state.Admit{Epoch: 1, NodePolicy: 1, CollateralKey: platformKey, CollateralVersion: 1, Slot: "b", Incarnation: 1, ServerID: leader, PlatformID: [32]byte{1}, RaftAddr: "b:1", APIAddr: "b:2",
		Level: state.Level, TEE: "sgx", Measurement: make([]byte, 32), TCBStatus: "UpToDate"}
	if _, err := propose[state.Admitted](t.Context(), w.replica, admitted); err != nil {
		t.Fatal(err)
	}
	w.replica.err, w.replica.readErr = &NotLeaderError{Leader: leader}, &NotLeaderError{Leader: leader}
	p := w.refused("follower", w.evidence(w.platform("one", ""), app()), request(), api.CodeNotLeader)
	if p.Leader == nil || p.Leader.APIAddr != "b:2" || p.Leader.ServerID != leader {
		t.Errorf("leader %+v", p.Leader)
	}
	_, err := w.service.PublicKey(t.Context(), api.PublicKeyRequest{Constraint: constraint, Name: "n", Purpose: "age"})
	if p, ok := errors.AsType[*api.Problem](err); !ok || p.Leader == nil || p.Leader.APIAddr != "b:2" {
		t.Errorf("public: %v", err)
	}
	w.service.Peers = func() Peers { return Peers{Leader: leader, Voters: []api.ID{leader}} }
	c, err := w.service.Cluster(t.Context())
	if err != nil || len(c.Members) != 1 || !c.Members[0].Leader || !c.Members[0].Voter || !slices.Equal(c.Voters, []api.ID{leader}) {
		t.Errorf("a follower describes the cluster: %+v %v", c, err)
	}
	if _, err := c.Verify(w.id); err != nil {
		t.Error(err)
	}
}

// A follower with an old state must not refuse what the leader would allow:
// a refusal is the leader's alone.
func TestFollowerDoesNotRefuse(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	denied := w.evidence(w.platform("one", ""), app(debug))
	w.replica.readErr = &NotLeaderError{Leader: api.ID{7}, APIAddr: "b:2"}
	if p := w.refused("follower", denied, request(), api.CodeNotLeader); p.Leader == nil || p.Leader.APIAddr != "b:2" {
		t.Errorf("leader %+v", p.Leader)
	}
	w.replica.readErr = ErrNoQuorum
	w.refused("cut off", denied, request(), api.CodeNoQuorum)
}

// A new leader refuses for want of collateral that is committed, but which it
// had not applied yet: once it has caught up it decides again.
func TestNewLeaderCatchesUpBeforeRefusing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	none := ev
	none.Collateral = nil
	w.replica.onRead = func() {
		w.replica.onRead = nil
		w.release(ev, request()) // what catching up brings
	}
	w.release(none, request())
}

func TestConfigRefused(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	for name, change := range map[string]func(*Config){
		"replica": func(c *Config) { c.Replica = nil }, "machine": func(c *Config) { c.Machine = nil },
		"verifier": func(c *Config) { c.Verifier = nil }, "secrets": func(c *Config) { c.Secrets = nil },
		"clock": func(c *Config) { c.Clock = nil }, "all": func(c *Config) { *c = Config{} },
	} {
		c := w.config()
		change(&c)
		if s, err := New(c); !errors.Is(err, ErrConfig) || s != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A node put together from parts of two clusters, or under another root of
// trust, serves nothing.
func TestMixedPartsServeNothing(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	other := w.config()
	other.Secrets = must[*Secrets](t)(GenerateSecrets())
	empty := w.config()
	empty.Machine = state.New()
	intel := w.config()
	intel.Verifier = must[*attest.Verifier](t)(attest.NewVerifier(attest.Config{Root: attest.IntelRoot()}))
	zero := w.config()
	zero.Secrets = new(Secrets)
	for name, c := range map[string]struct {
		config Config
		code   api.Code
	}{
		"other secrets": {other, api.CodeInternal}, "no genesis": {empty, api.CodeNoQuorum},
		"other root": {intel, api.CodeInternal}, "zero secrets": {zero, api.CodeInternal},
	} {
		w.service = must[*Service](t)(New(c.config))
		w.refused(name, ev, request(), c.code)
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.release(ev, request())
	w.refused("denied", w.evidence(w.platform("one", ""), app(debug)), request(), api.CodePolicyDenied)
	families, err := w.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			got[m.Label[1].GetValue()+" "+m.Label[0].GetValue()] = m.Counter.GetValue()
		}
	}
	if got["release ok"] != 1 || got["release policy_denied"] != 1 || len(got) != 2 {
		t.Errorf("counted %v", got)
	}
}

// Many enclaves ask at once on a fresh cluster, each with the same new
// collateral: every one gets its key, and every receipt its own leaf.
func TestConcurrentReleases(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	const n = 32
	var replies [n]api.KeyReply
	var errs [n]error
	var group sync.WaitGroup
	for i := range n {
		group.Go(func() { replies[i], errs[i] = w.service.Release(t.Context(), ev, request()) })
	}
	group.Wait()
	leaves := map[uint64]bool{}
	for i := range n {
		if errs[i] != nil || !slices.Equal(replies[i].Key, replies[0].Key) {
			t.Fatalf("%d: %v", i, errs[i])
		}
		if _, err := replies[i].CheckReceipt(w.secrets.Identity().Public(), w.id); err != nil {
			t.Error(err)
		}
		leaves[replies[i].Receipt.Index] = true
	}
	if size := w.machine.View().Log.Size; len(leaves) != n || size != n+1 {
		t.Errorf("%d leaves, log of %d", len(leaves), size)
	}
}

func BenchmarkRelease(b *testing.B) {
	w := newWorld(b)
	ev := w.evidence(w.platform("one", ""), app())
	for b.Loop() {
		if _, err := w.service.Release(b.Context(), ev, request()); err != nil {
			b.Fatal(err)
		}
	}
}
