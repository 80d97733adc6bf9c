package kds

import (
	"context"
	"crypto/ed25519"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/claviger/claviger/attest"
	"github.com/claviger/claviger/attest/sgx"
	"github.com/claviger/claviger/attest/simpki"
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
	onRead  func()                    // during the next SafeRead
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

func (r *replica) SafeRead(context.Context) error {
	if r.onRead != nil {
		r.onRead()
	}
	return r.readErr
}

// world is a cluster of one node, a simulated Intel and enclaves to attest.
type world struct {
	t        testing.TB
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

// platformKey is the key of the collateral of every platform in these tests.
var platformKey = state.CollateralKey{TEE: "sgx", FMSPC: simpki.DefaultFMSPC, CA: "platform"}

const nodePolicy = "C:4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e4e SEC:STALE"

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{t: t, clock: start, machine: state.New(), registry: prometheus.NewRegistry()}
	w.pki = must[*simpki.PKI](t)(simpki.New(simpki.Config{Seed: [32]byte{1}, Now: start.AddDate(0, -6, 0)}))
	w.secrets = must[*Secrets](t)(GenerateSecrets())
	w.replica = &replica{machine: w.machine}
	w.service = must[*Service](t)(New(w.config()))
	operator := ed25519.NewKeyFromSeed(make([]byte, 32)).Public().(ed25519.PublicKey)
	manifest := api.Manifest{
		Version: 1, Name: "test", Root: api.RootOfTrust{ID: w.pki.Root().ID(), Simulated: true}, NodePolicy: []string{nodePolicy},
		Operators: api.Operators{Threshold: 1, Keys: [][]byte{operator}}, Nonce: [32]byte{1}, OpenSlots: api.MaxOpenSlots,
	}
	raw := must[[]byte](t)(manifest.Marshal())
	founded := must[state.Founded](t)(propose[state.Founded](t.Context(), w.replica, &state.Genesis{
		Level: state.Level, Manifest: raw, IdentityKey: w.secrets.Identity().Public(), Epoch: 1, Generation: 1}))
	w.id = founded.ClusterID
	must[state.Committed](t)(propose[state.Committed](t.Context(), w.replica, &state.CommitRoots{Epoch: 1, IDs: w.secrets.GenerationIDs()}))
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

// version is the first one of a generation that the world's roots have.
func (w *world) version(generation uint64) api.Version {
	return api.Version{Generation: generation, Counter: 1, GenerationID: w.secrets.GenerationIDs()[generation-1]}
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
