package kds

import (
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
	"github.com/claviger/claviger/attest/tdx"
	"github.com/claviger/claviger/kds/api"
	"github.com/claviger/claviger/kds/state"
)

var start = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

var binding = [64]byte{1, 2, 3}

// replica applies to one machine at once, and fails when told to.
type replica struct {
	mu      sync.Mutex
	machine *state.Machine
	index   uint64
	err     error                     // of every Propose
	readErr error                     // of every SafeRead
	lose    bool                      // commit, and then lose the answer
	before  func(e state.Entry) error // before an entry is applied
	kinds   []string                  // what was proposed
}

func (r *replica) Propose(ctx context.Context, raw []byte) (uint64, any, error) {
	e, err := state.Decode(raw)
	if err != nil {
		return 0, nil, err
	}
	if r.before != nil {
		if err := r.before(e); err != nil {
			return 0, nil, err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return 0, nil, r.err
	}
	switch e.(type) {
	case *state.Release:
		r.kinds = append(r.kinds, "release")
	case *state.PutCollateral:
		r.kinds = append(r.kinds, "put")
	}
	r.index++
	result := r.machine.Apply(r.index, raw)
	if r.lose {
		return 0, nil, ErrNoQuorum
	}
	return r.index, result, ctx.Err()
}

func (r *replica) SafeRead(context.Context) error { return r.readErr }

// world is a cluster of one node, a simulated Intel and enclaves to attest.
type world struct {
	t        *testing.T
	pki      *simpki.PKI
	replica  *replica
	machine  *state.Machine
	service  *Service
	secrets  *Secrets
	registry *prometheus.Registry
	clock    time.Time
	id       api.ID
}

func must[T any](t testing.TB) func(T, error) T {
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

const nodePolicy = "C:4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e SEC:STALE"

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, clock: start, machine: state.New(), registry: prometheus.NewRegistry()}
	w.pki = must[*simpki.PKI](t)(simpki.New(simpki.Config{Seed: [32]byte{1}, Now: start.AddDate(0, -6, 0)}))
	w.secrets = must[*Secrets](t)(GenerateSecrets())
	w.replica = &replica{machine: w.machine}
	w.service = must[*Service](t)(New(w.config()))
	operator := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	manifest := api.Manifest{
		Version: 1, Name: "test", Root: api.RootOfTrust{ID: w.pki.Root().ID(), Simulated: true}, NodePolicy: []string{nodePolicy},
		Operators: api.Operators{Threshold: 1, Keys: [][]byte{operator}}, Nonce: [32]byte{1},
	}
	raw := must[[]byte](t)(manifest.Marshal())
	founded := must[state.Founded](t)(propose[state.Founded](t.Context(), w.replica, &state.Genesis{
		Level: 1, Manifest: raw, IdentityKey: w.secrets.Identity().Public(), Epoch: 1, Generation: 1}))
	w.id = founded.ClusterID
	return w
}

func (w *world) config() Config {
	return Config{
		Replica: w.replica, Machine: w.machine, Secrets: w.secrets, Clock: func() time.Time { return w.clock }, Registerer: w.registry,
		Verifier: must[*attest.Verifier](w.t)(attest.NewVerifier(attest.Config{Root: w.pki.Root()})),
	}
}

func (w *world) platform(name string, status attest.Status) *simpki.Platform {
	w.t.Helper()
	return must[*simpki.Platform](w.t)(w.pki.Platform(simpki.PlatformConfig{Name: name, TCB: status}))
}

// app is the report of the enclave in these tests; its MRENCLAVE is a1….
func app(change ...func(*sgx.Report)) sgx.Report {
	r := sgx.Report{ISVProdID: 7, ISVSVN: 3, ReportData: binding}
	r.Attributes[0] = 0x05 // INIT, MODE64BIT
	for i := range r.MREnclave {
		r.MREnclave[i], r.MRSigner[i] = 0xa1, 0x49
	}
	for _, f := range change {
		f(&r)
	}
	return r
}

func debug(r *sgx.Report) { r.Attributes[0] |= 2 }

const (
	code       = "C:a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1a1"
	constraint = code + " SEC:STALE"
)

// evidence is a quote of p over r with today's collateral.
func (w *world) evidence(p *simpki.Platform, r sgx.Report) api.Evidence {
	w.t.Helper()
	return api.Evidence{Quote: must[[]byte](w.t)(p.QuoteSGX(r)), Collateral: w.bundle(w.clock), Binding: binding}
}

func (w *world) bundle(at time.Time) []byte {
	w.t.Helper()
	c := must[*attest.Collateral](w.t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, at))
	return must[[]byte](w.t)(c.Marshal())
}

func request() api.KeyRequest {
	return api.KeyRequest{Constraint: constraint, Name: "db", Purpose: "aes-256"}
}

// refused releases, and demands the code, an empty reply and an untouched log.
func (w *world) refused(name string, ev api.Evidence, req api.KeyRequest, code api.Code) *api.Problem {
	w.t.Helper()
	before := w.machine.View().Log
	reply, err := w.service.Release(w.t.Context(), ev, req)
	p, ok := errors.AsType[*api.Problem](err)
	if !ok || p.Code != code || p.Detail == "" {
		w.t.Errorf("%s: %v, want code %s", name, err, code)
	}
	if reply.Key != nil || reply.Receipt.Record != nil || reply.Realm != "" {
		w.t.Errorf("%s: a reply beside the refusal", name)
	}
	if w.machine.View().Log != before {
		w.t.Errorf("%s: a refusal is in the release log", name)
	}
	if p == nil {
		p = &api.Problem{}
	}
	return p
}

func (w *world) release(ev api.Evidence, req api.KeyRequest) api.KeyReply {
	w.t.Helper()
	reply, err := w.service.Release(w.t.Context(), ev, req)
	if err != nil {
		w.t.Fatal(err)
	}
	return reply
}

func clauses(p *api.Problem) []string {
	var out []string
	for _, f := range p.Failures {
		out = append(out, f.Clause)
	}
	return out
}

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
	if first.Realm != "sim" || first.Constraint != constraint || first.Version != (api.Version{Generation: 1, Counter: 1}) {
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

// Policy, epoch or collateral move between decision and record: Apply rejects
// the record on every node, and there is no key.
func TestRejectedRecordGivesNoKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.release(ev, request())
	day := w.clock
	rounds := 0
	w.replica.before = func(e state.Entry) error {
		if _, is := e.(*state.Release); !is {
			return nil
		}
		rounds++ // a TCB recovery is replicated just before each record
		day = day.AddDate(0, 0, 1)
		c := must[*attest.Collateral](t)(w.pki.Collateral(attest.SGX, simpki.DefaultFMSPC, day))
		put := &state.PutCollateral{Epoch: 1, Key: state.CollateralKey{TEE: "sgx", FMSPC: simpki.DefaultFMSPC, CA: "platform"},
			Bundle: must[[]byte](t)(c.Marshal()), Meta: state.CollateralMeta{TCBEvaluation: uint64(1000 + rounds), QEEvaluation: 1000,
				TCBInfoIssue: day.Unix(), QEIdentityIssue: day.Unix(), RootCRLNumber: []byte{0xff, 0xff, 0xff, 0xff, 0xff}, PCKCRLNumber: []byte{0xff, 0xff, 0xff, 0xff, 0xff},
				LatestIssue: day.Unix(), CollateralSHA256: [32]byte{byte(rounds)}}}
		w.replica.mu.Lock()
		defer w.replica.mu.Unlock()
		w.replica.index++
		if err, bad := w.machine.Apply(w.replica.index, must[[]byte](t)(state.Encode(put))).(error); bad {
			t.Fatal(err)
		}
		return nil
	}
	w.refused("collateral moves in every round", ev, request(), api.CodeStale)
	if rounds != attempts {
		t.Errorf("%d rounds, want %d", rounds, attempts)
	}
}

// A set moves once: the release decides again by the new set and succeeds.
func TestReleaseDecidesAgain(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	ev := w.evidence(w.platform("one", ""), app())
	w.release(ev, request())
	w.clock = w.clock.AddDate(0, 0, 2)
	newer := w.evidence(w.platform("two", ""), app())
	moved := false
	w.replica.before = func(e state.Entry) error {
		if _, is := e.(*state.Release); is && !moved {
			moved = true
			w.release(newer, request()) // another enclave brings newer collateral in between
		}
		return nil
	}
	old := ev
	old.Collateral = nil
	reply := w.release(old, request())
	record, err := reply.CheckReceipt(w.secrets.Identity().Public(), w.id)
	if err != nil || record.Collateral != 2 || !moved {
		t.Fatalf("%+v %v", record, err)
	}
}

// A host keeps the collateral from before a TCB recovery and replays it.
func TestStaleCollateralReplay(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	victim := w.platform("unpatched", "")
	before := w.evidence(victim, app())
	secure := request()
	secure.Constraint = code + " SEC:SECURE"
	w.release(before, secure)
	w.clock = w.clock.AddDate(0, 0, 2)
	if err := w.pki.Recover(w.clock.AddDate(0, 0, -1)); err != nil {
		t.Fatal(err)
	}
	w.release(w.evidence(w.platform("patched", ""), app()), secure) // brings the new collateral
	replayed := w.evidence(victim, app())
	replayed.Collateral = before.Collateral
	p := w.refused("old collateral after a TCB recovery", replayed, secure, api.CodePolicyDenied)
	if len(p.Failures) != 1 || p.Failures[0].Got != "OutOfDate" {
		t.Errorf("failures %+v", p.Failures)
	}
	none := replayed
	none.Collateral = nil
	w.refused("no collateral after a TCB recovery", none, secure, api.CodePolicyDenied)
	if c, _ := w.machine.Collateral(state.CollateralKey{TEE: "sgx", FMSPC: simpki.DefaultFMSPC, CA: "platform"}); c.Version != 2 {
		t.Errorf("collateral version %d: the old set came back", c.Version)
	}
}

// Before anybody has brought newer collateral, evidence that brings its own
// revocation is refused all the same.
func TestOfferedRevocationCounts(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	w.release(w.evidence(p, app()), request())
	w.clock = w.clock.AddDate(0, 0, 1)
	w.pki.Revoke(p, w.clock)
	if got := w.refused("revoked platform", w.evidence(p, app()), request(), api.CodeEvidenceRefused); got.Stage != "revocation" {
		t.Errorf("stage %q", got.Stage)
	}
}

// An app's host serves an expired bundle: the replicated set decides. Once
// that has expired too, nothing is released until somebody brings a new one.
func TestExpiredCollateral(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	old := w.bundle(w.clock.AddDate(0, 0, -40))
	ev := w.evidence(p, app())
	w.release(ev, request())
	ev.Collateral = old
	w.release(ev, request())
	w.clock = w.clock.AddDate(0, 0, 40)
	if got := w.refused("everything expired", ev, request(), api.CodeEvidenceRefused); got.Stage != "revocation" && got.Stage != "collateral" {
		t.Errorf("stage %q", got.Stage)
	}
	w.release(w.evidence(p, app()), request())
}

// The host sets the clock back: the time floor, moved by signed times alone,
// keeps expired collateral expired.
func TestClockSetBack(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	p := w.platform("one", "")
	expiring := request()
	expiring.Constraint = constraint + " EXPIRE:P10D"
	old := w.evidence(p, app())
	w.clock = w.clock.AddDate(0, 0, 20)
	tdxQuote := tdx.Body{ReportData: binding}
	binary.LittleEndian.PutUint64(tdxQuote.TDAttributes[:], 1<<28)
	for i := range tdxQuote.MRTD {
		tdxQuote.MRTD[i] = 0xd0
	}
	c := must[*attest.Collateral](t)(w.pki.Collateral(attest.TDX, simpki.DefaultFMSPC, w.clock))
	td := api.Evidence{Quote: must[[]byte](t)(p.QuoteTDX(tdxQuote)), Collateral: must[[]byte](t)(c.Marshal()), Binding: binding}
	req := request()
	req.Constraint = "TD:" + hex.EncodeToString(tdxQuote.MRTD[:]) + " FIRMWARE_ONLY_UNSAFE"
	w.release(td, req) // a TD brings collateral of day 20, which moves the floor
	w.clock = start
	if got := clauses(w.refused("clock set back", old, expiring, api.CodePolicyDenied)); !slices.Equal(got, []string{"EXPIRE"}) {
		t.Errorf("failures %v", got)
	}
	if floor := w.machine.View().TimeFloor; floor.Before(start.AddDate(0, 0, 19)) {
		t.Errorf("time floor %s", floor)
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
	admitted := &state.Admit{Epoch: 1, NodePolicy: 1, Slot: "b", Incarnation: 1, ServerID: leader, PlatformID: [32]byte{1}, RaftAddr: "b:1", APIAddr: "b:2"}
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
	if err != nil || len(c.Members) != 1 || !c.Members[0].Leader || !c.Members[0].Voter {
		t.Errorf("a follower describes the cluster: %+v %v", c, err)
	}
	if _, err := c.Verify(w.id); err != nil {
		t.Error(err)
	}
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
